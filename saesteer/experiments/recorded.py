"""What is recorded of an experiment, whoever calls it, and what each kind tells the record."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.tracking.recording import RecordedRun, recorded_run, run_id
from saesteer.utils.errors import OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import TrackingSettings

if TYPE_CHECKING:
    from saesteer.experiments.compare.run import CompareResult
    from saesteer.experiments.probe.training import ProbeRun
    from saesteer.experiments.steer.run_files import RunResult
    from saesteer.sweeps.results import SweepResult
    from saesteer.utils.settings import RunConfig


@contextmanager
def recorded_experiment(
    kind: str,
    config: Any,
    folder: Path,
    progress: Progress,
    *,
    name: str = "",
    root: Path | None = None,
    **record: Any,
) -> Iterator[RecordedRun]:
    """Record an experiment; see `recorded_run`.

    Args:
        kind: What kind of run, such as "run" or "compare".
        config: Its settings.
        folder: The run's folder.
        progress: Where warnings are said.
        name: What to call it; the settings' name if empty.
        root: The folder whose list names it; the settings' folder if None.
        record: What else the record says: `tags`, `group` and `parent` of `recorded_run`.
    """
    with recorded_run(
        RunFolder(folder),
        kind=kind,
        name=name or config.name,
        config=config.model_dump(mode="json"),
        wandb=config.tracking,
        root=root or Path(config.folder),
        progress=progress,
        **record,
    ) as recorded:
        yield recorded


def tell_run(recorded: RecordedRun, config: RunConfig, result: RunResult) -> None:
    """Tell the record what `saesteer run` found."""
    from saesteer.experiments.steer.run_files import VECTOR
    from saesteer.report import propensity_data, propensity_figure
    from saesteer.sweeps.trials import run_numbers

    metrics, folder = result.metrics, result.folder.path
    recorded.timings(metrics["seconds"])
    recorded.summary(run_numbers(metrics, config.evaluation.budget))
    recorded.curve("margin", metrics["curve"], x="strength")
    recorded.table("features", result.features)
    recorded.table("completions", result.completions)
    if recorded.shown_elsewhere:
        title = f"{config.name}: propensity by strength"
        recorded.figure("margin", propensity_figure(propensity_data(metrics), title))
    recorded.artifact("vector", folder / VECTOR, "vector")
    recorded.artifact("report", folder / "figure.html", "report")


def tell_comparison(recorded: RecordedRun, result: CompareResult) -> None:
    """Tell the record what `saesteer compare` found."""
    from saesteer.experiments.compare.run import REPORT
    from saesteer.report.page import effect_figures
    from saesteer.sweeps.trials import compare_numbers

    metrics, folder = result.metrics, result.folder.path
    headline = [r for r in metrics["summary"] if r.get("budget") == metrics["headline_budget"]]
    effects = {str(row.get("method")): row.get("effect") for row in headline}
    recorded.summary({**compare_numbers(metrics), "effects": effects})
    recorded.timings(metrics["seconds"])
    for name in ("summary", "effects", "generation_summary", "null"):
        recorded.table(name, metrics[name])
    recorded.table("features", _by_persona(metrics["features"]))
    recorded.table("completions", _by_persona(metrics["completions"]))
    recorded.curve("change", _changes(metrics), x="multiple")
    if recorded.shown_elsewhere:
        for name, figure in effect_figures(metrics).items():
            recorded.figure(name, figure)
    recorded.artifact("report", folder / REPORT, "report")
    for persona, file in metrics["vectors"].items():
        recorded.artifact(f"vector-{persona}", file, "vector")


def tell_sweep(recorded: RecordedRun, result: SweepResult) -> None:
    """Tell the record what `saesteer sweep` found; its files are written."""
    from saesteer.report.sheet import Drawing
    from saesteer.report.sweep_page import sweep_sheet
    from saesteer.sweeps.results import REPORT, result_table

    recorded.summary({"states": result.states, "best": result.best and result.best.value})
    recorded.table("trials", result_table(result))
    if recorded.shown_elsewhere:
        for part in sweep_sheet(result.as_dict()).parts:
            for drawn in (item for item in part.items if isinstance(item, Drawing)):
                recorded.figure(part.title.lower().replace(" ", "-"), drawn.figure)
    recorded.artifact("report", recorded.folder.path / REPORT, "report")


def tell_probes(recorded: RecordedRun, run: ProbeRun) -> None:
    """Tell the record what `saesteer probe train` found."""
    from saesteer.probes.probe_set import FILE_NAME

    metrics, folder = run.metrics, run.folder.path
    layers = [_layer_row(record) for record in metrics["layers"]]
    best = next((row for row in layers if row["layer"] == metrics["best"]), {})
    counts = {name: metrics[name] for name in ("n_train", "n_test", "n_judge", "n_checks")}
    recorded.summary({"best_layer": metrics["best"], **best, **counts})
    if layers:
        recorded.curve("layers", layers, x="layer")
        recorded.table("layers", layers)
    for name in ("sparse", "features"):
        if metrics.get(name):
            recorded.table(name, metrics[name])
    if "needed" in metrics:
        recorded.summary({"features_needed": metrics["needed"]})
    recorded.artifact("probes", folder / FILE_NAME, "probes")
    if (folder / "confusion.html").is_file():
        recorded.figure("confusion", folder / "confusion.html")


@contextmanager
def recorded_look(
    kind: str,
    settings: Mapping[str, Any],
    *,
    name: str,
    progress: Progress,
    about: Path | None = None,
) -> Iterator[RecordedRun]:
    """Record a command that has no folder of its own, such as `generate` or `doctor`.

    The same settings give the same folder below `runs/looks`, or SAESTEER_RUNS. Where that cannot
    be written the command goes on unrecorded.

    Args:
        kind: The command.
        settings: All that its answer depends on.
        name: What to call it.
        progress: Where to say that it is not recorded.
        about: The folder of a run that it looks at; the record then goes into its `looks`.
    """
    from saesteer.utils.settings import short_hash

    record = {"kind": kind, **settings}
    about = about.parent if about is not None and about.is_file() else about
    place = (about or runs_root()) / "looks" / f"{kind}-{short_hash(record)}"
    root = about.parent if about else runs_root()
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            if RunFolder(place).create().has("run.json"):
                RunFolder(place).read_json("run.json")
        except OutputError as error:
            progress.say(f"warning: not recorded: {error}")
            place, root = Path(nowhere) / "looks" / place.name, Path(nowhere)
        with recorded_run(
            RunFolder(place),
            kind=kind,
            name=name,
            config=settings,
            parent=None if about is None else run_id(RunFolder(about)),
            # Whether W&B is told too is a setting, and these have none.
            wandb=TrackingSettings(wandb="off"),
            root=root,
            progress=progress,
        ) as recorded:
            yield recorded


def runs_root() -> Path:
    """Return where commands without a `folder` setting keep and look for runs."""
    return Path(os.environ.get("SAESTEER_RUNS") or "runs")


def _layer_row(record: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: (record.get(name) or {}).get("value") for name in ("accuracy", "macro_f1")}
    row = {"layer": record["layer"], **scores, "auroc": (record.get("auroc") or {}).get("value")}
    if "selectivity" in record:
        row["selectivity"] = record["selectivity"]
    return row


def _changes(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return each method's change of the margin, mean over personas, by multiple of strength."""
    from saesteer.report.effects import strength_data

    points: dict[float, dict[str, float]] = {}
    for curve in strength_data(metrics):
        for multiple, change in zip(curve.multiples, curve.changes, strict=True):
            points.setdefault(multiple, {"multiple": multiple})[curve.method.name] = change
    return [points[multiple] for multiple in sorted(points)]


def _by_persona(listed: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"persona": persona, **{k: v for k, v in row.items() if not isinstance(v, list)}}
        for persona, rows in listed.items()
        for row in rows
    ]
