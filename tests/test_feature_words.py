"""What is known offline of features: imported labels before the SAE's own table, and links."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.saes.labels import feature_url, known_descriptions, label_cache, noted_place
from saesteer.saes.neuronpedia import Cache, SourceId, import_from_files
from saesteer.utils.errors import OutputError
from saesteer.utils.progress import Progress


class Table:
    """An SAE's own table of two features."""

    def __len__(self) -> int:
        return 2

    def describe(self, index: int) -> str:
        return f"fires on {index}"


TABLE: Any = Table()


def an_sae(place: Any) -> Any:
    return SimpleNamespace(neuronpedia_id=place)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))


def test_imported_labels_come_before_the_tables_words(tmp_path):
    sae = an_sae("a/1-b")
    assert known_descriptions(sae, TABLE) == {0: "fires on 0", 1: "fires on 1"}
    assert known_descriptions(sae, None) == {}
    line = '{"modelId": "a", "layer": "1-b", "index": "1", "description": "kind words"}'
    (tmp_path / "labels.jsonl").write_text(line)
    import_from_files(Cache(label_cache()), SourceId("a", "1-b"), [tmp_path / "labels.jsonl"])
    assert known_descriptions(sae, TABLE) == {0: "fires on 0", 1: "kind words"}
    assert known_descriptions(an_sae(None), None) == {}


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


@pytest.mark.parametrize("place", [None, 3, "", "a", "a/b/c", "../..", "a/b?c", "javascript:x/y"])
def test_what_an_sae_wrongly_calls_its_place_has_no_links(place):
    assert feature_url(place, 3) is None
    assert known_descriptions(an_sae(place), TABLE)[0] == "fires on 0"


def test_links_and_the_place_that_a_sum_of_vectors_notes():
    assert feature_url("a/1-b", 3) == "https://www.neuronpedia.org/a/1-b/3"
    part = {"provenance": {"neuronpedia_id": "a/1-b"}}
    assert noted_place({"sum_of": [{"provenance": {"neuronpedia_id": None}}, part]}) == "a/1-b"
    assert noted_place({"sum_of": [{"provenance": {"sum_of": [{}, part]}}]}) == "a/1-b"
    for wrong in ({}, {"sum_of": 3}, {"sum_of": [3, {"provenance": 3}]}, {"neuronpedia_id": 3}):
        assert noted_place(wrong) is None
