"""The report of an SAE on a model: how well it stands in for the activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesteer.report.layout import Remark, Section, Table
from saesteer.report.report import Report
from saesteer.report.wording import show

if TYPE_CHECKING:
    from saesteer.saes.doctor import DoctorReport


def sae_report(found: DoctorReport, sae: str, model: str, site: str) -> Report:
    """Return the report of what the doctor measured of an SAE at a model's site."""
    losses = (found.ce_clean, found.ce_spliced, found.ce_ablated)
    rows = [
        ["explained variance", show(found.explained_variance, ".3f"), "1 is a perfect copy"],
        ["L0", show(found.l0, ".1f"), "features that fire on a token"],
        ["CE recovered", show(found.ce_score, ".3f"), "share of the loss that ablation costs"],
        [
            "loss",
            " / ".join(show(loss, ".3f") for loss in losses),
            "clean / spliced / ablated, nats per token",
        ],
        ["norm ratio", show(found.norm_ratio, ".3f"), "|reconstruction| / |activation|"],
        ["residual norm", show(found.residual_norm, ".1f"), "one unit of strength 'norm'"],
        ["never fired", show(found.dead, ".1%"), "of the features, on this text"],
    ]
    columns = ["measure", "value", "meaning"]
    return Report(
        kind="SAE",
        title=sae,
        lead=f"SAE {sae} on {model} at {site}, {found.n_tokens:,} tokens",
        facts={"model": model, "site": site, "tokens": found.n_tokens},
        remarks=[Remark(found.remark, "open")] if found.remark else (),
        sections=[Section("Measures", items=[Table(columns, rows, printed=columns)])],
    )
