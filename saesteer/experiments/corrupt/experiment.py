"""Tasks under families of layer programs: `saesteer corrupt run`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from saesteer.corruption.apply import check_programs
from saesteer.corruption.fitted import (
    LinearMap,
    Means,
    fit_linear_maps,
    load_maps,
    measure_means,
    reference_texts,
    save_maps,
    text_rows,
)
from saesteer.corruption.measure import complete_prompts, prompt_rows, score_task
from saesteer.corruption.program import LinearSpan
from saesteer.corruption.tasks import TaskRows, task_rows
from saesteer.experiments.base import Experiment, Stage, write_png, write_table
from saesteer.experiments.corrupt.config import (
    CorruptConfig,
    CorruptPlan,
    Programs,
    expand,
    plan_corruption,
)
from saesteer.experiments.corrupt.metrics import (
    loss_table,
    run_metrics,
    task_summary,
    token_changes,
)
from saesteer.experiments.results import METRICS, Results
from saesteer.models.tokens import TokenRow
from saesteer.report import Report
from saesteer.tracking import RecordedRun
from saesteer.utils.errors import ConfigError
from saesteer.utils.run_folder import finite

COMPLETIONS = "completions.json"
MAPS, MEANS = "linear_maps.safetensors", "means.safetensors"
TABLES = ("tables/scores.csv", "tables/scores.parquet")


class Corrupt(Experiment[Results]):
    """Scores every task under every program, with tables, figures and a report."""

    Config = CorruptConfig
    about = "layers skipped, repeated or permuted; task losses"
    plan: CorruptPlan
    make_plan = staticmethod(plan_corruption)

    def stages(self) -> list[Stage]:
        return [
            Stage("reference", self._prepare),
            Stage("tasks", self._score),
            Stage("completions", self._complete),
        ]

    def finish(self) -> dict[str, Any]:
        dtype = str(self.model.cfg.dtype).removeprefix("torch.")
        fits = [one.scores() for one in self.maps.values()]
        tasks = [self.folder.read_json(f"tasks/{task.name}.json") for task in self.plan.tasks]
        files = [self.folder.path / f"records/{task.name}.parquet" for task in self.plan.tasks]
        metrics = run_metrics(
            self.config, int(self.model.cfg.n_layers), self.programs, tasks, fits, dtype
        )
        metrics["tokens"] = token_changes(pd.concat([pd.read_parquet(file) for file in files]))
        done = self.folder.has(COMPLETIONS)
        metrics["completions"] = self.folder.read_json(COMPLETIONS) if done else []
        metrics = finite(metrics)
        for name in TABLES:
            write_table(self.folder, name, loss_table(metrics))
        return metrics

    def report(self, results: Results) -> Report:
        from saesteer.report.corrupt import corrupt_report

        return corrupt_report(results.metrics)

    def write_report(self) -> None:
        from saesteer.report.corrupt import family_figures

        metrics = self.folder.read_json(METRICS)
        for family in metrics["families"]:
            drawn = [figure.draw() for figure in family_figures(metrics, family)]
            write_png(self.folder, f"figures/{family.replace(' ', '_')}.png", drawn)
        super().write_report()

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        scores = ("accuracy", "loss", "calibration_error")
        found: dict[str, Any] = {name: metrics["intact"][name] for name in scores}
        found["programs"] = len(metrics["programs"])
        for name, family in metrics["families"].items():
            found[f"worst_{name}".replace(" ", "_")] = family["worst"]
        right = {task: one["layers"] for task, one in metrics["first_right"].items()}
        known = {task: layers for task, layers in right.items() if layers is not None}
        return {**found, "first_right": known} if known else found

    def tell(self, record: RecordedRun, results: Results) -> None:
        record.table("scores", pd.read_parquet(self.folder.path / TABLES[1]))

    @cached_property
    def programs(self) -> Programs:
        """Everything that is run."""
        return expand(self.config, int(self.model.cfg.n_layers), int(self.model.cfg.n_heads))

    @cached_property
    def rows(self) -> dict[str, TaskRows]:
        """Every task's questions as tokens."""
        settings = self.config.tasks
        return {
            task.name: task_rows(
                self.tokenizer,
                task,
                shots=settings.shots,
                max_questions=settings.max_questions,
                seed=self.config.seed,
                max_length=self.context,
            )
            for task in self.plan.tasks
        }

    def check(self) -> None:
        check_programs(self.model, self.programs.all)
        assert self.rows
        if self.programs.spans or self.programs.need_means:
            assert self._reference
        shown = self.config.completions
        if shown is not None and shown.prompts:
            prompt_rows(self.model, shown.prompts, shown.max_new_tokens)

    def _prepare(self) -> None:
        if self.programs.spans:
            self.progress.say(f"Fitting {len(self.programs.spans)} linear maps")
            assert self.maps is not None
        if self.programs.need_means:
            self.progress.say("Measuring the means of heads and MLPs")
            assert self.means is not None

    @cached_property
    def maps(self) -> dict[LinearSpan, LinearMap]:
        """The linear maps, read back where they were fitted before."""
        if not self.programs.spans:
            return {}
        if not self.folder.has(MAPS):
            fitted = fit_linear_maps(
                self.model,
                self.programs.spans,
                self._reference,
                held_out=self.config.reference.held_out,
                seed=self.config.seed,
                max_tokens=self.config.max_tokens,
            )
            self.folder.write(MAPS, lambda draft: save_maps(fitted, draft))
        return load_maps(self.folder.path / MAPS)

    @cached_property
    def means(self) -> Means | None:
        """The means, read back where they were measured before; None where none is needed."""
        if not self.programs.need_means:
            return None
        if not self.folder.has(MEANS):
            most = self.config.max_tokens
            measured = measure_means(self.model, self._reference, max_tokens=most)
            self.folder.write(MEANS, measured.save)
        return Means.load(self.folder.path / MEANS)

    @cached_property
    def _reference(self) -> list[TokenRow]:
        settings = self.config.reference
        texts = reference_texts(settings.source, limit=settings.max_texts)
        return text_rows(self.model, texts)

    def _score(self) -> None:
        config = self.config
        programs = self.programs.all
        self.progress.say(f"Scoring {len(self.rows)} tasks under {len(programs)} programs")
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
                task.advance(1, name)

    def _complete(self) -> None:
        shown = self.config.completions
        if shown is None or not shown.prompts:
            return
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
        self.folder.write_json(COMPLETIONS, found)
