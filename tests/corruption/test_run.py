"""A whole corruption run on a tiny model: folder, resumption, observations, page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from saesteer.experiments.corrupt.config import CorruptConfig
from saesteer.experiments.corrupt.metrics import first_right, observe, token_changes
from saesteer.experiments.registry import run_experiment
from saesteer.utils.errors import DataError
from saesteer.utils.settings import parse_config


@pytest.fixture(scope="module")
def settings(tiny_model_folder, tmp_path_factory):
    """Settings of a run that takes seconds."""
    return {
        "name": "tiny",
        "model": {"name": str(tiny_model_folder("llama")), "dtype": "float32", "device": "cpu"},
        "tasks": {"source": ["opposites", "addition_digits"], "max_questions": 4, "shots": 1},
        "families": [{"kind": "keep"}, {"kind": "skip"}, {"kind": "linear", "width": 2}],
        "programs": ["mean mlp 1", [2, 1, 0], "noise 0.1 at 0"],
        "reference": {"max_texts": 20},
        "completions": {"prompts": ["the cat"], "max_new_tokens": 3},
        "folder": str(tmp_path_factory.mktemp("runs")),
    }


def _config(settings, **changes):
    return parse_config(settings | changes, kind=CorruptConfig, place="test")


@pytest.fixture(scope="module")
def run(settings):
    """The finished run."""
    return run_experiment(_config(settings))


def test_every_program_is_scored_on_every_task(run):
    metrics = run.metrics
    assert len(metrics["programs"]) == 1 + 4 + 3 + 2 + 3
    assert metrics["families"]["keep"]["programs"] == ["keep 0", "keep 1", "keep 2", "keep 3"]
    for record in metrics["programs"].values():
        assert set(record["tasks"]) == {"opposites", "addition_digits"}
        losses = [own["loss"] for own in record["tasks"].values()]
        assert record["loss"] == pytest.approx(np.mean(losses))
    same = metrics["programs"]["keep 3"]
    assert same["loss"] == pytest.approx(metrics["intact"]["loss"])
    skip = metrics["families"]["skip"]
    changes = {p: metrics["programs"][p]["loss_change"] for p in skip["programs"]}
    assert skip["worst"] == max(changes, key=lambda p: changes[p])


def test_the_folder_holds_tables_figures_records_and_a_report(run):
    folder = run.folder
    assert len(pd.read_csv(folder.path / "tables/scores.csv")) == 13 * 2
    records: Any = pd.read_parquet(folder.path / "records/opposites.parquet")
    means = records.groupby("program")["log_prob"].mean().to_dict()
    for program, record in run.metrics["programs"].items():
        assert -means[program] == pytest.approx(record["tasks"]["opposites"]["loss"])
    for name in ("keep", "skip"):
        assert (folder.path / f"figures/{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    for words in ("opposites", "The best linear guess", "first layer is indispensable", "keep 0"):
        assert words in page
    shown = run.metrics["completions"]
    assert [one["program"] for one in shown] == ["keep 0", "keep 1", "keep 2", "keep 3"]
    maps = run.metrics["linear_maps"]
    assert [m["span"] for m in maps] == ["0-1", "1-2"]
    assert all(m["n_held_out"] > 0 and m["r2"] is not None for m in maps)


def test_a_task_that_was_scored_is_not_scored_again(settings, run, tmp_path, monkeypatch):
    from saesteer.experiments.corrupt import experiment

    calls = []
    real = experiment.score_task

    def cut(*args, **kwargs):
        calls.append(args[2].task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    config = _config(settings, folder=str(tmp_path))
    monkeypatch.setattr(experiment, "score_task", cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config)
    found = run_experiment(config)
    assert calls == ["opposites", "addition_digits", "addition_digits"]
    assert found.metrics == run.metrics


def test_a_question_too_long_is_said_before_anything_is_written(settings, tmp_path):
    config = _config(settings, tasks={"source": ["copying"], "shots": 12}, folder=str(tmp_path))
    with pytest.raises(DataError, match=r"task copying: .* more than the model's context"):
        run_experiment(config)
    assert not list(tmp_path.iterdir())


def _metrics(accuracies, intact, *, n=4):
    """Made-up metrics of the family keep."""
    programs: dict[str, Any] = {
        "intact": {"tasks": {t: {"accuracy": a} for t, a in intact.items()}}
    }
    for k in range(n + 1):
        own = {task: {"accuracy": values[k]} for task, values in accuracies.items()}
        programs[f"keep {k}"] = {"tasks": own, "accuracy": 0.0}
    return {
        "n_layers": n,
        "tasks": {task: {"accuracy": a} for task, a in intact.items()},
        "programs": programs,
        "families": {"keep": {"programs": [f"keep {k}" for k in range(n + 1)]}},
        "intact": {"accuracy": 0.5},
    }


def test_observations_say_what_holds_and_what_does_not():
    metrics = _metrics(
        {"addition": [0, 0, 0, 0.1, 0.5], "agreement": [0, 0.8, 0.8, 0.7, 0.8], "facts": [0] * 5},
        {"addition": 0.5, "agreement": 0.8, "facts": 0.1},
    )
    # A task comes right where its accuracy first reaches its share of the intact model's.
    metrics["first_right"] = first_right(metrics, 0.8, 0.2)
    layers = {task: one["layers"] for task, one in metrics["first_right"].items()}
    assert layers == {"addition": 4, "agreement": 1, "facts": None}
    metrics["families"]["skip"] = {"programs": ["skip 0", "skip 1"]}
    metrics["programs"] |= {
        "skip 0": {"loss_change": 9.0, "accuracy": 0.01},
        "skip 1": {"loss_change": 0.5, "accuracy": 0.4},
    }
    found = observe(metrics, [{"programs": {"keep 0": {"repeated": 0.1, "unmoved": 0.9}}}])
    assert [one["verdict"] for one in found] == ["holds", "holds", "does not hold", "holds"]
    metrics["programs"]["skip 1"]["loss_change"] = 10.0
    metrics["first_right"]["addition"]["share_of_depth"] = 0.75
    found = observe(metrics, [{"programs": {"keep 0": {"repeated": 0.1, "unmoved": 0.2}}}])
    assert [one["verdict"] for one in found] == [
        "does not hold", "in part", "does not hold", "does not hold",
    ]  # fmt: skip
    assert "rank 2 of 2" in found[1]["found"]
    bare = {"programs": {}, "families": {}, "first_right": {}}
    assert {one["verdict"] for one in observe(bare, [])} == {"not tested"}


def test_completions_take_programs_that_no_task_is_scored_under(settings):
    for shown, programs in (
        ({"programs": ["linear 0-1", [2, 0]]}, ["linear 0-1", "[2, 0]"]),
        ({"family": "linear", "every": 2}, ["linear 0", "linear 2"]),
    ):
        more = {
            "tasks": {"source": ["opposites"], "max_questions": 2, "shots": 1},
            "completions": {"prompts": ["the cat"], "max_new_tokens": 2, **shown},
        }
        found = run_experiment(_config(settings, families=[], programs=["[]"], **more))
        assert [one["program"] for one in found.metrics["completions"]] == programs
        assert len(found.metrics["programs"]) == 2


def test_a_token_counts_only_where_it_is_asked_for_often_enough():
    records = pd.DataFrame(
        {
            "program": ["skip 0"] * 7,
            "token": ["a", "a", "a", "b", "c", "c", "c"],
            "difference": [-1.0, -2.0, -3.0, -9.0, 1.0, 1.0, 4.0],
        }
    )
    found = token_changes(records)["skip 0"]
    assert found == {
        "lost": [{"token": "a", "change": -2.0, "n": 3}],
        "gained": [{"token": "c", "change": 2.0, "n": 3}],
    }
