"""Each call gives what the documentation says, typed, and is asked once."""

from __future__ import annotations

import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from saesteer.saes.neuronpedia import Cache, SteerSettings
from saesteer.utils.errors import ConfigError, NetworkError, OutputError, SteeringError
from tests.saes.player import MODEL, PLACE, SOURCE, as_json, feature

KEY = "sk-np+secret/key=="


def test_a_feature_with_explanations_activations_and_logits(player, client_to):
    found = client_to().feature(PLACE, 3)
    assert (found.model, found.source, found.index) == (MODEL, SOURCE, 3)
    assert found.description == "words of kindness 3"
    assert found.explanations[0].explainer == "gpt-4o-mini"
    assert (found.max_activation, found.density) == (12.5, 0.01)
    assert (found.top_tokens, found.top_logits) == ((" good", " kind"), (1.5, 1.25))
    assert (found.bottom_tokens, found.bottom_logits) == ((" bad",), (-1.0,))
    assert [a.largest for a in found.activations] == [9.0, 8.0, 7.0, 6.0, 5.0]
    assert found.activations[0].tokens[found.activations[0].at] == "\u0120kind"
    assert client_to().feature(PLACE, 9999) is None
    # Unknown fields and empty lists are tolerated.
    player.faults = [as_json({**feature(4), "new": {"a": 1}, "pos_str": None, "activations": None})]
    found = client_to().feature(PLACE, 4)
    assert (found.top_tokens, found.activations) == ((), ())
    player.calls.clear()
    for place in ("gpt2-small", "a/..", "a/b c"):
        with pytest.raises(ConfigError, match="no model and source"):
            client_to().feature(place, 3)
    assert player.calls == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"index": ..., "modelId": ...}, "lacks modelId, index"),
        ({"maxActApprox": float("nan")}, "another kind of maxActApprox"),
        ({"activations": [{"tokens": 3, "values": []}]}, r"another kind of activations\.0\.tokens"),
        (3, "another kind of an object"),
    ],
)
def test_missing_and_wrong_fields_are_named(player, client_to, change, said):
    body: Any = change
    if isinstance(change, dict):
        body = {k: v for k, v in {**feature(3), **change}.items() if v is not ...}
    for ask, answer in (
        (lambda: client_to().feature(PLACE, 3), body),
        (lambda: client_to().features(PLACE, [3])[3], [body]),
    ):
        player.faults = [as_json(answer)]
        with pytest.raises(NetworkError, match=said) as caught:
            ask()
        # The answer itself does not hang on the error.
        assert caught.value.__cause__ is None and caught.value.__context__ is None
    # Nor is it kept: the next answer may be whole.
    assert client_to().feature(PLACE, 3).index == 3
    player.faults = [as_json({"message": "a"})]
    with pytest.raises(NetworkError, match="no list"):
        client_to().features(PLACE, [4])


def test_many_features_come_under_their_own_numbers_in_few_calls(player, client_to):
    wanted = [60, 2, 2, 9999, *range(1, 59)]
    found = client_to().features(PLACE, wanted, n_texts=2)
    assert list(found) == [i for i in dict.fromkeys(wanted) if i != 9999]
    assert all(one.index == i for i, one in found.items())
    assert {len(one.activations) for one in found.values()} == {2}
    assert [len(payload) for _, _, payload in player.calls] == [50, 10]
    assert player.calls[0][2][0] == {
        "modelId": MODEL,
        "layer": SOURCE,
        "index": 60,
        "maxActsToReturn": 2,
    }
    # Features of another SAE are not taken for one's own.
    player.faults = [as_json([{**feature(3), "layer": "7-res-jb"}, feature(4)])]
    assert list(client_to().features(PLACE, [3, 4])) == [4]


def test_features_are_found_by_words_by_a_text_and_by_likeness(player, client_to):
    hits = client_to().search(PLACE, " kindness ", limit=42)
    assert [hit.feature for hit in hits] == list(range(42))
    assert (hits[3].description, hits[3].similarity) == ("kindness 3", pytest.approx(0.87))
    assert [payload["offset"] for _, _, payload in player.calls] == [0, 20, 40]
    assert player.calls[0][2]["layers"] == [SOURCE]
    assert len(client_to().search(PLACE, "kindness", limit=500)) == 45
    found = client_to().firing_on(PLACE, "be kind", tokens=[2, 1], limit=7)
    assert found.tokens == ("<bos>", "be kind")
    assert [(hit.index, hit.largest, hit.description) for hit in found.result] == [
        (7, 3.5, "words of kindness 7"),
        (8, 1.0, ""),
    ]
    asked = {"modelId": MODEL, "sourceSet": "res-jb", "text": "be kind", "ignoreBos": True}
    asked |= {"selectedLayers": [SOURCE], "sortIndexes": [1, 2], "numResults": 7}
    assert player.calls[-1][2] == asked
    for text, limit in ((" ", 5), ("a", 101), ("a", 0)):
        with pytest.raises(ConfigError, match="1 to 100"):
            client_to().firing_on(PLACE, text, limit=limit)
    similar = client_to().similar(PLACE, 3, among="gpt2-small/7-res-jb")
    assert [(one.feature, one.similarity) for one in similar] == [(3, 1.0), (9, 0.5)]
    (asked,) = [payload for _, path, payload in player.calls if path == "/api/cossim"]
    assert asked["targetSourceId"] == "7-res-jb"
    place = {"model": MODEL, "source": SOURCE, "index": 5}
    rows = [{"feature": place, "cosine_similarity": 0.25}]
    player.faults = [as_json({"topk_decoder_cossim_features": rows})]
    assert client_to().similar(PLACE, 4)[0].similarity == 0.25


def test_a_completion_and_a_chat_steered_there(player, client_to):
    settings = SteerSettings(n_tokens=20, temperature=0.5, seed=3)
    found = client_to().steer(PLACE, "I think", {3: 38.5, 4: -2.0}, settings)
    assert (found.steered, found.default) == ("I think steered", "I think plain")
    assert found.share_url.endswith("/steer/s1")
    features = [
        {"modelId": MODEL, "layer": SOURCE, "index": index, "strength": strength}
        for index, strength in ((3, 38.5), (4, -2.0))
    ]
    asked = {"prompt": "I think", "modelId": MODEL, "features": features, "temperature": 0.5}
    asked |= {"n_tokens": 20, "freq_penalty": 0.0, "seed": 3, "strength_multiplier": 1.0}
    asked |= {"steer_method": "SIMPLE_ADDITIVE", "stream": False}
    assert player.calls[0][1:] == ("/api/steer", asked)
    chat = [{"role": "user", "content": "How are you?"}]
    found = client_to().steer(PLACE, chat, {3: 5.0})
    assert (found.steered, found.default) == ("glad", "fine")
    payload = player.calls[1][2]
    assert payload["steeredChatMessages"] == payload["defaultChatMessages"] == chat
    assert payload["steer_special_tokens"] is False
    player.faults = [as_json({"STEERED": {"raw": "whole", "chatTemplate": None}, "DEFAULT": None})]
    with pytest.raises(NetworkError, match="another kind of DEFAULT"):
        client_to().steer(PLACE, chat, {4: 5.0})


def test_lists_and_vectors_need_a_key_and_are_never_cached(player, client_to, monkeypatch):
    client = client_to()
    with pytest.raises(ConfigError, match="NEURONPEDIA_API_KEY"):
        client.new_list(PLACE, {3: "warm"}, "kind")
    with pytest.raises(ConfigError, match="NEURONPEDIA_API_KEY"):
        client.upload_vector(MODEL, 6, [0.5], "kind", strength=5)
    assert player.calls == []
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    for _ in range(2):
        assert client.new_list(PLACE, {3: "warm"}, "kind").url.endswith("/list/l1")
    made = client.upload_vector(MODEL, 6, [0.5, 1], "kind", strength=-5)
    assert (made.vector.source, made.vector.index) == ("6-neuronpedia-resid-pre", 90000001)
    assert player.paths == ["/api/list/new-with-features"] * 2 + ["/api/vector/new"]
    assert player.calls[0][2]["features"] == [
        {"modelId": MODEL, "layer": SOURCE, "index": 3, "description": "warm"}
    ]
    assert player.calls[2][2]["hookType"] == "resid-pre"
    for values, strength in (([], 1), ([float("nan")], 1), ([1.0], 101), ([1.0], float("nan"))):
        with pytest.raises(SteeringError, match="-100 to 100"):
            client.upload_vector(MODEL, 6, values, "kind", strength=strength)
    with pytest.raises(ConfigError, match="a name and at least one feature"):
        client.new_list(PLACE, {}, "kind")
    assert len(player.calls) == 3


def test_labels_come_from_imported_files_first_and_then_from_the_service(player, client_to):
    from saesteer.saes.neuronpedia import SourceId, import_from_bucket
    from tests.saes.player import label_line

    client = client_to()
    player.put("batch-0", [label_line(3, "imported words")])
    import_from_bucket(client.cache, client.service, SourceId.parse(PLACE))
    player.calls.clear()
    assert client.labels(PLACE, [4, 3], ask=False) == {3: "imported words"}
    assert player.calls == []
    assert client.labels(PLACE, [4, 3]) == {4: "words of kindness 4", 3: "imported words"}
    assert [one["index"] for one in player.calls[0][2]] == [4]


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
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(OutputError, match=r"cannot be used .*delete the file.*SAESTEER_CACHE"):
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
