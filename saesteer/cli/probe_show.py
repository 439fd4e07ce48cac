"""What `saesteer probe` prints: tables that fit 100 columns, and coloured tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saesteer.cli.show import console, heading, number, show_links, table

if TYPE_CHECKING:
    from saesteer.experiments.probe.config import ProbePlan
    from saesteer.experiments.results import Results
    from saesteer.probes.readout import CheckResult, TokenReading

MOST_ROWS = 12


def show_probe_plan(plan: ProbePlan) -> None:
    """Print what a probe run would do."""
    out = console()
    config, split = plan.config, plan.split
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    read = "already read" if plan.is_read else "to be read in one pass"
    rows = {
        "texts": f"{len(plan.texts):,} of {plan.texts.source} ({plan.texts.dropped} left out), "
        f"{read}",
        "classes": ", ".join(plan.used.classes),
        "split": f"{len(split.train):,} to train, {len(split.test):,} to test, "
        f"{len(split.judge):,} for the independent classifier",
        "model": f"{plan.model.name} ({plan.model.kind}: {plan.model.location})",
        "reading": f"{config.reading.positions} of {config.reading.sae or config.reading.hook}",
        "checks": "none" if plan.checks is None else f"{len(plan.checks)} plain cases",
        "folder": str(plan.folder),
    }
    for name, value in rows.items():
        made.add_row(name, value)
    out.print(made)
    out.print("Nothing was loaded or written.")


def show_probe_run(run: Results) -> None:
    """Print every layer's scores, or those of sparse probes, and where the rest lies."""
    out = console()
    metrics = run.metrics
    heading(
        out,
        f"{metrics['model']} on {metrics['source']}: {metrics['n_train']:,} texts to train, "
        f"{metrics['n_test']:,} to test; {', '.join(metrics['classes'])}",
    )
    if metrics.get("sae"):
        _show_sparse(out, metrics)
    else:
        _show_layers(out, metrics)
    judge = metrics.get("judge")
    if judge:
        out.print(
            f"Independent classifier (MiniLM, {judge['n_train']:,} texts no probe saw): macro-F1 "
            f"{_with_interval(judge['macro_f1'])}"
        )
    path = run.folder.path
    out.print(f"Everything is in {path}; next:", soft_wrap=True)
    if metrics.get("sae"):
        first = next(iter(sorted((path / "sparse").glob("*.safetensors"))), path)
        out.print(f"  saesteer vector show {first}", soft_wrap=True)
        return
    out.print(f'  saesteer probe read {path} "I am feeling happy today"', soft_wrap=True)
    out.print(f'  saesteer probe intervene {path} "What a day! I feel"', soft_wrap=True)


def _show_layers(out: Console, metrics: dict[str, Any]) -> None:
    made = table(
        ("layer", "right"),
        ("accuracy", "right"),
        ("macro-F1 (95%)", "right"),
        ("AUROC (95%)", "right"),
        ("control acc", "right"),
        ("control AUROC", "right"),
        ("checks", "right"),
    )
    for record in metrics["layers"]:
        control = record.get("control")
        checks = record.get("checks")
        best = "*" if record["layer"] == metrics["best"] else ""
        made.add_row(
            f"{best}{record['layer']}",
            number(record["accuracy"]["value"], ".3f"),
            _with_interval(record["macro_f1"]),
            _with_interval(record["auroc"]),
            number(control["accuracy"]["value"], ".3f") if control else "",
            number(control["auroc"]["value"], ".3f") if control else "",
            f"{checks['right']}/{checks['n']}" if checks else "",
        )
    out.print(made)
    out.print(
        "* chosen by cross-validation on the training texts; control: the same on shuffled labels."
    )
    best = next(r for r in metrics["layers"] if r["layer"] == metrics["best"])
    for miss in (best.get("checks") or {}).get("misses", [])[:MOST_ROWS]:
        out.print(f"  missed: “{miss['text']}” is {miss['label']}, read {miss['predicted']}")


def _show_sparse(out: Console, metrics: dict[str, Any]) -> None:
    made = table("probe", ("features", "right"), ("accuracy", "right"), ("macro-F1 (95%)", "right"))
    names = {"k_sparse": "k strongest", "l1": "L1", "all": "all, L2 at C = 1"}
    for record in metrics["sparse"]:
        made.add_row(
            names[record["kind"]],
            str(record["n_features"]),
            number(record["accuracy"]["value"], ".3f"),
            _with_interval(record["macro_f1"]),
        )
    dense = metrics["residual"]
    made.add_row(
        "residual stream",
        "",
        number(dense["accuracy"]["value"], ".3f"),
        _with_interval(dense["macro_f1"]),
    )
    out.print(made)
    needed = metrics["needed"]
    out.print(
        f"95% of the residual stream's macro-F1 at {metrics['site']} takes "
        + (f"{needed} features." if needed else "more features than were tried.")
    )
    listed = table(("feature", "right"), ("F", "right"), "fires most on", "description")
    for record in metrics["features"][:MOST_ROWS]:
        listed.add_row(
            str(record["feature"]),
            f"{record['f']:.0f}",
            record["class"],
            " ".join((record["description"] or "").split())[:60],
        )
    out.print(listed)
    shown = metrics["features"][:MOST_ROWS]
    show_links(out, ((record["feature"], record.get("url")) for record in shown))


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
        made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
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


def show_checks(result: CheckResult) -> None:
    """Print how many plain cases are read rightly, and the others."""
    out = console()
    n = len(result.predictions)
    out.print(
        f"Layer {result.layer} reads {result.right} of {n} plain cases rightly "
        f"({result.right / n:.0%})."
    )
    for text, label, predicted in result.predictions:
        if label != predicted:
            out.print(f"  missed: “{text}” is {label}, read {predicted}")


def show_trial(record: dict[str, Any]) -> None:
    """Print base and intervened text side by side, their readings, KL and perplexity."""
    out = console()
    done = record["interventions"]
    shown = done if len(done) <= 3 else [done[0], "...", done[-1]]
    heading(out, f"{'; '.join(shown)} ({record['policy']}, {record['positions']})")
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    made.add_column("base", ratio=1, overflow="fold")
    made.add_column("intervened", ratio=1, overflow="fold")
    for row in record["rows"][:MOST_ROWS]:
        made.add_row(Text(f"“{row['prompt']}”", style="bold"), "")
        made.add_row(_flat(row["base"]), _flat(row["intervened"]))
        made.add_row(_readings(row, 0), _readings(row, 1), end_section=True)
    out.print(made)
    if len(record["rows"]) > MOST_ROWS:
        out.print(f"and {len(record['rows']) - MOST_ROWS} more in the file")
    ppl = record["perplexity"]
    out.print(
        f"KL {number(record['kl'], '.3f')} nats per token; perplexity under the untouched model "
        f"{number(ppl['base'], '.1f')} (base), {number(ppl['intervened'], '.1f')} (intervened)"
    )
    if record["movement"]:
        _show_movement(out, record)


def _show_movement(out: Console, record: dict[str, Any]) -> None:
    made = table(
        "measure",
        "direction",
        ("KL", "right"),
        ("prompts moved as meant (95%)", "right"),
        ("own side before", "right"),
        ("after", "right"),
    )
    runs = [("intervention", record["kl"], record["movement"])]
    runs += [(f"random {r['draw']}", r["kl"], r["movement"]) for r in record["random"]]
    for name in record["movement"]:
        for label, kl, movement in runs:
            found = movement[name]
            made.add_row(
                name,
                label,
                number(kl, ".2f"),
                f"{number(found['moved'], '.0%')} of {found['n']} "
                f"({number(found['low'], '.0%')}-{number(found['high'], '.0%')})",
                number(found["base"], "+.2f"),
                number(found["after"], "+.2f"),
            )
    out.print(made)


def _readings(row: dict[str, Any], side: int) -> Text:
    parts = [f"{name} {number(both[side], '+.2f')}" for name, both in row["readings"].items()]
    parts.append(f"perplexity {number(row['perplexity'][side], '.1f')}")
    return Text(", ".join(parts), style="dim")


def _flat(text: str) -> Text:
    return Text(" ".join(text.split()))


def _with_interval(figure: dict[str, Any]) -> str:
    if figure["low"] is None:
        return number(figure["value"], ".3f")
    return f"{number(figure['value'], '.3f')} ({figure['low']:.3f}-{figure['high']:.3f})"


def _style(lean: float) -> str:
    from saesteer.probes.readout import colour

    red, green, blue, opacity = colour(lean)
    if opacity < 0.08:
        return ""
    # Terminals have no opacity: mixed with white, under black letters.
    mixed = [round(255 + (part - 255) * opacity) for part in (red, green, blue)]
    return "black on rgb({},{},{})".format(*mixed)
