"""From scores of tasks under programs to a run's metrics, and what they say of the model.

The observations were made on GPT-2 small: keeping no layer repeats the last token, whatever the
prompt; grammar and format come right between layers 8 and 10 of 12; addition only in the last;
without the first layer nothing works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from saesteer.experiments.corrupt.config import CorruptConfig, Programs

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.corruption.measure import TaskScores

Record = dict[str, Any]
SCORES = ("loss", "accuracy", "token_accuracy", "calibration_error")
MOST_TOKENS = 10
FEWEST_TOKENS = 3
# Layers 8 and 10 of GPT-2 small's 12.
LATE, LATEST = 8 / 12, 10 / 12
ALIKE = 0.5
BROKEN = 0.1
GRAMMAR = ("agreement", "json_completion")
ADDITION = ("addition", "addition_digits", "addition_steps")


def task_summary(scores: TaskScores) -> Record:
    """Return a task's figures under every program, as plain values."""
    figures = {
        "loss": scores.loss(),
        "accuracy": scores.accuracy(),
        "token_accuracy": scores.token_accuracy(),
        "calibration_error": scores.calibration_error(),
        "confidence": scores.confidence.mean(axis=1),
        "repeated": scores.repeated(),
        "unmoved": scores.unmoved(),
    }
    programs: dict[str, Record] = {}
    for i, name in enumerate(scores.programs):
        programs[name] = {figure: float(values[i]) for figure, values in figures.items()}
        for side in ("gained", "lost"):
            changes = getattr(scores, side)[i]
            programs[name][side] = [[token, round(change, 6)] for token, change in changes]
    return {
        "task": scores.task,
        "n_questions": int(scores.question.max()) + 1,
        "n_tokens": len(scores.tokens),
        "programs": programs,
    }


def run_metrics(
    config: CorruptConfig,
    n_layers: int,
    programs: Programs,
    tasks: Sequence[Record],
    maps: Sequence[Record],
    dtype: str,
) -> Record:
    """Return what `metrics.json` holds, but for tokens and completions.

    Args:
        tasks: From `task_summary`.
        maps: The linear maps' fits.
        dtype: What the model ran in.
    """
    first = str(programs.all[0])
    counts = ("n_questions", "n_tokens")
    metrics: Record = {
        "name": config.name,
        "model": config.model.name,
        "n_layers": n_layers,
        "dtype": dtype,
        "shots": config.tasks.shots,
        "seed": config.seed,
        "intact": _overall(tasks, first),
        "tasks": {
            task["task"]: _scores(task["programs"][first]) | {name: task[name] for name in counts}
            for task in tasks
        },
        "programs": {
            str(program): _program(tasks, str(program), first) for program in programs.all
        },
    }
    losses = {name: record["loss"] for name, record in metrics["programs"].items()}
    metrics["families"] = {}
    for family in programs.families:
        names = [str(program) for program in family.programs]
        metrics["families"][family.name] = {
            "axis": family.axis,
            "programs": names,
            "loss": [losses[name] for name in names],
            "worst": max(names, key=lambda name: losses[name]),
            "mildest": min(names, key=lambda name: losses[name]),
        }
    metrics["first_right"] = first_right(metrics, config.right_share, config.min_accuracy)
    metrics["linear_maps"] = list(maps)
    metrics["observations"] = observe(metrics, tasks)
    return metrics


def first_right(metrics: Mapping[str, Any], share: float, solved: float) -> Record:
    """Return for each task at how many layers it first comes right; empty without "keep".

    Args:
        share: The share of the intact model's accuracy that counts as right.
        solved: The accuracy below which the intact model has not solved the task.
    """
    keep = metrics["families"].get("keep")
    if keep is None:
        return {}
    found: Record = {}
    for task, intact in metrics["tasks"].items():
        accuracies = [metrics["programs"][p]["tasks"][task]["accuracy"] for p in keep["programs"]]
        wanted = share * intact["accuracy"]
        layers = None
        if intact["accuracy"] >= solved:
            layers = next(k for k, accuracy in enumerate(accuracies) if accuracy >= wanted)
        found[task] = {
            "layers": layers,
            "share_of_depth": None if layers is None else layers / metrics["n_layers"],
            "accuracy": None if layers is None else accuracies[layers],
            "intact": intact["accuracy"],
        }
    return found


def token_changes(records: pd.DataFrame) -> Record:
    """Return for each program the answer tokens that gained and lost most.

    Args:
        records: `TaskScores.records` of all tasks. A token counts where it is asked for three
            times or more; its change is the mean over these, in nats.
    """
    import pandas as pd

    grouped = records.groupby(["program", "token"], sort=False)["difference"]
    table = grouped.agg(["mean", "size"]).reset_index()
    kept = pd.DataFrame(table[table["size"] >= FEWEST_TOKENS])
    table = kept.sort_values("mean", kind="stable")
    found: Record = {}
    for program, own in table.groupby("program", sort=False):
        rows = [
            {"token": token, "change": float(mean), "n": int(n)}
            for token, mean, n in zip(own["token"], own["mean"], own["size"], strict=True)
        ]
        found[str(program)] = {
            "lost": [row for row in rows[:MOST_TOKENS] if row["change"] < 0],
            "gained": [row for row in rows[::-1][:MOST_TOKENS] if row["change"] > 0],
        }
    return found


def loss_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per program and task with every score."""
    import pandas as pd

    return pd.DataFrame(
        {"program": program, "task": task, **scores}
        for program, record in metrics["programs"].items()
        for task, scores in record["tasks"].items()
    )


def _scores(record: Mapping[str, Any]) -> Record:
    return {name: record[name] for name in SCORES}


def _overall(tasks: Sequence[Record], program: str) -> Record:
    """Return the mean over tasks, each weighing the same."""
    own = [task["programs"][program] for task in tasks]
    return {name: fmean(record[name] for record in own) for name in SCORES}


def _program(tasks: Sequence[Record], program: str, first: str) -> Record:
    overall, intact = _overall(tasks, program), _overall(tasks, first)
    each = {}
    for task in tasks:
        own = task["programs"][program]
        change = own["loss"] - task["programs"][first]["loss"]
        each[task["task"]] = {**_scores(own), "loss_change": change}
    return {
        **overall,
        "loss_change": overall["loss"] - intact["loss"],
        "accuracy_change": overall["accuracy"] - intact["accuracy"],
        "tasks": each,
    }


def observe(metrics: Mapping[str, Any], tasks: Sequence[Record]) -> list[Record]:
    """Return each observation with what was found, and whether it holds."""
    return [
        _nothing_kept(metrics, tasks),
        _first_layer(metrics),
        _grammar(metrics),
        _addition(metrics),
    ]


def _nothing_kept(metrics: Mapping[str, Any], tasks: Sequence[Record]) -> Record:
    claim = "Keeping no layer repeats the last token or ignores the prompt."
    name = next((p for p in ("keep 0", "[]") if p in metrics["programs"]), None)
    if name is None:
        return _said(claim, "not tested", "No program keeps no layer; add the family keep.")
    own = [task["programs"][name] for task in tasks]
    repeated, unmoved = (fmean(r[key] for r in own) for key in ("repeated", "unmoved"))
    verdict = _verdict(max(repeated, unmoved) > ALIKE, repeated + unmoved > ALIKE)
    accuracy = metrics["programs"][name]["accuracy"]
    found = (
        f"With no layer the likeliest token is the one just read in {repeated:.0%} of places, and "
        f"the likeliest first answer token is the same for {unmoved:.0%} of a task's questions; "
        f"accuracy is {accuracy:.0%}."
    )
    return _said(claim, verdict, found, repeated=repeated, unmoved=unmoved, accuracy=accuracy)


def _first_layer(metrics: Mapping[str, Any]) -> Record:
    claim = "The first layer is indispensable: without it nothing works."
    skip = metrics["families"].get("skip")
    if skip is None:
        return _said(claim, "not tested", "No layer is skipped alone; add the family skip.")
    changes = {p: metrics["programs"][p]["loss_change"] for p in skip["programs"]}
    ranked = sorted(changes, key=lambda p: -changes[p])
    first = skip["programs"][0]
    rank = ranked.index(first) + 1
    intact, left = metrics["intact"]["accuracy"], metrics["programs"][first]["accuracy"]
    broken = left <= BROKEN * intact
    verdict = _verdict(rank == 1 and broken, rank == 1 or broken)
    others = ", ".join(f"{p} {changes[p]:+.2f}" for p in ranked[:4] if p != first)
    found = (
        f"Without layer 0 the loss rises by {changes[first]:.2f} nats per token, rank {rank} of "
        f"{len(ranked)} (next to it {others or 'nothing'}), and accuracy falls from {intact:.0%} "
        f"to {left:.0%}."
    )
    return _said(
        claim, verdict, found, rank=rank, loss_change=changes[first], worst=ranked[0], accuracy=left
    )


def _grammar(metrics: Mapping[str, Any]) -> Record:
    claim = "Grammar and format come right late, at two thirds to five sixths of the depth."
    found = _depths(metrics, GRAMMAR)
    if not found:
        return _said(claim, "not tested", _why(metrics, GRAMMAR))
    depths = found.values()
    verdict = _verdict(all(LATE <= d <= LATEST for d in depths), any(d >= LATE for d in depths))
    said = _list(metrics, found)
    if max(depths) > LATEST:
        said += " Late, and later than there."
    return _said(claim, verdict, said, **found)


def _addition(metrics: Mapping[str, Any]) -> Record:
    claim = "Addition comes right only in the last layer."
    found = _depths(metrics, ADDITION)
    if not found:
        return _said(claim, "not tested", _why(metrics, ADDITION))
    last = [depth == 1 for depth in found.values()]
    verdict = _verdict(all(last), any(last))
    others = _depths(metrics, [t for t in metrics["first_right"] if t not in ADDITION])
    latest = max(found.values())
    later = [task for task, depth in others.items() if depth > latest]
    alike = [task for task, depth in others.items() if depth == latest]
    said = _list(metrics, found)
    said += f" Later than all of them: {', '.join(later)}." if later else " No task comes later."
    said += f" As late as the latest of them: {', '.join(alike)}." if alike else ""
    return _said(claim, verdict, said, **found)


def _depths(metrics: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    right = metrics["first_right"]
    return {
        task: right[task]["share_of_depth"]
        for task in tasks
        if task in right and right[task]["share_of_depth"] is not None
    }


def _list(metrics: Mapping[str, Any], depths: Mapping[str, float]) -> str:
    n = metrics["n_layers"]
    parts = [f"{task} with {round(depth * n)} of {n} layers" for task, depth in depths.items()]
    return f"First right: {', '.join(parts)}."


def _why(metrics: Mapping[str, Any], tasks: Sequence[str]) -> str:
    if not metrics["first_right"]:
        return "No family keep was run."
    here = [task for task in tasks if task in metrics["first_right"]]
    if not here:
        return f"None of the tasks {', '.join(tasks)} was run."
    return f"The intact model does not solve {', '.join(here)}."


def _verdict(holds: bool, partly: bool) -> str:
    return "holds" if holds else "in part" if partly else "does not hold"


def _said(claim: str, verdict: str, found: str, **figures: Any) -> Record:
    return {"claim": claim, "verdict": verdict, "found": found, "figures": figures}
