"""`saesteer probe train`, `read` and `intervene` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_training_prints_every_layer_and_the_next_step(saesteer, probe_config, probe_run):
    answer = saesteer("probe", "train", probe_config)
    assert answer.code == 0
    rows = [line.split() for line in answer.out.splitlines()]
    layers = [row[0].lstrip("*") for row in rows if row and row[0].lstrip("*") in ("0", "1", "2")]
    assert layers == ["0", "1", "2"]
    assert sum(bool(row) and row[0].startswith("*") for row in rows) == 1
    assert f"saesteer probe read {probe_run}" in answer.out
    wide = [line for line in answer.out.splitlines() if len(line) > 100]
    assert all(str(probe_run) in line for line in wide)


def test_reading_shows_every_token_and_writes_a_page(saesteer, probe_run, probe_texts, tmp_path):
    page = tmp_path / "out" / "read.html"
    answer = saesteer("probe", "read", probe_run, "the nice cat", "--layers", "0-2", "--html", page)
    assert answer.code == 0
    for layer in range(3):
        line = next(x for x in answer.out.splitlines() if f"layer {layer}" in x)
        assert "the nice cat" in line
    assert "layer 2" in page.read_text(encoding="utf-8")
    # Of a generation it shows what the model wrote.
    plain = saesteer("probe", "read", probe_run, "the nice cat", "--layers", "1")
    more = ("--layers", "1", "--generate", "--max-new-tokens", "6")
    longer = saesteer("probe", "read", probe_run, "the nice cat", *more)
    assert len(longer.out) > len(plain.out) and "the nice cat" in longer.out
    # Plain cases are scored.
    answer = saesteer("probe", "read", probe_run, "--checks", probe_texts)
    assert answer.code == 0
    metrics = json.loads((probe_run / "metrics.json").read_text())
    record = next(r for r in metrics["layers"] if r["layer"] == metrics["best"])["checks"]
    assert f"reads {record['right']} of 60 plain cases rightly" in answer.out


def test_intervening_shows_and_saves_both_texts(saesteer, probe_run):
    answer = saesteer(
        "probe", "intervene", probe_run, "the cat", "--mode", "set", "--amount", "positive",
        "--layers", "0,2", "--max-new-tokens", "5",
    )  # fmt: skip
    assert answer.code == 0
    assert "base" in answer.out and "intervened" in answer.out
    assert "KL" in answer.out and "perplexity" in answer.out
    assert "probe (its own)" in answer.out
    saved = Path(answer.out.strip().splitlines()[-1].removeprefix("wrote "))
    record = json.loads(saved.read_text())
    assert record["policy"] == "once" and len(record["interventions"]) == 2
    assert saved.parent == probe_run / "interventions"
    assert [line for line in answer.out.splitlines()[:-1] if len(line) > 100] == []


def test_labelled_prompts_are_scored_beside_random_directions(saesteer, probe_run, probe_texts):
    answer = saesteer(
        "probe", "intervene", probe_run, "--prompts", probe_texts, "--amount", "3", "--random", "1",
        "--max-new-tokens", "4", "--json",
    )  # fmt: skip
    assert answer.code == 0
    record = json.loads(answer.out, parse_constant=pytest.fail)
    assert len(record["rows"]) == 60
    own = record["movement"]["probe (its own)"]
    # A completion can be empty, and then has no reading.
    assert 50 <= own["n"] <= 60 and 0 <= own["low"] <= own["moved"] <= own["high"] <= 1
    assert record["random"][0]["movement"]


def test_a_schedule_and_any_vector_can_be_given(saesteer, probe_run, tmp_path):
    from saesteer.probes import ProbeSet

    vector = ProbeSet.load(probe_run).vector(1).save(tmp_path)
    answer = saesteer(
        "probe", "intervene", probe_run, "the cat", "--vector", vector, "--schedule",
        "0-2:add=-2,3-:add=2", "--max-new-tokens", "6", "--compound",
    )  # fmt: skip
    assert answer.code == 0
    assert "tokens 0 to 2" in answer.out and "compound" in answer.out
