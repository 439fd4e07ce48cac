"""Comparisons in which something cannot be had: other models, KL targets, features."""

from __future__ import annotations

import json
from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.results import Results


def run(settings: dict[str, Any]) -> Results:
    return run_experiment(CompareConfig(**settings))


def summary(result: Results) -> dict[str, dict[str, Any]]:
    headline = result.metrics["headline_kl_target"]
    return {r["method"]: r for r in result.metrics["summary"] if r["kl_target"] == headline}


def check_files(result: Results) -> None:
    text = (result.folder.path / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == result.metrics
    assert (result.folder.path / "report.html").stat().st_size > 10_000


def test_a_headline_that_finds_no_feature_in_a_model_without_chat_template(few):
    settings = few(
        "gpt2", chat=False, headline="clustered_sae", side_effects={"methods": None, "n_prose": 2}
    )
    # No feature fires on less than one of 32 texts.
    rare = {"name": "clustered_sae", "settings": {"selection": {"max_firing": 0.03}}}
    settings["methods"] = [*settings["methods"], rare, "caa_answers"]
    result = run(settings)
    rows, metrics = summary(result), result.metrics
    for method in ("attributed_sae", "difference_in_means", "caa_answers"):
        assert rows[method]["n_personas"] == 2
        assert rows[method]["effect"] is not None
    missing = rows["clustered_sae"]
    assert missing["n_personas"] == 0
    assert missing["effect"] is missing["ratio"] is missing["p"] is None
    told = [r for r in metrics["effects"] if r["method"] == "clustered_sae"]
    assert [row["persona"] for row in told] == ["kindly", "boldly"]
    assert all(row["effect"] is row["low"] is None for row in told)
    assert not any(row["plus"]["reached"] or row["minus"]["reached"] for row in told)
    assert all("none of the 64 features is left" in row["error"] for row in told)
    assert metrics["generation"] == []
    assert (metrics["features"], metrics["vectors"]) == ({"kindly": [], "boldly": []}, {})
    assert all(row["p"] is None for row in metrics["null"])
    assert {row["method"] for row in metrics["side_effects"]["prose"]} == {"difference_in_means"}
    matrix = {row["method"]: row["values"] for row in metrics["side_effects"]["matrix"]}
    assert matrix["clustered_sae"] == [[None, None], [None, None]]
    answers = [r for r in metrics["choices_margins"] if r["method"] == "clustered_sae"]
    assert answers and all(r["plus"] is r["minus"] is None for r in answers)
    check_files(result)


def test_one_persona_alone_and_a_headline_kl_target_that_nothing_reaches(
    few, compare_data, needs_embeddings
):
    settings = few(
        personas=[compare_data["kindly"]],
        evaluation={"kl_targets": [0.05, 60.0], "headline_kl_target": 60.0},
        writing={"n_questions": 1, "kl_targets": [60.0]},
    )
    result = run(settings)
    metrics = result.metrics
    for row in summary(result).values():
        assert (row["n_personas"], row["effect"], row["beyond_null"]) == (0, None, None)
    assert all(r["effect"] is not None for r in metrics["effects"] if r["kl_target"] == 0.05)
    assert metrics["curves"] == []
    assert metrics["side_effects"]["prose"] == []
    assert all(row["plus"] is None for row in metrics["choices_margins"])
    assert all(row["effects"] == [] and row["p"] is None for row in metrics["null"])
    # The unsteered answers alone.
    assert {row["sign"] for row in metrics["generation"]} == {0}
    assert all(row["judge_range"] is None for row in metrics["generation_summary"])
    # One persona has figures, but no interval over personas.
    own = next(
        row
        for row in metrics["summary"]
        if (row["method"], row["kl_target"]) == ("attributed_sae", 0.05)
    )
    assert own["effect"] is not None
    assert own["low"] is own["high"] is own["ratio_low"] is None
    assert metrics["side_effects"]["matrix"] == []
    check_files(result)
