"""Disks that are full, read-only, forbidden or gone: one sentence, and the run goes on after."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.torture.processes import NOBODY, Child
from tests.torture.world import COMMANDS, Tally, World, drafts, numbers, unlike

KINDS = list(COMMANDS)
SMALLEST = 8


def try_disk(world: World, count: int) -> list[Tally]:
    """Run on so many bad disks; see `Tally`."""
    if os.getuid() != 0 or not _can_mount(world.place()):
        return []
    # Of ten tries six are full disks of some size.
    ways: tuple[Callable[..., str | None], ...] = (
        _full, _read_only, _full, _forbidden, _full, _gone, _full, _homeless, _full, _full,
    )  # fmt: skip
    plans = [(ways[n % len(ways)], KINDS[(n + n // len(ways)) % len(KINDS)]) for n in range(count)]
    tallies = {way: Tally(SORTS[way]) for way in SORTS}
    for what in sorted({what for _, what in plans}):
        world.whole(what)

    def one(number: int) -> None:
        way, what = plans[number]
        fault = way(world, what, world.rng("disk", number))
        tallies[way].add(f"{number}, {what}", fault)

    world.each(one, range(count))
    return [tally for tally in tallies.values() if tally.tried]


def _full(world: World, what: str, rng: np.random.Generator) -> str | None:
    """A disk of some size between hardly anything and what is needed, enlarged afterwards."""
    place, whole = world.place(), world.whole(what)
    most = max(whole.bytes // 1024, 4 * SMALLEST)
    size = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(most))))
    with _disk(place / "runs", size) as remount:
        words = _command(world, what, place)
        found = world.run(words, place)
        if fault := found.fault():
            return f"{size} kB: {fault}"
        if found.code == 2 and not any(word in found.said for word in ("space", "room")):
            return f"{size} kB: it does not say that the disk is full: {found.said}"
        if list(drafts(place)):
            return f"{size} kB: half a file is left behind"
        remount("size=1g")
        return _goes_on(world, what, words, place)


def _read_only(world: World, what: str, rng: np.random.Generator) -> str | None:
    """A disk that cannot be written any more from some moment on."""
    place = world.place()
    with _disk(place / "runs", 2**20) as remount:
        words = _command(world, what, place)
        child = Child(words, place, env=world.env)
        _sleep(child, float(rng.random()) * world.whole(what).seconds)
        # Refused while a file is open for writing.
        while not remount("ro", check=False) and child.code is None:
            time.sleep(0.01)
        found = child.end()
        if fault := found.fault():
            return fault
        remount("rw")
        return _goes_on(world, what, words, place)


def _forbidden(world: World, what: str, rng: np.random.Generator) -> str | None:
    """A folder that another user takes back while a run of nobody's is writing there."""
    place = world.place()
    runs = place / "runs"
    runs.mkdir()
    os.chown(runs, NOBODY, NOBODY)
    words = _command(world, what, place)
    # Whoever else wrote there first would be in its way.
    env = {**world.env, "HOME": str(place), "SAESTEER_CACHE": str(place / "cache")}
    child = Child(words, place, env=env, uid=NOBODY)
    _sleep(child, float(rng.random()) * world.whole(what).seconds)
    _own(runs, 0, 0o555)
    found = child.end()
    _own(runs, NOBODY, 0o755)
    if fault := found.fault():
        return fault
    return _goes_on(world, what, words, place)


def _gone(world: World, what: str, rng: np.random.Generator) -> str | None:
    """A cache that somebody empties meanwhile."""
    place = world.place()
    words = _command(world, what, place)
    child = Child(words, place, env={**world.env, "SAESTEER_CACHE": str(place / "cache")})
    _sleep(child, float(rng.random()) * world.whole(what).seconds)
    shutil.rmtree(place / "cache", ignore_errors=True)
    if fault := child.end().fault():
        return fault
    return _goes_on(world, what, words, place)


def _homeless(world: World, what: str, rng: np.random.Generator) -> str | None:
    """No home, no cache that is named, and nothing that could be written but the run's folder."""
    place = world.place()
    words = _command(world, what, place)
    (place / "runs").mkdir()
    os.chown(place / "runs", NOBODY, NOBODY)
    env = {**world.env, "HOME": None, "SAESTEER_CACHE": None, "XDG_CACHE_HOME": None}
    found = Child(words, place, env=env, uid=NOBODY).end()
    if fault := found.fault():
        return fault
    return _goes_on(world, what, words, place)


SORTS: dict[Callable[..., str | None], str] = {
    _full: "full disk",
    _read_only: "read-only half-way",
    _forbidden: "permission lost half-way",
    _gone: "cache emptied meanwhile",
    _homeless: "no HOME",
}


def _command(world: World, what: str, place: Path) -> list[str]:
    words = world.command(what, place)
    # A sweep in one process, since what others say stands in their logs.
    return ["sweep", words[-1]] if what == "sweep" else words


def _goes_on(world: World, what: str, words: list[str], place: Path) -> str | None:
    found = world.run(words, place)
    if found.code != 0:
        return f"code {found.code} when it goes on: {found.said}"
    if other := unlike(numbers(place / "runs"), world.whole(what).numbers):
        return other
    left = list(drafts(place / "runs"))
    return f"{left[0].name} is left behind" if left else None


def _sleep(child: Child, seconds: float) -> None:
    while not child.begun and child.code is None:
        time.sleep(0.01)
    last = time.monotonic() + seconds
    while time.monotonic() < last and child.code is None:
        time.sleep(0.01)


def _own(folder: Path, uid: int, mode: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        try:
            os.chown(path, uid, uid)
            if path.is_dir():
                path.chmod(mode)
        except FileNotFoundError:
            # A draft that has become a file.
            continue


@contextmanager
def _disk(folder: Path, kilobytes: int) -> Iterator[Callable[..., bool]]:
    """A disk of a size in memory; yields what mounts it again, otherwise."""
    folder.mkdir(parents=True, exist_ok=True)

    def mount(options: str, *, check: bool = True) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, check=check, capture_output=True).returncode == 0

    mount(f"size={kilobytes}k")
    try:
        yield lambda options, check=True: mount(f"remount,{options}", check=check)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _can_mount(folder: Path) -> bool:
    try:
        with _disk(folder / "disk", SMALLEST):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
