"""A local player of Neuronpedia's documented API and of its bucket; nothing asks the service."""

from __future__ import annotations

import pytest

from saesteer.saes.neuronpedia import Cache, Neuronpedia, Service
from saesteer.utils.http import Patience

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
def service_to(player):
    """The player as a service that writes down its waits instead of waiting."""

    def make(base_url=None, *, offline=False, **patience):
        waits: list[float] = []
        patience = {"timeout": 2.0, "attempts_unanswered": 3, **patience}
        made = Service(
            base_url or player.api,
            player.bucket,
            offline=offline,
            patience=Patience(**patience),
            slow_timeout=2.0,
            sleep=waits.append,
            chance=lambda: 0.0,
        )
        return made, waits

    return make


@pytest.fixture
def client_to(service_to, tmp_path):
    """A client of the player with a cache."""

    def make(*, now=None, max_age=1000.0, **settings):
        clock = {} if now is None else {"now": now}
        cache = Cache(tmp_path / "cache" / "neuronpedia.sqlite", **clock)
        return Neuronpedia(service_to(**settings)[0], cache=cache, max_age=max_age)

    return make
