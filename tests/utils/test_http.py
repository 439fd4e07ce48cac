"""What all clients of web services share: waits, bounds, addresses, keys."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from saesteer.utils.errors import ConfigError, NetworkError
from saesteer.utils.http import (
    Key,
    Patience,
    UnansweredError,
    is_plain_address,
    key_in,
    parsed_json,
    request,
    retry_after,
    said_by_server,
)


@pytest.fixture
def server(http_server):
    """A server on this machine, and the answers that it gives one after the other."""
    answers: list[tuple[int, dict[str, str], bytes]] = []

    def answer(_):
        status, headers, body = answers.pop(0)
        return status, body, headers

    return http_server(answer), answers


def test_a_busy_service_is_asked_again_with_the_key_after_the_wait_it_names(server, monkeypatch):
    service, answers = server
    monkeypatch.setenv("SOME_KEY", " k3y\n")
    answers += [(429, {"Retry-After": "7"}, b""), (500, {}, b""), (200, {}, b'{"for": "k3y"}')]
    waits: list[float] = []
    reply = request("POST", service.url, payload={}, key=Key("SOME_KEY"), sleep=waits.append)
    assert reply.json == {"for": "***"}
    assert waits == [7.0, 2.0]
    assert [asked.headers["Authorization"] for asked in service.asked] == ["Bearer k3y"] * 3
    # Other refusals are the caller's to say.
    answers.append((404, {}, b"{}"))
    assert request("POST", service.url).status == 404


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((503, {}, b'{"error": "full"}'), UnansweredError, r"in 2 attempts \(status 503: full\)"),
        ((429, {"Retry-After": "999"}, b""), NetworkError, "asks to wait 999 s"),
        ((401, {}, b""), NetworkError, "refuses the key .*environment variable SOME_KEY"),
        ((302, {"Location": "http://other/"}, b""), NetworkError, "sends on to other"),
        ((200, {}, b"x" * 2000), UnansweredError, "more than 1,000 bytes"),
    ],
)
def test_what_does_not_answer_is_said_without_the_key(server, monkeypatch, answer, kind, message):
    service, answers = server
    monkeypatch.setenv("SOME_KEY", "k3y")
    answers += [answer] * 2
    patience = Patience(attempts=2, largest=1000)
    with pytest.raises(kind, match=message) as caught:
        request("POST", service.url, key=Key("SOME_KEY"), patience=patience, sleep=lambda _: None)
    assert "k3y" not in str(caught.value)
    monkeypatch.setenv("SOME_KEY", "k3y\nInjected: header")
    with pytest.raises(ConfigError, match="SOME_KEY") as refused:
        key_in("SOME_KEY")
    assert "k3y" not in str(refused.value)


def test_a_tls_handshake_that_drips_is_left_when_the_time_is_up():
    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            # The head of a record of 16 kB, which then never fills.
            connection.sendall(b"\x16\x03\x03\x40\x00")
            while not stopped.wait(0.1):
                connection.sendall(b"\x02")

    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        with pytest.raises(UnansweredError, match=r"no complete answer in 0.5 s"):
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            request("GET", url, patience=Patience(timeout=0.5, attempts=1))
        assert time.monotonic() - start < 3
        stopped.set()
        thread.join()


@pytest.mark.parametrize(
    "drip",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 90,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 90,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 900,
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"x" * 900,
    ],
)
def test_a_server_that_drips_is_left_when_the_time_for_the_whole_exchange_is_up(drip):
    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65_536)
            for at in range(0, len(drip), 10):
                connection.sendall(drip[at : at + 10])
                stopped.wait(0.1)

    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        with pytest.raises(UnansweredError, match=r"no complete answer in 0.5 s") as caught:
            request(
                "GET",
                f"http://127.0.0.1:{listener.getsockname()[1]}",
                patience=Patience(timeout=0.5, attempts=1),
            )
        assert time.monotonic() - start < 3
        assert caught.value.unread == 1
        stopped.set()
        thread.join()


def test_what_is_read_of_headers_addresses_and_bodies():
    waits = {" 1.5 ": 1.5, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0, "Wed, 99 Foo 2015": None}
    waits |= {"1e9": None, "9" * 400: None, None: None}
    assert {header: retry_after(header) for header in waits} == waits
    plain = {"http://localhost:8000/v1": True, "ftp://example.org": False, "https://[": False}
    plain |= {f"https://{rest}": False for rest in ("me:word@a.org", "a.org?key=1", "a.org:99999")}
    assert {url: is_plain_address(url) for url in plain} == plain
    bodies = {b'["\\ud83d\\ude42", "\\uD83D"]': ["\U0001f642", "?"], b'"\\\\ud83d"': "\\ud83d"}
    bodies |= {b"[" * 100_000: None, b"\xff": None}
    assert {body: parsed_json(body) for body in bodies} == bodies
    said = {b'{"message": "Not\\n found"}': ": Not found", b'{"error": ["a"]}': "", b"<html>": ""}
    said |= {b'{"error": {"message": "deep"}}': ": deep"}
    assert {body: said_by_server(body) for body in said} == said
