"""What a trial is: one `saesteer run` or `saesteer compare`, and the numbers it is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.sweeps.cells import settings_key
from saesteer.sweeps.overrides import merged
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from saesteer.experiments.compare.config import CompareConfig
    from saesteer.experiments.shelf import Shelf
    from saesteer.utils.progress import Progress
    from saesteer.utils.settings import RunConfig

Settings = dict[str, Any]
Watch = Callable[[float | None], None]
# What `metric.name` may be, besides dotted paths into metrics.json.
METRICS = {
    "run": {
        "effect": "vector.effect.effect",
        "effect_low": "vector.effect.low",
        "effect_high": "vector.effect.high",
        "moved_share": "vector.effect.moved_share",
        "common_shift": "vector.effect.common_shift",
        "strength_plus": "vector.plus.strength",
        "strength_minus": "vector.minus.strength",
        "effect_difference_in_means": "difference_in_means.effect.effect",
        "null_largest": "null.largest",
        "p_value": "null.p_value",
        "r2": "fit.r2_mean",
        "cosine": "fit.cosine_to_mean_delta",
        "features": "fit.features",
        "unsteered_margin": "unsteered_margin",
    },
    "compare": {"effect": "", "effect_low": "", "effect_high": "", "ratio": "", "beyond_null": ""},
}
# In every trial's numbers: the budget that was asked for and the divergence that was measured.
COSTS = ("budget", "kl")


@dataclass(frozen=True)
class Measured:
    """What a trial found.

    Attributes:
        folder: Its run's folder.
        numbers: Its numbers by name; None where one could not be measured.
    """

    folder: Path
    numbers: dict[str, float | None]


@dataclass(frozen=True)
class TrialKind:
    """One way to run a trial.

    Attributes:
        name: "run" or "compare".
        base: The settings that parameters are put into.
        place: Where they come from, for errors.
        metric: The number that trials are judged by, if any.
    """

    name: str
    base: Settings
    place: str
    metric: str | None

    def settings(self, values: Mapping[str, Any]) -> Settings:
        """Return the settings of a trial, unchecked."""
        return merged(self.base, values)

    def config(self, values: Mapping[str, Any]) -> RunConfig | CompareConfig:
        """Return the checked settings of a trial.

        Raises:
            ConfigError: They do not fit.
        """
        from saesteer.utils.settings import RunConfig, parse_config

        if self.name == "compare":
            from saesteer.experiments.compare.config import CompareConfig

            return parse_config(self.settings(values), kind=CompareConfig, place=self.place)
        return parse_config(self.settings(values), kind=RunConfig, place=self.place)

    def key(self, values: Mapping[str, Any]) -> str:
        """Return the hash of a trial's checked settings."""
        return settings_key(self.config(values).model_dump(mode="json"))

    def check(self, values: Mapping[str, Any]) -> None:
        """Read a trial's data and check every name in its settings, loading no model.

        Raises:
            SaesteerError: Something does not fit.
        """
        config = self.config(values)
        if self.name == "compare":
            from saesteer.experiments.compare.plan import plan_compare

            plan_compare(config)  # type: ignore[arg-type]
            return
        from saesteer.experiments.steer.plan import plan_run, too_few

        too_few(plan_run(config).split)  # type: ignore[arg-type]

    def measure(
        self,
        values: Mapping[str, Any],
        *,
        shelf: Shelf,
        progress: Progress,
        watch: Watch | None = None,
        group: str | None = None,
        parent: str | None = None,
    ) -> Measured:
        """Run a trial.

        Args:
            values: Its parameters.
            shelf: What earlier trials have loaded, read and measured.
            progress: Where to show progress.
            watch: Called with the metric as soon as it is known; what it raises ends the trial.
            group: The sweep's name, for the record.
            parent: The id of the sweep's own record.

        Raises:
            SaesteerError: The trial cannot be run.
        """
        config: Any = self.config(values)
        record = {"group": group, "parent": parent, "tags": ("sweep",)}
        measure = _compared if self.name == "compare" else _ran
        return measure(config, self.metric, shelf, progress, watch, record)


def metric_value(numbers: Mapping[str, float | None], name: str) -> float | None:
    """Return a trial's metric; None where it could not be measured."""
    value = numbers.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def check_metric(kind: str, name: str, place: str) -> None:
    """Refuse a metric that no trial can have.

    Raises:
        ConfigError: The name is neither known nor a dotted path.
    """
    known = [*METRICS[kind], *COSTS]
    if name not in known and "." not in name:
        raise ConfigError(
            f"{place}: metric.name {name!r} is not known; choose one of {', '.join(known)}, or a "
            "dotted path in metrics.json."
        )


def _ran(
    config: RunConfig,
    metric: str | None,
    shelf: Shelf,
    progress: Progress,
    watch: Watch | None,
    record: dict[str, Any],
) -> Measured:
    from saesteer.experiments.steer.run import run

    def seen(result: Mapping[str, Any]) -> None:
        if watch is not None:
            found = run_numbers({"vector": result}, config.evaluation.budget, metric)
            watch(found.get(metric or "effect"))

    result = run(config, progress, shelf, watch=seen, **record)
    numbers = run_numbers(result.metrics, config.evaluation.budget, metric)
    return Measured(result.folder.path, numbers)


def _compared(
    config: CompareConfig,
    metric: str | None,
    shelf: Shelf,
    progress: Progress,
    watch: Watch | None,
    record: dict[str, Any],
) -> Measured:
    from saesteer.experiments.compare.run import compare

    result = compare(config, progress, shelf, **record)
    numbers = compare_numbers(result.metrics, metric)
    return Measured(result.folder.path, numbers)


def run_numbers(
    metrics: Mapping[str, Any], budget: float, metric: str | None = None
) -> dict[str, float | None]:
    """Return the numbers of a run's `metrics.json`, flat.

    Args:
        metrics: What the file holds.
        budget: The KL budget asked for, nats per token.
        metric: A dotted path that is wanted besides.
    """
    found = {name: _at(metrics, path) for name, path in METRICS["run"].items()}
    sides = [_at(metrics, f"vector.{side}.kl") for side in ("plus", "minus")]
    known = [side for side in sides if side is not None]
    found |= {"budget": budget, "kl": sum(known) / len(known) if known else None}
    return _with(found, metrics, metric)


def compare_numbers(
    metrics: Mapping[str, Any], metric: str | None = None
) -> dict[str, float | None]:
    """Return the numbers of the headline method at the headline budget, flat.

    Args:
        metrics: What the comparison's metrics.json holds.
        metric: A dotted path that is wanted besides.
    """
    budget, method = metrics.get("headline_budget"), metrics.get("headline_method")
    rows = [r for r in metrics.get("summary") or () if r.get("method") == method]
    row = next((r for r in rows if r.get("budget") == budget), {})
    names = {"effect": "effect", "effect_low": "low", "effect_high": "high"}
    names |= {"ratio": "ratio", "beyond_null": "beyond_null"}
    found = {name: _number(row.get(field)) for name, field in names.items()}
    # Every vector is given the budget itself, to within 3%.
    found |= {"budget": _number(budget), "kl": _number(budget) if found["effect"] else None}
    return _with(found, metrics, metric)


def _with(
    found: dict[str, float | None], metrics: Mapping[str, Any], metric: str | None
) -> dict[str, float | None]:
    return found if metric is None or metric in found else {**found, metric: _at(metrics, metric)}


def _at(metrics: Mapping[str, Any], path: str) -> float | None:
    place: Any = metrics
    for part in path.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return _number(place)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
