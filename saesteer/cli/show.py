"""What commands print: tables that fit 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from saesteer.pipeline import RunResult
    from saesteer.plan import Plan
    from saesteer.saes.doctor import DoctorReport

WIDTH = 100


def console() -> Console:
    """Return a console on standard output, at most 100 columns wide."""
    found = Console()
    return Console(width=min(found.width, WIDTH) if found.is_terminal else WIDTH)


def table(*columns: str | tuple[str, str]) -> Table:
    """Return an empty table; a column is a name, or a name and "right"."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    for column in columns:
        name, side = (column, "left") if isinstance(column, str) else column
        made.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    return made


def heading(out: Console, text: str) -> None:
    """Print a heading with a line above it."""
    out.print()
    out.print(Text(text, style="bold"))


def show_plan(plan: Plan) -> None:
    """Print what a run would do."""
    from saesteer.pipeline import STAGES

    out = console()
    split = plan.split
    done = [s for s in STAGES if (plan.folder / "stages" / f"{s}.json").is_file()]
    rows = {
        "pairs": f"{len(plan.pairs)} of {plan.pairs.source}: {len(split.train)} to train, "
        f"{len(split.validation)} to validate, {len(split.test)} to test",
        "model": f"{plan.model.name} ({plan.model.kind}: {plan.model.location})",
        "SAE": str(plan.sae if not isinstance(plan.sae, tuple) else ":".join(plan.sae)),
        "features": f"{plan.config.selection.n_features} by {plan.config.selection.criterion}, "
        f"{plan.config.clustering.method} clusters, {plan.config.regression.method} weights",
        "evaluation": f"{len(plan.held_out)} held-out pairs at KL {plan.config.evaluation.budget}, "
        f"{plan.config.evaluation.random_directions} random directions",
        "folder": str(plan.folder),
        "stages": ", ".join(f"{s} ({'done' if s in done else 'to do'})" for s in STAGES),
    }
    made = table("", "")
    made.show_header = False
    for name, value in rows.items():
        made.add_row(name, Text(value))
    out.print(made)
    out.print("Nothing was loaded or written.")


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
            f"{row['score']:+.2f}",
            str(row["cluster"]),
            fires,
            Text(str(row["description"] or "")),
        )
    out.print(made)
    if len(kept) > top:
        out.print(f"... and {len(kept) - top} more in features.parquet")


def show_result(plan: Plan, result: RunResult) -> None:
    """Print a finished run: features, fit, completions, shift, and where everything is."""
    out = console()
    _show_fit(out, result)
    _show_completions(out, result)
    _show_shift(out, plan, result)
    seconds = sum(result.metrics["seconds"].values())
    out.print()
    out.print(
        f"Computed in {seconds:.0f} s. Everything is in {result.folder.path}", highlight=False
    )
    out.print("Next: steer with it yourself,", highlight=False)
    strength = result.metrics["vector"]["plus"]["strength"]
    command = (
        f"  saesteer generate --vector {result.folder.path} --strength {-strength:.2f} "
        f'--strength 0 --strength {strength:.2f} "How was your day?"'
    )
    out.print(Text(command), soft_wrap=True)


def _show_fit(out: Console, result: RunResult) -> None:
    fit = result.metrics["fit"]
    heading(out, f"{fit['features']} features at {result.vector.site}")
    show_features(result.features)
    out.print(
        f"{fit['candidates']} candidates, {fit['selected']} selected, {fit['clusters_kept']} of "
        f"{fit['clusters']} clusters kept; {fit['regression']} weights: R2 {fit['r2_mean']:.3f} of "
        f"the mean delta ({fit['r2']:.3f} over single pairs), cosine "
        f"{fit['cosine_to_mean_delta']:.3f}.",
        highlight=False,
    )
    if fit["cluster_note"]:
        out.print(fit["cluster_note"])


def _show_completions(out: Console, result: RunResult) -> None:
    prompts = dict.fromkeys(record["prompt"] for record in result.completions)
    for prompt in prompts:
        records = [r for r in result.completions if r["prompt"] == prompt]
        heading(out, f"“{prompt}”")
        made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for record in records:
            made.add_column(f"strength {record['strength']:+.2f}", ratio=1, overflow="fold")
        made.add_row(*(Text(" ".join(record["text"].split())) for record in records))
        out.print(made)


def _show_shift(out: Console, plan: Plan, result: RunResult) -> None:
    metrics = result.metrics
    budget = plan.config.evaluation.budget
    heading(
        out,
        f"Propensity on {len(plan.held_out)} held-out pairs, every vector at KL {budget} per token "
        "on neutral text",
    )
    made = table(
        "vector",
        ("strength -/+", "right"),
        ("KL -/+", "right"),
        ("effect E", "right"),
        ("95% over pairs", "right"),
        ("pairs moved", "right"),
        ("common", "right"),
    )
    for name, key in (("SAE features", "vector"), ("difference in means", "difference_in_means")):
        made.add_row(name, *_shift_cells(metrics[key]))
    null = metrics["null"]
    if null is not None:
        made.add_row(
            f"{null['n']} random directions", "", "", f"|E| <= {null['largest']:.3f}", "", "", ""
        )
    out.print(made)
    out.print(
        "E: how far the margin between matching and non-matching statements moves, nats/token"
    )
    if null is not None:
        verdict = "beyond all of" if null["beyond_all"] else "NOT beyond all of"
        out.print(
            f"SAE features are {verdict} {null['reached']} random directions at the same KL "
            f"(p = {null['p_value']:.3f}).",
            highlight=False,
        )
    curve = metrics["curve"]
    steps = "  ".join(f"{row['strength']:+.2f}: {row['margin']:+.3f}" for row in curve)
    word = "monotone" if metrics["monotone"] else "NOT monotone"
    out.print(f"Margin by strength ({word}): {steps}", highlight=False)


def _shift_cells(record: dict[str, Any]) -> list[str]:
    plus, minus, effect = record["plus"], record["minus"], record["effect"]
    cells = [
        f"{minus['strength']:+.2f} {plus['strength']:+.2f}",
        f"{minus['kl']:.2f} {plus['kl']:.2f}",
    ]
    if effect is None:
        return [*cells, "budget not reached", "", "", ""]
    return [
        *cells,
        f"{effect['effect']:+.3f}",
        f"{effect['low']:+.3f} to {effect['high']:+.3f}",
        f"{effect['moved_share']:.0%}",
        f"{effect['common_shift']:+.2f}",
    ]


def show_doctor(report: DoctorReport, sae: str, model: str, site: str) -> None:
    """Print the doctor's figures."""
    out = console()
    heading(out, f"SAE {sae} on {model} at {site}, {report.n_tokens:,} tokens")
    made = table("measure", ("value", "right"), "meaning")
    for name, value, meaning in (
        ("explained variance", f"{report.explained_variance:.3f}", "1 is a perfect reconstruction"),
        ("L0", f"{report.l0:.1f}", "features that fire on a token"),
        ("CE recovered", f"{report.ce_score:.3f}", "share of the loss that ablation costs"),
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
