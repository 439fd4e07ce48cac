"""The experiments an agent may run: the package's own, checked as their files are."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from saesteer.agent.settings import AgentConfig
from saesteer.experiments.context import Context
from saesteer.experiments.registry import experiment_named, run_experiment
from saesteer.models.resolve import resolve_model
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import load_config, named_places, parse_config, short_hash

# Where things are kept, what is loaded, and whom the machine talks to is the user's to say.
LOCKED = ("name", "folder", "tracking", "model", "sae", "site", "llm_judge")
# These name something to load or to talk to in groups too, such as reading.sae.
_LOCKED_INSIDE = ("model", "sae", "vector", "base_url", "key_variable", "trust_remote_code")
_PATH_MARKS = ("/", "\\")
_PATH_STARTS = ("~", ".")
_NO_PART = ("folder", "tracking")
_ALARM_AGAIN = 10.0


class OutOfTime(BaseException):
    """Ends an experiment that would run past the budget; no handler of errors may swallow it."""


@dataclass(frozen=True)
class Kind:
    """One kind of experiment.

    Attributes:
        name: Its name.
        config: Its settings class.
        run: Runs it; what it returns has a `folder`, which holds metrics.json.
        about: What it finds, for the planner.
    """

    name: str
    config: type[BaseModel]
    run: Callable[[Any, Progress, Cache], Any]
    about: str


class Workshop:
    """Checks and runs what a planner proposes; nothing else can be executed.

    Args:
        config: The agent's settings; their base settings bound what can be proposed.
        progress: Where experiments show their progress.

    Raises:
        ConfigError: Base settings do not fit their kind.
    """

    def __init__(self, config: AgentConfig, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        # One model in memory, whatever kind of experiment asks for it.
        self.cache = Cache()
        self.kinds: dict[str, Kind] = {name: kind_named(name) for name in config.experiments}
        self.base = {name: self._base(name, given) for name, given in config.experiments.items()}

    def check(self, kind: str, settings: dict[str, Any]) -> BaseModel:
        """Return the settings of a proposed experiment.

        Args:
            kind: The kind.
            settings: What differs from the base, by dotted name.

        Raises:
            ConfigError: The kind or a setting is unknown, locked or does not fit.
        """
        if kind not in self.kinds:
            raise ConfigError(
                f"kind {kind!r} cannot be run here; choose from {', '.join(self.kinds)}."
            )
        data = copy.deepcopy(self.base[kind])
        for name, value in settings.items():
            within = next((other for other in settings if other.startswith(f"{name}.")), None)
            if within is not None:
                raise ConfigError(f"settings {name} and {within} overlap; give one of them.")
            parts = str(name).split(".")
            locked = _locked(parts, value)
            if locked is not None:
                raise ConfigError(
                    f"setting {name} is out of bounds: {locked} is the user's to set; leave it out."
                )
            place = data
            for part in parts[:-1]:
                inner = place.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"setting {name}: {part} is a single value, no group.")
                place = inner
            place[parts[-1]] = copy.deepcopy(value)
        base, checked = (
            parse_config(given, kind=self.kinds[kind].config, place=f"experiment {kind}")
            for given in (self.base[kind], data)
        )
        known = {word for _, word in named_places(base)}
        for name, word in named_places(checked):
            if word not in known and _is_place(word):
                raise ConfigError(
                    f"setting {name} names a file or an address ({word[:60]!r}), which is out of "
                    "bounds; use what the base settings name."
                )
        return checked

    def run(self, kind: str, settings: BaseModel, seconds: float) -> Path:
        """Run a checked experiment.

        Args:
            kind: The kind.
            settings: From `check`.
            seconds: The most it may take.

        Raises:
            SaesteerError: It failed.
            OutOfTime: It took longer.
        """
        with deadline(seconds):
            return self.kinds[kind].run(settings, self.progress, self.cache).folder.path

    def n_layers(self, kind: str) -> int:
        """Return how many layers the model of a kind's base settings has; loads it."""
        settings: Any = self.check(kind, {})
        # Base settings may leave to a proposal what makes them a whole experiment.
        plan = SimpleNamespace(config=settings, model=resolve_model(settings.model.name))
        return int(Context(plan, self.progress, self.cache).model.cfg.n_layers)

    def _base(self, kind: str, given: dict[str, Any] | str) -> dict[str, Any]:
        where = f"experiments.{kind}"
        config = self.kinds[kind].config
        # The experiments stand together in the run store.
        own: dict[str, Any] = {"folder": self.config.folder}
        if "tracking" in config.model_fields:
            group = f"{self.config.name}-{self.config.digest()}"
            own["tracking"] = {"group": group, "tags": ["agent"]}
        if isinstance(given, str):
            checked: BaseModel = load_config(given, kind=config)
            return {**checked.model_dump(mode="json", exclude_unset=True), **own}
        data = {"name": f"{self.config.name}-{kind}", **given, **own}
        parse_config(data, kind=config, place=where)
        return data


def kind_named(name: str) -> Kind:
    """Return a kind of experiment.

    Raises:
        ConfigError: There is none of that name.
    """
    experiment = experiment_named(name)
    return Kind(name, experiment.Config, run_experiment, experiment.about)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many seconds, where the system can.

    Only the main thread of a POSIX process can be interrupted; elsewhere the block runs on.
    """
    able = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not able:
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    earlier = signal.signal(signal.SIGALRM, stop)
    # Again and again: an exception raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), _ALARM_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def explain(error: Exception) -> str:
    """Return what to tell of a failed experiment, in one line."""
    words = " ".join(str(error).split())[:300]
    return words if isinstance(error, SaesteerError) else f"{type(error).__name__}: {words}"


def settings_key(kind: str, settings: BaseModel) -> str:
    """Return what is the same for experiments that differ in no setting, however written."""
    return short_hash([kind, settings.model_dump(mode="json", exclude={"name", *_NO_PART})])


def _locked(parts: list[str], value: Any) -> str | None:
    """Return the locked name in a setting's own or in the groups within it."""
    if parts[0] in LOCKED:
        return parts[0]
    return next((name for name in (*parts, *_keys(value)) if name in _LOCKED_INSIDE), None)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def _is_place(word: str) -> bool:
    """Return whether what names a source is a file, a folder or an address, and no bundled set."""
    if any(mark in word for mark in _PATH_MARKS) or word.startswith(_PATH_STARTS):
        return True
    try:
        return bool(word) and Path(word).exists()
    except (OSError, ValueError):
        return False
