"""The report of a sweep: its trials, what mattered, what is not beaten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.report import plots
from saesteer.report.layout import Column, Figure, Remark, Section, Table
from saesteer.report.plots import SOFT, plain
from saesteer.report.report import Report
from saesteer.report.wording import show

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Drawing

Record = Mapping[str, Any]
MOST_ROWS, MOST_LINES = 500, 300
# From poor to good, through tones that every kind of colour vision tells apart.
SCALE = ((0.0, "#b9c0ca"), (0.5, "#7fa0e8"), (1.0, "#2f5fd0"))


def sweep_report(sweep: Record) -> Report:
    """Return a sweep's report.

    Args:
        sweep: What `sweep.json` holds.
    """
    rows = _ordered(sweep)
    best = next((row for row in rows if row["number"] == sweep["best"]), None)
    sections = [_trials(sweep, rows), _parameters(sweep), _cost(sweep)]
    failed = [row for row in rows if row["error"]]
    if failed:
        columns = [
            Column("trial", "number", printed=True),
            Column("what happened", "error", printed=True),
        ]
        table = Table.of(failed, columns)
        sections.append(Section("Failures", items=[table]))
    sections.append(_searched(sweep))
    return Report(
        kind="sweep",
        title=str(sweep["name"]),
        lead=_lead(sweep, best),
        facts={
            "method": sweep["method"],
            "metric": f"{sweep['metric']}, {sweep['goal']}",
            "settings": sweep["base_file"],
            "trials": ", ".join(f"{n} {state}" for state, n in sweep["states"].items()) or "none",
        },
        remarks=[Remark(note, "open") for note in sweep["notes"]],
        sections=sections,
        source="sweep.json",
        beside=("table.csv",),
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


def _trials(sweep: Record, rows: Sequence[Record]) -> Section:
    items: list[Any] = []
    if ended(sweep):
        items.append(
            Figure(
                "trials",
                "Parallel coordinates of parameters and metric",
                partial(parallel_figure, sweep, _words(sweep)),
                "Each line is a trial that ended, bluer the better; the thick one is the best.",
            )
        )
    metric = str(sweep["metric"] or "value")
    extra = [name for name in ("effect", "kl") if name != metric]
    names = [p["name"] for p in sweep["parameters"]]
    short = [p["short"] for p in sweep["parameters"]]
    cells = [
        (
            *(row["number"], *(row["labels"][name] for name in names), row["value"]),
            *(row["numbers"].get(name) for name in extra),
            *(row["seconds"], row["attempts"], row["state"]),
        )
        for row in rows[:MOST_ROWS]
    ]
    columns = ["trial", *short, metric, *extra, "seconds", "attempts", "state"]
    printed = ("trial", *short, metric, *extra, "state")
    items.append(Table(columns, cells, printed=printed if cells else ()))
    left = len(rows) - MOST_ROWS
    note = f"{left} more trials are in table.csv. " if left > 0 else ""
    return Section(
        "Trials",
        items=items,
        note=note + "The best trial is the best on the same held-out pairs that ranked all of "
        "them, so its figure is optimistic: measure it anew on other pairs or another seed. Its "
        f"settings are best.yaml beside this page, for saesteer {sweep['kind']}.",
    )


def _parameters(sweep: Record) -> Section:
    importance = sweep["importance"]
    if not importance:
        return Section("What mattered", "No importance was computed; the reason stands above.")
    label = "Importance of each parameter"
    return Section(
        "What mattered",
        f"Each parameter's share of the variance of {sweep['metric']} over the trials that ended "
        "(functional ANOVA over a random forest). It says how much a parameter moved the metric "
        "within the values that were tried, and nothing of others.",
        [
            Figure("importance", label, partial(importance_figure, importance)),
            Table(("parameter", "share"), list(importance.items()), forms={"share": ".1%"}),
        ],
    )


def importance_figure(importance: Mapping[str, float]) -> Drawing:
    """Draw each parameter's share of the metric's variance."""
    names = sorted(importance, key=lambda name: importance[name])
    share = plots.Series("share", [importance[name] for name in names])
    y_title = "share of the variance"
    return plots.bars([share], names, y_title=y_title, sideways=True, percent=True)


def _cost(sweep: Record) -> Section:
    found = plane(sweep)
    if found is None:
        return Section("Effect against cost", "No trial has both an effect and a KL.")
    label, draw = (
        "Effect against KL with the Pareto front",
        partial(front_figure, found, _words(sweep)),
    )
    return Section(
        "Effect against cost",
        "A trial lies on the front if no other one has at least its effect at no more than its KL. "
        "Left and up is better.",
        [Figure("effect-against-cost", label, draw)],
    )


def front_figure(found: Plane, words: Mapping[int, str]) -> Drawing:
    """Draw effect against KL, with the front.

    Args:
        found: The trials.
        words: What each trial's parameters are.
    """
    at = {number: place for place, number in enumerate(found.numbers)}
    front = [at[number] for number in found.front if number in at]
    rest = [place for place in range(len(found.numbers)) if place not in front]
    clouds = [
        plots.Series(
            name,
            [found.effects[place] for place in places],
            [found.costs[place] for place in places],
            labels=[words.get(found.numbers[place], "") for place in places],
            colour=colour,
            steps=name == "not beaten",
        )
        for places, name, colour in (
            (rest, "other trials", SOFT),
            (front, "not beaten", plots.BASELINE),
        )
    ]
    return plots.scatter(
        clouds,
        x_title="KL(steered ‖ base) measured on neutral answers, nats per token",
        y_title="effect E, nats per token",
        size=10,
    )


def _searched(sweep: Record) -> Section:
    rows = [(p["name"], p["distribution"], ", ".join(p["choices"])) for p in sweep["parameters"]]
    rows += [(name, "constant", str(value)) for name, value in sweep["constants"].items()]
    return Section(
        "Searched",
        items=[Table(("parameter", "drawn from", "values"), rows)],
        note=f"Study {sweep['study']}, seed {sweep['seed']}. Each trial's own folder is in "
        "table.csv.",
    )


def _ordered(sweep: Record) -> list[Record]:
    """Return the trials, best first, those without a value last."""
    sign = -1 if sweep["goal"] == "maximize" else 1
    trials = list(sweep["trials"])
    return sorted(
        trials, key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"])
    )


def _words(sweep: Record) -> dict[int, str]:
    short = {p["name"]: p["short"] for p in sweep["parameters"]}
    return {
        int(t["number"]): f"trial {t['number']}: "
        + ", ".join(f"{short.get(name, name)} {word}" for name, word in t["labels"].items())
        for t in sweep["trials"]
    }


class Axis(NamedTuple):
    """One axis of the parallel coordinates.

    Attributes:
        label: What it shows.
        values: Each trial's place on it.
        ticks: Places with words, where they are no plain numbers.
    """

    label: str
    values: list[float]
    ticks: list[tuple[float, str]]


class Plane(NamedTuple):
    """The trials on the plane of effect against cost.

    Attributes:
        numbers: The trials.
        costs: KL measured, nats per token.
        effects: E, nats per token.
        front: The numbers of those that none beats, cheapest first.
    """

    numbers: list[int]
    costs: list[float]
    effects: list[float]
    front: list[int]


def ended(sweep: Record) -> list[Record]:
    """Return the trials that have a value."""
    return [t for t in sweep["trials"] if t["value"] is not None]


def axes(sweep: Record) -> list[Axis]:
    """Return the axes of the parallel coordinates: parameters, then metric and cost."""
    trials = ended(sweep)
    found = [_axis(parameter, trials) for parameter in sweep["parameters"]]
    metric = str(sweep["metric"] or "value")
    numbers = [("value", metric)] + [
        (name, name)
        for name in ("effect", "kl")
        if name != metric and all(t["numbers"].get(name) is not None for t in trials)
    ]
    for field, label in numbers:
        values = [float(t["value"] if field == "value" else t["numbers"][field]) for t in trials]
        found.append(Axis(label, values, []))
    return found


def plane(sweep: Record) -> Plane | None:
    """Return the trials on the plane of effect against cost; None where none has both."""
    known = [
        (int(t["number"]), float(t["numbers"]["kl"]), float(t["numbers"]["effect"]))
        for t in ended(sweep)
        if t["numbers"].get("kl") is not None and t["numbers"].get("effect") is not None
    ]
    if not known:
        return None
    numbers, costs, effects = (list(column) for column in zip(*known, strict=True))
    return Plane(numbers, costs, effects, list(sweep["pareto"]))


def parallel_figure(sweep: Record, words: Mapping[int, str]) -> Drawing:
    """Draw every trial as a line through its parameters to its metric, the best on top.

    Plain lines, because plotly's own parallel coordinates compile code, which the page's content
    security policy forbids.

    Args:
        sweep: What `sweep.json` holds.
        words: What each trial's parameters are.
    """
    from plotly.colors import sample_colorscale

    drawn, trials = axes(sweep), ended(sweep)
    sign = -1 if sweep["goal"] == "minimize" else 1
    order = sorted(range(len(trials)), key=lambda place: sign * trials[place]["value"])
    order = order[-MOST_LINES:]
    values = [sign * float(trials[place]["value"]) for place in order]
    heights = [_heights(axis) for axis in drawn]
    figure = plots.blank(470)
    for place, share in zip(order, _shares(values), strict=True):
        number = int(trials[place]["number"])
        figure.add_scatter(
            x=list(range(len(drawn))),
            y=[height[place] for height in heights],
            mode="lines",
            line={
                "color": sample_colorscale([list(stop) for stop in SCALE], [share])[0],
                "width": 3 if number == sweep["best"] else 1.6,
            },
            name=plain(words.get(number, str(number)), 90),
            hovertemplate=f"{plain(words.get(number, str(number)), 120)}<extra></extra>",
        )
    for place, axis in enumerate(drawn):
        _draw_axis(figure, place, axis)
    figure.update_xaxes(visible=False, range=[-0.02, len(drawn) - 0.95])
    figure.update_yaxes(visible=False, range=[-0.08, 1.12])
    figure.update_layout(showlegend=False, margin={"l": 165, "r": 30})
    return figure


def _shares(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def _heights(axis: Axis) -> list[float]:
    low, high = _ends(axis)
    return [(value - low) / (high - low) if high > low else 0.5 for value in axis.values]


def _ends(axis: Axis) -> tuple[float, float]:
    places = [*axis.values, *(place for place, _ in axis.ticks)]
    return min(places), max(places)


def _draw_axis(figure: Drawing, place: int, axis: Axis) -> None:
    low, high = _ends(axis)
    ticks = axis.ticks or [
        (low + (high - low) * share, f"{low + (high - low) * share:.3g}")
        for share in ((0, 0.25, 0.5, 0.75, 1) if high > low else (0,))
    ]
    figure.add_shape(
        type="line", x0=place, x1=place, y0=0, y1=1, line={"color": SOFT, "width": 1}, layer="above"
    )
    figure.add_annotation(
        x=place,
        y=1.09,
        text=f"<b>{plain(axis.label, 24)}</b>",
        showarrow=False,
        font={"size": 12.5},
    )
    for value, word in ticks:
        figure.add_annotation(
            x=place,
            y=(value - low) / (high - low) if high > low else 0.5,
            text=plain(word, 26),
            showarrow=False,
            xanchor="right",
            xshift=-5,
            font={"size": 11, "color": SOFT},
            bgcolor="rgba(255,255,255,0.75)",
        )


def _axis(parameter: Record, trials: Sequence[Record]) -> Axis:
    name, label = str(parameter["name"]), str(parameter["short"])
    if not parameter["is_number"]:
        words = [str(t["labels"][name]) for t in trials]
        order = [*dict.fromkeys([*(w for w in parameter["choices"] if w in words), *words])]
        return Axis(
            label,
            [float(order.index(w)) for w in words],
            [*zip(map(float, range(len(order))), order, strict=True)],
        )
    values = [float(t["values"][name]) for t in trials]
    if parameter["is_log"]:
        spread = sorted(set(values))
        shown = spread if len(spread) < 8 else spread[:: max(1, len(spread) // 6)]
        return Axis(
            f"{label} (log)",
            [math.log10(v) for v in values],
            [(math.log10(v), f"{v:.3g}") for v in shown],
        )
    few = sorted(set(values))
    # The values that were tried, where they are few.
    return Axis(label, values, [(v, f"{v:g}") for v in few] if len(few) <= 8 else [])
