"""What `saesteer corrupt` prints besides its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saesteer.report import Table
from saesteer.report.corrupt import completion_texts
from saesteer.report.terminal import console, print_table, print_texts, show_plan

if TYPE_CHECKING:
    from saesteer.corruption.tasks import Task
    from saesteer.experiments.corrupt.config import CorruptPlan


def show_corrupt_plan(plan: CorruptPlan) -> None:
    """Print what a run would do."""
    from saesteer.experiments.corrupt.config import expand

    config, limit = plan.config, plan.config.tasks.max_questions
    counts = [
        f"{task.name} {min(len(task.questions), limit or len(task.questions))}"
        for task in plan.tasks
    ]
    programs = "known when the model is loaded"
    if plan.shape is not None:
        found = expand(config, plan.shape.n_layers, plan.shape.n_heads)
        names = [f"{f.name} ({len(f.programs)})" for f in found.families]
        programs = f"{len(found.all)} in all: {', '.join(names)}"
    show_plan(
        {
            "name": config.name,
            "model": str(plan.model),
            "questions": f"{', '.join(counts)}, {config.tasks.shots} examples before each",
            "programs": programs,
        },
        plan.folder,
    )


def show_completions(found: Sequence[dict[str, str]]) -> None:
    """Print every prompt's completions below each other, program by program."""
    for texts in completion_texts(found, printed=True):
        print_texts(console(), texts)


def show_tasks(tasks: Sequence[Task], folder: Path | None) -> None:
    """Print each task with its first question."""
    out = console()
    rows = [
        [
            task.name,
            len(task.examples),
            len(task.questions),
            f"{task.questions[0].prompt.strip()} -> {task.questions[0].answer}",
        ]
        for task in tasks
    ]
    print_table(out, Table(["task", "examples", "questions", "such as"], rows, most=len(rows)))
    if folder is not None:
        out.print(f"Wrote {len(tasks)} tasks to {folder}")
