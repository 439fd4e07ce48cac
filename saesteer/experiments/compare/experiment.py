"""Every method at equal cost over personas: `saesteer compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saesteer.experiments.base import Stage
from saesteer.experiments.compare.checks import check_comparison
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.context import CompareContext
from saesteer.experiments.compare.llm_step import llm_rows
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.experiments.compare.plan import DONE, ComparePlan, only, plan_compare
from saesteer.experiments.compare.summary import (
    Grid,
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
from saesteer.experiments.context import cpu_threads
from saesteer.experiments.numbers import compare_numbers
from saesteer.experiments.results import REPORT, Results
from saesteer.methods.registry import method_entry
from saesteer.tracking.recording import RecordedRun, recorded_run, run_id
from saesteer.utils.progress import Task
from saesteer.utils.run_folder import RunFolder, environment_record, finite, write_record
from saesteer.utils.settings import TrackingSettings

TABLES = ("summary", "effects", "generation", "generation_summary", "null", "areas")


class Compare(CompareContext):
    """Holds every method against the others at equal cost, over personas.

    Attributes:
        elsewhere: Measures the personas, such as in other processes; here if None.
    """

    Config = CompareConfig
    about = "steering methods compared at equal cost"
    elsewhere: Callable[[ComparePlan], None] | None = None

    @staticmethod
    def make_plan(config: CompareConfig) -> ComparePlan:
        """Read the data and check every name in the settings."""
        return plan_compare(config)

    def only(self, names: Sequence[str]) -> None:
        """Compare on some of the personas; a part is a comparison of its own.

        Raises:
            ConfigError: A name is not one of them.
        """
        self.plan = only(self.plan, list(names))
        self.folder = RunFolder(self.plan.folder)

    @property
    def finished(self) -> bool:
        """Whether everything was computed, of every persona too."""
        return super().finished and not self._pending

    @property
    def _pending(self) -> list[PersonaRun]:
        runs = [PersonaRun(self, persona) for persona in self.plan.personas]
        return [run for run in runs if not run.persona.done]

    def check(self) -> None:
        """Check every persona against the model; elsewhere that is done there."""
        if self.elsewhere is None and self._pending:
            check_comparison(self, self._pending)

    def stages(self) -> list[Stage]:
        """Return the one step, to which each persona that is not done belongs."""
        return [Stage("personas", self._personas, done=not self._pending)]

    def _personas(self) -> None:
        if self.elsewhere is None:
            self.measure()
        else:
            self.elsewhere(self.plan)

    def measure(self) -> None:
        """Measure every persona of the plan that is not done yet."""
        pending = self._pending
        for run in pending:
            run.folder.create()
        parent = run_id(self.folder)
        steps = sum(run.steps() for run in pending)
        with (
            # A worker measures its share without the rest of the comparison.
            cpu_threads(self.config.model.threads),
            self.progress.task("comparing", total=steps, unit="steps") as task,
        ):
            for run in pending:
                with _recorded_persona(run, self, parent) as recorded:
                    _measure(run, self, task)
                    recorded.timings(run.seconds)
                    recorded.summary(_persona_summary(run))

    def finish(self) -> dict[str, Any]:
        """Write the tables and return the metrics, from the personas' folders."""
        import pandas as pd

        runs = [PersonaRun(self, persona) for persona in self.plan.personas]
        self.progress.say("Summing up")
        metrics = finite(_metrics(self, runs))
        write_record(self.folder, {**environment_record(), "weights": self.weights_key})
        for name in TABLES:
            frame = pd.json_normalize(metrics[name])
            self.folder.write(
                f"tables/{name}.csv", lambda draft, f=frame: f.to_csv(draft, index=False)
            )
        return metrics

    def write_report(self) -> None:
        """Write the page."""
        from saesteer.report import write_report

        write_report(self.folder.read_json("metrics.json"), self.folder.path / REPORT)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headline method's effect, and every method's at the headline KL target."""
        kl_target = metrics["headline_kl_target"]
        rows = [row for row in metrics["summary"] if row.get("kl_target") == kl_target]
        effects = {str(row.get("method")): row.get("effect") for row in rows}
        return {**compare_numbers(metrics), "effects": effects}

    def tell(self, record: RecordedRun, results: Results) -> None:
        """Show tables and figures elsewhere too."""
        from saesteer.report.page import effect_figures

        metrics = results.metrics
        for name in ("summary", "effects", "generation_summary", "null"):
            record.table(name, metrics[name])
        record.table("features", _by_persona(metrics["features"]))
        record.table("completions", _by_persona(metrics["completions"]))
        record.curve("change", _changes(metrics), x="multiple")
        if record.shown_elsewhere:
            for name, figure in effect_figures(metrics).items():
                record.figure(name, figure)
        for persona, file in metrics["vectors"].items():
            record.artifact(f"vector-{persona}", file, "vector")


@contextmanager
def _recorded_persona(
    run: PersonaRun, bench: CompareContext, parent: str | None
) -> Iterator[RecordedRun]:
    plan = bench.plan
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
        progress=bench.progress,
    ) as recorded:
        yield recorded


def _measure(run: PersonaRun, bench: CompareContext, task: Task) -> None:
    if "weights" not in run.folder.read_json("run.json"):
        write_record(run.folder, {"weights": bench.weights_key})
    run.run(task)
    seconds = {stage: round(value, 1) for stage, value in run.seconds.items()}
    files = [file for file in run.folder.path.rglob("*.*") if file.is_file()]
    names = sorted(file.relative_to(run.folder.path).as_posix() for file in files)
    run.folder.write_json(DONE, {"seconds": seconds, "files": names})


def _persona_summary(run: PersonaRun) -> dict[str, Any]:
    """Return the headline's and the baseline's effect at the headline KL target."""
    config = run.config
    names = {"effect": config.headline, "effect_baseline": config.baseline}
    kl_target = config.evaluation.headline_kl_target
    return {label: run.matched(name, kl_target)[1]["effect"] for label, name in names.items()}


def _metrics(bench: CompareContext, runs: list[PersonaRun]) -> dict[str, Any]:
    config = bench.plan.config
    results = Grid(config, runs)
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
        "kl_targets": config.evaluation.kl_targets,
        "headline_kl_target": config.evaluation.headline_kl_target,
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
        "llm_judge": llm_rows(bench.plan, runs),
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
