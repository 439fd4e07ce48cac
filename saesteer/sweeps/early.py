"""Ending trials early: what of W&B's hyperband a run of saesteer can honour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from saesteer.sweeps.sweep_file import EarlyTerminate

# A run reports once: when its vector is measured, before null, curves and completions.
ONLY_STEP = 1


class StoppedEarly(BaseException):
    """Ends a trial whose metric is known and not good enough; no error, so no `Exception`."""


def rung(early: EarlyTerminate) -> int | None:
    """Return the step at which hyperband looks at a run of saesteer; None if it never does.

    W&B's brackets lie at min_iter * eta**k, or at max_iter / eta**k for k up to s. A run reports
    at step 1 alone, so only a bracket there counts.
    """
    if early.min_iter is not None:
        return ONLY_STEP if early.min_iter <= ONLY_STEP else None
    if early.max_iter is not None:
        steps = (int(early.max_iter / early.eta**k) for k in range(1, (early.s or 1) + 1))
        return ONLY_STEP if ONLY_STEP in steps else None
    return None


def early_note(early: EarlyTerminate | None, kind: str) -> str | None:
    """Return what becomes of early termination here, as a sentence; None where there is none."""
    if early is None:
        return None
    if kind != "run":
        return "early_terminate is left out here: a comparison reports its metric once, at its end."
    if rung(early) is None:
        return (
            "early_terminate is left out here: a run reports its metric once, at step 1, and no "
            "bracket lies there; set min_iter to 1."
        )
    return (
        f"early_terminate: a run whose effect is not among the best 1/{early.eta:g} measured so "
        "far is left there, without its null, curves and completions; which ones depends on the "
        "order in which they end."
    )


def make_pruner(early: EarlyTerminate | None, *, prunes: bool) -> BasePruner:
    """Return Optuna's pruner for a sweep: successive halving with one rung, or none."""
    from optuna.pruners import NopPruner, SuccessiveHalvingPruner

    if early is None or not prunes:
        return NopPruner()
    return SuccessiveHalvingPruner(
        min_resource=ONLY_STEP, reduction_factor=max(2, round(early.eta)), min_early_stopping_rate=0
    )
