"""What all clients of web services share: waits, addresses, keys."""

from __future__ import annotations

import pytest

from saesteer.utils.errors import ConfigError
from saesteer.utils.http import (
    doubled_wait,
    is_plain_address,
    key_in,
    parsed_json,
    retry_after,
    said_by_server,
)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00", 0.0),
        ("1e9", None),
        ("9" * 400, None),
        ("nan", None),
        ("", None),
        (None, None),
        ("Wed, 99 Foo 2015", None),
    ],
)
def test_retry_after_is_read_or_left(header, wait):
    assert retry_after(header) == wait


def test_waits_double_up_to_the_longest_however_many_attempts():
    assert [doubled_wait(n, 1.0, 6.0) for n in range(5)] == [1, 2, 4, 6, 6]
    assert doubled_wait(10**6, 1.0, 9.0) == 9.0


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://localhost:8000/v1", True),
        ("https://example.org", True),
        ("ftp://example.org", False),
        ("https://me:word@example.org", False),
        ("https://example.org?key=1", False),
        ("https://example.org:99999", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_only_plain_addresses_are_taken(url, plain):
    assert is_plain_address(url) is plain


def test_a_key_with_a_line_break_in_it_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret\nInjected: header")
    with pytest.raises(ConfigError, match="SOME_KEY") as caught:
        key_in("SOME_KEY")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("SOME_KEY", " plain\n")
    assert key_in("SOME_KEY") == "plain"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'["\\ud83d\\ude42", "\\uD83D"]', ["\U0001f642", "?"]),
        (b'{"\\udc00": 1}', {"?": 1}),
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
        (b'{"error": "for k3y: no"}', ": for ***: no"),
        (b'{"error": {"message": "deep"}}', ": deep"),
        (b'{"error": ["a"]}', ""),
        (b"<html>", ""),
        (b"[1]", ""),
    ],
)
def test_a_servers_message_is_one_line_without_the_key(monkeypatch, body, said):
    monkeypatch.setenv("SOME_KEY", "k3y")
    assert said_by_server(body, "SOME_KEY") == said
