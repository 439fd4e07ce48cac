"""What commands tell the record, and with it W&B: curves, tables, figures and files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments.compare.experiment import Compare
from saesteer.sweeps.parameters import Parameter
from saesteer.sweeps.results import sweep_record, tell_sweep
from saesteer.sweeps.study import TrialRow
from saesteer.sweeps.sweep import Sweep
from saesteer.tracking import recorded_run
from saesteer.utils.run_folder import RunFolder
from tests.report.made_up import made_up_metrics


class Listener:
    """Stands in for W&B and keeps what it is told, by kind and name."""

    def __init__(self) -> None:
        self.heard: dict[tuple[str, str], Any] = {}

    def record(self) -> dict[str, Any]:
        return {}

    def do(self, what: str, *arguments: Any) -> None:
        name = arguments[0] if isinstance(arguments[0], str) else ""
        self.heard[what, name] = arguments[1] if name else arguments[0]

    def finish(self, *, failed: bool) -> None:
        pass

    def names(self, what: str) -> list[str]:
        return [name for kind, name in self.heard if kind == what]


@pytest.fixture
def listened(tmp_path):
    """A run under way, and what listens to it."""
    with recorded_run(RunFolder(tmp_path / "run"), kind="k", name="n") as run:
        listener: Any = Listener()
        run._mirror = listener
        yield run, listener


def test_a_comparison_shows_its_figures_and_each_methods_change_over_strengths(listened):
    run, listener = listened
    metrics = {**made_up_metrics(), "vectors": {"kindly": "vectors/kindly.safetensors"}}
    # What is told depends on what was found alone, not on the experiment's plan.
    Compare.tell(object.__new__(Compare), run, SimpleNamespace(metrics=metrics))  # type: ignore[arg-type]
    assert {"summary", "effects", "features", "completions"} <= set(listener.names("table"))
    assert listener.names("artifact") == ["vector-kindly"]
    points = listener.heard["curve", "change"]
    assert [p["multiple"] for p in points] == sorted(p["multiple"] for p in points)
    method = metrics["headline_method"]
    # By hand: each run against its own unsteered margin, then the mean.
    found = [row for row in metrics["curves"] if row["method"] == method]
    base = {(r["persona"], r["seed"]): r["margin"] for r in found if r["multiple"] == 0}
    changes = [r["margin"] - base[r["persona"], r["seed"]] for r in found if r["multiple"] == 1]
    at_one = next(p for p in points if p["multiple"] == 1)
    assert at_one[method] == pytest.approx(sum(changes) / len(changes))


def test_a_sweep_shows_its_trials_and_its_figures(listened):
    run, listener = listened
    parameter = Parameter(name="selection.n_features", distribution="categorical", values=(8, 16))
    sweep = Sweep(
        name="s", kind="run", base={}, base_file="base.yaml", method="grid",
        parameters=(parameter,), metric="effect", goal="maximize",
    )  # fmt: skip
    rows = [
        TrialRow(
            n, f"k{n}", "done", {parameter.name: v}, v / 10,
            {"effect": v / 10, "kl": 0.1, "kl_target": 0.1}, None, None, 1.0, None, 1,
        )
        for n, v in enumerate(parameter.values)
    ]  # fmt: skip
    tell_sweep(run, sweep_record(sweep, rows))
    assert list(listener.heard["table", "trials"]["value"]) == [0.8, 1.6]
    assert listener.names("figure") == ["trials", "effect-against-cost"]
    assert listener.heard["summary", ""] == {"states": {"done": 2}, "best": 1.6}
    assert listener.names("artifact") == ["report"]
