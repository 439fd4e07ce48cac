"""What was seen on GPT-2 small, asked of the model at hand.

The observations: keeping no layer repeats the last token, whatever the prompt; grammar and format
come right between layers 8 and 10 of 12; addition only in the last; without the first layer nothing
works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

Verdict = Literal["holds", "in part", "does not hold", "not tested"]
Record = dict[str, Any]
# Layers 8 and 10 of GPT-2 small's 12.
LATE, LATEST = 8 / 12, 10 / 12
ALIKE = 0.5
BROKEN = 0.1
GRAMMAR = ("agreement", "json_completion")
ADDITION = ("addition", "addition_digits", "addition_steps")


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
    verdict: Verdict = "does not hold"
    if max(repeated, unmoved) > ALIKE:
        verdict = "holds"
    elif repeated + unmoved > ALIKE:
        verdict = "in part"
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
    verdict: Verdict = "does not hold"
    if rank == 1 and broken:
        verdict = "holds"
    elif rank == 1 or broken:
        verdict = "in part"
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
    late = [depth >= LATE for depth in found.values()]
    said = _list(metrics, found)
    verdict: Verdict = "does not hold"
    if all(LATE <= depth <= LATEST for depth in found.values()):
        verdict = "holds"
    elif any(late):
        verdict = "in part"
    if max(found.values()) > LATEST:
        said += " Late, and later than there."
    return _said(claim, verdict, said, **found)


def _addition(metrics: Mapping[str, Any]) -> Record:
    claim = "Addition comes right only in the last layer."
    found = _depths(metrics, ADDITION)
    if not found:
        return _said(claim, "not tested", _why(metrics, ADDITION))
    last = [depth == 1 for depth in found.values()]
    verdict: Verdict = "holds" if all(last) else "in part" if any(last) else "does not hold"
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


def _said(claim: str, verdict: Verdict, found: str, **figures: Any) -> Record:
    return {"claim": claim, "verdict": verdict, "found": found, "figures": figures}
