"""The report of a sweep: its trials, what mattered, what is not beaten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

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
SCALE = [[0.0, "#b9c0ca"], [0.5, "#7fa0e8"], [1.0, "#2f5fd0"]]


def sweep_report(sweep: Record) -> Report:
    """Return a sweep's report.

    Args:
        sweep: What `sweep.json` holds.
    """
    rows = best_first(sweep)
    best = next((row for row in rows if row["number"] == sweep["best"]), None)
    failed = [row for row in rows if row["error"]]
    sections = [_trials(sweep, rows), _parameters(sweep), _cost(sweep)]
    if failed:
        columns = ("trial=number", "what happened=error")
        note = "Correct what can be corrected, and run again with --retry-failed."
        table = Table.of(failed, columns, printed=True, note=note)
        sections.append(Section("Failures", items=[table]))
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
        sections=[*sections, _searched(sweep)],
        source="sweep.json",
        beside=("table.csv",),
        commands=[f"saesteer {sweep['kind']} {{folder}}/best.yaml"] if best else [],
    )


def best_first(sweep: Record) -> list[Record]:
    """Return the trials, best first, those without a value last."""
    sign = -1 if sweep["goal"] == "maximize" else 1
    return sorted(
        sweep["trials"],
        key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"]),
    )


def _ended(sweep: Record) -> list[Record]:
    return [t for t in sweep["trials"] if t["value"] is not None]


def _lead(sweep: Record, best: Record | None) -> str:
    if best is None:
        return "No trial has ended yet, so there is no best one."
    chosen = ", ".join(f"{p['short']} {best['labels'][p['name']]}" for p in sweep["parameters"])
    found = f"{sweep['metric']} {show(best['value'], '.3f')}"
    return f"The best of {sweep['states'].get('done', 0)} trials has {found}" + (
        f", with {chosen}." if chosen else "."
    )


def _trials(sweep: Record, rows: Sequence[Record]) -> Section:
    metric, parameters = str(sweep["metric"]), sweep["parameters"]

    def label(parameter: Record) -> Column:
        return Column(parameter["short"], lambda row: row["labels"][parameter["name"]])

    def number(name: str) -> Column:
        return Column(name, lambda row: row["numbers"].get(name))

    told = [
        *("trial=number", *map(label, parameters), Column(metric, "value", ".4f")),
        *(number(name) for name in ("effect", "kl") if name != metric),
    ]
    columns = [Column.of(one) if isinstance(one, str) else one for one in told]
    printed = [*(column.name for column in columns), "state"]
    table = Table.of(rows[:MOST_ROWS], [*columns, "seconds", "attempts", "state"], printed=printed)
    drawn = Figure(
        "trials",
        "Parallel coordinates of parameters and metric",
        partial(parallel_figure, sweep),
        "Each line is a trial that ended, bluer the better; the thick one is the best.",
    )
    left = len(rows) - MOST_ROWS
    note = f"{left} more trials are in table.csv. " if left > 0 else ""
    return Section(
        "Trials",
        items=[*([drawn] if _ended(sweep) else []), table],
        note=note + "The best trial is the best on the same held-out pairs that ranked all of "
        "them, so its figure is optimistic: measure it anew on other pairs or another seed. Its "
        f"settings are best.yaml beside this page, for saesteer {sweep['kind']}.",
    )


def _parameters(sweep: Record) -> Section:
    importance: dict[str, float] = sweep["importance"]
    if not importance:
        return Section("What mattered", "No importance was computed; the reason stands above.")
    rows = [{"parameter": name, "share": share} for name, share in importance.items()]
    names = sorted(importance, key=lambda name: importance[name])
    share = plots.Series("share", [importance[name] for name in names])
    draw = partial(
        plots.bars, [share], names, x_title="share of the variance", sideways=True, percent=True
    )
    return Section(
        "What mattered",
        f"Each parameter's share of the variance of {sweep['metric']} over the trials that ended "
        "(functional ANOVA over a random forest). It says how much a parameter moved the metric "
        "within the values that were tried, and nothing of others.",
        [
            Figure("importance", "Importance of each parameter", draw),
            Table.of(rows, ("parameter", "share:.1%"), printed=True),
        ],
    )


def _cost(sweep: Record) -> Section:
    measured = plane(sweep)
    if not measured:
        return Section("Effect against cost", "No trial has both an effect and a KL.")
    front = [number for number in sweep["pareto"] if number in measured]
    rest = [number for number in measured if number not in front]
    words = _words(sweep)

    def cloud(name: str, numbers: Sequence[int], colour: str, *, steps: bool) -> plots.Series:
        effects = [measured[number][1] for number in numbers]
        costs = [measured[number][0] for number in numbers]
        labels = [words[number] for number in numbers]
        return plots.Series(name, effects, costs, labels=labels, colour=colour, steps=steps)

    draw = partial(
        plots.scatter,
        [
            cloud("other trials", rest, SOFT, steps=False),
            cloud("not beaten", front, plots.BASELINE, steps=True),
        ],
        x_title="KL(steered ‖ base) measured on neutral answers, nats per token",
        y_title="effect E, nats per token",
        size=10,
    )
    label = "Effect against KL with the Pareto front"
    return Section(
        "Effect against cost",
        "A trial lies on the front if no other one has at least its effect at no more than its KL. "
        "Left and up is better.",
        [Figure("effect-against-cost", label, draw)],
    )


def plane(sweep: Record) -> dict[int, tuple[float, float]]:
    """Return KL and effect, nats per token, of the trials that have both, by number."""
    numbers = {t["number"]: t["numbers"] for t in _ended(sweep)}
    found = {number: (own.get("kl"), own.get("effect")) for number, own in numbers.items()}
    return {number: point for number, point in found.items() if None not in point}


def _searched(sweep: Record) -> Section:
    rows = [(p["name"], p["distribution"], ", ".join(p["choices"])) for p in sweep["parameters"]]
    rows += [(name, "constant", str(value)) for name, value in sweep["constants"].items()]
    return Section(
        "Searched",
        items=[Table(("parameter", "drawn from", "values"), rows)],
        note=f"Study {sweep['study']}, seed {sweep['seed']}. Each trial's own folder is in "
        "table.csv.",
    )


def _words(sweep: Record) -> dict[int, str]:
    """Return what each trial's parameters are, by its number."""
    short = {p["name"]: p["short"] for p in sweep["parameters"]}
    return {
        t["number"]: f"trial {t['number']}: "
        + ", ".join(f"{short.get(name, name)} {word}" for name, word in t["labels"].items())
        for t in sweep["trials"]
    }


@dataclass(frozen=True)
class Axis:
    """One axis of the parallel coordinates: each trial's place on it, and places with words."""

    label: str
    values: list[float]
    ticks: list[tuple[float, str]] = field(default_factory=list)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest place."""
        places = [*self.values, *(place for place, _ in self.ticks)]
        return min(places), max(places)

    def height(self, value: float, alone: float = 0.5) -> float:
        """Return how high a place stands, from 0 to 1; `alone` where there is no other."""
        low, high = self.ends
        return (value - low) / (high - low) if high > low else alone


def axes(sweep: Record) -> list[Axis]:
    """Return the axes of the parallel coordinates: parameters, then metric and cost."""
    trials, metric = _ended(sweep), str(sweep["metric"])
    found = [_axis(parameter, trials) for parameter in sweep["parameters"]]
    columns = {metric: [t["value"] for t in trials]}
    for name in ("effect", "kl"):
        columns.setdefault(name, [t["numbers"].get(name) for t in trials])
    return found + [
        Axis(name, [float(value) for value in values])
        for name, values in columns.items()
        if None not in values
    ]


def _axis(parameter: Record, trials: Sequence[Record]) -> Axis:
    name, label = str(parameter["name"]), str(parameter["short"])
    if not parameter["is_number"]:
        words = [str(t["labels"][name]) for t in trials]
        order = [*dict.fromkeys([*(w for w in parameter["choices"] if w in words), *words])]
        ticks = [(float(place), word) for place, word in enumerate(order)]
        return Axis(label, [float(order.index(word)) for word in words], ticks)
    values = [float(t["values"][name]) for t in trials]
    few = sorted(set(values))
    if parameter["is_log"]:
        shown = few if len(few) < 8 else few[:: max(1, len(few) // 6)]
        ticks = [(math.log10(v), f"{v:.3g}") for v in shown]
        return Axis(f"{label} (log)", [math.log10(v) for v in values], ticks)
    # The values that were tried, where they are few.
    return Axis(label, values, [(v, f"{v:g}") for v in few] if len(few) <= 8 else [])


def parallel_figure(sweep: Record) -> Drawing:
    """Draw every trial as a line through its parameters to its metric, the best on top.

    Plain lines, because plotly's own parallel coordinates compile code, which the page's content
    security policy forbids.
    """
    from plotly.colors import sample_colorscale

    drawn, trials, words = axes(sweep), _ended(sweep), _words(sweep)
    sign = -1 if sweep["goal"] == "minimize" else 1
    order = sorted(range(len(trials)), key=lambda place: sign * trials[place]["value"])
    order = order[-MOST_LINES:]
    quality = Axis("", [sign * float(trials[place]["value"]) for place in order])
    figure = plots.blank(470)
    for place, value in zip(order, quality.values, strict=True):
        number = trials[place]["number"]
        colour = sample_colorscale(SCALE, [quality.height(value, alone=1.0)])[0]
        figure.add_scatter(
            x=list(range(len(drawn))),
            y=[axis.height(axis.values[place]) for axis in drawn],
            mode="lines",
            line={"color": colour, "width": 3 if number == sweep["best"] else 1.6},
            name=plain(words[number], 90),
            hovertemplate=f"{plain(words[number], 120)}<extra></extra>",
        )
    for place, axis in enumerate(drawn):
        _draw_axis(figure, place, axis)
    figure.update_xaxes(visible=False, range=[-0.02, len(drawn) - 0.95])
    figure.update_yaxes(visible=False, range=[-0.08, 1.12])
    figure.update_layout(showlegend=False, margin={"l": 165, "r": 30})
    return figure


def _draw_axis(figure: Drawing, place: int, axis: Axis) -> None:
    low, high = axis.ends
    quarters = [low + (high - low) * share for share in (0, 0.25, 0.5, 0.75, 1)]
    even = quarters if high > low else [low]
    for value, word in axis.ticks or [(value, f"{value:.3g}") for value in even]:
        figure.add_annotation(
            x=place,
            y=axis.height(value),
            text=plain(word, 26),
            showarrow=False,
            xanchor="right",
            xshift=-5,
            font={"size": 11, "color": SOFT},
            bgcolor="rgba(255,255,255,0.75)",
        )
    line = {"color": SOFT, "width": 1}
    figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line=line, layer="above")
    label, font = f"<b>{plain(axis.label, 24)}</b>", {"size": 12.5}
    figure.add_annotation(x=place, y=1.09, text=label, showarrow=False, font=font)
