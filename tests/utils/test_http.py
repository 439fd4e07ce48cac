"""What all clients of web services share: waits, bounds, addresses, keys."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

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
def server(monkeypatch):
    """A server on this machine that gives the answers it is told, one after the other."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers: list[tuple[int, dict[str, str], bytes]] = []
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.headers.get("Authorization"))
            status, headers, body = answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/ask", answers, seen
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_busy_service_is_asked_again_with_the_key_after_the_wait_it_names(server, monkeypatch):
    url, answers, seen = server
    monkeypatch.setenv("SOME_KEY", " k3y\n")
    answers += [(429, {"Retry-After": "7"}, b""), (500, {}, b""), (200, {}, b'{"for": "k3y"}')]
    waits: list[float] = []
    reply = request("POST", url, payload={}, key=Key("SOME_KEY"), sleep=waits.append)
    assert reply.json == {"for": "***"}
    assert waits == [7.0, 2.0]
    assert seen == ["Bearer k3y"] * 3


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((503, {}, b'{"error": "full"}'), UnansweredError, r"in 2 attempts \(status 503: full\)"),
        ((429, {"Retry-After": "999"}, b""), NetworkError, "asks to wait 999 s"),
        ((401, {}, b""), NetworkError, "refuses the key .*environment variable SOME_KEY"),
        ((302, {"Location": "http://other/"}, b""), NetworkError, "sends on to other"),
        ((200, {}, b"x" * 2000), UnansweredError, "no complete answer"),
    ],
)
def test_what_does_not_answer_is_said_without_the_key(server, monkeypatch, answer, kind, message):
    url, answers, _ = server
    monkeypatch.setenv("SOME_KEY", "k3y")
    answers += [answer] * 2
    patience = Patience(attempts=2, largest=1000)
    with pytest.raises(kind, match=message) as caught:
        request("POST", url, key=Key("SOME_KEY"), patience=patience, sleep=lambda _: None)
    assert "k3y" not in str(caught.value)


def test_other_refusals_are_the_callers_to_say(server):
    url, answers, _ = server
    answers.append((404, {}, b"{}"))
    assert request("POST", url).status == 404


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (" 1.5 ", 1.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00", 0.0),
        ("1e9", None),
        ("9" * 400, None),
        (None, None),
        ("Wed, 99 Foo 2015", None),
    ],
)
def test_retry_after_is_read_or_left(header, wait):
    assert retry_after(header) == wait


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://localhost:8000/v1", True),
        ("ftp://example.org", False),
        ("https://me:word@example.org", False),
        ("https://example.org?key=1", False),
        ("https://example.org:99999", False),
        ("https://[", False),
    ],
)
def test_only_plain_addresses_are_taken(url, plain):
    assert is_plain_address(url) is plain


def test_a_key_with_a_line_break_in_it_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret\nInjected: header")
    with pytest.raises(ConfigError, match="SOME_KEY") as caught:
        key_in("SOME_KEY")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'["\\ud83d\\ude42", "\\uD83D"]', ["\U0001f642", "?"]),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_json_is_text_that_can_be_written_or_none(body, found):
    assert parsed_json(body) == found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"message": "Not\\n found"}', ": Not found"),
        (b'{"error": {"message": "deep"}}', ": deep"),
        (b'{"error": ["a"]}', ""),
        (b"<html>", ""),
    ],
)
def test_a_servers_message_is_one_line(body, said):
    assert said_by_server(body) == said
