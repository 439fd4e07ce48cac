"""Where a behaviour lives: `saesteer patch run`, from prompt pairs to a site to steer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from saesteer.experiments.base import Stage
from saesteer.experiments.patch.attention_run import ATTENTION, run_attention
from saesteer.experiments.patch.cells import (
    check_vector,
    run_activation,
    run_attribution,
    run_features,
    run_paths,
)
from saesteer.experiments.patch.circuit_run import check_circuit, run_circuit
from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.exhibits import all_figures
from saesteer.experiments.patch.plan import PatchPlan, plan_patch
from saesteer.experiments.patch.reading import ANSWERS, run_answers, run_reading
from saesteer.experiments.patch.results import PatchResults
from saesteer.experiments.patch.run_metrics import run_metrics
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.report import Report
from saesteer.utils.run_folder import finite


class Patch(PatchContext):
    """Runs the task, reads and patches every component asked for, and names a site."""

    Config = PatchConfig
    Results = PatchResults
    about = "activation and attribution patching: where it lives"

    @staticmethod
    def make_plan(config: PatchConfig) -> PatchPlan:
        """Read the pairs and check every name in the settings."""
        return plan_patch(config)

    def check(self) -> None:
        """Check against the model what the settings name."""
        super().check()
        check_vector(self)
        check_circuit(self)

    def stages(self) -> list[Stage]:
        """Return the steps, from the prompts to the circuit."""
        steps = {
            "answers": run_answers,
            "reading": run_reading,
            "attribution": run_attribution,
            "activation": run_activation,
            "features": run_features,
            "paths": run_paths,
            "attention": run_attention,
            "circuit": run_circuit,
        }
        rest = [Stage(name, partial(step, self)) for name, step in steps.items()]
        return [Stage("pairs", self.write_pairs), *rest]

    def finish(self) -> dict[str, Any]:
        """Return the metrics."""
        return finite(run_metrics(PatchResults(self.folder), self.left_out))

    def report(self, results: PatchResults) -> Report:
        """Return the report."""
        return report_of(results)

    def write_report(self) -> None:
        """Write the page, and every figure as PNG."""
        self.progress.say("Writing figures and report")
        write_figures(PatchResults(self.folder))

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the model does on the task, the site and the circuit."""
        best = (metrics.get("suggestion") or {}).get("best") or {}
        circuit = metrics.get("circuit") or {}
        names = ("accuracy", "logit_difference_clean", "logit_difference_corrupted")
        return {
            **{name: metrics["task"][name] for name in names},
            "site": best.get("site"),
            "effect": best.get("effect"),
            "circuit": {k: v for k, v in circuit.items() if isinstance(v, int | float)},
        }


def report_of(results: PatchResults) -> Report:
    """Return the report of a finished run."""
    from saesteer.report.patch import patch_report

    return patch_report(
        results.metrics,
        all_figures(results),
        results.table(ANSWERS),
        results.sae_record,
        attention=ATTENTION if results.folder.has(ATTENTION) else None,
    )


def write_figures(results: PatchResults) -> None:
    """Write the page, and every figure as PNG."""
    from saesteer.report.pictures import save_png

    report = report_of(results)
    for name, figure in report.figures.items():
        results.folder.write(
            f"figures/{name}.png", lambda draft, figure=figure: save_png([figure], draft)
        )
    report.write(results.report)
