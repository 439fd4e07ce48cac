"""The comparison as one call: every persona, then the summary, the tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.experiments.compare.bench import CompareBench
from saesteer.experiments.compare.checks import check_comparison
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.llm_step import llm_rows
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.experiments.compare.plan import DONE, ComparePlan, plan_compare
from saesteer.experiments.compare.plan import only as only_these
from saesteer.experiments.compare.summary import (
    Results,
    area_rows,
    curve_rows,
    effect_rows,
    null_rows,
    summary_rows,
)
from saesteer.experiments.compare.summary_texts import (
    completions,
    generation,
    named_features,
    side_effects,
)
from saesteer.experiments.recorded import recorded_experiment, tell_comparison
from saesteer.experiments.shelf import Shelf
from saesteer.experiments.workbench import cpu_threads, on_its_threads
from saesteer.methods.registry import method_entry
from saesteer.report import write_report
from saesteer.tracking.recording import RecordedRun, recorded_run, run_id
from saesteer.utils.progress import Progress, Task
from saesteer.utils.run_folder import RunFolder, environment_record, finite, write_record
from saesteer.utils.settings import TrackingSettings

TABLES = ("summary", "effects", "generation", "generation_summary", "null", "areas")
METRICS, REPORT = "metrics.json", "report.html"


@dataclass(frozen=True)
class CompareResult:
    """What a comparison found; all of it is in its folder too.

    Attributes:
        folder: The comparison's folder.
        metrics: `metrics.json`.
    """

    folder: RunFolder
    metrics: dict[str, Any]


@on_its_threads
def compare(
    config: CompareConfig,
    progress: Progress | None = None,
    shelf: Shelf | None = None,
    *,
    only: Sequence[str] = (),
    measure: Callable[[ComparePlan], None] | None = None,
    **record: Any,
) -> CompareResult:
    """Compare methods over personas, and record the run.

    What an earlier run has found is not computed again.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs of this process have loaded already; nothing if None.
        only: The personas to compare on, by name; all if empty.
        measure: Measures the personas elsewhere, such as in other processes.
        record: What else the record says: `tags`, `group` and `parent` of `recorded_run`.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.
    """
    progress = progress or Progress()
    plan = plan_compare(config)
    if only:
        plan = only_these(plan, list(only))
    with recorded_experiment("compare", config, plan.folder, progress, **record) as recorded:
        with recorded.stage("personas"):
            bench = measure(plan) if measure else measure_personas(plan, progress, shelf)
        with recorded.stage("summary"):
            result = summarise_personas(plan, progress, bench)
        tell_comparison(recorded, result)
    return result


def measure_personas(
    plan: ComparePlan, progress: Progress | None = None, shelf: Shelf | None = None
) -> CompareBench:
    """Measure every persona of a plan; each has a folder of its own."""
    progress = progress or Progress()
    bench = CompareBench(plan, progress, shelf)
    runs = [PersonaRun(bench, persona) for persona in plan.personas]
    pending = [run for run in runs if not run.persona.done]
    if not pending:
        return bench
    check_comparison(bench, pending)
    for run in pending:
        run.folder.create()
    parent = run_id(RunFolder(plan.folder))
    steps = sum(run.steps() for run in pending)
    with (
        # A worker measures its share without the rest of the comparison.
        cpu_threads(plan.config.model.threads),
        progress.task("comparing", total=steps, unit="steps") as task,
    ):
        for run in pending:
            with _recorded_persona(run, plan, parent, progress) as recorded:
                _measure(run, bench, task)
                recorded.timings(run.seconds)
                recorded.summary(_persona_summary(run))
    return bench


@contextmanager
def _recorded_persona(
    run: PersonaRun, plan: ComparePlan, parent: str | None, progress: Progress
) -> Iterator[RecordedRun]:
    settings = plan.config.model_dump(mode="json", exclude={"personas"})
    with recorded_run(
        run.folder,
        kind="persona",
        name=run.persona.name,
        config={**settings, "persona": run.persona.settings.model_dump(mode="json")},
        group=plan.config.name,
        parent=parent,
        # The comparison that they are a part of is what W&B is told.
        wandb=TrackingSettings(wandb="off"),
        root=Path(plan.config.folder),
        progress=progress,
    ) as recorded:
        yield recorded


def _measure(run: PersonaRun, bench: CompareBench, task: Task) -> None:
    if "weights" not in run.folder.read_json("run.json"):
        write_record(run.folder, {"weights": bench.weights_key})
    run.run(task)
    seconds = {stage: round(value, 1) for stage, value in run.seconds.items()}
    files = [file for file in run.folder.path.rglob("*.*") if file.is_file()]
    names = sorted(file.relative_to(run.folder.path).as_posix() for file in files)
    run.folder.write_json(DONE, {"seconds": seconds, "files": names})


def _persona_summary(run: PersonaRun) -> dict[str, Any]:
    """Return the headline's and the baseline's effect at the headline budget."""
    config = run.config
    names = {"effect": config.headline, "effect_baseline": config.baseline}
    budget = config.evaluation.headline_budget
    return {label: run.matched(name, budget)[1]["effect"] for label, name in names.items()}


def summarise_personas(
    plan: ComparePlan, progress: Progress | None = None, bench: CompareBench | None = None
) -> CompareResult:
    """Write metrics, tables and report from the personas' folders."""
    import pandas as pd

    progress = progress or Progress()
    folder = RunFolder(plan.folder)
    if folder.has(METRICS) and folder.has(REPORT):
        return CompareResult(folder, folder.read_json(METRICS))
    folder.create()
    bench = bench or CompareBench(plan, progress)
    runs = [PersonaRun(bench, persona) for persona in plan.personas]
    progress.say("Summing up")
    metrics = finite(_metrics(plan, bench, runs))
    folder.write_json("config.json", plan.config.model_dump(mode="json"))
    write_record(folder, {**environment_record(), "weights": bench.weights_key})
    for name in TABLES:
        frame = pd.json_normalize(metrics[name])
        folder.write(f"tables/{name}.csv", lambda draft, f=frame: f.to_csv(draft, index=False))
    write_report(metrics, plan.folder / REPORT)
    # Written last: with it the comparison counts as finished.
    folder.write_json(METRICS, metrics)
    return CompareResult(folder, metrics)


def _metrics(plan: ComparePlan, bench: CompareBench, runs: list[PersonaRun]) -> dict[str, Any]:
    config = plan.config
    results = Results(config, runs)
    features, linkage = {}, {}
    for run in runs:
        kept = run.folder.once(
            f"features/{config.headline}.json",
            lambda r=run: finite(named_features(bench, r, config.headline)),
        )
        features[run.persona.name] = kept["features"]
        linkage[run.persona.name] = kept["tree"]
    listed = [method_entry(method.name) for method in config.methods]
    return {
        "name": config.name,
        "model": config.model.name,
        "sae": config.sae,
        "site": str(bench.site),
        "seeds": config.seeds,
        "budgets": config.evaluation.budgets,
        "headline_budget": config.evaluation.headline_budget,
        "headline_method": config.headline,
        "baseline": config.baseline,
        "methods": [{"name": m.name, "label": m.label, "kind": m.kind} for m in listed],
        "personas": [_persona_row(run) for run in runs],
        "effects": effect_rows(results),
        "curves": curve_rows(results),
        "summary": summary_rows(results),
        "areas": area_rows(results),
        "null": null_rows(results),
        **generation(results),
        "choices_margins": [row for run in runs for row in run.folder.read_json("choices.json")],
        "side_effects": side_effects(results),
        "features": features,
        "linkage": linkage,
        "completions": completions(results),
        "vectors": _vectors(runs, config.headline),
        "chosen": {run.persona.name: _chosen(run) for run in runs},
        "config": config.model_dump(mode="json"),
        "llm_judge": llm_rows(plan, runs),
        "seconds": _seconds(runs),
    }


def _persona_row(run: PersonaRun) -> dict[str, Any]:
    split = run.first.split
    sides = run.first.unsteered()
    margin = sum(a - b for a, b in zip(*sides, strict=True)) / len(sides[0])
    return {
        "name": run.persona.name,
        "source": run.persona.pairs.source,
        "own": run.persona.own,
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "n_test": len(split.test),
        "n_judge": len(split.judge),
        "unsteered_margin": margin,
    }


def _vectors(runs: list[PersonaRun], method: str) -> dict[str, str]:
    """Return the file of a method's vector for each persona where it could be fitted."""
    files = {run.persona.name: _vector_file(run, method) for run in runs}
    return {name: str(file) for name, file in files.items() if file.is_file()}


def _vector_file(run: PersonaRun, method: str) -> Path:
    return run.first.folder.path / f"vectors/{method}.safetensors"


def _seconds(runs: list[PersonaRun]) -> dict[str, float]:
    """Return what each stage took over all personas; a resumed one counts its last stretch."""
    total: dict[str, float] = {}
    for run in runs:
        for stage, seconds in run.folder.read_json(DONE)["seconds"].items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 1)
    return total


def _chosen(run: PersonaRun) -> dict[str, Any]:
    found = {}
    for method in run.config.methods:
        name = f"chosen/{method.name}.json"
        if method.grid and run.first.folder.has(name):
            found[method.name] = run.first.folder.read_json(name)["settings"]
    return found
