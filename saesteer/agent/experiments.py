"""The experiments an agent may run: the package's own, checked as their files are."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saesteer.agent.settings import AgentConfig
from saesteer.experiments.config import ExperimentConfig
from saesteer.experiments.registry import experiment_named, run_experiment
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import load_config, named_places, parse_config, put

# Where things are kept, what is loaded, and whom the machine talks to is the user's to say.
LOCKED = ("name", "folder", "tracking", "model", "sae", "site", "llm_judge")
# These name something to load or to talk to in groups too, such as reading.sae.
_LOCKED_INSIDE = ("model", "sae", "vector", "base_url", "key_variable", "trust_remote_code")
_ALARM_AGAIN = 10.0


class OutOfTime(BaseException):
    """Ends an experiment that would run past the budget; no handler of errors may swallow it."""


class Experiments:
    """Checks and runs what a planner proposes; nothing else can be executed.

    The base settings of each kind, in the agent's settings, bound what can be proposed.
    """

    def __init__(self, config: AgentConfig, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        # One model in memory, whatever kind of experiment asks for it.
        self.cache = Cache()
        self.kinds = {name: experiment_named(name) for name in config.experiments}
        self.base = {name: self._base(name, given) for name, given in config.experiments.items()}

    def check(self, kind: str, settings: dict[str, Any]) -> ExperimentConfig:
        """Return the settings of a proposed experiment, from what differs from its base."""
        if kind not in self.kinds:
            raise ConfigError(
                f"kind {kind!r} cannot be run here; choose from {', '.join(self.kinds)}."
            )
        data = copy.deepcopy(self.base[kind])
        for name, value in settings.items():
            within = next((other for other in settings if other.startswith(f"{name}.")), None)
            if within is not None:
                raise ConfigError(f"settings {name} and {within} overlap; give one of them.")
            locked = _locked(name.split("."), value)
            if locked is not None:
                raise ConfigError(
                    f"setting {name} is out of bounds: {locked} is the user's to set; leave it out."
                )
            put(data, name, copy.deepcopy(value))
        base, checked = (
            parse_config(given, kind=self.kinds[kind].Config, place=f"experiment {kind}")
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

    def run(self, settings: ExperimentConfig, seconds: float) -> Path:
        """Run a checked experiment and return its folder."""
        with deadline(seconds):
            return run_experiment(settings, self.progress, self.cache).folder.path

    def n_layers(self, kind: str, settings: dict[str, Any]) -> int:
        """Return how many layers the model of an experiment has; loads it."""
        experiment = self.kinds[kind](self.check(kind, settings), self.progress, self.cache)
        return int(experiment.model.cfg.n_layers)

    def _base(self, kind: str, given: dict[str, Any] | str) -> dict[str, Any]:
        # The experiments stand together in the list of runs.
        tracking = {"group": self.config.path.name, "tags": ["agent"]}
        own = {"folder": self.config.folder, "tracking": tracking}
        if isinstance(given, str):
            checked = load_config(given, kind=self.kinds[kind].Config)
            return {**checked.model_dump(mode="json", exclude_unset=True), **own}
        data = {"name": f"{self.config.name}-{kind}", **given, **own}
        parse_config(data, kind=self.kinds[kind].Config, place=f"experiments.{kind}")
        return data


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many seconds, where the system can.

    Only the main thread of a POSIX process can be interrupted; elsewhere the block runs on.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
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
    if "/" in word or "\\" in word or word.startswith(("~", ".")):
        return True
    try:
        return bool(word) and Path(word).exists()
    except (OSError, ValueError):
        return False
