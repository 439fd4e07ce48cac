"""What is known offline of features: imported labels before the SAE's own table, and links."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.saes.labels import (
    feature_card_of,
    feature_url,
    known_descriptions,
    label_cache,
    noted_place,
)
from saesteer.saes.loading import load_sae, neuronpedia_id_of
from saesteer.saes.neuronpedia import Cache, SourceId, import_from_files
from saesteer.saes.words import is_text
from saesteer.utils.errors import OutputError, SaeError
from saesteer.utils.progress import Progress


def an_sae(place: Any) -> Any:
    return SimpleNamespace(neuronpedia_id=place)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))


class Table:
    """An SAE's own table of two features."""

    def __len__(self) -> int:
        return 2

    def describe(self, index: int) -> str:
        return f"fires on {index}"


TABLE: Any = Table()


def test_imported_labels_come_before_the_tables_words(tmp_path):
    sae: Any = SimpleNamespace(name="x", d_sae=2, folder=None, neuronpedia_id="a/1-b")
    assert known_descriptions(sae, TABLE) == {0: "fires on 0", 1: "fires on 1"}
    assert known_descriptions(sae, None) == {}
    line = {"modelId": "a", "layer": "1-b", "index": "1", "description": "kind words"}
    (tmp_path / "labels.jsonl").write_text(json.dumps(line))
    import_from_files(Cache(label_cache()), SourceId("a", "1-b"), [tmp_path / "labels.jsonl"])
    assert known_descriptions(sae, TABLE) == {0: "fires on 0", 1: "kind words"}
    card = feature_card_of(sae, 1)
    assert (card.label, card.url) == ("kind words", feature_url("a/1-b", 1))
    assert card.url == "https://www.neuronpedia.org/a/1-b/1"
    assert feature_card_of(sae, 0).label == ""
    # What an SAE wrongly calls its place has no links.
    wrong: list[Any] = [None, 3, "a", "../..", "javascript:x/y"]
    for place in wrong:
        assert feature_url(place, 3) is None
        assert known_descriptions(an_sae(place), TABLE)[0] == "fires on 0"


def test_a_damaged_cache_costs_labels_and_no_result():
    label_cache().parent.mkdir()
    label_cache().write_text("no database at all, for longer than a header is")
    said: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    own = {0: "fires on 0", 1: "fires on 1"}
    assert known_descriptions(an_sae("a/1-b"), TABLE, Said()) == own
    assert len(said) == 1 and said[0].startswith("warning: no imported labels: Neuronpedia's cache")
    with pytest.raises(OutputError):
        known_descriptions(an_sae("a/1-b"), TABLE)
    # Without a place on Neuronpedia nobody looks.
    assert known_descriptions(an_sae(None), TABLE) == own


def test_the_place_that_a_sum_of_vectors_notes():
    part = {"provenance": {"neuronpedia_id": "a/1-b"}}
    assert noted_place({"sum_of": [{"provenance": {"neuronpedia_id": None}}, part]}) == "a/1-b"
    assert noted_place({"sum_of": [{"provenance": {"sum_of": [part]}}]}) == "a/1-b"
    assert noted_place({}) is None and noted_place({"neuronpedia_id": None}) is None


def test_one_feature_shows_what_is_known_of_it_and_an_sae_its_place(tmp_path):
    sae = load_sae("smollm2")
    card = sae.feature(1234)
    assert is_text(card.label) and card.words[0] in card.label
    assert 0 < (card.density or 0) < 1 and (card.max_activation or 0) > 0 and card.url is None
    assert len(card.promotes) == 8 and all(map(is_text, card.promotes))
    word = card.contexts[0].parts[1]
    assert f"[{word}]" in card.contexts[0].marked() and f"<b>{word}</b>" in card._repr_html_()
    assert "promotes" in card.table.index and card.promotes[0] in card._repr_html_()
    with pytest.raises(SaeError, match="features 0 to 6143; 6144 is none"):
        sae.feature(6144)
    assert neuronpedia_id_of("gpt2-small-res-jb:blocks.6.hook_resid_pre") == "gpt2-small/6-res-jb"
    assert neuronpedia_id_of("smollm2") is None
    for metadata, found in (({"neuronpedia_id": "a/b"}, "a/b"), ({}, None), (None, None)):
        (tmp_path / "cfg.json").write_text(json.dumps({"metadata": metadata}))
        assert neuronpedia_id_of(tmp_path) == found
    for content in ("{", "3", '{"metadata": 3}'):
        (tmp_path / "cfg.json").write_text(content)
        with pytest.raises(SaeError, match=r"cfg\.json: cannot be read"):
            neuronpedia_id_of(tmp_path)
