"""A second look-up touches no network; offline what was answered once still is."""

from __future__ import annotations

import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from saesteer.saes.neuronpedia import Cache
from saesteer.utils.errors import NetworkError, OutputError

from .player import PLACE, as_json

KEY = "sk-np+secret/key=="


def test_a_second_look_up_asks_nothing_whoever_asks(player, client_to):
    def look_up(client):
        return [
            client.feature(PLACE, 3),
            client.features(PLACE, [4, 5, 9998]),
            client.search(PLACE, "kindness"),
            client.firing_on(PLACE, "be kind"),
            client.similar(PLACE, 3),
            client.steer(PLACE, "I think", {3: 5.0}),
            # That something is not there is remembered too.
            client.feature(PLACE, 9999),
        ]

    asked = look_up(client_to())
    n_calls = len(player.calls)
    assert look_up(client_to()) == asked
    assert len(player.calls) == n_calls
    # A part that is new is all that is asked for.
    client_to().features(PLACE, [4, 6, 5])
    assert [one["index"] for one in player.calls[-1][2]] == [6]


def test_an_old_answer_is_asked_for_again_and_better_than_none_offline(player, client_to):
    now = [1000.0]
    client = client_to(now=lambda: now[0], max_age=60)
    for wait, calls in ((0, 1), (59, 1), (2, 2)):
        now[0] += wait
        client.feature(PLACE, 3)
        assert len(player.calls) == calls
    now[0] += 10**9
    offline = client_to(now=lambda: now[0], offline=True)
    assert offline.feature(PLACE, 3).index == 3
    with pytest.raises(NetworkError, match="switches the network off"):
        offline.feature(PLACE, 4)
    assert len(player.calls) == 2
    player.faults = [as_json({}, 500)] * 5
    assert client_to(now=lambda: now[0]).feature(PLACE, 3).index == 3
    assert len(player.calls) == 7


def test_neither_key_nor_an_answer_that_echoes_it_is_kept(player, client_to, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    client = client_to()
    client.feature(PLACE, 3)
    client.steer(PLACE, "I think", {3: 5.0})
    player.faults = [as_json({"STEERED": KEY, "DEFAULT": "", "apiKey": KEY})]
    assert client.steer(PLACE, "I hope", {3: 5.0}).steered == "***"
    kept = client.cache
    files = list(kept.path.parent.iterdir())
    assert kept.path in files
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    with sqlite3.connect(kept.path) as database:
        bodies = [zlib.decompress(row[0]) for row in database.execute("select body from replies")]
    assert len(bodies) == 3
    assert not any(KEY.encode() in body for body in bodies)


def test_many_threads_write_one_file_at_once(tmp_path):
    path = tmp_path / "new folder, 100%?" / "cache.sqlite"

    def write(thread: int) -> None:
        for number in range(20):
            Cache(path).put({f"{thread}/{number}": {"n": number}})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    kept = Cache(path).get([f"{t}/{n}" for t in range(6) for n in range(20)])
    assert len(kept) == 120
    assert kept["3/7"] == {"n": 7}


def test_a_file_that_cannot_be_used_is_a_sentence_that_says_what_to_do(tmp_path):
    path = tmp_path / "cache.sqlite"
    # Reading makes no file.
    assert (Cache(path).get(["a"]), Cache(path).labels(PLACE)) == ({}, {})
    assert Cache(path).feature(PLACE, 3) is None and not path.exists()
    for content in (b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 99):
        path.write_bytes(content)
        with pytest.raises(OutputError, match=r"cannot be used .*delete the file"):
            Cache(path).get(["a"])
    with pytest.raises(OutputError, match="SAESTEER_CACHE"):
        Cache(path / "cache.sqlite").put({"a": 1})
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(OutputError, match="version 99"):
        Cache(path).put({"a": 1})


def test_a_cache_that_can_only_be_read_answers_and_stays_as_it_is(player, client_to, monkeypatch):
    client = client_to()
    assert client.feature(PLACE, 3) is not None
    folder = client.cache.path.parent
    monkeypatch.setattr("saesteer.saes.neuronpedia.cache.os.access", lambda *_: False)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    # An answer that cannot be kept is given all the same.
    assert client_to().feature(PLACE, 4).index == 4
    assert list(client_to().features(PLACE, [5])) == [5]
    player.calls.clear()
    assert client_to().feature(PLACE, 3) is not None
    assert player.calls == []
    with pytest.raises(OutputError, match=r"neuronpedia\.sqlite cannot be used .*SAESTEER_CACHE"):
        Cache(client.cache.path).put({"more": 2})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
