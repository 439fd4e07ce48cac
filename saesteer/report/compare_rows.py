"""The records of a comparison by method, persona and KL target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from saesteer.report import plots
from saesteer.report.layout import Mark
from saesteer.report.wording import Estimate

Row = Mapping[str, Any]
# Colours of methods by kind; several of a kind take the next shade.
KINDS = {
    "sae": ("#0e8a8a", "#5b8def", "#58b5b0", "#7d6fd0", "#8fb4e8", "#3f6f8f"),
    "dense": ("#b8860b", "#c26a77", "#a0724f", "#d9a441", "#8f6b8f"),
    "prompt": ("#3b8b3b", "#79b35c"),
    "null": ("#8b93a0", "#b3bac4"),
}
DASHES = {"null": "dot", "prompt": "dash"}


class Method(NamedTuple):
    """A method as the report names it."""

    name: str
    label: str
    kind: str


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of what was measured; None of nothing."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


class Comparison:
    """What `metrics.json` of a comparison holds.

    Args:
        metrics: It.
    """

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self.metrics = metrics
        self.kl_targets: list[float] = metrics["kl_targets"]
        self.headline_kl_target: float = metrics["headline_kl_target"]

    @cached_property
    def methods(self) -> list[Method]:
        """The methods: headline, baseline, then the others as listed."""
        listed = [Method(*(row[key] for key in Method._fields)) for row in self.metrics["methods"]]
        first = [self.metrics["headline_method"], self.metrics["baseline"]]
        return sorted(listed, key=lambda m: first.index(m.name) if m.name in first else len(first))

    @property
    def pair(self) -> list[str]:
        """Headline and baseline; one name where they are the same."""
        return list(dict.fromkeys((self.metrics["headline_method"], self.metrics["baseline"])))

    def method(self, name: str) -> Method:
        """Return a method."""
        return next(method for method in self.methods if method.name == name)

    def label(self, name: str) -> str:
        """Return a method's label."""
        return self.method(name).label

    @cached_property
    def _colours(self) -> dict[str, str]:
        used: dict[str, int] = {}
        colours = {self.pair[-1]: plots.BASELINE, self.pair[0]: plots.HEADLINE}
        for method in self.methods:
            if method.name not in colours:
                shades, place = KINDS[method.kind], used.get(method.kind, 0)
                used[method.kind] = place + 1
                colours[method.name] = shades[place % len(shades)]
        return colours

    def mark(self, method: Method) -> Mark:
        """Return a method's name with its colour and kind."""
        return Mark(method.label, self._colours[method.name], method.kind)

    def colour(self, name: str) -> str:
        """Return a method's colour."""
        return self._colours[name]

    def style(self, method: Method) -> dict[str, Any]:
        """Return how a method's line is drawn."""
        return {
            "colour": self._colours[method.name],
            "width": 3.2 if method.name in self.pair else 1.6,
            "dash": DASHES.get(method.kind, "solid"),
        }

    def summary(self, method: str, kl_target: float) -> Row:
        """Return a method's line of the summary at a KL target."""
        return self._summary[method, kl_target]

    @cached_property
    def _summary(self) -> dict[tuple[str, float], Row]:
        return {(row["method"], row["kl_target"]): row for row in self.metrics["summary"]}

    def effects(self, method: str, *, kl_target: float, persona: str | None = None) -> list[Row]:
        """Return what was measured of a method at a KL target; a prompt has none of its own."""
        return [
            row
            for row in self.metrics["effects"]
            if row["method"] == method
            and row["kl_target"] in (kl_target, None)
            and persona in (None, row["persona"])
        ]

    def persona(self, name: str) -> Row:
        """Return what is known of a persona: source, pairs of each part, unsteered margin."""
        return next(row for row in self.metrics["personas"] if row["name"] == name)

    def persona_effect(self, persona: str, method: str) -> tuple[Estimate, list[float]]:
        """Return an effect at the headline KL target, and each seed's own.

        It is the mean over seeds of the effect and of the ends of its interval over pairs.
        """
        rows = self.effects(method, kl_target=self.headline_kl_target, persona=persona)
        there = [row for row in rows if row["effect"] is not None]
        ends = (average(row[key] for row in there) for key in ("effect", "low", "high"))
        return Estimate(*ends), [row["effect"] for row in there]

    def null(self, persona: str) -> list[float]:
        """Return what random draws of the same cost did to a persona."""
        rows = [row for row in self.metrics["null"] if row["persona"] == persona]
        return [effect for row in rows for effect in row["effects"]]

    def by_strength(self) -> list[str]:
        """Return the personas, the headline method's strongest effect first."""
        effects = {
            row["name"]: self.persona_effect(row["name"], self.pair[0])[0].value
            for row in self.metrics["personas"]
        }
        return sorted(effects, key=lambda name: (effects[name] is None, -(effects[name] or 0.0)))

    def changes(self) -> dict[str, dict[float, float]]:
        """Return how each method changes the margin, by multiple of the matched strength.

        It is the mean over personas and seeds of the change against no steering.
        """
        runs: dict[tuple[str, str, int], dict[float, float]] = {}
        for row in self.metrics["curves"]:
            key = (row["method"], row["persona"], row["seed"])
            if row["margin"] is not None:
                runs.setdefault(key, {})[row["multiple"]] = row["margin"]
        changes: dict[str, dict[float, list[float]]] = {}
        for (method, _, _), margins in runs.items():
            if 0.0 in margins:
                for multiple, margin in margins.items():
                    own = changes.setdefault(method, {})
                    own.setdefault(multiple, []).append(margin - margins[0.0])
        return {
            method: {multiple: fmean(values) for multiple, values in sorted(own.items())}
            for method, own in changes.items()
        }

    def missed(self) -> list[tuple[Method, float, int, int]]:
        """Return each method that missed a KL target: how often, and of how many."""
        missed = []
        for method in self.methods:
            for target in self.kl_targets:
                own = self.effects(method.name, kl_target=target)
                n = sum(row["effect"] is None for row in own)
                if n:
                    missed.append((method, target, n, len(own)))
        return missed

    def beyond_null(self) -> tuple[list[str], list[str]]:
        """Return the personas where the headline effect exceeds every |null effect|, and others."""
        beyond: list[str] = []
        within: list[str] = []
        for row in self.metrics["personas"]:
            effect, _ = self.persona_effect(row["name"], self.pair[0])
            draws = self.null(row["name"])
            if draws and effect.value is not None:
                larger = effect.value > max(map(abs, draws))
                (beyond if larger else within).append(row["name"])
        return beyond, within
