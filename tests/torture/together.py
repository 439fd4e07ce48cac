"""Two and three processes at once on one folder, one store, one study."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.torture.processes import Child
from tests.torture.world import COMMANDS, Tally, World, drafts, numbers, unlike

SHARED = ("one folder", "one store", "one study")


def try_together(world: World, count: int) -> list[Tally]:
    """Run so many groups of two or three at once; see `Tally`."""
    tallies = {shared: Tally(shared) for shared in SHARED}
    kinds = [what for what in COMMANDS if what not in ("sweep", "agent")]
    for number in range(count):
        rng = world.rng("together", number)
        shared, many = SHARED[number % len(SHARED)], 2 + number // len(SHARED) % 2
        what = {"one store": "probe", "one study": "sweep"}.get(shared, kinds[number % len(kinds)])
        place = world.place()
        words = [_words(world, shared, what, place, n) for n in range(many)]
        children = []
        for n, one in enumerate(words):
            children.append(Child(one, place / str(n), env=world.env))
            # From the same moment on, or from somewhere within the other's work.
            time.sleep(float(rng.choice([0.0, rng.random() * world.whole(what).seconds / 2])))
        ends = [child.end(300.0) for child in children]
        faults = [end.fault() or (end.said if end.code else None) for end in ends]
        fault = next((bad for bad in faults if bad), None)
        fault = fault or _wrong(world, what, place, shared)
        tallies[shared].add(f"{number}, {many} of {what}", fault)
    return [tally for tally in tallies.values() if tally.tried]


def _words(world: World, shared: str, what: str, place: Path, n: int) -> list[str]:
    words = world.command(what, place)
    if shared == "one store":
        # Runs of their own, which read the same texts.
        return [*words, "--set", f"fit.c=[{0.1 * (n + 1)}]"]
    if shared == "one study":
        return ["sweep", words[-1]]
    return words


def _wrong(world: World, what: str, place: Path, shared: str) -> str | None:
    runs, whole = place / "runs", world.whole(what).numbers
    found = numbers(runs)
    if shared == "one store":
        # The first has the settings of the whole one.
        found = {name: value for name, value in found.items() if name in whole}
    if other := unlike(found, whole):
        return other
    for record in runs.rglob("run.json"):
        if json.loads(record.read_text(encoding="utf-8")).get("status") != "finished":
            return f"{record.parent.name} is recorded as unfinished"
    left = list(drafts(runs))
    return f"{left[0].name} is left behind" if left else None
