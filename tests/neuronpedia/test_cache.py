"""A second look-up touches no network; offline what was answered once still is."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from saesteer.saes.neuronpedia import Cache
from saesteer.utils.errors import NetworkError, OutputError

from .player import PLACE, as_json

KEY = "sk-np+secret/key=="


def test_a_second_look_up_asks_nothing_whoever_asks(player, client_to):
    first = client_to()
    asked = [
        first.feature(PLACE, 3),
        first.features(PLACE, [4, 5]),
        first.search(PLACE, "kindness"),
        first.firing_on(PLACE, "be kind"),
        first.similar(PLACE, 3),
        first.steer(PLACE, "I think", {3: 5.0}),
    ]
    n_calls = len(player.calls)
    again = client_to()
    assert [
        again.feature(PLACE, 3),
        again.features(PLACE, [5, 4]),
        again.search(PLACE, "kindness"),
        again.firing_on(PLACE, "be kind"),
        again.similar(PLACE, 3),
        again.steer(PLACE, "I think", {3: 5.0}),
    ] == asked
    assert len(player.calls) == n_calls
    # A part that is new is all that is asked for.
    again.features(PLACE, [4, 6, 5])
    assert [one["index"] for one in player.calls[-1][2]] == [6]


def test_that_something_is_not_there_is_remembered(player, client_to):
    for _ in range(2):
        assert client_to().feature(PLACE, 9999) is None
        assert client_to().features(PLACE, [9998]) == {}
    assert len(player.calls) == 2


def test_an_old_answer_is_asked_for_again(player, client_to):
    now = [1000.0]
    client = client_to(now=lambda: now[0], max_age=60)
    client.feature(PLACE, 3)
    now[0] += 59
    client.feature(PLACE, 3)
    assert len(player.calls) == 1
    now[0] += 2
    client.feature(PLACE, 3)
    assert len(player.calls) == 2


def test_offline_and_in_an_outage_an_old_answer_is_better_than_none(player, client_to):
    now = [1000.0]
    client_to(now=lambda: now[0]).feature(PLACE, 3)
    now[0] += 10**9
    offline = client_to(now=lambda: now[0], offline=True)
    assert offline.feature(PLACE, 3).index == 3
    with pytest.raises(NetworkError, match="switches the network off"):
        offline.feature(PLACE, 4)
    assert len(player.calls) == 1
    player.faults = [as_json({}, 500)] * 5
    assert client_to(now=lambda: now[0]).feature(PLACE, 3).index == 3
    assert len(player.calls) == 6


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
    import json
    import zlib

    with sqlite3.connect(kept.path) as database:
        bodies = [zlib.decompress(row[0]) for row in database.execute("select body from replies")]
    assert len(bodies) == 3
    assert not any(KEY in json.dumps(json.loads(body)) for body in bodies)


def test_many_threads_write_one_file_at_once(tmp_path):
    path = tmp_path / "new" / "cache.sqlite"
    failures: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            cache = Cache(path)
            for number in range(20):
                cache.put({f"{thread}/{number}": {"n": number}})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = Cache(path).get([f"{t}/{n}" for t in range(6) for n in range(20)])
    assert len(kept) == 120
    assert kept["3/7"] == {"n": 7}


def test_reading_makes_no_file(tmp_path):
    cache = Cache(tmp_path / "cache.sqlite")
    assert cache.get(["a"]) == {}
    assert cache.labels(PLACE) == {}
    assert cache.feature(PLACE, 3) is None
    assert not cache.path.exists()


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 99]
)
def test_a_damaged_file_is_a_sentence_that_says_what_to_do(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"cannot be used .*delete the file"):
        Cache(path).get(["a"])


def test_a_file_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(OutputError, match="version 99"):
        Cache(path).put({"a": 1})


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="SAESTEER_CACHE"):
        Cache(tmp_path / "file" / "cache.sqlite").put({"a": 1})


def test_a_cache_that_can_only_be_read_answers_and_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a 100% shared?" / "labels.sqlite"
    writer = Cache(path)
    writer.put({"known": {"a": 1}})
    monkeypatch.setattr("saesteer.saes.neuronpedia.cache.os.access", lambda *_: False)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    reader = Cache(path)
    assert reader.get(["known"]) == {"known": {"a": 1}}
    assert reader.labels("a/b") == {}
    with pytest.raises(OutputError, match=r"labels\.sqlite cannot be used .*SAESTEER_CACHE"):
        reader.put({"more": 2})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(player, client_to, monkeypatch):
    assert client_to().feature(PLACE, 3) is not None
    monkeypatch.setattr("saesteer.saes.neuronpedia.cache.os.access", lambda *_: False)
    found = client_to().feature(PLACE, 4)
    assert found is not None and found.index == 4
    assert list(client_to().features(PLACE, [5])) == [5]
    player.calls.clear()
    assert client_to().feature(PLACE, 3) is not None
    assert player.calls == []
