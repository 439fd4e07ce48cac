"""Kills at random moments: nothing is lost, done twice or left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from saesteer.utils.files import is_running
from tests.torture.processes import Child
from tests.torture.world import COMMANDS, Tally, World, drafts, numbers, unlike

# Of twelve tries one is a sweep for each way to kill it; its workers take long to start.
VICTIMS = ("parent", "worker", "both")
SINGLE = [what for what in COMMANDS if what != "sweep"]


def try_kills(world: World, count: int) -> list[Tally]:
    """Kill so many runs; see `Tally`."""
    plans = [("sweep", VICTIMS[n // 8 % 3]) if n % 8 == 7 else _single(n) for n in range(count)]
    tallies = {what: Tally(what) for what in COMMANDS}
    for what in sorted({what for what, _ in plans}):
        world.whole(what)

    def one(number: int) -> None:
        what, victim = plans[number]
        rng = world.rng("kills", number)
        fault = _killed(world, what, victim, rng)
        tallies[what].add(f"{number} ({victim})", fault)

    world.each(one, range(count))
    return [tally for tally in tallies.values() if tally.tried]


def _single(number: int) -> tuple[str, str]:
    return SINGLE[(number - number // 8) % len(SINGLE)], "parent"


def _killed(world: World, what: str, victim: str, rng: np.random.Generator) -> str | None:
    """Kill a run once or twice, let it go on, and return what is wrong with its end."""
    place, whole = world.place(), world.whole(what)
    words, runs = world.command(what, place), place / "runs"
    marks: dict[Path, int] = {}
    for _ in range(int(rng.integers(1, 3))):
        child = Child(words, place, env=world.env)
        if not _wait(child, whole.seconds * float(rng.random())):
            break
        victims, orphans = [child.pid], child.children()
        if victim != "parent":
            _wait_for_workers(child)
            orphans = child.children()
            chosen = orphans[int(rng.integers(len(orphans)))] if orphans else child.pid
            victims = [chosen] if victim == "worker" else [child.pid, *orphans]
        child.kill(victims)
        # Where the parent is left, it goes on with another worker.
        code = child.end(240.0).code
        if victim == "worker" and code not in (0, -9):
            return f"code {code} after a worker's death"
        if fault := _redone(marks, _marks(runs)):
            return fault
        marks = _marks(runs)
    found = world.run(words, place)
    if found.code != 0:
        return f"code {found.code} when it goes on: {found.said}"
    if fault := _redone(marks, _marks(runs)):
        return fault
    if other := unlike(numbers(runs), whole.numbers):
        return other
    if left := [str(path.relative_to(place)) for path in drafts(runs, world.root / "cache")]:
        return f"{left[0]} is left behind"
    return _left_at_work(place)


def _wait(child: Child, seconds: float) -> bool:
    """Wait so long from the beginning of the work; False where it has ended before."""
    while not child.begun and child.code is None:
        time.sleep(0.01)
    last = time.monotonic() + seconds
    while time.monotonic() < last and child.code is None:
        time.sleep(0.005)
    return child.code is None


def _wait_for_workers(child: Child) -> None:
    while len(child.children()) < 2 and child.code is None:
        time.sleep(0.02)
    # Until they have imported what they need; then somewhere in their trials.
    last = time.monotonic() + 8
    while time.monotonic() < last and child.code is None:
        time.sleep(0.05)


def _marks(runs: Path) -> dict[Path, int]:
    """When each finished stage was marked as such."""
    return {file: file.stat().st_mtime_ns for file in runs.rglob("stages/*.json")}


def _redone(before: dict[Path, int], after: dict[Path, int]) -> str | None:
    again = [file.stem for file, when in before.items() if after.get(file) != when]
    return f"the stage {again[0]} was done again" if again else None


def _left_at_work(place: Path, most: float = 30.0) -> str | None:
    """Whether a process of a try is still there, given some time to end."""
    last = time.monotonic() + most
    while True:
        left = [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if _speaks_of(pid, str(place)) and is_running(pid)
        ]
        if not left or time.monotonic() > last:
            return f"process {left[0]} is left at work" if left else None
        time.sleep(0.2)


def _speaks_of(pid: int, place: str) -> bool:
    try:
        return place in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return False
