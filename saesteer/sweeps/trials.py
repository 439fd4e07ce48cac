"""What a trial is: one experiment of any kind, and the numbers it is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.experiments.numbers import COSTS, METRICS, numbers_of
from saesteer.experiments.registry import experiment_named
from saesteer.sweeps.cells import settings_key
from saesteer.sweeps.overrides import merged
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import parse_config

if TYPE_CHECKING:
    from saesteer.utils.cache import Cache
    from saesteer.utils.progress import Progress

Settings = dict[str, Any]
Watch = Callable[[float | None], None]


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
        name: The kind of experiment, as the command calls it.
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

    def config(self, values: Mapping[str, Any]) -> Any:
        """Return the checked settings of a trial.

        Raises:
            ConfigError: They do not fit.
        """
        kind = experiment_named(self.name).Config
        return parse_config(self.settings(values), kind=kind, place=self.place)

    def key(self, values: Mapping[str, Any]) -> str:
        """Return the hash of a trial's checked settings."""
        return settings_key(self.config(values).model_dump(mode="json"))

    def check(self, values: Mapping[str, Any]) -> None:
        """Read a trial's data and check every name in its settings, loading no model.

        Raises:
            SaesteerError: Something does not fit.
        """
        experiment_named(self.name)(self.config(values))

    def measure(
        self,
        values: Mapping[str, Any],
        *,
        cache: Cache,
        progress: Progress,
        watch: Watch | None = None,
        group: str | None = None,
        parent: str | None = None,
    ) -> Measured:
        """Run a trial.

        Args:
            values: Its parameters.
            cache: What earlier trials have loaded, read and measured.
            progress: Where to show progress.
            watch: Called with the metric as soon as it is known; what it raises ends the trial.
            group: The sweep's name, for the record.
            parent: The id of the sweep's own record.

        Raises:
            SaesteerError: The trial cannot be run.
        """
        kind = experiment_named(self.name)
        experiment = kind(self.config(values), progress, cache)

        def numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
            return numbers_of(experiment.headline(metrics), metrics, self.metric)

        if watch is not None:
            experiment.watch = lambda metrics: watch(numbers(metrics).get(self.metric or "effect"))
        results = experiment.run(group=group, parent=parent, tags=("sweep",))
        return Measured(results.folder.path, numbers(results.metrics))


def metric_value(numbers: Mapping[str, float | None], name: str) -> float | None:
    """Return a trial's metric; None where it could not be measured."""
    value = numbers.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def check_metric(kind: str, name: str, place: str) -> None:
    """Refuse a metric that no trial can have.

    Raises:
        ConfigError: The name is neither known nor a dotted path.
    """
    if kind not in METRICS:
        # What an experiment's headline holds may depend on its settings.
        return
    known = [*METRICS[kind], *COSTS]
    if name not in known and "." not in name:
        raise ConfigError(
            f"{place}: metric.name {name!r} is not known; choose one of {', '.join(known)}, or a "
            "dotted path in metrics.json."
        )
