"""What is tried, and what came of it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.experiments.conftest import timeless
from tests.torture.processes import Child, Outcome

# Each kind of experiment's command, and what else goes on for long.
COMMANDS: dict[str, tuple[str, ...]] = {
    "steer": ("steer",),
    "compare": ("compare",),
    "patch": ("patch",),
    "probe": ("probe",),
    "corrupt": ("corrupt",),
    "train_sae": ("sae", "train"),
    "sweep": ("sweep", "--workers", "2", "--threads", "1"),
    "agent": ("agent",),
}
# Looks like a key, and stands in the environment of whatever is tried.
KEY = "sk-torture-0123456789abcdef"


@dataclass
class Tally:
    """How many were tried of one sort, and what was wrong with those that went wrong."""

    sort: str
    tried: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0

    def add(
        self,
        name: str,
        fault: str | None,
        outcome: Outcome | None = None,
        seconds: float | None = None,
    ) -> None:
        """Count one; its seconds are those of a clock if None."""
        self.tried += 1
        if fault is not None:
            self.faults.append(f"{self.sort}, {name}: {fault}")
        if outcome is not None:
            self.seconds = max(self.seconds, outcome.seconds if seconds is None else seconds)
            self.megabytes = max(self.megabytes, outcome.megabytes or 0.0)


@dataclass
class World:
    """Tiny models, data and settings, and a seed from which every try has its own numbers."""

    root: Path
    seed: int
    small: Callable[[str, Path], dict[str, Any]]
    model: Path
    sae: Path
    gguf: Path
    processes: int = 2

    def __post_init__(self) -> None:
        self._places = itertools.count()
        self._whole: dict[str, Whole] = {}
        self.lock = threading.RLock()

    def place(self) -> Path:
        """A new folder."""
        place = self.root / f"try-{next(self._places)}"
        place.mkdir()
        return place

    def rng(self, part: str, number: int) -> np.random.Generator:
        """The numbers of one try, which no other try changes."""
        return np.random.default_rng([self.seed, *part.encode(), number])

    def each(self, do: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Try all of them, a few at once."""
        with ThreadPoolExecutor(self.processes) as pool:
            for _ in pool.map(do, numbers):
                pass

    @cached_property
    def env(self) -> dict[str, str | None]:
        """What every process has in its environment."""
        return {
            "SAESTEER_CACHE": str(self.root / "cache"),
            "SAESTEER_RUNS": str(self.root / "looks"),
            "OPENAI_API_KEY": KEY,
            "NEURONPEDIA_API_KEY": KEY,
            "NO_PROXY": "127.0.0.1",
        }

    def settings(self, what: str, folder: Path) -> dict[str, Any]:
        """Small settings of a kind of experiment, of a sweep or of an agent."""
        if what == "agent":
            corrupt = self.small("corrupt", folder)
            kept = ("model", "tasks")
            return {
                "name": "tiny",
                "goal": "Which of the layers costs most?",
                "experiments": {
                    "corrupt": {name: corrupt[name] for name in kept} | {"completions": None}
                },
                "search": {
                    "kind": "corrupt",
                    "parameters": {"programs": "skip {layer}"},
                    "batch": "programs",
                    "metric": ["programs", "{candidate}", "loss"],
                    "question": "the layer that costs most",
                },
                "folder": str(folder),
            }
        if what == "sweep":
            base = folder.parent / "base.yaml"
            base.write_text(json.dumps(self.small("steer", folder)))
            command = ["${env}", "saesteer", "run", str(base), "${args_no_hyphens}"]
            return {
                "command": command,
                "method": "grid",
                "metric": {"name": "effect", "goal": "maximize"},
                "parameters": {"selection.n_features": {"values": [8, 12, 16]}},
            }
        return self.small(what, folder)

    def command(self, what: str, place: Path) -> list[str]:
        """Write small settings, and return the command that runs them into `place/runs`."""
        file = place / f"{what}.yaml"
        file.write_text(json.dumps(self.settings(what, place / "runs")))
        return [*COMMANDS[what], str(file)]

    def run(
        self, words: Sequence[str | Path], place: Path, most: float = 240.0, **how: Any
    ) -> Outcome:
        """Run a command to its end."""
        env = {**self.env, **how.pop("env", {})}
        return Child(words, place, env=env, **how).end(most)

    def whole(self, what: str) -> Whole:
        """What a run that nothing disturbs finds, and how long it takes."""
        if what not in self._whole:
            place = self.place()
            found = self.run(self.command(what, place), place)
            assert found.code == 0, found
            size = sum(file.stat().st_size for file in (place / "runs").rglob("*"))
            self._whole[what] = Whole(numbers(place / "runs"), found.seconds, size)
        return self._whole[what]


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed."""

    numbers: dict[str, Any]
    seconds: float
    bytes: int


def numbers(runs: Path) -> dict[str, Any]:
    """All metrics below a folder of runs, without places and times."""
    return {
        str(file.relative_to(runs)): timeless(
            json.loads(file.read_text(encoding="utf-8").replace(str(runs), ""))
        )
        for file in sorted(runs.rglob("metrics.json"))
    }


def unlike(found: Any, whole: Any, at: str = "") -> str | None:
    """Where two sets of numbers differ first; None where they do not."""
    if isinstance(found, dict) and isinstance(whole, dict):
        for name in [*whole, *(found.keys() - whole.keys())]:
            if name not in found or name not in whole:
                return f"{at}/{name} is {'missing' if name in whole else 'too many'}"
            if there := unlike(found[name], whole[name], f"{at}/{name}"):
                return there
        return None
    return None if found == whole else f"{at} is {found!r:.200} and not {whole!r:.200}"


def drafts(*folders: Path) -> Iterator[Path]:
    """What killed processes left behind."""
    for folder in folders:
        yield from folder.rglob(".saesteer-draft-*")
