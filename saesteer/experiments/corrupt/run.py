"""A corruption run: tasks under families of programs, in a folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.corruption.program import LinearSpan
from saesteer.experiments.corrupt.plan import CorruptPlan, Programs, Shape, expand, plan_corruption
from saesteer.experiments.corrupt.settings import CorruptConfig
from saesteer.experiments.shelf import Shelf
from saesteer.experiments.workbench import ModelBench, on_its_threads
from saesteer.tracking.recording import RecordedRun, recorded_run
from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder, finite

if TYPE_CHECKING:
    from saesteer.corruption.edits import Means
    from saesteer.corruption.linear_map import LinearMap
    from saesteer.corruption.prompts import TaskRows
    from saesteer.models.tokens import TokenRow

METRICS, REPORT, CONFIG, COMPLETIONS = (
    "metrics.json", "report.html", "config.json", "completions.json",
)  # fmt: skip
MAPS, MEANS = "linear_maps.safetensors", "means.safetensors"


@dataclass(frozen=True)
class CorruptRun:
    """What a corruption run found; all of it is in its folder too.

    Attributes:
        folder: The run's folder.
        metrics: `metrics.json`.
    """

    folder: RunFolder
    metrics: dict[str, Any]


@on_its_threads
def corrupt(
    config: CorruptConfig, progress: Progress | None = None, shelf: Shelf | None = None
) -> CorruptRun:
    """Score every task under every program, and write tables, figures and a report.

    What the run's folder holds already is not done again.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs of this process have loaded already; nothing if None.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.
    """
    progress = progress or Progress()
    plan = plan_corruption(config)
    folder = RunFolder(plan.folder)
    if folder.has(METRICS) and folder.has(REPORT):
        return load_corrupt_run(plan.folder)
    bench = CorruptBench(plan, folder, progress, shelf)
    # What does not fit the model is said before anything is written.
    bench.check()
    with recorded_run(
        folder,
        kind="corrupt",
        name=config.name,
        config=config.model_dump(mode="json"),
        wandb=config.tracking,
        progress=progress,
    ) as recorded:
        folder.write_json(CONFIG, config.model_dump(mode="json"))
        with recorded.stage("reference"):
            bench.prepare()
        with recorded.stage("tasks"):
            tasks = bench.score()
        with recorded.stage("completions"):
            completions = bench.complete()
        with recorded.stage("report"):
            metrics = _finish(bench, tasks, completions, recorded)
    return CorruptRun(folder, metrics)


def load_corrupt_run(path: str | Path) -> CorruptRun:
    """Read a finished run back from its folder.

    Raises:
        OutputError: The folder holds no finished run.
    """
    folder = RunFolder(Path(path))
    if not (folder.has(METRICS) and folder.has(CONFIG)):
        raise OutputError(
            f"{path} holds no finished corruption run; give the folder that saesteer corrupt run "
            "names at its end."
        )
    return CorruptRun(folder, folder.read_json(METRICS))


class CorruptBench(ModelBench):
    """Loads and prepares what the stages share, when first needed and once.

    Args:
        plan: The run.
        folder: Its folder.
        progress: Where to show progress.
        shelf: What other runs of this process have loaded already; nothing if None.
    """

    def __init__(
        self,
        plan: CorruptPlan,
        folder: RunFolder,
        progress: Progress,
        shelf: Shelf | None = None,
    ) -> None:
        super().__init__(plan, progress, shelf)
        self.plan: CorruptPlan = plan
        self.folder = folder

    @cached_property
    def shape(self) -> Shape:
        """The model's layers and heads."""
        return Shape(int(self.model.cfg.n_layers), int(self.model.cfg.n_heads))

    @cached_property
    def programs(self) -> Programs:
        """Everything that is run."""
        return expand(self.plan.config, self.shape)

    @cached_property
    def rows(self) -> dict[str, TaskRows]:
        """Every task's questions as tokens."""
        from saesteer.corruption.prompts import task_rows

        settings, tokenizer = self.plan.config.tasks, self.model.tokenizer
        assert tokenizer is not None
        return {
            task.name: task_rows(
                tokenizer,
                task,
                shots=settings.shots,
                max_questions=settings.max_questions,
                seed=self.plan.config.seed,
                max_length=int(self.model.cfg.n_ctx),
            )
            for task in self.plan.tasks
        }

    def check(self) -> None:
        """Check all that later stages would stumble on.

        Raises:
            SaesteerError: A task or prompt does not fit the model's context, a text file cannot be
                used, or the model cannot run programs.
        """
        from saesteer.corruption.apply import check_programs
        from saesteer.corruption.completions import prompt_rows

        check_programs(self.model, self.programs.all)
        assert self.rows
        if self._needs_reference:
            assert self._reference
        shown = self.plan.config.completions
        if shown is not None and shown.prompts:
            prompt_rows(self.model, shown.prompts, shown.max_new_tokens)

    def prepare(self) -> None:
        """Fit the linear maps and measure the means that programs need."""
        if self.programs.spans:
            self.progress.say(f"Fitting {len(self.programs.spans)} linear maps")
            assert self.maps is not None
        if self.programs.need_means:
            self.progress.say("Measuring the means of heads and MLPs")
            assert self.means is not None

    @cached_property
    def maps(self) -> dict[LinearSpan, LinearMap]:
        """The linear maps, read back where they were fitted before."""
        from saesteer.corruption.linear_map import fit_linear_maps
        from saesteer.corruption.stored import load_maps, save_maps

        if not self.programs.spans:
            return {}
        if not self.folder.has(MAPS):
            fitted = fit_linear_maps(
                self.model,
                self.programs.spans,
                self._reference,
                held_out=self.plan.config.reference.held_out,
                seed=self.plan.config.seed,
                max_tokens=self.plan.config.max_tokens,
            )
            self.folder.write(MAPS, lambda draft: save_maps(fitted, draft))
        return load_maps(self.folder.path / MAPS)

    @cached_property
    def means(self) -> Means | None:
        """The means, read back where they were measured before; None where none is needed."""
        from saesteer.corruption.edits import measure_means
        from saesteer.corruption.stored import load_means, save_means

        if not self.programs.need_means:
            return None
        if not self.folder.has(MEANS):
            measured = measure_means(
                self.model, self._reference, max_tokens=self.plan.config.max_tokens
            )
            self.folder.write(MEANS, lambda draft: save_means(measured, draft))
        return load_means(self.folder.path / MEANS)

    @property
    def _needs_reference(self) -> bool:
        return bool(self.programs.spans) or self.programs.need_means

    @cached_property
    def _reference(self) -> list[TokenRow]:
        from saesteer.corruption.texts import reference_texts, text_rows

        settings = self.plan.config.reference
        texts = reference_texts(settings.source, limit=settings.max_texts)
        return text_rows(self.model, texts)

    def score(self) -> list[dict[str, Any]]:
        """Score the tasks, each once."""
        from saesteer.corruption.measure import score_task
        from saesteer.experiments.corrupt.summary import task_summary

        config = self.plan.config
        programs = self.programs.all
        self.progress.say(f"Scoring {len(self.rows)} tasks under {len(programs)} programs")
        found = []
        with self.progress.task("tasks", len(self.rows), "tasks") as task:
            for name, rows in self.rows.items():
                summary, records = f"tasks/{name}.json", f"records/{name}.parquet"
                if not (self.folder.has(summary) and self.folder.has(records)):
                    scores = score_task(
                        self.model,
                        programs,
                        rows,
                        maps=self.maps,
                        means=self.means,
                        top=config.top_tokens,
                        max_tokens=config.max_tokens,
                    )
                    if not math.isfinite(float(scores.log_probs[0].sum())):
                        raise ConfigError(
                            f"task {name}: the intact model's loss is not finite; run it in "
                            "another dtype with --set model.dtype=float32."
                        )
                    self.folder.write(records, scores.records().to_parquet)
                    self.folder.write_json(summary, finite(task_summary(scores)))
                found.append(self.folder.read_json(summary))
                task.advance(1, name)
        return found

    def complete(self) -> list[dict[str, Any]]:
        """Write the completions under the programs that are shown."""
        from saesteer.corruption.completions import complete_prompts

        shown = self.plan.config.completions
        if shown is None or not shown.prompts:
            return []

        def compute() -> list[dict[str, Any]]:
            assert shown is not None
            self.progress.say(f"Completing {len(shown.prompts)} prompts")
            found = complete_prompts(
                self.model,
                self.programs.shown,
                shown.prompts,
                max_new_tokens=shown.max_new_tokens,
                maps=self.maps,
                means=self.means,
                progress=self.progress,
            )
            return [one._asdict() for one in found]

        return self.folder.once(COMPLETIONS, compute)


def _finish(
    bench: CorruptBench,
    tasks: list[dict[str, Any]],
    completions: list[dict[str, Any]],
    recorded: RecordedRun,
) -> dict[str, Any]:
    import pandas as pd

    from saesteer.experiments.corrupt.summary import loss_table, run_metrics, token_changes

    folder = bench.folder
    dtype = str(bench.model.cfg.dtype).removeprefix("torch.")
    fits = [one.scores() for one in bench.maps.values()]
    metrics = run_metrics(bench.plan, bench.shape, bench.programs, tasks, fits, dtype)
    records = [pd.read_parquet(folder.path / f"records/{name}.parquet") for name in bench.rows]
    metrics["tokens"] = token_changes(pd.concat(records))
    metrics["completions"] = completions
    metrics = finite(metrics)
    table = loss_table(metrics)
    folder.write("tables/scores.csv", lambda draft: table.to_csv(draft, index=False))
    folder.write("tables/scores.parquet", lambda draft: table.to_parquet(draft, index=False))
    folder.write_json(METRICS, metrics)
    write_figures(folder, metrics, recorded)
    recorded.table("scores", table)
    recorded.summary(headline(metrics))
    recorded.artifact("report", folder.path / REPORT)
    return metrics


def write_figures(
    folder: RunFolder, metrics: dict[str, Any], recorded: RecordedRun | None = None
) -> None:
    """Write each family's heatmaps as page and PNG, and the report that holds them all."""
    from saesteer.report.corruption_drawing import score_figure, score_maps, score_picture
    from saesteer.report.corruption_page import corruption_sheet
    from saesteer.report.sheet import write_sheet

    for name, maps in score_maps(metrics).items():
        file = f"figures/{name.replace(' ', '_')}"
        folder.write(f"{file}.png", lambda draft, maps=maps: score_picture(maps, draft))
        figure = score_figure(maps[0])
        folder.write(
            f"{file}.html",
            lambda draft, figure=figure: figure.write_html(draft, include_plotlyjs=True),
        )
        if recorded is not None:
            recorded.figure(f"loss {name}", figure)
    write_sheet(corruption_sheet(metrics), folder.path / REPORT)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the few numbers that a list of runs shows."""
    found: dict[str, Any] = {
        "accuracy": metrics["intact"]["accuracy"],
        "loss": metrics["intact"]["loss"],
        "calibration_error": metrics["intact"]["calibration_error"],
        "programs": len(metrics["programs"]),
    }
    for name, family in metrics["families"].items():
        found[f"worst_{name}".replace(" ", "_")] = family["worst"]
    for task, right in metrics["first_right"].items():
        if right["layers"] is not None:
            found.setdefault("first_right", {})[task] = right["layers"]
    return found
