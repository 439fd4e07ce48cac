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
    """A task's figures under every program, as plain values."""
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
        for side, changed in (("gained", scores.gained), ("lost", scores.lost)):
            programs[name][side] = [[token, round(change, 6)] for token, change in changed[i]]
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
    """What `metrics.json` holds, but for tokens and completions.

    `tasks` are from `task_summary`, `maps` the linear maps' fits, `dtype` what the model ran in.
    """
    first = str(programs.all[0])
    scored = {str(program): _program(tasks, str(program), first) for program in programs.all}
    losses = {name: record["loss"] for name, record in scored.items()}
    families: Record = {}
    for family in programs.families:
        names = [str(program) for program in family.programs]
        families[family.name] = {
            "axis": family.axis,
            "programs": names,
            "loss": [losses[name] for name in names],
            "worst": max(names, key=lambda name: losses[name]),
            "mildest": min(names, key=lambda name: losses[name]),
        }
    kept = (*SCORES, "n_questions", "n_tokens")
    metrics: Record = {
        "name": config.name,
        "model": config.model.name,
        "n_layers": n_layers,
        "dtype": dtype,
        "shots": config.tasks.shots,
        "seed": config.seed,
        "intact": {name: scored[first][name] for name in SCORES},
        "tasks": {
            task["task"]: {name: (task["programs"][first] | task)[name] for name in kept}
            for task in tasks
        },
        "programs": scored,
        "families": families,
    }
    metrics["first_right"] = first_right(metrics, config.right_share, config.min_accuracy)
    metrics["linear_maps"] = list(maps)
    metrics["observations"] = observe(metrics, tasks)
    return metrics


def _program(tasks: Sequence[Record], program: str, first: str) -> Record:
    """A program's scores on each task, and their means, in which each task weighs the same."""
    pairs = {task["task"]: (task["programs"][program], task["programs"][first]) for task in tasks}
    overall, intact = (
        {name: fmean(both[side][name] for both in pairs.values()) for name in SCORES}
        for side in (0, 1)
    )
    return {
        **overall,
        "loss_change": overall["loss"] - intact["loss"],
        "accuracy_change": overall["accuracy"] - intact["accuracy"],
        "tasks": {
            task: {
                **{name: own[name] for name in SCORES},
                "loss_change": own["loss"] - without["loss"],
            }
            for task, (own, without) in pairs.items()
        },
    }


def first_right(metrics: Mapping[str, Any], share: float, solved: float) -> Record:
    """For each task at how many layers it first comes right; empty without the family keep.

    `share` of the intact model's accuracy counts as right; below `solved` that model has not
    solved the task.
    """
    keep = metrics["families"].get("keep")
    found: Record = {}
    for task, intact in metrics["tasks"].items() if keep else ():
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
    """For each program the answer tokens that gained and lost most.

    `records` are `TaskScores.records` of all tasks. A token counts where it is asked for three
    times or more; its change is the mean over these, in nats.
    """
    grouped = records.groupby(["program", "token"], sort=False)["difference"]
    table: Any = grouped.agg(change="mean", n="size").reset_index()
    table = table[table["n"] >= FEWEST_TOKENS].sort_values("change", kind="stable")
    found: Record = {}
    for program, own in table.groupby("program", sort=False):
        rows = own[["token", "change", "n"]].to_dict("records")
        found[str(program)] = {
            "lost": [row for row in rows[:MOST_TOKENS] if row["change"] < 0],
            "gained": [row for row in rows[::-1][:MOST_TOKENS] if row["change"] > 0],
        }
    return found


def loss_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """One row per program and task with every score."""
    import pandas as pd

    return pd.DataFrame(
        {"program": program, "task": task, **scores}
        for program, record in metrics["programs"].items()
        for task, scores in record["tasks"].items()
    )


def observe(metrics: Mapping[str, Any], tasks: Sequence[Record]) -> list[Record]:
    """Each observation with what was found, and whether it holds."""
    found = {
        "Keeping no layer repeats the last token or ignores the prompt.": _nothing_kept(
            metrics, tasks
        ),
        "The first layer is indispensable: without it nothing works.": _first_layer(metrics),
        "Grammar and format come right late, at two thirds to five sixths of the depth.": _grammar(
            metrics
        ),
        "Addition comes right only in the last layer.": _addition(metrics),
    }
    return [{"claim": claim, **one} for claim, one in found.items()]


def _said(verdict: str, found: str, **figures: Any) -> Record:
    return {"verdict": verdict, "found": found, "figures": figures}


def _verdict(holds: bool, partly: bool) -> str:
    return "holds" if holds else "in part" if partly else "does not hold"


def _nothing_kept(metrics: Mapping[str, Any], tasks: Sequence[Record]) -> Record:
    name = next((p for p in ("keep 0", "[]") if p in metrics["programs"]), None)
    if name is None:
        return _said("not tested", "No program keeps no layer; add the family keep.")
    own = [task["programs"][name] for task in tasks]
    repeated, unmoved = (fmean(r[key] for r in own) for key in ("repeated", "unmoved"))
    verdict = _verdict(max(repeated, unmoved) > ALIKE, repeated + unmoved > ALIKE)
    accuracy = metrics["programs"][name]["accuracy"]
    found = (
        f"With no layer the likeliest token is the one just read in {repeated:.0%} of places, and "
        f"the likeliest first answer token is the same for {unmoved:.0%} of a task's questions; "
        f"accuracy is {accuracy:.0%}."
    )
    return _said(verdict, found, repeated=repeated, unmoved=unmoved, accuracy=accuracy)


def _first_layer(metrics: Mapping[str, Any]) -> Record:
    skip = metrics["families"].get("skip")
    if skip is None:
        return _said("not tested", "No layer is skipped alone; add the family skip.")
    changes = {p: metrics["programs"][p]["loss_change"] for p in skip["programs"]}
    ranked = sorted(changes, key=lambda p: -changes[p])
    first = skip["programs"][0]
    rank, change = ranked.index(first) + 1, changes[first]
    intact, left = metrics["intact"]["accuracy"], metrics["programs"][first]["accuracy"]
    broken = left <= BROKEN * intact
    others = ", ".join(f"{p} {changes[p]:+.2f}" for p in ranked[:4] if p != first)
    found = (
        f"Without layer 0 the loss rises by {change:.2f} nats per token, rank {rank} of "
        f"{len(ranked)} (next to it {others or 'nothing'}), and accuracy falls from {intact:.0%} "
        f"to {left:.0%}."
    )
    verdict = _verdict(rank == 1 and broken, rank == 1 or broken)
    return _said(verdict, found, rank=rank, loss_change=change, worst=ranked[0], accuracy=left)


def _grammar(metrics: Mapping[str, Any]) -> Record:
    found = _depths(metrics, GRAMMAR)
    if not found:
        return _said("not tested", _why(metrics, GRAMMAR))
    depths = found.values()
    verdict = _verdict(all(LATE <= d <= LATEST for d in depths), any(d >= LATE for d in depths))
    later = " Late, and later than there." if max(depths) > LATEST else ""
    return _said(verdict, _list(metrics, found) + later, **found)


def _addition(metrics: Mapping[str, Any]) -> Record:
    found = _depths(metrics, ADDITION)
    if not found:
        return _said("not tested", _why(metrics, ADDITION))
    last = [depth == 1 for depth in found.values()]
    others = _depths(metrics, [task for task in metrics["first_right"] if task not in ADDITION])
    latest = max(found.values())
    later = [task for task, depth in others.items() if depth > latest]
    alike = [task for task, depth in others.items() if depth == latest]
    said = _list(metrics, found)
    said += f" Later than all of them: {', '.join(later)}." if later else " No task comes later."
    said += f" As late as the latest of them: {', '.join(alike)}." if alike else ""
    return _said(_verdict(all(last), any(last)), said, **found)


def _depths(metrics: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    right = metrics["first_right"]
    known = {task: right[task]["share_of_depth"] for task in tasks if task in right}
    return {task: depth for task, depth in known.items() if depth is not None}


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
