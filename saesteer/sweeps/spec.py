"""All that a worker must know of a sweep, as JSON that travels with the study."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from saesteer.sweeps.cells import Cell, grid_cells, random_cells
from saesteer.sweeps.early import rung
from saesteer.sweeps.overrides import merged
from saesteer.sweeps.parameters import Parameter
from saesteer.sweeps.sweep_file import EarlyTerminate, Metric, SweepFile, settings_words
from saesteer.sweeps.trials import TrialKind, check_metric
from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.settings import load_yaml

LAYOUT = 1
# Lost this often, a trial is what kills its workers.
MOST_LOSSES = 3
# Different values, after which the rest are not read beforehand.
MOST_CHECKED = 60


@dataclass(frozen=True)
class SweepSpec:
    """A sweep, checked and ready to be shared.

    Attributes:
        name: What the sweep is called.
        kind: "run" or "compare".
        base: The settings that parameters are put into.
        base_file: Where they were read.
        method: grid, random or bayes.
        parameters: What is searched, constants among them.
        metric: The number that trials are judged by; None for a grid without one.
        goal: "maximize" or "minimize".
        target: A value that is good enough.
        count: The most trials; None for a whole grid.
        seed: Seeds random draws, each with its number, and bayes.
        early: W&B's early_terminate.
        lease: Seconds of silence after which another machine's worker counts as gone.
        cwd: Where relative paths of the settings start.
        pinned: Settings that every worker must share and that a machine would choose for itself;
            they make no other sweep of it.
    """

    name: str
    kind: str
    base: dict[str, Any]
    base_file: str
    method: str
    parameters: tuple[Parameter, ...]
    metric: str | None
    goal: Literal["maximize", "minimize"]
    target: float | None
    count: int | None
    seed: int
    early: dict[str, Any] | None
    lease: float
    cwd: str
    pinned: dict[str, Any] = field(default_factory=dict)

    @property
    def trial(self) -> TrialKind:
        """What a trial is, by its settings."""
        return TrialKind(self.kind, self.base, self.base_file, self.metric)

    @property
    def pinned_trial(self) -> TrialKind:
        """How a trial is run, whoever runs it."""
        return replace(self.trial, base=merged(self.base, self.pinned))

    @property
    def constants(self) -> dict[str, Any]:
        """Parameters with one value."""
        return {p.name: p.values[0] for p in self.parameters if p.is_constant}

    @property
    def searched(self) -> tuple[Parameter, ...]:
        """Parameters with several."""
        return tuple(p for p in self.parameters if not p.is_constant)

    @property
    def folder(self) -> Path:
        """Where the sweep's own files go, below the folder of its runs."""
        return Path(str(self.base.get("folder", "runs"))) / "sweeps" / self.study

    @property
    def study(self) -> str:
        """The study's name: the same sweep of the same settings has the same one."""
        return f"{self.name}-{self.digest}"

    @property
    def digest(self) -> str:
        """Return a hash of what decides which trials there are and what they are judged by."""
        record = self.as_dict()
        for name in ("count", "lease", "cwd", "pinned", "base_file", "layout", "name"):
            record.pop(name)
        record["base"] = {k: v for k, v in self.base.items() if k not in ("folder", "tracking")}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def prunes(self) -> bool:
        """Whether trials can be ended early."""
        early = self.hyperband
        return self.kind == "run" and early is not None and rung(early) is not None

    @property
    def hyperband(self) -> EarlyTerminate | None:
        """When trials are ended early, if at all."""
        return None if self.early is None else EarlyTerminate.model_validate(self.early)

    def cells(self) -> list[Cell]:
        """Return the trials that are known beforehand; none for bayes.

        Raises:
            ConfigError: A cell's settings do not fit, or a grid cannot be counted.
        """
        if self.method == "bayes":
            return []
        if self.method == "grid":
            return grid_cells(self.parameters, self.trial.key, self.count)
        assert self.count is not None
        return random_cells(self.parameters, self.trial.key, self.count, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON."""
        return {"layout": LAYOUT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SweepSpec:
        """Return what `as_dict` gave away.

        Raises:
            OutputError: It is something else, or of another layout.
        """
        fields = dict(record)
        try:
            if fields.pop("layout") != LAYOUT:
                raise KeyError("layout")
            fields["parameters"] = tuple(_parameter(p) for p in fields["parameters"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"the study holds no sweep that this version of saesteer reads ({error}); start "
                "it anew with saesteer sweep."
            ) from error


def make_spec(
    sweep: SweepFile,
    *,
    overrides: Sequence[str] = (),
    count: int | None = None,
    seed: int = 0,
    lease: float = 120.0,
) -> SweepSpec:
    """Put a sweep file and its settings file together, and check both.

    Args:
        sweep: The sweep file.
        overrides: Settings of the form a.b=c that win over the settings file's; parameters win
            over them.
        count: The most trials, in place of the file's run_cap.
        seed: Seeds the draws.
        lease: See `SweepSpec`.

    Raises:
        SaesteerError: Something does not fit; nothing has been loaded or written.
    """
    import yaml

    place = str(sweep.file)
    try:
        base = load_yaml(sweep.base.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{place}: command: {sweep.base} cannot be read ({said}); name a settings file, and "
            "start the sweep where its path begins."
        ) from error
    if not isinstance(base, dict):
        raise ConfigError(f"{sweep.base} holds no settings; write 'name: value' lines.")
    base = merged(base, settings_words(sweep.words))
    base = merged(base, settings_words(overrides))
    metric = sweep.metric or Metric(name="effect", goal="maximize")
    check_metric(sweep.kind, metric.name, place)
    limit = count or sweep.run_cap
    if limit is None and sweep.method != "grid":
        raise ConfigError(
            f"{place}: {sweep.method} never ends by itself; give run_cap, or --count."
        )
    _check_bayes(sweep, place)
    return SweepSpec(
        name=sweep.name,
        kind=sweep.kind,
        base=json.loads(json.dumps(base, default=str)),
        base_file=str(sweep.base),
        method=sweep.method,
        parameters=sweep.parameters,
        metric=metric.name,
        goal=metric.goal,
        target=metric.target,
        count=limit,
        seed=seed,
        early=None if sweep.early is None else sweep.early.model_dump(),
        lease=lease,
        cwd=os.getcwd(),
    )


def check_spec(spec: SweepSpec, cells: Sequence[Cell]) -> None:
    """Read the data of as many trials as name every value once, and check all names in them.

    No model is loaded.

    Raises:
        SaesteerError: Something does not fit.
    """
    seen: set[str] = set()
    for cell in cells:
        values = {f"{name} {json.dumps(value)}" for name, value in cell.values.items()}
        # Draws from a range are all alike in what can be wrong with them.
        if len(seen) <= MOST_CHECKED and values - seen:
            spec.trial.check(cell.values)
        seen |= values
    if cells:
        return
    import numpy as np

    rng = np.random.default_rng(spec.seed)
    spec.trial.check({p.name: p.settled(p.draw(rng)) for p in spec.parameters})


def with_pinned_dtype(spec: SweepSpec) -> SweepSpec:
    """Return a sweep whose workers on this machine's CPU all load the model in one dtype.

    Left to itself each of them measures which is the fastest, and one that is disturbed while it
    does so would find other numbers than the rest.
    """
    from saesteer.models.placement import choose_device, choose_dtype

    model = spec.base.get("model") or {}
    named = any(p.name == "model.dtype" for p in spec.parameters)
    if not isinstance(model, dict) or model.get("dtype", "auto") != "auto" or named:
        return spec
    device = choose_device(model.get("device"))
    if device.type != "cpu" or model.get("device_map"):
        return spec
    dtype = str(choose_dtype(None, device)).removeprefix("torch.")
    return replace(spec, pinned={"model.dtype": dtype})


def _check_bayes(sweep: SweepFile, place: str) -> None:
    from saesteer.sweeps.parameters import BELLS

    for parameter in sweep.parameters if sweep.method == "bayes" else ():
        if parameter.distribution in BELLS:
            raise ConfigError(
                f"{place}: parameters.{parameter.name}: bayes here needs bounds, and "
                f"{parameter.distribution} has none; give min and max."
            )


def _parameter(record: Mapping[str, Any]) -> Parameter:
    fields = dict(record)
    for name in ("values", "probabilities"):
        fields[name] = tuple(fields[name])
    return Parameter(**fields)
