"""What commands tell the record, and with it W&B: curves, tables, figures and files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments.compare.experiment import Compare
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


def test_a_comparison_shows_its_figures_and_each_methods_change_over_strengths(tmp_path):
    metrics = {**made_up_metrics(), "vectors": {"kindly": "vectors/kindly.safetensors"}}
    found: Any = SimpleNamespace(metrics=metrics)
    listener: Any = Listener()
    with recorded_run(RunFolder(tmp_path / "run"), kind="k", name="n") as run:
        run._mirror = listener
        # What is told depends on what was found alone, not on the experiment's plan.
        Compare.tell(object.__new__(Compare), run, found)
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
