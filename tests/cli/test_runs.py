"""`saesteer runs`: what was run is found again, held together and annotated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from saesteer.tracking import add_note, list_runs, recorded_run
from saesteer.utils.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch) -> None:
    for name in ("SAESTEER_STORE", "WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of four runs, one of them failed."""
    root = tmp_path / "runs"
    for seed, (effect, model) in enumerate([(0.1, "gpt2"), (0.3, "gpt2"), (0.2, "smollm2")]):
        config = {"seed": seed, "model": {"name": model}}
        with recorded_run(
            RunFolder(root / f"kind-{seed}"), kind="run", name="kind", config=config, tags=["p"]
        ) as run:
            run.summary({"effect": effect, "fit": {"r2": 0.5}})
            run.artifact("vector", root / f"kind-{seed}" / "vector.safetensors")
    with pytest.raises(RuntimeError):
        with recorded_run(RunFolder(root / "broken"), kind="compare", name="many [personas]"):
            raise RuntimeError("out of memory at blocks.3")
    return root


@pytest.fixture
def runs(root, monkeypatch):
    """Return a function that calls `saesteer runs` on these runs and returns what it prints."""
    from saesteer.cli.runs import app

    monkeypatch.setenv("SAESTEER_RUNS", str(root))

    def call(*arguments: object) -> str:
        answer = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        # Markdown is for pasting, and paths are for copying.
        lines = [
            x for x in answer.stdout.splitlines() if "|" not in x and str(root.parent) not in x
        ]
        assert all(len(line) <= 100 for line in lines)
        return answer.stdout

    return call


@pytest.fixture
def refused(runs):
    """Return a function that calls `saesteer runs` and returns the sentence it refuses with."""
    from saesteer.utils.errors import SaesteerError

    def call(*arguments: object) -> str:
        with pytest.raises(SaesteerError) as caught:
            runs(*arguments)
        told = str(caught.value)
        assert told.count("\n") == 0
        return told

    return call


def ids(root: Path) -> dict[str, str]:
    return {run.folder.name: run.id for run in list_runs(root)}


def test_the_list_has_one_line_for_each_run_with_its_effect(runs, root):
    lines = runs("list").splitlines()
    assert lines[0].split() == ["id", "kind", "name", "status", "started", "took", "effect"]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert set(rows) == set(ids(root).values())
    assert "many [personas]" in rows[ids(root)["broken"]] and "failed" in rows[ids(root)["broken"]]
    assert rows[ids(root)["kind-1"]].rstrip().endswith("0.3")
    assert "... and 3 more" in runs("list", "--limit", 1)
    chosen = runs("list", "--column", "config.model.name", "--sort", "config.seed", "--desc")
    assert [line.split()[-1] for line in chosen.splitlines()[2:5]] == ["smollm2", "gpt2", "gpt2"]
    assert "saesteer run records one" in runs("list", "--root", root.parent / "nowhere")
    assert not (root.parent / "nowhere").exists()


def test_conditions_choose_aggregate_and_export(runs, root, tmp_path):
    kept = runs("filter", "status=finished", "metrics.effect>0.15", "--json")
    assert {run["id"] for run in json.loads(kept)} == {ids(root)["kind-1"], ids(root)["kind-2"]}
    assert runs("filter", "status=running").strip() == "No run meets these conditions."
    by = ("--by", "config.model.name", "--of", "metrics.effect", "--with", "count,mean")
    assert runs("filter", "status=finished", *by).splitlines() == [
        "| config.model.name | runs | count metrics.effect | mean metrics.effect |",
        "| --- | --- | --- | --- |",
        "| gpt2 | 2 | 2 | 0.2 |",
        "| smollm2 | 1 | 1 | 0.2 |",
    ]
    assert "wrote 3 runs" in runs("export", tmp_path / "runs.csv", "status=finished")
    assert sorted(pd.read_csv(tmp_path / "runs.csv")["metrics.effect"]) == [0.1, 0.2, 0.3]


def test_a_run_is_shown_with_settings_metrics_files_and_notes(runs, root):
    short = ids(root)["kind-0"][:6]
    runs("note", short, "a [first] look")
    add_note(root / "kind-0", {"observation": "E rises", "hypothesis": "layer 10"})
    shown = runs("show", short)
    for text in (
        "run kind",
        "finished",
        "model.name",
        "fit.r2",
        "vector.safetensors",
        "a [first] look",
        "observation: E rises; hypothesis: layer 10",
    ):
        assert text in shown, text
    assert "RuntimeError: out of memory at blocks.3" in runs("show", root / "broken")
    assert json.loads(runs("show", short, "--json"))["metrics"]["effect"] == 0.1


def test_only_the_settings_that_differ_stand_side_by_side(runs, root):
    names = ids(root)
    shown = runs("compare", names["kind-0"], names["kind-1"])
    assert "seed" in shown and "model.name" not in shown
    row = next(line for line in shown.splitlines() if line.startswith("effect"))
    assert row.split() == ["effect", "0.1", "0.3"]
    found = json.loads(runs("compare", *names.values(), "--json"))
    assert found["settings"]["model.name"][names["kind-2"]] == "smollm2"
    assert names["broken"] not in found["settings"]["seed"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "kind-9"], "there is no run 'kind-9' (did you mean 'kind-"),
        (["note", "kind-0", " "], "the note is empty"),
        (["compare", "kind-0"], "give two runs or more"),
        (["filter", "metrics.efect>1"], "did you mean 'metrics.effect'?"),
        (["filter", "--of", "metrics.effect", "--with", "avg"], "aggregate 'avg' is unknown"),
        (["list", "--sort", "nothing"], "no run has a field 'nothing'"),
        (["list", "--column", "metrics.fit.r"], "did you mean 'metrics.fit.r2'?"),
        (["export", "runs.txt"], "does not end in .csv, .json, .parquet"),
    ],
)
def test_bad_input_is_one_sentence(arguments, text, refused):
    assert text in refused(*arguments)


def test_a_look_is_recorded_too(saesteer, finished, monkeypatch, tmp_path):
    answer = saesteer("generate", "Why?", "--vector", finished, "--max-new-tokens", 3)
    assert answer.code == 0
    (run,) = list_runs(Path(os.environ["SAESTEER_RUNS"]))
    assert (run.kind, run.status) == ("generate", "finished")
    assert run.config["prompts"] == ["Why?"]
    kept = json.loads((run.folder / "completions.json").read_text())
    assert kept[0]["prompt"] == "Why?"
    monkeypatch.setenv("SAESTEER_RUNS", str(finished / "run.json"))
    answer = saesteer("generate", "Why?", "--vector", finished, "--max-new-tokens", 3)
    assert answer.code == 0
    assert "warning: not recorded" in answer.err
