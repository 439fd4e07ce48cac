"""What a sweep found, against what is known by construction."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from saesteer.experiments.steer.config import RunConfig
from saesteer.report.sweep import plane
from saesteer.sweeps.results import pareto, sweep_record, write_results
from saesteer.sweeps.study import TrialRow
from saesteer.utils.settings import load_config

NOTHING = {"seed": {"value": 1}}


def row(
    number: int = 0,
    value: float | None = 1.0,
    state: str = "done",
    values: dict[str, Any] | None = None,
    **numbers: float | None,
) -> TrialRow:
    return TrialRow(
        number=number,
        key=f"k{number}",
        state=state,
        values=values or {},
        value=value,
        numbers={"effect": value, **numbers},
        error=None if state == "done" else "no pairs; give some.",
        folder=f"runs/x-{number}",
        seconds=2.0,
        worker="here:1",
        attempts=1,
    )


def rows_of(sweep, value_of):
    return [
        row(trial.number, value_of(trial.values), values=trial.values) for trial in sweep.trials()
    ]


def points(*pairs):
    return [row(n, effect, kl_target=kl_target) for n, (kl_target, effect) in enumerate(pairs)]


def test_the_front_holds_what_no_other_trial_beats(sweep_of):
    for pairs, front in (
        ([], []),
        ([(0.1, 1.0), (0.3, 2.0), (1.0, 1.5)], [0, 1]),
        ([(1.0, 3.0), (0.3, 2.0), (0.1, 2.0)], [2, 0]),
        ([(0.1, 1.0), (0.1, 1.2), (0.1, 1.2)], [1]),
        ([(0.3, -1.0), (0.1, -2.0)], [1, 0]),
    ):
        assert pareto(points(*pairs)) == front
    sweep = sweep_of(parameters=NOTHING)
    found = sweep_record(sweep, points((0.3, 1.0), (0.3, 2.0)))
    assert any("sweep evaluation.kl_target" in note for note in found["notes"])
    # What was not measured is not drawn.
    rows = [row(0, 1.0, kl=0.1, kl_target=0.1), row(1, 2.0), row(2, None, "failed")]
    assert plane(sweep_record(sweep, rows)) == {0: (0.1, 1.0)}


def test_the_parameter_that_does_it_all_gets_the_importance(sweep_of):
    grid = {
        "selection.n_features": {"values": [4, 8, 12, 16]},
        "selection.criterion": {"values": ["auroc", "mean_difference", "t_statistic"]},
        "seed": {"value": 3},
    }
    sweep = sweep_of(parameters=grid)
    record = sweep_record(sweep, rows_of(sweep, lambda v: float(v["selection.n_features"])))
    assert set(record["importance"]) == {"selection.n_features", "selection.criterion"}
    assert record["importance"]["selection.n_features"] > 0.95
    assert sum(record["importance"].values()) == pytest.approx(1)
    assert record["best"] == 9
    # What is looked for is the smallest, unless somebody says maximize.
    least = sweep_of(metric={"name": "effect"}, parameters=grid)
    record = sweep_record(least, rows_of(least, lambda v: float(v["selection.n_features"])))
    assert record["best"] == 0
    # An importance that would say nothing is left out with the reason.
    rows = rows_of(sweep, lambda v: float(v["selection.n_features"]))
    same = rows_of(sweep, lambda _: 1.0)
    for few, text in ((rows[:3], "3 trials have ended, and below 8"), (same, "the same value")):
        record = sweep_record(sweep, few)
        assert record["importance"] == {}
        assert any(text in note for note in record["notes"])


def test_everything_is_written_and_reads_back(sweep_of):
    together = {"how": {"values": [{"seed": 1, "name": "a"}, {"seed": 2, "name": "b"}]}}
    grid = {
        "together": {"parameters": together},
        "selection.n_features": {"values": [4, 8, 16, 32]},
    }
    sweep = sweep_of({"overrides": ["evaluation.random_directions=0"]}, parameters=grid)
    rows = rows_of(sweep, lambda v: float(v["selection.n_features"]))
    # The best settings are what `saesteer run` takes.
    record = sweep_record(sweep, rows)
    write_results(sweep, record)
    config = load_config(sweep.folder / "best.yaml", kind=RunConfig)
    assert config == sweep.config(rows[record["best"]].values)
    assert (config.selection.n_features, config.evaluation.random_directions) == (32, 0)
    rows[3] = row(3, None, "failed", values=rows[3].values)
    rows[4].values["together.how"]["name"] = "<script>alert(1)</script>"
    write_results(sweep, sweep_record(sweep, rows))
    folder = sweep.folder
    assert {file.name for file in folder.iterdir()} == {
        *("sweep.json", "best.yaml", "report.html"),
        *("table.parquet", "table.csv", "table.md"),
    }
    record = json.loads((folder / "sweep.json").read_text(), parse_constant=pytest.fail)
    assert record["states"] == {"done": 7, "failed": 1}
    assert record["trials"][0]["labels"] == {"together.how": "a", "selection.n_features": "4"}
    table = pd.read_parquet(folder / "table.parquet")
    assert int(table["value"].isna().to_numpy().sum()) == 1
    assert list(table["selection.n_features"]) == [4, 8, 16, 32] * 2
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "table.csv"), table, check_dtype=False, check_exact=False
    )
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "no pairs; give some." in page
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert body[0].startswith("| trial | together.how |")
    assert body[1].startswith("| 7 |") and body[-1].startswith("| 3 |")
    assert "<script>alert" not in page
    assert "http://" not in page.partition("<script>")[0]
    empty = sweep_of()
    write_results(empty, sweep_record(empty, []))
    assert "No trial has ended yet" in (empty.folder / "report.html").read_text(encoding="utf-8")
    assert not (empty.folder / "best.yaml").exists()
