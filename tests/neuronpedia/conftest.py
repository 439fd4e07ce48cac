"""A local player of Neuronpedia's documented API and of its bucket; nothing asks the service."""

from __future__ import annotations

import pytest

from saesteer.saes.neuronpedia import Cache, Neuronpedia, Service, Transport

from .player import Player


@pytest.fixture
def player(monkeypatch):
    """A server on this machine that answers as the documentation says."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    made = Player()
    yield made
    made.stop()


@pytest.fixture
def transport_to(player):
    """A transport to the player that writes down its waits instead of waiting."""

    def make(**settings):
        waits: list[float] = []
        chosen = {"base_url": player.api, "bucket_url": player.bucket, "timeout": 2.0}
        chosen |= {"slow_timeout": 2.0, **settings}
        made = Transport(Service(**chosen), sleep=waits.append, chance=lambda: 0.0)
        return made, waits

    return make


@pytest.fixture
def client_to(transport_to, tmp_path):
    """A client of the player with a cache."""

    def make(*, now=None, max_age=1000.0, **settings):
        clock = {} if now is None else {"now": now}
        cache = Cache(tmp_path / "cache" / "neuronpedia.sqlite", **clock)
        return Neuronpedia(cache=cache, max_age=max_age, transport=transport_to(**settings)[0])

    return make
