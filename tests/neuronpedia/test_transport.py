"""A busy, broken, lying or missing service: waits, sentences, and never a word of the key."""

from __future__ import annotations

import io
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from saesteer.saes.neuronpedia import Service
from saesteer.utils.errors import ConfigError, NetworkError

from .player import BUSY, PLACE, Player, as_json

KEY = "sk-np+secret/key=="
PATH = f"/feature/{PLACE}/3"
BUSY_BODY = {"error": BUSY, "remainingRequests": 0}


def test_one_connection_serves_many_requests(player, service_to):
    service, _ = service_to()
    for index in range(5):
        assert service.json("GET", f"/feature/{PLACE}/{index}")["index"] == str(index)
    assert len(player.connections) == 1
    assert service.remaining == 24999
    # The service says null for some features that it lacks.
    player.faults = [as_json(None)]
    assert service.json("GET", PATH) is None


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({}, 1.0, 1.0),
        ({"Retry_After": "date"}, 20.0, 30.0),
        ({"Retry_After": "7", "x_limit_remaining": "0"}, 7.0, 7.0),
    ],
)
def test_a_busy_service_is_asked_again_after_the_wait_it_names(
    player, service_to, headers, low, high
):
    if headers.get("Retry_After") == "date":
        headers = {"Retry_After": format_datetime(datetime.now(UTC) + timedelta(seconds=30))}
    player.faults = [as_json(BUSY_BODY, 429, **headers)]
    service, waits = service_to()
    assert service.json("GET", PATH)["index"] == "3"
    assert len(waits) == 1 and low <= waits[0] <= high


HTML = (200, b"  <!DOCTYPE html><html>Just a moment...</html>", {"Content-Type": "text/html"})
USED_UP = as_json(BUSY_BODY, 429, x_limit_remaining="0")


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        (USED_UP, 1, r"no more requests left .*Rate limit exceeded"),
        (as_json({"message": "Unknown Error"}, 500), 4, r"in 4 attempts \(status 500: Unknown Err"),
        ((200, b" " * 50_000, {}), 4, "no complete answer"),
        (HTML, 1, "web page instead of JSON"),
        ((404, b"<html>404</html>", {}), 1, r"status 404.*check the address"),
    ],
)
def test_what_gives_no_answer_is_a_sentence(player, service_to, fault, calls, said):
    player.faults = [fault] * 9
    with pytest.raises(NetworkError, match=said):
        service_to(attempts=4, largest=10_000)[0].json("GET", PATH)
    assert len(player.calls) == calls


@pytest.mark.parametrize("fault", ["hang", "drip", "cut", (200, b'{"a": [', {})])
def test_slow_and_cut_off_answers_are_asked_for_again(player, service_to, fault):
    player.faults = [fault]
    start = time.monotonic()
    service, waits = service_to(timeout=0.3)
    assert service.json("GET", PATH)["index"] == "3"
    assert time.monotonic() - start < 3
    assert waits == [1.0]


def test_nobody_listening_is_a_sentence_soon_and_without_the_key(service_to, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    service, waits = service_to(base_url="http://127.0.0.1:9/api", attempts=9)
    with pytest.raises(NetworkError, match=r"no answer \(ConnectionError\).*kept") as caught:
        service.json("GET", PATH)
    assert waits == [1.0, 2.0] and not _leaks(caught.value)
    wrong: list[Any] = [
        {"base_url": "neuronpedia.org"},
        {"base_url": f"https://me:{KEY}@host/api"},
        {"bucket_url": "ftp://x"},
    ]
    for settings in wrong:
        with pytest.raises(ConfigError) as refused:
            Service(**settings)
        assert "secret" not in str(refused.value)


def test_offline_asks_nothing(player, service_to):
    service, _ = service_to(offline=True)
    with pytest.raises(NetworkError, match="SAESTEER_OFFLINE"):
        service.json("GET", PATH)
    with pytest.raises(NetworkError, match="SAESTEER_OFFLINE"):
        service.fetch("a", io.BytesIO())
    assert player.calls == []


def test_the_key_does_not_follow_to_another_host(player, service_to, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    other = Player()
    try:
        there = other.root.replace("127.0.0.1", "localhost")
        player.faults = [(302, b"", {"Location": f"{there}/api{PATH}"})]
        with pytest.raises(NetworkError, match="sends on to localhost"):
            service_to()[0].json("GET", PATH)
        assert other.calls == []
    finally:
        other.stop()


def test_the_key_goes_to_the_api_alone_and_no_password_goes_anywhere(
    player, service_to, monkeypatch, tmp_path
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    service, _ = service_to()
    service.json("GET", PATH)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", f" {KEY}\n")
    service.json("GET", PATH)
    service.listing({"prefix": "v1/"})
    assert [headers.get("x-api-key") for headers in player.headers] == [None, KEY, None]
    assert all("Authorization" not in headers for headers in player.headers)


def _leaks(error: BaseException | None) -> bool:
    """Whether the key shows in a traceback, or in any exception that hangs on this one."""
    while error is not None:
        shown = "".join(traceback.TracebackException.from_exception(error).format())
        if KEY in shown or KEY in repr(vars(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@pytest.mark.parametrize("status", [401, 302, 200])
def test_no_failure_shows_the_key(player, service_to, monkeypatch, capfd, status):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    body = {"message": f"no\nluck for {KEY}"} if status != 200 else f"<{KEY}"
    answer = as_json(body, status, Location=f"http://{KEY}/")
    player.faults = [answer if status != 200 else (200, f"<html>{KEY}".encode(), {})] * 5
    with pytest.raises(NetworkError) as caught:
        service_to()[0].json("GET", PATH)
    shown = capfd.readouterr()
    assert not _leaks(caught.value)
    assert KEY not in shown.out + shown.err
    if status == 401:
        assert "NEURONPEDIA_API_KEY" in str(caught.value)


def test_the_environment_names_addresses_and_switches_the_network_off(monkeypatch):
    for name in ("SAESTEER_OFFLINE", "HF_HUB_OFFLINE", "NEURONPEDIA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert Service().base_url == "https://www.neuronpedia.org/api"
    assert Service().site == "https://www.neuronpedia.org"
    assert not Service().offline
    monkeypatch.setenv("NEURONPEDIA_BASE_URL", "http://localhost:3000/api/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Service().base_url == "http://localhost:3000/api"
    assert Service().offline and not Service(offline=False).offline
