"""The records of all personas of a comparison, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saesteer.evaluation.statistics import Estimate
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.persona import NULLS, PersonaRun

Row = dict[str, Any]
Moved = list[np.ndarray] | None


@dataclass(frozen=True)
class Grid:
    """The records of all personas, read once."""

    config: CompareConfig
    names: list[str]  # the personas'
    effects: dict[tuple[str, str, int], Row]  # by persona, method and seed
    nulls: dict[tuple[str, str], list[float]]  # by persona and kind, where the target was reached
    written: dict[str, list[Row]]  # by persona, one for each method and KL target, sorted
    # By persona: of those at the headline KL target what judges read of the masked texts.
    masked: dict[str, list[Row]] = field(default_factory=dict)
    # By persona, one for each method: what is written at the prompt's own KL.
    at_prompt: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: CompareConfig, by_name: Mapping[str, PersonaRun]) -> Grid:
        """What the personas' folders hold."""
        effects = {
            (name, method.name, seed): run.seeds[seed].effects(method)
            for name, run in by_name.items()
            for seed in config.seeds
            for method in config.methods_under(seed)
        }
        nulls = {
            (name, kind): [draw["effect"]["effect"] for draw in run.null(kind) if draw["effect"]]
            for name, run in by_name.items()
            for kind in NULLS
        }
        written = {
            name: sorted(
                (run.written(*wanted) for wanted in run.to_write()),
                key=lambda record: (record["method"], f"{record['kl_target'] or 0:g}"),
            )
            for name, run in by_name.items()
        }
        masked = {
            name: [run.masked(*wanted) for wanted in run.to_mask()] for name, run in by_name.items()
        }
        at_prompt = {
            name: [run.at_prompt(method) for method in config.at_prompt]
            for name, run in by_name.items()
        }
        return cls(config, list(by_name), effects, nulls, written, masked, at_prompt)

    @property
    def headline(self) -> float:
        """The headline KL target."""
        return self.config.evaluation.headline_kl_target

    def moved(self, method: str, kl_target: float, seeds: Sequence[int]) -> list[Moved]:
        """Each persona's moved margins, a row for each seed.

        A persona where the KL target was missed under any of the seeds counts as not measured.
        """
        found: list[Moved] = []
        for name in self.names:
            effects = [
                record["effect"]
                for seed in seeds
                for record in self.effects[name, method, seed]["kl_targets"]
                if record["kl_target"] in (kl_target, None)
            ]
            known = len(effects) == len(seeds) and None not in effects
            rows = [(np.array(e["up"]) - e["down"]) / 2 for e in effects] if known else None
            found.append(rows)
        return found

    def first_effects(self, method: str) -> list[float | None]:
        """Each persona's effect at the headline KL target under the first seed.

        Random draws are measured under that seed alone. A mean over seeds spreads less than they
        do, so it is not what they are held against.
        """
        return means(self.moved(method, self.headline, self.config.seeds[:1]))


def means(moved: Sequence[Moved]) -> list[float | None]:
    """Each persona's mean; None where it was not measured."""
    return [None if v is None else float(np.mean([row.mean() for row in v])) for v in moved]


def fields_of(found: Estimate, name: str, prefix: str = "") -> Row:
    """A figure with its interval, as rows of the metrics have it."""
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}
