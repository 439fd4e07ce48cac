"""What commands print: tables that fit 100 columns."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from saesteer.experiments.steer.config import RunConfig
    from saesteer.experiments.steer.experiment import Steer
    from saesteer.experiments.steer.plan import Plan
    from saesteer.experiments.steer.results import SteerResults
    from saesteer.saes.doctor import DoctorReport
    from saesteer.steering import SteeringVector

WIDTH = 100
MOST_COLUMNS = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def console() -> Console:
    """Return a console on standard output, at most 100 columns wide, that prints what it gets."""
    found = Console()
    width = min(found.width, WIDTH) if found.is_terminal else WIDTH
    # Paths and descriptions hold brackets, which are no markup.
    return Console(width=width, markup=False, highlight=False)


def table(*columns: str | tuple[str, str]) -> Table:
    """Return an empty table; a column is a name, or a name and "right" for numbers on one line."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    for column in columns:
        name, side = (column, "left") if isinstance(column, str) else column
        if side == "right":
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def number(value: float | None, form: str) -> str:
    """Return a number in a format, or "none" where it could not be computed."""
    return "none" if value is None or not math.isfinite(value) else format(value, form)


def one_line(text: str) -> str:
    """Return a text as one line, without characters that a terminal would obey."""
    return " ".join(_CONTROL.sub(" ", text).split())


def heading(out: Console, text: str) -> None:
    """Print a heading with a line above it."""
    out.print()
    out.print(Text(text, style="bold"))


def show_plan(experiment: Steer) -> None:
    """Print what a run would do."""
    out = console()
    plan = experiment.plan
    split = plan.split
    to_do = experiment.pending()
    stages = [f"{s.name} ({'to do' if s in to_do else 'done'})" for s in experiment.stages()]
    rows = {
        "pairs": f"{len(plan.pairs)} of {plan.pairs.source}: {len(split.train)} to train, "
        f"{len(split.validation)} to validate, {len(split.test)} to test",
        "model": f"{plan.model.name} ({plan.model.kind}: {plan.model.location})",
        "SAE": str(plan.sae if not isinstance(plan.sae, tuple) else ":".join(plan.sae)),
        "method": _method_line(plan.config),
        "evaluation": f"{len(plan.held_out)} held-out pairs at KL "
        f"{plan.config.evaluation.kl_target}, {plan.config.evaluation.random_directions} random "
        "directions",
        "folder": str(plan.folder),
        "stages": ", ".join(stages),
    }
    _show_fields(out, rows)
    out.print("Nothing was loaded or written.")


def _method_line(config: RunConfig) -> str:
    from saesteer.experiments.steer.config import CLUSTERED
    from saesteer.methods.registry import method_entry

    label = method_entry(config.method.name).label
    settings = ", ".join(f"{name} {value}" for name, value in config.method.settings.items())
    if config.method.name == CLUSTERED:
        settings = (
            f"{config.selection.n_features} by {config.selection.criterion}, "
            f"{config.clustering.method} clusters, {config.regression.method} weights"
        )
    return f"{label}: {settings}" if settings else label


def show_vector(vector: SteeringVector, top: int = 32) -> None:
    """Print where a vector belongs, how long it is and what it is made of."""
    from saesteer.saes.labels import feature_url, noted_place

    out = console()
    lengths = {"residual norm": vector.residual_norm, "length at max_act": vector.max_act}
    rows = {
        "name": f"{vector.name} ({vector.method})",
        "site": str(vector.site),
        "model": f"{vector.model}, {vector.d_model} wide",
        "SAE": vector.sae or "none",
        "norm": f"{vector.norm:.4g}",
        **{name: "unknown" if value is None else f"{value:.4g}" for name, value in lengths.items()},
        "read at": vector.read_positions,
        "written at": vector.positions,
        "features": str(len(vector.features)),
    }
    _show_fields(out, rows)
    if not vector.features:
        return
    made = table(("feature", "right"), ("weight", "right"), ("cluster", "right"), "description")
    for feature in vector.features[:top]:
        cluster = "" if feature.cluster is None else str(feature.cluster)
        text = Text(one_line(feature.description or ""))
        made.add_row(str(feature.index), f"{feature.weight:+.3f}", cluster, text)
    out.print()
    out.print(made)
    if len(vector.features) > top:
        out.print(f"... and {len(vector.features) - top} more")
    place = noted_place(vector.provenance)
    show_links(out, ((f.index, feature_url(place, f.index)) for f in vector.features[:top]))


def show_links(out: Console, links: Iterable[tuple[object, str | None]]) -> None:
    """Print the pages of features, each on a line of its own that is never broken."""
    for feature, url in links:
        if url:
            out.print(f"{feature}: {url}", soft_wrap=True)


def _show_fields(out: Console, rows: Mapping[str, str]) -> None:
    made = table("", "")
    made.show_header = False
    for name, value in rows.items():
        made.add_row(name, Text(value))
    out.print(made)


def show_features(features: Sequence[dict[str, Any]], top: int = 16) -> None:
    """Print features with weight, cluster and description, strongest first."""
    out = console()
    kept = [row for row in features if row["weight"]]
    made = table(
        ("feature", "right"),
        ("weight", "right"),
        ("score", "right"),
        ("cluster", "right"),
        ("fires +/-", "right"),
        "description",
    )
    for row in kept[:top]:
        fires = f"{row['firing_positive']:.0%}/{row['firing_negative']:.0%}"
        made.add_row(
            str(row["feature"]),
            f"{row['weight']:+.2f}",
            "" if row.get("score") is None else f"{row['score']:+.2f}",
            "" if row["cluster"] is None else str(row["cluster"]),
            fires,
            Text(one_line(str(row.get("description") or ""))),
        )
    out.print(made)
    if len(kept) > top:
        out.print(f"... and {len(kept) - top} more in features.parquet")
    show_links(out, ((row["feature"], row.get("url")) for row in kept[:top]))


def show_result(plan: Plan, result: SteerResults) -> None:
    """Print a finished run: features, fit, completions, shift, and where everything is."""
    out = console()
    _show_fit(out, result)
    show_completions(result.completions, out)
    _show_shift(out, plan, result)
    seconds = sum(result.metrics["seconds"].values())
    # Paths and commands are for copying, so they are never broken over lines.
    out.print()
    out.print(f"Computed in {seconds:.0f} s. Everything is in {result.folder.path}", soft_wrap=True)
    out.print("Next: steer with it yourself,")
    plus, minus = (result.metrics["vector"][side]["strength"] for side in ("plus", "minus"))
    command = (
        f"  saesteer generate --vector {shlex.quote(str(result.folder.path))} "
        f'--strength {minus:.2g} --strength 0 --strength {plus:.2g} "How was your day?"'
    )
    out.print(command, soft_wrap=True)


def _show_fit(out: Console, result: SteerResults) -> None:
    fit = result.metrics["fit"]
    if not result.features:
        heading(out, f"A dense vector at {result.vector.site}, of no SAE features")
    else:
        heading(out, f"{fit['features']} features at {result.vector.site}")
        show_features(result.features)
    if "candidates" not in fit:
        out.print(f"Cosine to the mean delta {number(fit['cosine_to_mean_delta'], '.3f')}.")
        return
    out.print(
        f"{fit['candidates']} candidates, {fit['selected']} selected, {fit['clusters_kept']} of "
        f"{fit['clusters']} clusters kept; {fit['regression']} weights: R2 "
        f"{number(fit['r2_mean'], '.3f')} of the mean delta ({number(fit['r2'], '.3f')} over "
        f"single pairs), cosine {number(fit['cosine_to_mean_delta'], '.3f')}."
    )
    if fit["cluster_note"]:
        out.print(fit["cluster_note"])


def show_completions(records: Sequence[Mapping[str, Any]], out: Console | None = None) -> None:
    """Print completions by prompt, up to three strengths side by side, more below each other.

    Args:
        records: As `GenerationResult.to_dicts` gives them.
        out: Where to print; standard output if None.
    """
    out = out or console()
    for prompt in dict.fromkeys(record["prompt"] for record in records):
        own = [record for record in records if record["prompt"] == prompt]
        strengths = list(dict.fromkeys(record["strength"] for record in own))
        heading(out, f"“{prompt}”")
        if len(strengths) > MOST_COLUMNS:
            _show_stacked(out, own)
            continue
        made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for strength in strengths:
            made.add_column(_strength(strength, own[0]["unit"]), ratio=1, overflow="fold")
        # Strengths are innermost: each sample is one row of the table.
        for first in range(0, len(own), len(strengths)):
            row = own[first : first + len(strengths)]
            made.add_row(*(Text(one_line(record["text"])) for record in row))
        out.print(made)


def _show_stacked(out: Console, records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        out.print(Text(_strength(record["strength"], record["unit"]), style="dim"))
        out.print(Text(one_line(record["text"])))


def _strength(strength: float, unit: str) -> str:
    amount = f"{strength:+.3g}" if strength else "0"
    return f"strength {amount}" + ("" if unit == "norm" else f" {unit}")


def _show_shift(out: Console, plan: Plan, result: SteerResults) -> None:
    from saesteer.methods.registry import method_entry

    metrics = result.metrics
    kl_target = plan.config.evaluation.kl_target
    heading(
        out,
        f"Propensity on {len(plan.held_out)} held-out pairs, every vector at KL {kl_target} "
        "per token on neutral text",
    )
    made = table(
        "vector",
        ("strength -/+", "right"),
        ("KL -/+", "right"),
        ("effect E", "right"),
        ("95% over pairs", "right"),
        ("moved", "right"),
        ("common", "right"),
    )
    label = method_entry(metrics["vector"]["method"]).label
    for name, key in (
        (metrics["vector"]["method"], "vector"),
        ("diff. in means", "difference_in_means"),
    ):
        made.add_row(name, *_shift_cells(metrics[key]))
    null = metrics["null"]
    if null is not None:
        made.add_row(f"{null['n']} random", "", "", f"|E| <= {null['largest']:.3f}", "", "", "")
    out.print(made)
    out.print(
        "E: how far the margin between matching and non-matching statements moves, nats per token; "
        "moved: share of the pairs that move that way; common: what moves both statements alike"
    )
    if null is not None:
        verdict = "beyond all of" if null["beyond_all"] else "NOT beyond all of"
        out.print(
            f"{label}: E is {verdict} {null['reached']} random directions at the same KL "
            f"(p = {null['p_value']:.3f})."
        )
    steps = "  ".join(
        f"{row['strength']:+.2f}: {number(row['margin'], '+.3f')}" for row in metrics["curve"]
    )
    word = "monotone" if metrics["monotone"] else "NOT monotone"
    out.print(f"Margin by strength ({word}): {steps}")


def _shift_cells(record: dict[str, Any]) -> list[str]:
    plus, minus, effect = record["plus"], record["minus"], record["effect"]
    cells = [
        f"{minus['strength']:+.2f} {plus['strength']:+.2f}",
        f"{number(minus['kl'], '.2f')} {number(plus['kl'], '.2f')}",
    ]
    if effect is None:
        return [*cells, "KL not reached", "", "", ""]
    return [
        *cells,
        number(effect["effect"], "+.3f"),
        f"{number(effect['low'], '+.3f')} to {number(effect['high'], '+.3f')}",
        number(effect["moved_share"], ".0%"),
        number(effect["common_shift"], "+.2f"),
    ]


def show_doctor(report: DoctorReport, sae: str, model: str, site: str) -> None:
    """Print the doctor's figures."""
    out = console()
    heading(out, f"SAE {sae} on {model} at {site}, {report.n_tokens:,} tokens")
    made = table("measure", ("value", "right"), "meaning")
    for name, value, meaning in (
        ("explained variance", f"{report.explained_variance:.3f}", "1 is a perfect reconstruction"),
        ("L0", f"{report.l0:.1f}", "features that fire on a token"),
        ("CE recovered", number(report.ce_score, ".3f"), "share of the loss that ablation costs"),
        (
            "loss",
            f"{report.ce_clean:.3f} / {report.ce_spliced:.3f} / {report.ce_ablated:.3f}",
            "clean / spliced / ablated, nats per token",
        ),
        ("norm ratio", f"{report.norm_ratio:.3f}", "|reconstruction| / |activation|"),
        ("residual norm", f"{report.residual_norm:.1f}", "one unit of strength 'norm'"),
        ("never fired", f"{report.dead:.1%}", "of the features, on this text"),
    ):
        made.add_row(name, value, meaning)
    out.print(made)
    if report.remark:
        out.print(Text(report.remark))
