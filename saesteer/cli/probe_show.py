"""What `saesteer probe` prints besides its report: coloured tokens and interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table as Grid
from rich.text import Text

from saesteer.report import Table, Texts
from saesteer.report.layout import Said
from saesteer.report.terminal import console, heading, print_table, print_texts, show_plan
from saesteer.report.wording import Estimate, show
from saesteer.utils.terminal import Console

if TYPE_CHECKING:
    from saesteer.experiments.probe.config import ProbePlan
    from saesteer.probes.readout import TokenReading

MOST_ROWS = 12


def show_probe_plan(plan: ProbePlan) -> None:
    """Print what a probe run would do."""
    config, split = plan.config, plan.split
    read = "already read" if plan.is_read else "to be read in one pass"
    show_plan(
        {
            "texts": f"{len(plan.texts):,} of {plan.texts.source} ({plan.texts.dropped} left out), "
            f"{read}",
            "classes": ", ".join(plan.used.classes),
            "split": f"{len(split.train):,} to train, {len(split.test):,} to test, "
            f"{len(split.judge):,} for the independent classifier",
            "model": str(plan.model),
            "reading": f"{config.reading.positions} of {config.reading.sae or config.reading.hook}",
            "checks": "none" if plan.checks is None else f"{len(plan.checks)} plain cases",
        },
        plan.folder,
    )


def show_readings(readings: Sequence[TokenReading], out: Console | None = None) -> None:
    """Print every layer's reading of each token, coloured: orange to the first class, blue to
    the last; without colours, one number for the whole text."""
    out = out or console()
    for reading in readings:
        heading(out, f"“{reading.text[:80]}”")
        legend = Text("   whole text: ")
        for name, lean in ((reading.classes[0], -1.0), (reading.classes[-1], 1.0)):
            legend.append(f" {name} ", style=_style(lean))
            legend.append(" ")
        out.print(legend)
        made = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        made.add_column(justify="right", style="dim", no_wrap=True)
        made.add_column(justify="right", no_wrap=True)
        made.add_column(overflow="fold")
        leans, whole = reading.lean(), reading.whole_lean()
        for place, layer in enumerate(reading.layers):
            line = Text()
            for token, lean in zip(reading.tokens, leans[place], strict=True):
                line.append(token.replace("\n", "⏎"), style=_style(float(lean)))
            value = Text(f"{whole[place]:+.2f}", style=_style(float(whole[place])))
            made.add_row(f"layer {layer}", value, line)
        out.print(made)


def show_checks(found: dict[str, Any]) -> None:
    """Print how many plain cases are read rightly, and the others."""
    out, n, right = console(), found["n"], found["right"]
    out.print(f"Layer {found['layer']} reads {right} of {n} plain cases rightly ({right / n:.0%}).")
    for miss in found["misses"]:
        out.print(f"  missed: “{miss['text']}” is {miss['label']}, read {miss['predicted']}")


def show_trial(record: dict[str, Any]) -> None:
    """Print base and intervened text side by side, their readings, KL and perplexity."""
    out = console()
    done = record["interventions"]
    shown = done if len(done) <= 3 else [done[0], "...", done[-1]]
    heading(out, f"{'; '.join(shown)} ({record['policy']}, {record['positions']})")
    for row in record["rows"][:MOST_ROWS]:
        columns = {
            side: [Said(row[side]), Said(_readings(row, place))]
            for place, side in enumerate(("base", "intervened"))
        }
        print_texts(out, Texts(row["prompt"], {"": columns}))
    if len(record["rows"]) > MOST_ROWS:
        out.print(f"and {len(record['rows']) - MOST_ROWS} more in the file")
    ppl = record["perplexity"]
    out.print(
        f"KL {show(record['kl'], '.3f')} nats per token; perplexity under the untouched model "
        f"{show(ppl['base'], '.1f')} (base), {show(ppl['intervened'], '.1f')} (intervened)"
    )
    if record["movement"]:
        print_table(out, _movement(record))


def _movement(record: dict[str, Any]) -> Table:
    runs = [("intervention", record["kl"], record["movement"])]
    runs += [(f"random {r['draw']}", r["kl"], r["movement"]) for r in record["random"]]
    rows = []
    for name in record["movement"]:
        for label, kl, movement in runs:
            found = movement[name]
            moved = Estimate(found["moved"], found["low"], found["high"])
            rows.append([name, label, kl, moved, found["n"], found["base"], found["after"]])
    columns = ["measure", "direction", "KL", "moved as meant (95%)", "prompts", "before", "after"]
    forms = {"KL": ".2f", columns[3]: ".0%", "before": "+.2f", "after": "+.2f"}
    return Table(columns, rows, forms=forms, most=len(rows))


def _readings(row: dict[str, Any], side: int) -> str:
    parts = [f"{name} {show(both[side], '+.2f')}" for name, both in row["readings"].items()]
    return ", ".join([*parts, f"perplexity {show(row['perplexity'][side], '.1f')}"])


def _style(lean: float) -> str:
    from saesteer.probes.readout import colour

    red, green, blue, opacity = colour(lean)
    if opacity < 0.08:
        return ""
    # Terminals have no opacity: mixed with white, under black letters.
    mixed = [round(255 + (part - 255) * opacity) for part in (red, green, blue)]
    return "black on rgb({},{},{})".format(*mixed)
