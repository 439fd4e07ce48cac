"""What a sweep found, against what is known by construction."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from saesteer.experiments.steer.config import RunConfig
from saesteer.report.sweep_drawing import axes, plane
from saesteer.sweeps.cells import Cell
from saesteer.sweeps.results import best_settings, markdown, pareto, sweep_result, write_results
from saesteer.sweeps.rows import TrialRow
from saesteer.utils.settings import load_config

NOTHING = {"seed": {"value": 1}}


def row(
    number: int = 0,
    value: float | None = 1.0,
    state: str = "done",
    values: dict[str, Any] | None = None,
    codes: dict[str, Any] | None = None,
    **numbers: float | None,
) -> TrialRow:
    values = values or {}
    return TrialRow(
        number=number,
        key=f"k{number}",
        state=state,
        values=values,
        codes=codes or dict(values),
        value=value,
        numbers={"effect": value, **numbers},
        error=None if state == "done" else "no pairs; give some.",
        folder=f"runs/x-{number}",
        seconds=2.0,
        worker="here:1",
        attempts=1,
    )


def rows_of(spec, value_of, **numbers):
    return [
        row(cell.number, value_of(cell.values), values=dict(cell.values), codes=dict(cell.codes))
        for cell in spec.cells()
    ]


def points(*pairs):
    return [row(n, effect, kl_target=kl_target) for n, (kl_target, effect) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "front"),
    [
        ([], ()),
        ([(0.1, 1.0)], (0,)),
        ([(0.1, 1.0), (0.3, 2.0), (1.0, 1.5)], (0, 1)),
        ([(1.0, 3.0), (0.3, 2.0), (0.1, 2.0)], (2, 0)),
        ([(0.1, 1.0), (0.1, 1.2), (0.1, 1.2)], (1,)),
        ([(0.3, -1.0), (0.1, -2.0)], (1, 0)),
    ],
)
def test_the_front_holds_what_no_other_trial_beats(pairs, front):
    assert pareto(points(*pairs)) == front
    beaten = {
        n
        for n, (cost, effect) in enumerate(pairs)
        if any(
            c <= cost and e >= effect and ((c, -e) != (cost, -effect) or m < n)
            for m, (c, e) in enumerate(pairs)
            if m != n
        )
    }
    assert set(front) == set(range(len(pairs))) - beaten


def test_trials_without_effect_or_target_are_on_no_front():
    assert pareto([row(0, 1.0), row(1, 1.0, kl_target=None)]) == ()


def test_the_parameter_that_does_it_all_gets_the_importance(spec_of):
    grid = {
        "selection.n_features": {"values": [4, 8, 12, 16]},
        "selection.criterion": {"values": ["auroc", "mean_difference", "t_statistic"]},
        "seed": {"value": 3},
    }
    spec = spec_of(parameters=grid)
    result = sweep_result(spec, rows_of(spec, lambda v: float(v["selection.n_features"])))
    assert set(result.importance) == {"selection.n_features", "selection.criterion"}
    assert result.importance["selection.n_features"] > 0.95
    assert sum(result.importance.values()) == pytest.approx(1)
    assert result.best is not None and result.best.number == 9


@pytest.mark.parametrize(
    ("n", "value", "text"),
    [(3, None, "3 trials have ended, and below 8"), (12, 1.0, "every trial has the same value")],
)
def test_an_importance_that_would_say_nothing_is_left_out_with_the_reason(n, value, text, spec_of):
    spec = spec_of(parameters={"seed": {"min": 0, "max": 11}})
    rows = rows_of(spec, lambda v: float(v["seed"]) if value is None else value)[:n]
    result = sweep_result(spec, rows)
    assert result.importance == {}
    assert any(text in note for note in result.notes)


def test_the_best_of_a_metric_to_minimise_is_the_smallest(spec_of):
    spec = spec_of(metric={"name": "kl"}, parameters={"seed": {"min": 0, "max": 3}})
    rows = rows_of(spec, lambda v: float(v["seed"]))
    assert sweep_result(spec, rows).best == rows[0]
    assert sweep_result(spec, []).best is None


def test_a_sweep_at_one_target_says_why_it_has_no_front(spec_of):
    found = sweep_result(spec_of(parameters=NOTHING), points((0.3, 1.0), (0.3, 2.0)))
    assert any("sweep evaluation.kl_target" in note for note in found.notes)


def test_the_best_settings_are_what_saesteer_run_takes(spec_of, tmp_path):
    spec = spec_of({"overrides": ["evaluation.random_directions=0"]})
    rows = rows_of(spec, lambda v: float(v["selection.n_features"]))
    result = sweep_result(spec, rows)
    file = tmp_path / "best.yaml"
    file.write_text(best_settings(result))
    config = load_config(file, kind=RunConfig)
    assert result.best is not None
    assert config == spec.trial.config(result.best.values)
    assert (config.selection.n_features, config.evaluation.random_directions) == (16, 0)


def test_everything_is_written_and_reads_back(spec_of, tmp_path):
    together = {"together.how": {"values": [{"seed": 1, "name": "a"}, {"seed": 2, "name": "b"}]}}
    grid = {**together, "selection.n_features": {"values": [4, 8, 16, 32]}}
    spec = spec_of(parameters=grid)
    rows = rows_of(spec, lambda v: float(v["selection.n_features"]))
    rows[3] = row(3, None, "failed", values=rows[3].values, codes=rows[3].codes)
    folder = write_results(sweep_result(spec, rows), tmp_path / "out")
    names = {file.name for file in folder.iterdir()}
    assert names == {
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
    assert "http://" not in page.partition("<script>")[0]


def test_the_table_of_markdown_has_a_row_for_each_trial_best_first(spec_of):
    spec = spec_of(parameters={"name": {"values": ["a|b", "c"]}}, run_cap=1)
    cells = [Cell(n, {"name": v}, {"name": v}, str(n)) for n, v in enumerate(["a|b", "c"])]
    rows = [row(c.number, float(c.number), values=dict(c.values)) for c in cells]
    lines = markdown(sweep_result(spec, rows)).splitlines()
    body = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert body[0] == "| trial | name | effect | kl | state |"
    assert body[1] == "| 1 | c | 1 |  | done |"
    assert body[2] == "| 0 | a\\|b | 0 |  | done |"


def test_a_hostile_name_is_text_on_the_page(spec_of, tmp_path):
    spec = spec_of(parameters={"pairs.source": {"values": ["<script>alert(1)</script>", "b"]}})
    values = {"pairs.source": "<script>alert(1)</script>"}
    folder = write_results(sweep_result(spec, [row(0, 1.0, values=values, kl=0.1)]), tmp_path)
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


def test_a_sweep_without_results_has_a_page_too(spec_of, tmp_path):
    write_results(sweep_result(spec_of(), []), tmp_path)
    assert "No trial has ended yet" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "best.yaml").exists()


def test_axes_show_numbers_as_numbers_and_words_as_places(spec_of):
    grid = {
        "selection.criterion": {"values": ["auroc", "mean_difference"]},
        "regression.ridge_alpha": {"values": [0.1]},
        "selection.n_features": {"values": [8, 16]},
    }
    spec = spec_of(parameters=grid)
    rows = rows_of(spec, lambda v: float(v["selection.n_features"]))
    found = axes(sweep_result(spec, rows).as_dict())
    assert [axis.label for axis in found] == [
        *("criterion", "ridge_alpha", "n_features", "effect"),
    ]
    assert found[0].values == [0, 0, 1, 1]
    assert found[0].ticks == [(0.0, "auroc"), (1.0, "mean_difference")]
    assert found[2].values == [8, 16, 8, 16]
    assert found[3].values == [8, 16, 8, 16]


def test_logarithmic_parameters_are_drawn_by_their_powers(spec_of):
    log = {"distribution": "log_uniform_values", "min": 0.01, "max": 1}
    spec = spec_of(method="random", run_cap=3, parameters={"regression.ridge_alpha": log})
    values = [{"regression.ridge_alpha": v} for v in (0.01, 0.1, 1.0)]
    found = axes(
        sweep_result(spec, [row(n, 1.0, values=v) for n, v in enumerate(values)]).as_dict()
    )
    assert found[0].values == pytest.approx([-2, -1, 0])
    assert [word for _, word in found[0].ticks] == ["0.01", "0.1", "1"]


def test_the_plane_leaves_out_what_was_not_measured(spec_of):
    rows = [row(0, 1.0, kl=0.1, kl_target=0.1), row(1, 2.0), row(2, None, "failed")]
    found = plane(sweep_result(spec_of(parameters=NOTHING), rows).as_dict())
    assert found is not None
    assert (found.numbers, found.costs, found.effects, found.front) == ([0], [0.1], [1.0], [0])
    assert plane(sweep_result(spec_of(), []).as_dict()) is None


def test_the_figures_need_no_code_that_the_pages_policy_forbids(spec_of):
    from saesteer.report.sweep_drawing import parallel_figure

    spec = spec_of(parameters={"seed": {"min": 0, "max": 3}})
    record = sweep_result(spec, rows_of(spec, lambda v: float(v["seed"]))).as_dict()
    traces: Any = parallel_figure(record, {}).data
    # Traces of WebGL compile code, and stay blank under a content security policy.
    assert {trace.type for trace in traces} == {"scatter"}
    # Worst first, so that the best is drawn on top; from the lowest seed to the highest.
    assert [list(trace.y) for trace in traces] == [[n / 3, n / 3] for n in range(4)]
    assert [trace.line.width for trace in traces] == [1.6, 1.6, 1.6, 3]
