"""The page of a corruption run: what was observed first, then where tasks come right and break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from saesteer.report.corruption_drawing import depth_figure, score_figure, score_maps
from saesteer.report.reading import show, spoken
from saesteer.report.sheet import Drawing, Part, Remark, Sheet, Table, Texts

Metrics = Mapping[str, Any]
VERDICTS: dict[str, Literal["good", "open", "bad"]] = {
    "holds": "good",
    "in part": "open",
    "not tested": "open",
    "does not hold": "bad",
}
MOST_PROGRAMS = 60


def corruption_sheet(metrics: Metrics) -> Sheet:
    """Return a run's page.

    Args:
        metrics: Its `metrics.json`.
    """
    parts = [_observations(metrics), _tasks(metrics), *_depths(metrics), *_families(metrics)]
    parts += [*_maps(metrics), *_tokens(metrics), *_completions(metrics)]
    return Sheet(
        kind="corruption",
        title=str(metrics["name"]),
        lead=lead(metrics),
        facts={
            "model": metrics["model"],
            "layers": metrics["n_layers"],
            "dtype": metrics["dtype"],
            "examples before each question": metrics["shots"],
            "seed": metrics["seed"],
        },
        remarks=[
            Remark(f"{one['claim']} {str(one['verdict']).capitalize()}.", _verdict(one))
            for one in metrics["observations"]
            if one["verdict"] != "not tested"
        ],
        tiles=_tiles(metrics),
        parts=parts,
    )


def lead(metrics: Metrics) -> str:
    """Return what was run, and what it found, in two sentences."""
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


def _verdict(one: Metrics) -> Literal["good", "open", "bad"]:
    return VERDICTS.get(str(one["verdict"]), "open")


def _tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    intact = metrics["intact"]
    tiles = [
        ("Accuracy, intact", f"{intact['accuracy']:.0%}", "every answer token the likeliest"),
        ("Loss, intact", show(intact["loss"], ".2f"), "nats per answer token, mean over tasks"),
        ("Calibration error", show(intact["calibration_error"], ".2f"), "mean over tasks"),
    ]
    right = [r["layers"] for r in metrics["first_right"].values() if r["layers"] is not None]
    if right:
        of = f"of {metrics['n_layers']} layers, earliest to latest task"
        tiles.append(("First right with", f"{min(right)} to {max(right)}", of))
    return tiles


def _observations(metrics: Metrics) -> Part:
    rows = [[o["claim"], o["verdict"], o["found"]] for o in metrics["observations"]]
    return Part(
        "Observations",
        "Seen on GPT-2 small, and asked of this model.",
        [Table(["observation", "here", "found"], rows)],
    )


def _tasks(metrics: Metrics) -> Part:
    rows = [
        [
            spoken(name),
            task["n_questions"],
            task["n_tokens"],
            task["loss"],
            f"{task['accuracy']:.0%}",
            f"{task['token_accuracy']:.0%}",
            task["calibration_error"],
        ]
        for name, task in metrics["tasks"].items()
    ]
    columns = ["task", "questions", "answer tokens", "loss", "accuracy", "of tokens", "calibration"]
    return Part(
        "The intact model",
        "Loss is the mean over every answer token, in nats. An answer is right if each of its "
        "tokens is the likeliest; calibration is the expected error of the likeliest token's "
        "probability over ten bins.",
        [Table(columns, rows)],
    )


def _depths(metrics: Metrics) -> list[Part]:
    right = metrics["first_right"]
    if not right:
        return []
    rows = [
        [
            spoken(task),
            one["layers"],
            None if one["share_of_depth"] is None else f"{one['share_of_depth']:.0%}",
            None if one["accuracy"] is None else f"{one['accuracy']:.0%}",
            f"{one['intact']:.0%}",
        ]
        for task, one in sorted(right.items(), key=lambda item: item[1]["layers"] or 10**6)
    ]
    items: list[Any] = [Table(["task", "layers", "of the depth", "accuracy", "intact"], rows)]
    if any(one["layers"] is not None for one in right.values()):
        items.insert(0, Drawing(depth_figure(metrics), "Accuracy over the layers kept"))
    return [
        Part(
            "Where each task first comes right",
            "The fewest first layers, straight to the unembedding, with which accuracy reaches its "
            "share of the intact model's. A dash: the intact model does not solve the task.",
            items,
        )
    ]


def _families(metrics: Metrics) -> list[Part]:
    parts = []
    for name, maps in score_maps(metrics).items():
        items: list[Any] = [Drawing(score_figure(one), one.title) for one in maps]
        programs = metrics["families"][name]["programs"]
        rows = [
            [p, *(metrics["programs"][p][key] for key in ("loss", "loss_change", "accuracy"))]
            for p in programs
        ]
        columns = ["program", "loss", "change", "accuracy"]
        items.append(Table(columns, rows, "Means over tasks", folded=True))
        note = "Colours of losses are on a log scale; hover for the value."
        parts.append(Part(f"Family: {spoken(name)}", "", items, note))
    return parts


def _maps(metrics: Metrics) -> list[Part]:
    maps = metrics["linear_maps"]
    if not maps:
        return []
    rows = [[m["span"], m["r2"], m["r2_identity"], m["n_train"], m["n_held_out"]] for m in maps]
    columns = ["layers", "R2 held out", "R2 of skipping", "tokens fitted", "tokens held out"]
    return [
        Part(
            "The best linear guess",
            "An affine map fitted by least squares stands in for the layers. R2 is of the residual "
            "stream behind them on held-out texts; beside it that of leaving the stream as it is.",
            [Table(columns, rows)],
        )
    ]


def _tokens(metrics: Metrics) -> list[Part]:
    items = []
    for program in list(metrics["programs"])[1 : MOST_PROGRAMS + 1]:
        changes = metrics["tokens"].get(program, {"lost": [], "gained": []})
        columns = {
            side: "\n".join(f"{r['token']!r} {r['change']:+.2f} ({r['n']})" for r in changes[side])
            or "none"
            for side in ("lost", "gained")
        }
        items.append(Texts(program, columns))
    if not items:
        return []
    return [
        Part(
            "Answer tokens that lose and gain most",
            "Mean change of the log-probability against the intact model, nats, and how often the "
            "token is asked for. Every token of every question is in records/.",
            items,
        )
    ]


def _completions(metrics: Metrics) -> list[Part]:
    shown: Sequence[Metrics] = metrics.get("completions") or []
    prompts = list(dict.fromkeys(one["prompt"] for one in shown))
    items = [
        Texts(prompt, {one["program"]: one["text"] for one in shown if one["prompt"] == prompt})
        for prompt in prompts
    ]
    if not items:
        return []
    about = "What the model goes on with, likeliest token by likeliest token."
    return [Part("Completions", about, items)]
