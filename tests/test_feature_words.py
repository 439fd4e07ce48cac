"""Descriptions known offline: imported labels before the SAE's own table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from saesteer.feature_words import known_descriptions, label_cache
from saesteer.neuronpedia import Cache, SourceId, import_from_files


def test_imported_labels_come_before_the_tables_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    sae: Any = SimpleNamespace(d_sae=2, neuronpedia_id="a/1-b")
    table: Any = SimpleNamespace(describe=lambda index: f"fires on {index}")
    assert known_descriptions(sae, table) == {0: "fires on 0", 1: "fires on 1"}
    assert known_descriptions(sae, None) == {}
    line = '{"modelId": "a", "layer": "1-b", "index": "1", "description": "kind words"}'
    (tmp_path / "labels.jsonl").write_text(line)
    import_from_files(Cache(label_cache()), SourceId("a", "1-b"), [tmp_path / "labels.jsonl"])
    assert known_descriptions(sae, table) == {0: "fires on 0", 1: "kind words"}
    unknown: Any = SimpleNamespace(d_sae=2, neuronpedia_id=None)
    assert known_descriptions(unknown, None) == {}
