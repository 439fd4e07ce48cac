"""From scores of tasks under programs to a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from saesteer.experiments.corrupt.config import CorruptConfig, Programs
from saesteer.experiments.corrupt.observations import observe

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.corruption.measure import Change, TaskScores

Record = dict[str, Any]
SCORES = ("loss", "accuracy", "token_accuracy", "calibration_error")
MOST_TOKENS = 10
FEWEST_TOKENS = 3


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
    programs = {
        name: {
            **{figure: float(values[i]) for figure, values in figures.items()},
            "gained": _plain(scores.gained[i]),
            "lost": _plain(scores.lost[i]),
        }
        for i, name in enumerate(scores.programs)
    }
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
        config: The run's settings.
        n_layers: The model's.
        programs: What was run.
        tasks: From `task_summary`.
        maps: The linear maps' fits.
        dtype: What the model ran in.
    """
    first = str(programs.all[0])
    intact = {task["task"]: _scores(task["programs"][first]) for task in tasks}
    for task in tasks:
        intact[task["task"]] |= {"n_questions": task["n_questions"], "n_tokens": task["n_tokens"]}
    metrics: Record = {
        "name": config.name,
        "model": config.model.name,
        "n_layers": n_layers,
        "dtype": dtype,
        "shots": config.tasks.shots,
        "seed": config.seed,
        "intact": _overall(tasks, first),
        "tasks": intact,
        "programs": {
            str(program): _program(tasks, str(program), first) for program in programs.all
        },
    }
    metrics["families"] = {
        family.name: _family(family.axis, [str(p) for p in family.programs], metrics)
        for family in programs.families
    }
    metrics["first_right"] = first_right(metrics, config.right_share, config.min_accuracy)
    metrics["linear_maps"] = list(maps)
    metrics["observations"] = observe(metrics, tasks)
    return metrics


def first_right(metrics: Mapping[str, Any], share: float, solved: float) -> Record:
    """Return for each task at how many layers it first comes right; empty without "keep".

    Args:
        metrics: A run's metrics.
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

    rows = [
        {"program": program, "task": task, **scores}
        for program, record in metrics["programs"].items()
        for task, scores in record["tasks"].items()
    ]
    return pd.DataFrame(rows)


def _plain(changes: Sequence[Change]) -> list[list[Any]]:
    return [[token, round(change, 6)] for token, change in changes]


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


def _family(axis: str, names: list[str], metrics: Mapping[str, Any]) -> Record:
    losses = [metrics["programs"][name]["loss"] for name in names]
    worst = max(range(len(names)), key=losses.__getitem__)
    best = min(range(len(names)), key=losses.__getitem__)
    return {
        "axis": axis,
        "programs": names,
        "loss": losses,
        "worst": names[worst],
        "mildest": names[best],
    }
