"""A busy, broken, lying or missing Neuronpedia: waits, sentences, and never a word of the key.

What every web service has in common is tested in tests/utils/test_http.py.
"""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from saesteer.saes.neuronpedia import Service
from saesteer.utils.errors import ConfigError, NetworkError
from tests.saes.player import BUSY, PLACE, as_json
from tests.texts import leaks

KEY = "sk-np+secret/key=="
PATH = f"/feature/{PLACE}/3"
BUSY_BODY = {"error": BUSY, "remainingRequests": 0}


def test_one_connection_serves_many_requests(player, service_to):
    service, _ = service_to()
    for index in range(5):
        assert service.json("GET", f"/feature/{PLACE}/{index}")["index"] == str(index)
    assert len({asked.port for asked in player.server.asked}) == 1
    assert service.remaining == 24999
    # The service says null for some features that it lacks.
    player.faults = [as_json(None)]
    assert service.json("GET", PATH) is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (as_json(BUSY_BODY, 429, x_limit_remaining="0"), r"no more requests left .*Rate limit ex"),
        ((200, b"  <!DOCTYPE html><html>Just a moment...</html>", {}), "web page instead of JSON"),
        ((404, b"<html>404</html>", {}), r"status 404.*check the address"),
    ],
)
def test_what_gives_no_answer_is_a_sentence_at_once(player, service_to, fault, said):
    player.faults = [fault]
    with pytest.raises(NetworkError, match=said):
        service_to(attempts=4)[0].json("GET", PATH)
    assert len(player.calls) == 1
    # A limit that passes soon is waited for.
    player.faults = [as_json(BUSY_BODY, 429, Retry_After="7", x_limit_remaining="0")]
    service, waits = service_to()
    assert service.json("GET", PATH)["index"] == "3" and waits == [7.0]


@pytest.mark.parametrize("fault", ["hang", "drip", "cut", (200, b'{"a": [', {})])
def test_slow_and_cut_off_answers_are_asked_for_again(player, service_to, fault):
    player.faults = [fault]
    start = time.monotonic()
    service, waits = service_to(timeout=0.3)
    assert service.json("GET", PATH)["index"] == "3"
    assert time.monotonic() - start < 3
    assert waits == [1.0]


def test_offline_asks_nothing(player, service_to):
    service, _ = service_to(offline=True)
    for ask in (lambda: service.json("GET", PATH), lambda: service.fetch("a", io.BytesIO())):
        with pytest.raises(NetworkError, match="SAESTEER_OFFLINE"):
            ask()
    assert player.calls == []


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
    # Nor after the service to where it sends on.
    player.faults = [(302, b"", {"Location": f"{player.root.replace('127.0.0.1', 'localhost')}/"})]
    with pytest.raises(NetworkError, match="sends on to localhost"):
        service.json("GET", PATH)
    assert len(player.calls) == 4


def test_no_failure_shows_the_key(player, service_to, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    message = {"message": f"no\nluck for {KEY}"}
    answers = [as_json(message, status, Location=f"http://{KEY}/") for status in (401, 302)]
    for answer in [*answers, (200, f"<html>{KEY}".encode(), {})]:
        player.faults = [answer]
        with pytest.raises(NetworkError) as caught:
            service_to()[0].json("GET", PATH)
        assert not leaks(caught.value, KEY)
        assert ("NEURONPEDIA_API_KEY" in str(caught.value)) == (answer[0] == 401)
    # Nobody is there.
    service, waits = service_to(base_url="http://127.0.0.1:9/api", attempts=9)
    with pytest.raises(NetworkError, match=r"no answer \(ConnectionError\).*kept") as caught:
        service.json("GET", PATH)
    assert waits == [1.0, 2.0] and not leaks(caught.value, KEY)
    wrong: list[Any] = [{"base_url": f"https://me:{KEY}@host/api"}, {"bucket_url": "ftp://x"}]
    for settings in wrong:
        with pytest.raises(ConfigError) as refused:
            Service(**settings)
        assert "secret" not in str(refused.value)


def test_the_environment_names_addresses_and_switches_the_network_off(monkeypatch):
    for name in ("SAESTEER_OFFLINE", "HF_HUB_OFFLINE", "NEURONPEDIA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    service = Service()
    assert service.base_url == "https://www.neuronpedia.org/api" and not service.offline
    assert service.site == "https://www.neuronpedia.org"
    monkeypatch.setenv("NEURONPEDIA_BASE_URL", "http://localhost:3000/api/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Service().base_url == "http://localhost:3000/api"
    assert Service().offline and not Service(offline=False).offline
