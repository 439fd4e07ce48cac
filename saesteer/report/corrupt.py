"""The report of a corruption run: where tasks come right, and where they break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from saesteer.report import plots
from saesteer.report.layout import (
    Column,
    Figure,
    Remark,
    Said,
    Section,
    Table,
    Texts,
    Tile,
    Verdict,
)
from saesteer.report.report import Report
from saesteer.report.wording import show, spoken

Metrics = Mapping[str, Any]
VERDICTS: dict[str, Verdict] = {
    "holds": "good",
    "in part": "open",
    "not tested": "open",
    "does not hold": "bad",
}
MOST_PROGRAMS = 60
WORST = 12
SCORES = {"loss": "Loss, nats per answer token", "accuracy": "Accuracy"}


def corrupt_report(metrics: Metrics) -> Report:
    """Return a run's report."""
    sections = [_tasks(metrics), _worst(metrics), *_depths(metrics), _observations(metrics)]
    sections += [*_families(metrics), *_maps(metrics), *_tokens(metrics), *_completions(metrics)]
    return Report(
        kind="corruption",
        title=str(metrics["name"]),
        lead=_lead(metrics),
        facts={
            "model": metrics["model"],
            "layers": metrics["n_layers"],
            "dtype": metrics["dtype"],
            "examples before each question": metrics["shots"],
            "seed": metrics["seed"],
        },
        remarks=[
            Remark(f"{one['claim']} {one['verdict'].capitalize()}.", VERDICTS[one["verdict"]])
            for one in metrics["observations"]
            if one["verdict"] != "not tested"
        ],
        tiles=_tiles(metrics),
        sections=sections,
        beside=("tables", "records"),
        commands=('saesteer corrupt complete "The capital of France is" --every 3',),
    )


def family_figures(metrics: Metrics, family: str) -> list[Figure]:
    """Return a family's losses and accuracies by task and program, the intact model at the end."""
    record, tasks = metrics["families"][family], metrics["tasks"]
    intact = next(iter(metrics["programs"]))
    shown = [program for program in record["programs"] if program != intact] + [intact]
    scores = [metrics["programs"][program]["tasks"] for program in shown]
    figures = []
    for score, what in SCORES.items():
        title = f"{what}: {spoken(family)}"
        draw = partial(
            plots.heatmap,
            np.array([[record[task][score] for record in scores] for task in tasks], dtype=float),
            [spoken(task) for task in tasks],
            shown,
            title=title,
            column_title=record["axis"],
            colours="loss" if score == "loss" else "share",
            downwards=True,
        )
        figures.append(Figure(f"{score}-{family}".replace(" ", "_"), title, draw))
    return figures


def _lead(metrics: Metrics) -> str:
    intact, n = metrics["intact"], len(metrics["programs"]) - 1
    said = (
        f"{metrics['model']} answers {intact['accuracy']:.0%} of the questions of "
        f"{len(metrics['tasks'])} tasks, at {intact['loss']:.2f} nats per answer token; "
        f"{n} programs run its {metrics['n_layers']} layers otherwise."
    )
    skip = metrics["families"].get("skip")
    if skip:
        worst, mildest = (metrics["programs"][skip[key]] for key in ("worst", "mildest"))
        said += (
            f" Of single layers, {skip['worst']} costs most ({worst['loss_change']:+.2f} nats) and "
            f"{skip['mildest']} least ({mildest['loss_change']:+.2f})."
        )
    return said


def _tiles(metrics: Metrics) -> list[Tile]:
    intact = metrics["intact"]
    tiles = [
        Tile("Accuracy, intact", f"{intact['accuracy']:.0%}", "every answer token the likeliest"),
        Tile("Loss, intact", show(intact["loss"]), "nats per answer token, mean over tasks"),
        Tile("Calibration error", show(intact["calibration_error"]), "mean over tasks"),
    ]
    right = [one["layers"] for one in metrics["first_right"].values() if one["layers"] is not None]
    if right:
        of = f"of {metrics['n_layers']} layers, earliest to latest task"
        tiles.append(Tile("First right with", f"{min(right)} to {max(right)}", of))
    return tiles


def _tasks(metrics: Metrics) -> Section:
    right = metrics["first_right"]
    columns = (
        Column("task", lambda one: spoken(one["name"])),
        *("questions=n_questions", "answer tokens=n_tokens", "loss:.2f", "accuracy:.0%"),
        *("of tokens=token_accuracy:.0%", "calibration=calibration_error:.2f"),
        *([Column("first right with", lambda one: right[one["name"]]["layers"])] if right else ()),
    )
    printed = ["task", "loss", "accuracy", "calibration", *(["first right with"] if right else ())]
    tasks = [{"name": name, **task} for name, task in metrics["tasks"].items()]
    return Section(
        "Tasks on the intact model",
        "Loss is the mean over every answer token, in nats. An answer is right if each of its "
        "tokens is the likeliest; calibration is the expected error of the likeliest token's "
        "probability over ten bins.",
        [Table.of(tasks, columns, printed=printed, most=len(tasks))],
    )


def _program_table(metrics: Metrics, programs: Sequence[str], caption: str = "") -> Table:
    columns = ("program", "loss:.2f", "change=loss_change:+.2f", "accuracy:.0%")
    records = [{"program": name, **metrics["programs"][name]} for name in programs]
    return Table.of(records, columns, caption, printed=not caption, folded=bool(caption))


def _worst(metrics: Metrics) -> Section:
    ranked = sorted(metrics["programs"], key=lambda p: -(metrics["programs"][p]["loss"] or 0.0))
    table = _program_table(metrics, ranked[:WORST])
    return Section("Programs that cost most", "Means over tasks.", [table])


def _observations(metrics: Metrics) -> Section:
    columns, printed = ("observation=claim", "here=verdict", "found"), ("observation", "found")
    table = Table.of(metrics["observations"], columns, printed=printed)
    return Section("Observations", "Seen on GPT-2 small, and asked of this model.", [table])


def _depths(metrics: Metrics) -> list[Section]:
    right = metrics["first_right"]
    if not right:
        return []
    ordered = sorted(right, key=lambda task: right[task]["layers"] or 10**6)
    rows = [{"task": spoken(task), **right[task]} for task in ordered]
    columns = ("task", "layers", "of the depth=share_of_depth:.0%", "accuracy:.0%", "intact:.0%")
    items: list[Any] = [Table.of(rows, columns)]
    solved = [task for task, one in right.items() if one["layers"] is not None]
    if solved:
        draw = partial(
            plots.lines,
            [_accuracy_over_layers(metrics, task) for task in solved],
            x_title="layers kept",
            y_title="accuracy, share of the intact model's",
            percent=True,
        )
        items.insert(0, Figure("depth", "Accuracy over the layers kept", draw))
    return [
        Section(
            "Where each task first comes right",
            "The fewest first layers, straight to the unembedding, with which accuracy reaches its "
            "share of the intact model's. A dash: the intact model does not solve the task.",
            items,
        )
    ]


def _accuracy_over_layers(metrics: Metrics, task: str) -> plots.Series:
    programs, intact = metrics["programs"], metrics["tasks"][task]["accuracy"]
    kept = [programs[name]["tasks"][task] for name in metrics["families"]["keep"]["programs"]]
    return plots.Series(spoken(task), [scores["accuracy"] / intact for scores in kept])


def _families(metrics: Metrics) -> list[Section]:
    note = "Colours of losses are on a log scale; hover for the value."
    return [
        Section(
            f"Family: {spoken(name)}",
            items=[
                *family_figures(metrics, name),
                _program_table(metrics, family["programs"], "Means over tasks"),
            ],
            note=note,
        )
        for name, family in metrics["families"].items()
    ]


def _maps(metrics: Metrics) -> list[Section]:
    maps = metrics["linear_maps"]
    if not maps:
        return []
    columns = (
        *("layers=span", "R2 held out=r2", "R2 of skipping=r2_identity"),
        *("tokens fitted=n_train", "tokens held out=n_held_out"),
    )
    return [
        Section(
            "The best linear guess",
            "An affine map fitted by least squares stands in for the layers. R2 is of the residual "
            "stream behind them on held-out texts; beside it that of leaving the stream as it is.",
            [Table.of(maps, columns)],
        )
    ]


def _tokens(metrics: Metrics) -> list[Section]:
    items = []
    for program in list(metrics["programs"])[1 : MOST_PROGRAMS + 1]:
        columns = {}
        for side in ("lost", "gained"):
            changes = metrics["tokens"].get(program, {side: []})[side]
            lines = [f"{one['token']!r} {one['change']:+.2f} ({one['n']})" for one in changes]
            columns[side] = [Said("\n".join(lines) or "none")]
        items.append(Texts(program, {"": columns}))
    about = (
        "Mean change of the log-probability against the intact model, nats, and how often the "
        "token is asked for. Every token of every question is in records/."
    )
    return [Section("Answer tokens that lose and gain most", about, items)] if items else []


def _completions(metrics: Metrics) -> list[Section]:
    items = completion_texts(metrics["completions"])
    about = "What the model goes on with, likeliest token by likeliest token."
    return [Section("Completions", about, items)] if items else []


def completion_texts(shown: Sequence[Metrics], *, printed: bool = False) -> list[Texts]:
    """Return completions under programs by prompt: records of prompt, program and text."""
    prompts: dict[str, dict[str, list[Said]]] = {}
    for one in shown:
        prompts.setdefault(one["prompt"], {})[one["program"]] = [Said(one["text"])]
    return [Texts(prompt, {"": own}, printed=printed) for prompt, own in prompts.items()]
