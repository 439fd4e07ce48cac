"""A patching run: from prompt pairs to maps, a circuit and a site to steer, in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.experiments.patch.attention_run import run_attention
from saesteer.experiments.patch.bench import PatchBench
from saesteer.experiments.patch.cells import (
    check_vector,
    run_activation,
    run_attribution,
    run_features,
    run_paths,
)
from saesteer.experiments.patch.circuit_run import check_circuit, run_circuit
from saesteer.experiments.patch.exhibits import all_exhibits
from saesteer.experiments.patch.plan import plan_patch
from saesteer.experiments.patch.reading import run_answers, run_reading
from saesteer.experiments.patch.run_metrics import run_metrics
from saesteer.experiments.patch.run_results import CONFIG, METRICS, REPORT, RunResults
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.shelf import Shelf
from saesteer.experiments.workbench import on_its_threads
from saesteer.report.patching_figures import Heatmap
from saesteer.tracking.recording import RecordedRun, recorded_run
from saesteer.utils.errors import OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder, finite

FIGURES = "figures"


@dataclass(frozen=True)
class PatchRun:
    """What a patching run found; all of it is in its folder too.

    Attributes:
        folder: The run's folder.
        metrics: `metrics.json`.
    """

    folder: RunFolder
    metrics: dict[str, Any]


@on_its_threads
def run_patching(
    config: PatchConfig, progress: Progress | None = None, shelf: Shelf | None = None
) -> PatchRun:
    """Run the task, read and patch every component asked for, and write the report.

    What the run's folder holds already is not done again.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs of this process have loaded already; nothing if None.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.
    """
    progress = progress or Progress()
    plan = plan_patch(config)
    folder = RunFolder(plan.folder)
    if folder.has(METRICS) and folder.has(REPORT):
        return load_patch_run(plan.folder)
    bench = PatchBench(plan, folder, progress, shelf)
    # What does not fit the model is said before anything is written.
    if not folder.has(CONFIG):
        bench.check()
        check_vector(bench)
        check_circuit(bench)
    with recorded_run(
        folder,
        kind="patch",
        name=config.name,
        config=config.model_dump(mode="json"),
        wandb=config.tracking,
        progress=progress,
    ) as recorded:
        folder.write_json(CONFIG, config.model_dump(mode="json"))
        for name, step in _stages(bench):
            with recorded.stage(name):
                step()
        metrics = _finish(bench, recorded)
    return PatchRun(folder, metrics)


def _stages(bench: PatchBench) -> list[tuple[str, Callable[[], None]]]:
    return [
        ("pairs", bench.write_pairs),
        ("answers", lambda: run_answers(bench)),
        ("reading", lambda: run_reading(bench)),
        ("attribution", lambda: run_attribution(bench)),
        ("activation", lambda: run_activation(bench)),
        ("features", lambda: run_features(bench)),
        ("paths", lambda: run_paths(bench)),
        ("attention", lambda: run_attention(bench)),
        ("circuit", lambda: run_circuit(bench)),
    ]


def _finish(bench: PatchBench, recorded: RecordedRun) -> dict[str, Any]:
    folder, progress = bench.folder, bench.progress
    results = RunResults(folder)
    with recorded.stage("report"):
        metrics = finite(run_metrics(results, bench.left_out))
        folder.write_json(METRICS, metrics)
        progress.say("Writing figures and report")
        write_figures(results, recorded)
    recorded.summary(headline(metrics))
    recorded.artifact("report", folder.path / REPORT)
    return metrics


def write_figures(results: RunResults, recorded: RecordedRun | None = None) -> Path:
    """Write every figure as PNG, and the page that holds them all."""
    from saesteer.experiments.patch.page import patching_sheet
    from saesteer.report.patching_drawing import drawn
    from saesteer.report.patching_pictures import picture
    from saesteer.report.sheet import write_sheet

    folder = results.folder
    metrics = folder.read_json(METRICS)
    exhibits = list(all_exhibits(results))
    for one in exhibits:
        folder.write(
            f"{FIGURES}/{one.name}.png",
            lambda draft, one=one: picture(one.figure, draft, one.limit),
        )
        if recorded is not None and isinstance(one.figure, Heatmap):
            recorded.figure(one.name, drawn(one.figure, one.limit))
    return write_sheet(patching_sheet(metrics, exhibits, results), folder.path / REPORT)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the few numbers that a list of runs shows."""
    best = (metrics.get("suggestion") or {}).get("best") or {}
    task = metrics["task"]
    return {
        "accuracy": task["accuracy"],
        "logit_difference_clean": task["logit_difference_clean"],
        "logit_difference_corrupted": task["logit_difference_corrupted"],
        "site": best.get("site"),
        "effect": best.get("effect"),
        "circuit": {
            key: value
            for key, value in (metrics.get("circuit") or {}).items()
            if isinstance(value, int | float)
        },
    }


def load_patch_run(path: str | Path) -> PatchRun:
    """Read a finished run back from its folder.

    Raises:
        OutputError: The folder holds no finished run.
    """
    folder = RunFolder(Path(path))
    if not (folder.has(METRICS) and folder.has(CONFIG)):
        raise OutputError(
            f"{path} holds no finished patching run; give the folder that saesteer patch names at "
            "its end."
        )
    return PatchRun(folder, folder.read_json(METRICS))
