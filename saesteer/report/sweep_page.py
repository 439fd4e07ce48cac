"""The page of a sweep: its trials, what mattered, what is not beaten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saesteer.report import sweep_drawing
from saesteer.report.reading import show
from saesteer.report.sheet import Drawing, Part, Remark, Sheet, Table, write_sheet

Record = Mapping[str, Any]
MOST_ROWS = 500


def write_sweep_page(sweep: Record, path: str | os.PathLike[str]) -> Path:
    """Write a sweep's page.

    Args:
        sweep: What `sweep.json` holds.
        path: The file to write; its folder is made.

    Raises:
        OutputError: The file cannot be written.
    """
    return write_sheet(sweep_sheet(sweep), path)


def sweep_sheet(sweep: Record) -> Sheet:
    """Return what a sweep's page shows."""
    rows = _ordered(sweep)
    best = next((row for row in rows if row["number"] == sweep.get("best")), None)
    parts = [_trials(sweep, rows), _parameters(sweep), _cost(sweep)]
    failed = [row for row in rows if row.get("error")]
    if failed:
        table = Table(("trial", "what happened"), [(row["number"], row["error"]) for row in failed])
        parts.append(Part("Failures", items=[table]))
    parts.append(_searched(sweep))
    return Sheet(
        kind="sweep",
        title=str(sweep["name"]),
        lead=_lead(sweep, best),
        facts={
            "method": sweep["method"],
            "metric": f"{sweep['metric']}, {sweep['goal']}",
            "settings": sweep["base_file"],
            "trials": ", ".join(f"{n} {state}" for state, n in sweep["states"].items()) or "none",
        },
        remarks=[Remark(note, "open") for note in sweep.get("notes") or ()],
        parts=parts,
        source="sweep.json",
    )


def _lead(sweep: Record, best: Record | None) -> str:
    if best is None:
        return "No trial has ended yet, so there is no best one."
    chosen = ", ".join(f"{p['short']} {best['labels'][p['name']]}" for p in sweep["parameters"])
    value = show(best["value"], ".3f")
    count = sweep["states"].get("done", 0)
    return f"The best of {count} trials has {sweep['metric']} {value}" + (
        f", with {chosen}." if chosen else "."
    )


def _trials(sweep: Record, rows: Sequence[Record]) -> Part:
    items: list[Drawing | Table] = []
    if sweep_drawing.ended(sweep):
        drawn = Drawing(
            sweep_drawing.parallel_figure(sweep, _words(sweep)),
            "Parallel coordinates of parameters and metric",
            "Each line is a trial that ended, darker the better; the thick one is the best.",
        )
        items.append(drawn)
    metric = str(sweep["metric"])
    extra = [name for name in ("effect", "kl") if name != metric]
    names = [p["name"] for p in sweep["parameters"]]
    columns = ["trial", *(p["short"] for p in sweep["parameters"]), metric, *extra]
    cells = [
        (
            *(row["number"], *(row["labels"][name] for name in names), row["value"]),
            *(row["numbers"].get(name) for name in extra),
            *(row["seconds"], row["attempts"], row["state"]),
        )
        for row in rows[:MOST_ROWS]
    ]
    items.append(Table([*columns, "seconds", "attempts", "state"], cells))
    left = len(rows) - MOST_ROWS
    note = f"{left} more trials are in table.csv. " if left > 0 else ""
    return Part(
        "Trials",
        items=items,
        note=note + "The best trial is the best on the same held-out pairs that ranked all of "
        "them, so its figure is optimistic: measure it anew on other pairs or another seed. Its "
        f"settings are best.yaml beside this page, for saesteer {sweep['kind']}.",
    )


def _parameters(sweep: Record) -> Part:
    importance = sweep.get("importance")
    if not importance:
        return Part("What mattered", "No importance was computed; the reason stands above.")
    drawn = Drawing(sweep_drawing.importance_figure(importance), "Importance of each parameter")
    return Part(
        "What mattered",
        f"Each parameter's share of the variance of {sweep['metric']} over the trials that ended "
        "(functional ANOVA over a random forest). It says how much a parameter moved the metric "
        "within the values that were tried, and nothing of others.",
        [drawn, Table(("parameter", "share"), list(importance.items()))],
    )


def _cost(sweep: Record) -> Part:
    found = sweep_drawing.plane(sweep)
    if found is None:
        return Part("Effect against cost", "No trial has both an effect and a KL.")
    figure = sweep_drawing.front_figure(found, _words(sweep))
    return Part(
        "Effect against cost",
        "A trial lies on the front if no other one has at least its effect at no more than its KL "
        "KL target. Left and up is better.",
        [Drawing(figure, "Effect against KL with the Pareto front")],
    )


def _searched(sweep: Record) -> Part:
    rows = [
        (p["name"], p["distribution"], ", ".join(p["choices"])) for p in sweep.get("parameters", ())
    ]
    rows += [(name, "constant", str(value)) for name, value in sweep["constants"].items()]
    return Part(
        "Searched",
        items=[Table(("parameter", "drawn from", "values"), rows)],
        note=f"Study {sweep['study']}, seed {sweep['seed']}. Each trial's own folder is in "
        "table.csv.",
    )


def _ordered(sweep: Record) -> list[Record]:
    """Return the trials, best first, those without a value last."""
    sign = -1 if sweep.get("goal") == "maximize" else 1
    trials = list(sweep.get("trials") or ())
    return sorted(
        trials, key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"])
    )


def _words(sweep: Record) -> dict[int, str]:
    short = {p["name"]: p["short"] for p in sweep.get("parameters") or ()}
    return {
        int(t["number"]): f"trial {t['number']}: "
        + ", ".join(f"{short.get(name, name)} {word}" for name, word in t["labels"].items())
        for t in sweep.get("trials") or ()
    }
