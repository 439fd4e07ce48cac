"""A sweep: which trials it has, what each of them is, and what they are judged by."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

from saesteer.experiments.registry import experiment_named
from saesteer.experiments.results import numbers_of
from saesteer.sweeps.overrides import merged
from saesteer.sweeps.parameters import Parameter
from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.settings import Settings, parse_config, short_hash

if TYPE_CHECKING:
    from saesteer.experiments.config import ExperimentConfig
    from saesteer.utils.cache import Cache
    from saesteer.utils.progress import Progress

# Raised when studies of earlier versions cannot be gone on with.
LAYOUT = 2
MOST_TRIALS = 10_000
# Draws in a row that were there already, after which a space counts as used up.
PATIENCE = 200
# Different values, after which the rest are not read beforehand.
MOST_CHECKED = 60
Numbers = dict[str, float | None]


class EarlyTerminate(Settings):
    """W&B's hyperband.

    An experiment reports its metric once, as step 1: when its vector is measured, before its null,
    curves and completions. So only a bracket at 1 has anything to stop.
    """

    type: Literal["hyperband"]
    min_iter: int | None = Field(default=None, ge=1)
    max_iter: int | None = Field(default=None, ge=1)
    s: int | None = Field(default=None, ge=1)
    eta: float = Field(default=3.0, gt=1)
    strict: bool = False

    @property
    def stops(self) -> bool:
        """Whether one of W&B's brackets lies at 1.

        They lie at min_iter * eta**k, or at max_iter / eta**k for k up to s.
        """
        if self.min_iter is not None or self.max_iter is None:
            return self.min_iter == 1
        steps = range(1, (self.s or 1) + 1)
        return any(int(self.max_iter / self.eta**step) == 1 for step in steps)

    def note(self, kind: str) -> str:
        """Return what becomes of it here, as a sentence."""
        if kind == "run" and self.stops:
            return (
                f"early_terminate: a run whose effect is not among the best 1/{self.eta:g} "
                "measured so far is left there, without its null, curves and completions; which "
                "ones depends on the order in which they end."
            )
        said = f"early_terminate is left out here: a {kind} reports its metric once, at "
        if kind == "run":
            return f"{said}step 1, and no bracket lies there; set min_iter to 1."
        return f"{said}its end."


class Trial(NamedTuple):
    """A trial to be: its place in the sweep, the hash of its settings, and its parameters."""

    number: int
    key: str
    values: dict[str, Any]


class Sweep(Settings):
    """A sweep, checked and ready to travel with its study; see `read_sweep`."""

    model_config = ConfigDict(frozen=True)

    name: str
    # One of the kinds of experiment, as their commands are called.
    kind: str
    # The settings that parameters are put into, and where they were read.
    base: dict[str, Any]
    base_file: str
    method: Literal["grid", "random", "bayes"]
    # Constants among them.
    parameters: tuple[Parameter, ...]
    metric: str
    goal: Literal["maximize", "minimize"]
    # A value that is good enough.
    target: float | None = None
    # The most trials; None for a whole grid.
    count: int | None = None
    # Seeds random draws, each with its number, and bayes.
    seed: int = 0
    early: EarlyTerminate | None = None
    # Seconds of silence after which another machine's worker counts as gone.
    lease: float = 120.0
    # Where relative paths of the settings start.
    cwd: str = "."
    # Settings that every worker must share and that a machine would choose for itself; they make
    # no other sweep of it.
    pinned: dict[str, Any] = Field(default={})

    @property
    def searched(self) -> tuple[Parameter, ...]:
        """Parameters with several values."""
        return tuple(p for p in self.parameters if not p.is_constant)

    @property
    def constants(self) -> dict[str, Any]:
        """Parameters with one value."""
        return {p.name: p.values[0] for p in self.parameters if p.is_constant}

    @property
    def sign(self) -> int:
        """What values are multiplied with so that more is better."""
        return 1 if self.goal == "maximize" else -1

    @property
    def prunes(self) -> bool:
        """Whether trials can be ended early."""
        return self.kind == "run" and self.early is not None and self.early.stops

    @property
    def study(self) -> str:
        """The study's name: the same sweep of the same settings has the same one."""
        left_out = {"count", "lease", "cwd", "pinned", "base_file", "name"}
        record = self.model_dump(mode="json", exclude=left_out)
        places = ("folder", "tracking")
        record["base"] = {key: value for key, value in self.base.items() if key not in places}
        return f"{self.name}-{short_hash([LAYOUT, record])}"

    @property
    def folder(self) -> Path:
        """Where the sweep's own files go, below the folder of its runs."""
        return Path(str(self.base.get("folder", "runs"))) / "sweeps" / self.study

    def trials(self) -> list[Trial]:
        """Return the trials that are known beforehand, no two with equal settings.

        A grid's last parameter changes fastest. Random draws depend on the seed and their number
        alone, however many are asked for; there are fewer where the parameters have no more
        different values. There are none for bayes.
        """
        most = min(self.count or MOST_TRIALS, MOST_TRIALS)
        found: dict[str, Trial] = {}
        missed = 0
        for values in self._values():
            key = self.key(values)
            missed = missed + 1 if key in found else 0
            found.setdefault(key, Trial(len(found), key, values))
            if len(found) >= most or (self.method == "random" and missed >= PATIENCE):
                break
        return list(found.values())

    def _values(self) -> Iterator[dict[str, Any]]:
        names = [parameter.name for parameter in self.parameters]
        if self.method == "grid":
            for combination in itertools.product(*self._axes()):
                yield dict(zip(names, combination, strict=True))
        elif self.method == "random":
            for number in itertools.count():
                yield self.draw(number)

    def _axes(self) -> list[tuple[Any, ...]]:
        axes = []
        for parameter in self.parameters:
            choices = parameter.choices()
            if choices is None:
                raise ConfigError(
                    f"parameters.{parameter.name}: a grid cannot count "
                    f"{parameter.distribution!r}; give values, or use method random or bayes."
                )
            axes.append(choices)
        size = math.prod(map(len, axes))
        if size > MOST_TRIALS and self.count is None:
            raise ConfigError(
                f"the grid has {size:,} cells; give fewer values, or run_cap (at most "
                f"{MOST_TRIALS:,})."
            )
        return axes

    def draw(self, number: int) -> dict[str, Any]:
        """Draw the parameters of a trial, by its number."""
        import numpy as np

        rng = np.random.default_rng([self.seed, number])
        return {p.name: p.settled(p.draw(rng)) for p in self.parameters}

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial, unchecked, as every worker runs them."""
        return merged(merged(self.base, self.pinned), values)

    def config(self, values: Mapping[str, Any], *, pinned: bool = False) -> ExperimentConfig:
        """Return the checked settings of a trial."""
        data = self.settings(values) if pinned else merged(self.base, values)
        return parse_config(data, kind=experiment_named(self.kind).Config, place=self.base_file)

    def key(self, values: Mapping[str, Any]) -> str:
        """Return the hash of a trial's checked settings."""
        return self.config(values).digest()

    def check(self, trials: Sequence[Trial]) -> None:
        """Read the data of as many trials as name every value once, and check all names in them.

        No model is loaded.
        """
        kind = experiment_named(self.kind)
        seen: set[str] = set()
        for values in [trial.values for trial in trials] or [self.draw(0)]:
            own = {f"{name} {json.dumps(value)}" for name, value in values.items()}
            # Draws from a range are all alike in what can be wrong with them.
            if len(seen) <= MOST_CHECKED and own - seen:
                kind(self.config(values))
            seen |= own

    def measure(
        self,
        values: Mapping[str, Any],
        *,
        cache: Cache,
        progress: Progress,
        watch: Callable[[float | None], None] | None = None,
        parent: str | None = None,
    ) -> tuple[Path, Numbers]:
        """Run a trial; return its run's folder, and its numbers with None for what was not found.

        `watch` is called with the metric as soon as it is known; what it raises ends the trial.
        `parent` is the id of the sweep's own record.
        """
        experiment = experiment_named(self.kind)(self.config(values, pinned=True), progress, cache)

        def numbers(metrics: Mapping[str, Any]) -> Numbers:
            return numbers_of(experiment.headline(metrics), metrics, self.metric)

        if watch is not None:
            experiment.watch = lambda metrics: watch(numbers(metrics).get(self.metric))
        results = experiment.run(group=self.study, parent=parent, tags=("sweep",))
        return results.folder.path, numbers(results.metrics)

    def with_pinned_dtype(self) -> Sweep:
        """Return the sweep with one dtype for all workers on this machine's CPU.

        Left to itself each of them measures which is the fastest, and one that is disturbed while
        it does so would find other numbers than the rest.
        """
        from saesteer.models.placement import choose_device, choose_dtype

        model = self.base.get("model") or {}
        named = any(p.name == "model.dtype" for p in self.parameters)
        if not isinstance(model, dict) or model.get("dtype", "auto") != "auto" or named:
            return self
        device = choose_device(model.get("device"))
        if device.type != "cpu" or model.get("device_map"):
            return self
        dtype = str(choose_dtype(None, device)).removeprefix("torch.")
        return self.model_copy(update={"pinned": {"model.dtype": dtype}})

    def record(self) -> dict[str, Any]:
        """Return the sweep as JSON, which `from_record` reads."""
        return {"layout": LAYOUT, **self.model_dump(mode="json")}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sweep:
        """Return the sweep that a study holds."""
        fields = dict(record)
        with suppress(ValidationError):
            if fields.pop("layout", None) == LAYOUT:
                return cls.model_validate(fields)
        raise OutputError(
            "the study was made by another version of saesteer; run saesteer sweep with the same "
            "file, which starts a new one and only reads the runs that are finished."
        )
