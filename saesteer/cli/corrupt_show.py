"""What `saesteer corrupt` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from saesteer.cli.show import console, heading, number, table

if TYPE_CHECKING:
    from saesteer.corruption.completions import Completion
    from saesteer.corruption.tasks import Task
    from saesteer.experiments.corrupt.config import CorruptPlan
    from saesteer.experiments.results import Results

MOST_PROGRAMS = 12
MARKS = {"holds": "+", "in part": "?", "not tested": "?", "does not hold": "-"}


def show_corrupt_plan(plan: CorruptPlan) -> None:
    """Print what a run would do."""
    from saesteer.experiments.corrupt.config import expand

    out, config = console(), plan.config
    out.print(f"{config.name}: {plan.model.name} ({plan.model.kind}: {plan.model.location})")
    limit = config.tasks.max_questions
    counts = [
        f"{task.name} {min(len(task.questions), limit or len(task.questions))}"
        for task in plan.tasks
    ]
    out.print(f"Questions: {', '.join(counts)}, {config.tasks.shots} examples before each")
    if plan.shape is None:
        out.print("How many layers the model has is known when it is loaded.")
    else:
        programs = expand(config, plan.shape.n_layers, plan.shape.n_heads)
        names = [f"{f.name} ({len(f.programs)})" for f in programs.families]
        out.print(f"Programs: {len(programs.all)} in all: {', '.join(names)}")
    out.print(f"Would write to {plan.folder}")
    out.print("Nothing was loaded or written.")


def show_corrupt_run(run: Results) -> None:
    """Print the intact model, the worst programs, what was observed and where everything is."""
    from saesteer.report.corruption_page import lead

    out, metrics = console(), run.metrics
    out.print()
    out.print(Text(lead(metrics), style="bold"))
    right = metrics["first_right"]
    columns = ["loss", "accuracy", "calibration", *(["first right with"] if right else [])]
    rows = table("task", *((column, "right") for column in columns))
    for name, task in metrics["tasks"].items():
        layers = right.get(name, {}).get("layers")
        cells = [
            name,
            number(task["loss"], ".2f"),
            number(task["accuracy"], ".0%"),
            number(task["calibration_error"], ".2f"),
        ]
        rows.add_row(*cells, *(["-" if layers is None else f"{layers} layers"] if right else []))
    heading(out, "Tasks on the intact model")
    out.print(rows)
    heading(out, "Programs that cost most")
    made = table("program", ("loss", "right"), ("change", "right"), ("accuracy", "right"))
    ranked = sorted(metrics["programs"].items(), key=lambda item: -(item[1]["loss"] or 0.0))
    for name, record in ranked[:MOST_PROGRAMS]:
        losses = (number(record[key], ".2f") for key in ("loss", "loss_change"))
        made.add_row(name, *losses, number(record["accuracy"], ".0%"))
    out.print(made)
    tested = [one for one in metrics["observations"] if one["verdict"] != "not tested"]
    if tested:
        heading(out, "Observations")
    for one in tested:
        said = f"{MARKS[one['verdict']]} {one['claim']} {one['verdict'].capitalize()}."
        out.print(Text(said))
        out.print(Text(f"  {one['found']}"))
    folder = run.folder.path
    out.print()
    out.print(f"Report:  {folder / 'report.html'}")
    out.print(f"Numbers: {folder / 'metrics.json'}, {folder / 'tables'} and {folder / 'records'}")


def show_completions(found: Sequence[Completion]) -> None:
    """Print every prompt's completions below each other, program by program."""
    out = console()
    for prompt in dict.fromkeys(one.prompt for one in found):
        heading(out, prompt)
        rows = table("program", "goes on")
        for one in found:
            if one.prompt == prompt:
                rows.add_row(one.program, Text(repr(one.text)))
        out.print(rows)


def show_tasks(tasks: Sequence[Task], folder: Path | None) -> None:
    """Print each task with its first question."""
    out = console()
    rows = table("task", ("examples", "right"), ("questions", "right"), "such as")
    for task in tasks:
        first = task.questions[0]
        text = Text(f"{first.prompt.strip()} -> {first.answer}")
        rows.add_row(task.name, str(len(task.examples)), str(len(task.questions)), text)
    out.print(rows)
    if folder is not None:
        out.print(f"Wrote {len(tasks)} tasks to {folder}")
