"""The comparison's summary for the terminal: at most 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesteer.report.effects import MethodRow, headline_data, method_table, missed_targets
from saesteer.report.headline import headline_remarks, headline_text
from saesteer.report.reading import Metrics, Point, headline_kl_target, listing, same, share, show
from saesteer.report.written import WrittenRow, written_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MARKS = {"good": "+", "open": "?", "bad": "-"}
WIDEST_METHOD = 32


def show_comparison(metrics: Metrics, out: Console) -> None:
    """Print headline, what it does and does not show, and every method.

    Args:
        metrics: What `metrics.json` of `saesteer compare` holds.
        out: Where to print; without markup, so that brackets in names stand as they are.
    """
    from rich.table import Table
    from rich.text import Text

    data = headline_data(metrics)
    out.print()
    if data is None:
        out.print("Nothing was summarised, so there is no headline.")
    else:
        out.print(Text(headline_text(data), style="bold"))
        remarks = Table.grid(padding=(0, 1))
        for remark in headline_remarks(data):
            remarks.add_row(" ", MARKS[remark.verdict], Text(remark.text))
        out.print(remarks)
    if not method_table(metrics):
        return
    out.print()
    out.print(summary_table(metrics))
    out.print(
        "E: nats per token that the margin moves, macro-mean over personas, 95% over personas; p: "
        "paired Wilcoxon over personas against the baseline, Holm's; judge: range of the judge's "
        "logit over generated text, negative to positive strength"
    )
    missed = [
        f"{method.label} at KL {kl_target:g} ({n} of {total})"
        for method, kl_target, n, total in missed_targets(metrics)
    ]
    if missed:
        out.print(Text(f"KL target not reached: {listing(missed)}."))


def summary_table(metrics: Metrics) -> Table:
    """Return the table of all methods at the headline KL target."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    kl_target = headline_kl_target(metrics)
    judged = {
        row.method.name: row for row in written_table(metrics) if same(row.kl_target, kl_target)
    }
    title = "method" if kl_target is None else f"method at KL {kl_target:g}"
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    made.add_column(title, overflow="fold", max_width=WIDEST_METHOD)
    for name in ("E", "95%", "ratio", "95%", "p", "null", "judge"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in method_table(metrics):
        cells = _cells(row, kl_target, judged.get(row.method.name))
        made.add_row(Text(" ".join(row.method.label.split())), *cells)
    return made


def _cells(row: MethodRow, kl_target: float | None, judged: WrittenRow | None) -> list[str]:
    effect = row.effects.get(kl_target, Point(None)) if kl_target is not None else Point(None)
    return [
        show(effect.value, ".3f"),
        _between(effect),
        show(row.ratio.value),
        _between(row.ratio),
        show(row.p_holm, ".2g"),
        share(row.beyond_null, row.n_personas),
        show(judged.judge_range.value if judged else None),
    ]


def _between(point: Point) -> str:
    if point.low is None or point.high is None:
        return ""
    return f"{show(point.low)} to {show(point.high)}"
