"""`saesteer run` and `saesteer features`."""

from __future__ import annotations

import json

import pytest


def long_lines(text: str, but: str) -> list[str]:
    """Lines over 100 columns, without those that hold what is for copying."""
    return [line for line in text.splitlines() if len(line) > 100 and but not in line]


def test_a_run_prints_features_completions_shift_and_the_next_step(
    saesteer, config, finished, no_loading
):
    answer = saesteer("run", config)
    assert answer.code == 0
    assert answer.err == ""
    for text in (
        "features at blocks.1.hook_resid_post",
        "weights: R2",
        "“Why?”",
        "“Who are you?”",
        "strength 0",
        "held-out pairs, every vector at KL 0.05 per token",
        "2 random directions at the same KL",
        "Margin by strength",
        "No judge reads what is written",
        "The strength for KL 0.05 per token",
        f"saesteer generate --vector {finished}",
        f"saesteer app {finished}",
    ):
        assert text in answer.out, text
    assert long_lines(answer.out, str(finished)) == []
    assert "nan" not in answer.out.lower().split()
    # The shift is a table with one line for each vector.
    lines = answer.out.splitlines()
    head = next(i for i, line in enumerate(lines) if "effect E (95% over pairs)" in line)
    rows = [line.split("  ")[0].strip() for line in lines[head + 2 : head + 5]]
    labels = ["SAE features, delta regression", "difference in means", "2 random directions"]
    assert rows == labels
    assert " to " in lines[head + 2]
    assert "|E| <=" in lines[head + 4]
    assert lines[head + 5].startswith("E: ")
    # Where the baseline does as much, the run says so.
    measured = json.loads((finished / "metrics.json").read_text())
    own, other = (measured[v]["effect"]["effect"] for v in ("vector", "difference_in_means"))
    assert ("at the same KL, no less than" in " ".join(answer.out.split())) == (own <= other)
    # The same command again prints the same.
    assert saesteer("run", config).out == answer.out
    assert saesteer("run", config, "--dry-run").out.count("(done)") == 4


def test_a_run_shows_its_stages_on_standard_error_alone(saesteer, settings_file):
    answer = saesteer("run", settings_file("steer"), "--json")
    assert answer.code == 0
    metrics = json.loads(answer.out, parse_constant=lambda word: pytest.fail(word))
    assert metrics["vector"]["method"] == "clustered_sae"
    for text in ("Loading model", "Loading SAE", "Reading", "Fitting", "Scoring", "Generating"):
        assert text in answer.err, text


def test_the_features_of_a_run_strongest_first(saesteer, finished, no_loading):
    answer = saesteer("features", finished, "--top", "3")
    assert (answer.code, answer.err) == (0, "")
    stored = json.loads((finished / "features.json").read_text(encoding="utf-8"))
    rows = answer.out.splitlines()[2:5]
    assert [int(row.split()[0]) for row in rows] == [row["feature"] for row in stored[:3]]
    assert "more in features.parquet" in answer.out
    assert len(saesteer("features", finished, "--top", "0").out.splitlines()) <= 4
