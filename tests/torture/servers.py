"""Servers that misbehave, on this machine: each client leaves in time, in little memory, silent
about its key."""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.torture.processes import Child
from tests.torture.world import KEY, Tally, World

# Seconds of one exchange; how often something is asked; what all of it may take, with a margin for
# a machine that is busy. The agent asks a second time, in another way.
TIMEOUT, ATTEMPTS, MOST = 1.0, 2, 15.0
MEGABYTES = 500.0
OK = b"HTTP/1.1 200 OK\r\n"
_JSON = OK + b"Content-Type: application/json\r\n"

Behaviour = Callable[[socket.socket, bytes, threading.Event], None]


def _says(answer: bytes) -> Behaviour:
    return lambda connection, asked, over: connection.sendall(answer.replace(b"<asked>", asked))


def _body(value: Any, head: bytes = _JSON) -> Behaviour:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return _says(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def _forever(begin: bytes, piece: bytes, pause: float) -> Behaviour:
    def answer(connection: socket.socket, asked: bytes, over: threading.Event) -> None:
        connection.sendall(begin)
        while not over.wait(pause):
            connection.sendall(piece)

    return answer


def _reset(connection: socket.socket, asked: bytes, over: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _silent(connection: socket.socket, asked: bytes, over: threading.Event) -> None:
    over.wait(60)


def _status(status: str, headers: bytes = b"", body: bytes = b'{"error": "no"}') -> Behaviour:
    return _says(
        f"HTTP/1.1 {status}\r\n".encode()
        + headers
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


@cache
def _bomb() -> bytes:
    return gzip.compress(b'{"a": "' + b"a" * 300_000_000 + b'"}', 9)


_ZIPPED = _JSON + b"Content-Encoding: gzip\r\n"
_CHAT = {"choices": [{"message": {"content": None}}], "usage": {}}
_ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b2J"
BEHAVIOURS: dict[str, Behaviour] = {
    "silence": _silent,
    "closed at once": _says(b""),
    "reset": _reset,
    "noise": _says(os.urandom(4000)),
    "half a head": _says(b"HTTP/1.1 20"),
    "dripped head": _forever(OK, b"X-More: 1\r\n", 0.1),
    "dripped body": _forever(OK + b"\r\n", b" ", 0.1),
    "endless head": _forever(OK, b"X-More: %s\r\n" % (b"x" * 1000), 0.0),
    "endless line": _forever(b"HTTP/1.1 200 ", b"x" * 60_000, 0.0),
    "endless body": _forever(OK + b"\r\n", b"[" * 60_000, 0.0),
    "endless chunks": _forever(
        _JSON + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n[1,1,\r\n", 0.0
    ),
    "100 for ever": _forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "no chunk": _says(_JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxx"),
    "a huge chunk": _says(_JSON + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{"),
    "too short": _says(_JSON + b'Content-Length: 900\r\n\r\n{"a": 1'),
    "negative length": _says(_JSON + b"Content-Length: -5\r\n\r\n{}"),
    "lengths that differ": _says(_JSON + b"Content-Length: 2\r\nContent-Length: 90\r\n\r\n{}"),
    "no gzip": _body(b"not zipped", _ZIPPED),
    "a gzip bomb": lambda connection, asked, over: _body(_bomb(), _ZIPPED)(connection, asked, over),
    "a page": _body(b"<html>hello</html>", OK),
    "nothing": _body(b""),
    "no UTF-8": _body(b'{"a": "\xff\xfe\xed\xa0\x80"}'),
    "deep JSON": _body(b"[" * 60_000),
    "deep in place": _body(b'{"choices": [{"message": {"content": ' + b'{"a":' * 40_000 + b"1"),
    "a long number": _body(b'{"index": ' + b"9" * 150_000 + b"}"),
    "no number": _body(b'{"index": NaN, "choices": [{"message": {"content": "NaN"}}]}'),
    "a list": _body([1, "a", None]),
    "other types": _body({"choices": {"0": 5}, "index": {}, "explanations": "x", "usage": []}),
    "halves of characters": _body(b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "escapes": _status("404 No\x1b[2J", b"", json.dumps({"message": _ESCAPES}).encode()),
    "escapes in words": _body({"choices": [{"message": {"content": _ESCAPES}}]}),
    "an echo": _status("400 Bad", b"", b'{"error": {"message": "<asked>"}}'),
    "an echo as answer": _body({"choices": [{"message": {"content": "<asked>"}}], "index": "3"}),
    "sent elsewhere": _status("302 Found", b"Location: http://127.0.0.1:9/\r\n"),
    "sent nowhere": _status("301 Moved"),
    "wait a year": _status("429 Busy", b"Retry-After: 31536000\r\n"),
    "wait until NaN": _status("429 Busy", b"Retry-After: NaN\r\n"),
    "busy": _status("503 Busy"),
    "no entry": _status("401 No", b"WWW-Authenticate: Basic\r\n"),
    "an upgrade": _says(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
    "no words": _body(_CHAT),
    "cookies": _status("200 OK", b"Set-Cookie: a=b; Domain=.com\r\n" * 50, b"{}"),
    "no TLS": _forever(b"\x16\x03\x03", b"\x00", 0.1),
}


def ask_neuronpedia(url: str) -> None:
    """Ask for a feature, and for a search."""
    from saesteer.saes.neuronpedia import Neuronpedia, Service
    from saesteer.utils.errors import SaesteerError
    from saesteer.utils.http import Patience
    from saesteer.utils.terminal import say

    patience = Patience(
        timeout=TIMEOUT,
        attempts=ATTEMPTS,
        attempts_unanswered=ATTEMPTS,
        first_wait=0.1,
        longest_wait=1.0,
    )
    service = Service(url, offline=False, patience=patience, slow_timeout=TIMEOUT)
    asked: list[Callable[[], Any]] = [
        lambda: Neuronpedia(service).feature("gpt2-small/6-res-jb", 3),
        lambda: Neuronpedia(service).search("gpt2-small/6-res-jb", "words of kindness"),
    ]
    for ask in asked:
        try:
            say(ask())
        except SaesteerError as error:
            say(error)


def ask_judge(url: str) -> None:
    """Have a text rated."""
    from saesteer.evaluation.llm_client import Endpoint
    from saesteer.evaluation.llm_judge import LlmJudge
    from saesteer.utils.errors import SaesteerError
    from saesteer.utils.terminal import say

    endpoint = Endpoint(
        "m", base_url=url, timeout=TIMEOUT, attempts=ATTEMPTS, first_wait=0.1, longest_wait=1.0
    )
    try:
        say(LlmJudge(endpoint, cache=Path("ratings.jsonl")).rate("kind", ["Why?"], ["Because."]))
    except SaesteerError as error:
        say(error)


def ask_engine(url: str, place: str) -> None:
    """Have a prompt continued, by a server that names its model and by one that is told it."""
    from saesteer.models.loading import load_model
    from saesteer.models.tokens import TokenRow
    from saesteer.steering.engines.base import Request, Requests
    from saesteer.steering.engines.openai import OpenAIEngine
    from saesteer.steering.engines.settings import EngineSettings
    from saesteer.utils.errors import SaesteerError
    from saesteer.utils.terminal import say

    model = load_model(place)
    asked = Requests([Request(TokenRow((1, 2, 3), (True,) * 3))], max_new_tokens=4)
    for name in (None, "m"):
        settings = EngineSettings(
            name="openai", server=url, served_model=name, timeout=TIMEOUT, attempts=ATTEMPTS
        )
        try:
            say(OpenAIEngine(model, settings).generate(asked))
        except SaesteerError as error:
            say(error)


def try_servers(world: World, count: int) -> list[Tally]:
    """Ask so many misbehaving servers, each by every client; see `Tally`."""
    clients = ("Neuronpedia", "judge", "planner", "engine")
    tallies = {client: Tally(client) for client in clients}
    names = list(BEHAVIOURS)
    start = int(world.rng("servers", 0).integers(len(names)))

    def one(number: int) -> None:
        name = names[(start + number // len(clients)) % len(names)]
        client = clients[number % len(clients)]
        secure = name == "no TLS"
        place = world.place()
        with _served(BEHAVIOURS[name], "https" if secure else "http") as url:
            env = {**world.env, "SAESTEER_CACHE": str(place / "cache")}
            if client == "planner":
                child = Child(_agent(world, place, url), place, env=env)
            elif client == "engine":
                child = Child(ask_engine, place, (url, str(world.model)), env=env)
            else:
                call = ask_judge if client == "judge" else ask_neuronpedia
                child = Child(call, place, (url,), env=env)
            outcome = child.end()
        fault = outcome.fault(megabytes=MEGABYTES)
        if fault is None and outcome.seconds > MOST:
            fault = f"it took {outcome.seconds:.1f} s"
        if found := _shown(place):
            fault = f"a key stands in {found}"
        tallies[client].add(name, fault, outcome)

    world.each(one, range(len(clients) * min(count, len(names))))
    return list(tallies.values())


def _agent(world: World, place: Path, url: str) -> list[str]:
    """An agent that asks this planner, refuses what it says a few times, and ends."""
    told = world.settings("agent", place / "runs")
    told["planner"] = {
        "kind": "llm",
        "model": "m",
        "base_url": url,
        "timeout": TIMEOUT,
        "attempts": ATTEMPTS,
        "first_wait": 0.1,
    }
    told["budget"] = {"seconds": 8, "refusals": 2, "experiments": 1}
    file = place / "agent.yaml"
    file.write_text(json.dumps(told))
    return ["agent", str(file)]


def _shown(place: Path) -> Path | None:
    """A file below a place that holds the key."""
    files = (file for file in place.rglob("*") if file.is_file())
    return next((file for file in files if KEY.encode() in file.read_bytes()), None)


@contextmanager
def _served(behaviour: Behaviour, scheme: str) -> Iterator[str]:
    """Yield the address of a server that behaves so towards everybody."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            head = b""
            while b"\r\n\r\n" not in head and scheme == "http":
                piece = connection.recv(65_536)
                if not piece:
                    return
                head += piece
            told = [line for line in head.split(b"\r\n") if KEY.encode() in line]
            behaviour(connection, b" ".join(told), over)
            # What was posted is read, or closing would take the answer away.
            connection.settimeout(0.2)
            while connection.recv(65_536):
                pass

    def serve() -> None:
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/api"
        over.set()
        thread.join()
