"""The records of a comparison by method and persona, and a headline that claims no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from saesteer.report import plots
from saesteer.report.layout import Column, Mark, Remark, Tile, estimate
from saesteer.report.wording import Estimate, between, listing, show, spoken

Row = Mapping[str, Any]
# Colours of methods by kind; several of a kind take the next shade.
KINDS = {
    "sae": ("#0e8a8a", "#5b8def", "#58b5b0", "#7d6fd0", "#8fb4e8", "#3f6f8f"),
    "dense": ("#b8860b", "#c26a77", "#a0724f", "#d9a441", "#8f6b8f"),
    "prompt": ("#3b8b3b", "#79b35c"),
    "null": ("#8b93a0", "#b3bac4"),
}
DASHES = {"null": "dot", "prompt": "dash"}
EFFECT, RATIO = estimate("effect"), estimate("ratio", "ratio_low", "ratio_high")
PERSONA = Column("persona", lambda row: spoken(row["persona"]))


class Method(NamedTuple):
    """A method as the report names and draws it."""

    name: str
    label: str
    kind: str
    colour: str
    width: float

    @property
    def mark(self) -> Mark:
        """Its name with its colour and kind."""
        return Mark(self.label, self.colour, self.kind)

    @property
    def style(self) -> dict[str, Any]:
        """How its line is drawn."""
        dash = DASHES.get(self.kind, "solid")
        return {"colour": self.colour, "width": self.width, "dash": dash}


def average(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None of nothing."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


class Comparison:
    """What `metrics.json` of a comparison holds."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics
        self.kl_targets: list[float] = metrics["kl_targets"]
        self.at: float = metrics["headline_kl_target"]
        # Headline and baseline; one name where they are the same.
        self.pair = list(dict.fromkeys((metrics["headline_method"], metrics["baseline"])))
        self.personas = {row["name"]: row for row in metrics["personas"]}
        self.summary = {(row["method"], row["kl_target"]): row for row in metrics["summary"]}
        # The headline method's line at the headline KL target, and what stands there.
        self.headline = self.summary[self.pair[0], self.at]
        self.effect, self.ratio = EFFECT(self.headline), RATIO(self.headline)
        # By name: headline, baseline, then the others as listed.
        self.methods: dict[str, Method] = {}
        place = {name: at for at, name in enumerate(self.pair)}
        used: Counter[str] = Counter()
        for row in sorted(metrics["methods"], key=lambda row: place.get(row["name"], 2)):
            name, kind, main = row["name"], row["kind"], row["name"] in place
            shades = (plots.HEADLINE, plots.BASELINE) if main else KINDS[kind]
            colour = shades[(place[name] if main else used[kind]) % len(shades)]
            used[kind] += not main
            self.methods[name] = Method(name, row["label"], kind, colour, 3.2 if main else 1.6)

    def by_method(self, rows: Iterable[Row]) -> list[tuple[Method, list[Row]]]:
        """Rows of each method that has any, in the order of methods."""
        found: dict[str, list[Row]] = {name: [] for name in self.methods}
        for row in rows:
            found[row["method"]].append(row)
        return [(self.methods[name], own) for name, own in found.items() if own]

    def effects(self, method: str, kl_target: float, persona: str | None = None) -> list[Row]:
        """What was measured of a method at a KL target; a prompt has none of its own."""
        return [
            row
            for row in self.metrics["effects"]
            if row["method"] == method
            and row["kl_target"] in (kl_target, None)
            and persona in (None, row["persona"])
        ]

    def persona_effect(self, persona: str, method: str) -> tuple[Estimate, list[float]]:
        """An effect at the headline KL target, and each seed's own.

        It is the mean over seeds of the effect and of the ends of its interval over pairs.
        """
        rows = self.effects(method, self.at, persona)
        there = [row for row in rows if row["effect"] is not None]
        ends = (average(row[key] for row in there) for key in ("effect", "low", "high"))
        return Estimate(*ends), [row["effect"] for row in there]

    def null(self, persona: str) -> list[float]:
        """What random draws of the same cost did to a persona."""
        rows = [row for row in self.metrics["null"] if row["persona"] == persona]
        return [effect for row in rows for effect in row["effects"]]

    @cached_property
    def own_effects(self) -> dict[str, float | None]:
        """The headline method's effect on each persona, the strongest first."""
        found = {name: self.persona_effect(name, self.pair[0])[0].value for name in self.personas}
        return dict(sorted(found.items(), key=lambda e: (e[1] is None, -(e[1] or 0.0))))

    def changes(self) -> pd.DataFrame:
        """How each method (column) changes the margin against no steering, mean over its runs.

        Rows are multiples of the matched strength.
        """
        named = ["method", "persona", "seed"]
        curves = pd.DataFrame(self.metrics["curves"], columns=[*named, "multiple", "margin"])
        runs = curves.pivot(index="multiple", columns=named, values="margin").astype(float)
        if 0.0 not in runs.index:
            return pd.DataFrame()
        means = (runs - runs.loc[0.0]).T.groupby("method").mean().T
        return means.dropna(axis="columns", how="all")

    def missed(self) -> list[str]:
        """Each method that missed a KL target: how often, and of how many."""
        missed = []
        for method in self.methods.values():
            for target in self.kl_targets:
                own = self.effects(method.name, target)
                n = sum(row["effect"] is None for row in own)
                if n:
                    missed.append(f"{method.label} at KL {target:g} ({n} of {len(own)})")
        return missed

    def beyond_null(self) -> tuple[list[str], list[str]]:
        """The personas where the headline effect exceeds every |null effect|, and others."""
        beyond: list[str] = []
        within: list[str] = []
        for name in self.personas:
            effect, draws = self.own_effects[name], self.null(name)
            if draws and effect is not None:
                (beyond if effect > max(map(abs, draws)) else within).append(name)
        return beyond, within

    def lead(self) -> str:
        """The headline's sentence."""
        effect, ratio, own = self.effect, self.ratio, self.methods[self.pair[0]].label
        if effect.value is None:
            return f"With {own}, KL {self.at:g} was not reached, so there is no effect to report."
        n = self.headline["n_personas"]
        who = "one persona" if n == 1 else f"{n} personas"
        said = (
            f"With {own}, held-out statements of {who} move by {show(effect.value)} nats per token "
            f"at KL {self.at:g}{_interval(effect)}"
        )
        if len(self.pair) > 1 and ratio.value is not None:
            said += f", {show(ratio.value)} times as far as with {self._other}{_interval(ratio)}"
        return f"{said}."

    @property
    def _other(self) -> str:
        return self.methods[self.pair[-1]].label

    def tiles(self) -> list[Tile]:
        """Effect, ratio, null and judge."""
        effect, ratio = self.effect, self.ratio
        beyond, within = self.beyond_null()
        compared = len(beyond) + len(within)
        times = " times" if ratio.value is not None else ""
        reach = f"{between(effect.low, effect.high, '.3f')} nats per token".strip()
        against = f"{between(ratio.low, ratio.high)} against {self._other}".strip()
        draws = f"personas, {self._draws()} draws each" if compared else "no null was measured"
        share = f"{len(beyond)} of {compared}" if compared else show(None)
        return [
            Tile(f"Effect E at KL {self.at:g}", show(effect.value, ".3f"), reach),
            Tile("Ratio to the baseline", show(ratio.value) + times, against),
            Tile("Beyond the random null", share, draws),
            self._judge_tile(),
        ]

    def _judge_tile(self) -> Tile:
        name, at = "Generated text, read by judges", (self.at, None)
        own = [row for row in self.metrics["generation_summary"] if row["method"] == self.pair[0]]
        row = next((row for row in reversed(own) if row["kl_target"] in at), None)
        if row is None:
            return Tile(name, show(None), "nothing was generated")
        if row["judge_range"] is None:
            return Tile(name, show(None), "no admitted judge")
        ends = between(row["low"], row["high"])
        about = f"{ends} of the distance between answers of known sides"
        ratio = RATIO(row)
        if ratio.value is not None:
            ends = between(ratio.low, ratio.high)
            about += f"; {show(ratio.value)} times ({ends}) as far as the baseline"
        return Tile(name, show(row["judge_range"]), about)

    def _draws(self) -> int:
        """Random draws that each persona was held against, at least."""
        return min(len(self.null(name)) for part in self.beyond_null() for name in part)

    def remarks(self) -> list[Remark]:
        """What the headline's intervals and null do and do not show."""
        said = [] if self.effect.value is None else [self._effect_remark()]
        if said and len(self.pair) > 1:
            said.append(self._ratio_remark())
        return [*said, self._null_remark()]

    def _effect_remark(self) -> Remark:
        low, high = self.effect.low, self.effect.high
        if low is None or high is None:
            why = "One persona alone" if len(self.personas) == 1 else "No interval over personas"
            return Remark(f"{why}: this says nothing of other personas.", "open")
        if low > 0:
            return Remark("The effect's interval over personas excludes 0.", "good")
        if high < 0:
            return Remark("The effect is below 0: it moves against the intended direction.", "bad")
        return Remark("The effect's interval includes 0: this does not show that it steers.", "bad")

    def _ratio_remark(self) -> Remark:
        (value, low, high), p, other = self.ratio, self.headline["p_holm"], self._other
        test = "" if p is None else f" (Wilcoxon over personas, Holm: p = {p:.2g})"
        if value is None:
            why = "whose own effect is near or below 0"
            return Remark(f"There is no ratio to {other}, {why}.", "open")
        if low is None or high is None:
            return Remark(f"The ratio to {other} has no interval, so it decides nothing.", "open")
        if low > 1 and p is not None and p > 0.05:
            why = "excludes 1, but the paired test does not confirm it"
            return Remark(f"The ratio's interval {why}{test}.", "open")
        if low > 1:
            return Remark(f"The ratio's interval excludes 1: further than {other}{test}.", "good")
        if high < 1:
            return Remark(f"The ratio's interval lies below 1: less far than {other}{test}.", "bad")
        why = f"includes 1: not shown to move them further than {other}"
        return Remark(f"The ratio's interval {why}{test}.", "open")

    def _null_remark(self) -> Remark:
        beyond, within = self.beyond_null()
        total = len(beyond) + len(within)
        if not total:
            return Remark("No random null was measured, so chance is not ruled out.", "open")
        draws = f"every one of {self._draws()} random draws at the same KL"
        known = [row["p"] for row in self.metrics["null"] if row["p"] is not None]
        p = f" (largest p = {max(known):.2g})" if known else ""
        if not within:
            who = "the one persona" if total == 1 else f"all {total} personas"
            return Remark(f"Beyond {draws} on {who}{p}.", "good")
        where = listing([spoken(name) for name in within])
        text = f"Beyond {draws} on {len(beyond)} of {total}{p}; not on {where}."
        return Remark(text, "open" if beyond else "bad")


def _interval(found: Estimate) -> str:
    ends = between(found.low, found.high)
    return f" (95% interval {ends})" if ends else ""
