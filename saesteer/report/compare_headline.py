"""The headline of a comparison, in words that claim no more than the intervals allow."""

from __future__ import annotations

from saesteer.report.compare_rows import Comparison
from saesteer.report.layout import Remark, Tile
from saesteer.report.wording import Estimate, between, listing, show, spoken

EFFECT_MEANING = (
    "E: how far the margin between matching and non-matching held-out statements moves from the "
    "negative to the positive strength, halved, in nats per token; each method gets the same KL in "
    "each direction. Personas are the sample: intervals are from a bootstrap over personas, then "
    "pairs."
)


def _effect(found: Comparison) -> Estimate:
    row = found.summary(found.pair[0], found.headline_kl_target)
    return Estimate(row["effect"], row["low"], row["high"])


def _ratio(found: Comparison) -> Estimate:
    row = found.summary(found.pair[0], found.headline_kl_target)
    return Estimate(row["ratio"], row["ratio_low"], row["ratio_high"])


def headline_lead(found: Comparison) -> str:
    """Return the headline's sentence."""
    effect, ratio = _effect(found), _ratio(found)
    own, at = found.label(found.pair[0]), found.headline_kl_target
    if effect.value is None:
        return f"With {own}, KL {at:g} was not reached, so there is no effect to report."
    n = found.summary(found.pair[0], at)["n_personas"]
    who = "one persona" if n == 1 else f"{n} personas"
    said = f"With {own}, held-out statements of {who} move by {show(effect.value)} nats per token "
    said += f"at KL {at:g}{_interval(effect)}"
    if len(found.pair) > 1 and ratio.value is not None:
        said += f", {show(ratio.value)} times as far as with {found.label(found.pair[1])}"
        said += _interval(ratio)
    return f"{said}."


def _interval(estimate: Estimate) -> str:
    ends = between(estimate.low, estimate.high)
    return f" (95% interval {ends})" if ends else ""


def headline_tiles(found: Comparison) -> list[Tile]:
    """Return effect, ratio, null and judge as tiles."""
    effect, ratio, at = _effect(found), _ratio(found), found.headline_kl_target
    beyond, within = found.beyond_null()
    compared = len(beyond) + len(within)
    draws = min((len(found.null(name)) for name in (*beyond, *within)), default=0)
    written = [
        row
        for row in found.metrics["generation_summary"]
        if row["method"] == found.pair[0] and row["kl_target"] in (at, None)
    ]
    judge = Tile("Judge of generated text", show(None), "nothing was generated")
    for row in written:
        about = f"{between(row['low'], row['high'])} in logits, negative to positive strength"
        if row["ratio"] is not None:
            ends = between(row["ratio_low"], row["ratio_high"])
            about += f"; {show(row['ratio'])} times ({ends}) as far as the baseline"
        judge = Tile("Judge of generated text", show(row["judge_range"]), about)
    return [
        Tile(
            f"Effect E at KL {at:g}",
            show(effect.value, ".3f"),
            f"{between(effect.low, effect.high, '.3f')} nats per token".strip(),
        ),
        Tile(
            "Ratio to the baseline",
            show(ratio.value) + (" times" if ratio.value is not None else ""),
            f"{between(ratio.low, ratio.high)} against {found.label(found.pair[-1])}".strip(),
        ),
        Tile(
            "Beyond the random null",
            f"{len(beyond)} of {compared}" if compared else show(None),
            f"personas, {draws} draws each" if compared else "no null was measured",
        ),
        judge,
    ]


def headline_remarks(found: Comparison) -> list[Remark]:
    """Return what the headline's intervals and null do and do not show."""
    remarks = [_effect_remark(found), _ratio_remark(found), _null_remark(found)]
    return [remark for remark in remarks if remark is not None]


def _effect_remark(found: Comparison) -> Remark | None:
    effect = _effect(found)
    if effect.value is None:
        return None
    if effect.low is None or effect.high is None:
        alone = len(found.metrics["personas"]) == 1
        why = "One persona alone" if alone else "No interval over personas"
        return Remark(f"{why}: this says nothing of other personas.", "open")
    if effect.low > 0:
        return Remark("The effect's interval over personas excludes 0.", "good")
    if effect.high < 0:
        return Remark("The effect is below 0: it moves against the intended direction.", "bad")
    return Remark("The effect's interval includes 0: this does not show that it steers.", "bad")


def _ratio_remark(found: Comparison) -> Remark | None:
    ratio = _ratio(found)
    if len(found.pair) == 1 or _effect(found).value is None:
        return None
    other = found.label(found.pair[1])
    p = found.summary(found.pair[0], found.headline_kl_target)["p_holm"]
    test = "" if p is None else f" (Wilcoxon over personas, Holm: p = {p:.2g})"
    if ratio.value is None:
        return Remark(f"There is no ratio to {other}, whose own effect is near or below 0.", "open")
    if ratio.low is None or ratio.high is None:
        return Remark(f"The ratio to {other} has no interval, so it decides nothing.", "open")
    if ratio.low > 1 and p is not None and p > 0.05:
        return Remark(
            f"The ratio's interval excludes 1, but the paired test does not confirm it{test}.",
            "open",
        )
    if ratio.low > 1:
        return Remark(f"The ratio's interval excludes 1: further than {other}{test}.", "good")
    if ratio.high < 1:
        return Remark(f"The ratio's interval lies below 1: less far than {other}{test}.", "bad")
    return Remark(
        f"The ratio's interval includes 1: not shown to move them further than {other}{test}.",
        "open",
    )


def _null_remark(found: Comparison) -> Remark:
    beyond, within = found.beyond_null()
    total = len(beyond) + len(within)
    if not total:
        return Remark("No random null was measured, so chance is not ruled out.", "open")
    n = min(len(found.null(name)) for name in (*beyond, *within))
    draws = f"every one of {n} random draws at the same KL"
    largest = max((row["p"] for row in found.metrics["null"] if row["p"] is not None), default=None)
    p = "" if largest is None else f" (largest p = {largest:.2g})"
    if not within:
        who = "the one persona" if total == 1 else f"all {total} personas"
        return Remark(f"Beyond {draws} on {who}{p}.", "good")
    where = listing([spoken(name) for name in within])
    text = f"Beyond {draws} on {len(beyond)} of {total}{p}; not on {where}."
    return Remark(text, "open" if beyond else "bad")
