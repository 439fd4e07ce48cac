"""Many small runs in one process: memory, open files, threads and hooks stay as they were."""

from __future__ import annotations

import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

from tests.torture.processes import Child
from tests.torture.world import Tally, World

KINDS = ("patch", "corrupt", "probe", "steer")
# What a process may have more of in its last fifth than in its second: megabytes for each run, and
# the rest in all.
MEGABYTES_A_RUN, FILES, THREADS = 0.25, 2, 1


def use(settings: list[dict[str, Any]], kinds: list[str], place: str) -> None:
    """Run experiments one after the other, and write down what the process has after each."""
    import torch

    from saesteer.experiments.kinds import experiment_named
    from saesteer.experiments.registry import run_experiment
    from saesteer.utils.cache import Cache
    from saesteer.utils.settings import parse_config

    found, cache = [], Cache()
    for one, kind in zip(settings, kinds, strict=True):
        config = parse_config(one, kind=experiment_named(kind).Config, place="torture")
        run_experiment(config, cache=cache)
        gc.collect()
        modules = [o for o in gc.get_objects() if isinstance(o, torch.nn.Module)]
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        status = Path("/proc/self/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
        files = len(os.listdir("/proc/self/fd"))
        found.append([resident, files, threading.active_count(), hooks, len(modules)])
    Path(place, "use.json").write_text(json.dumps(found))


def try_long_use(world: World, count: int) -> list[Tally]:
    """Run so many in one process; see `Tally`."""
    place, kinds = world.place(), [KINDS[n % len(KINDS)] for n in range(count)]
    # A seed of its own makes each a run of its own.
    settings = [{**world.small(kind, place / "runs"), "seed": n} for n, kind in enumerate(kinds)]
    child = Child(use, place, (settings, kinds, str(place)), env=world.env)
    outcome = child.end(60.0 + 30.0 * count)
    tally = Tally("runs in one process", tried=count, seconds=outcome.seconds)
    if outcome.code != 0:
        tally.faults.append(f"code {outcome.code}: {outcome.said}")
        return [tally]
    used = json.loads((place / "use.json").read_text())
    # Kinds take turns, so what is compared are whole turns.
    turn = len(KINDS)
    early, late = used[turn : 2 * turn] or used[-turn:], used[-turn:]
    tally.megabytes = max(row[0] for row in late) - max(row[0] for row in early)
    runs = max(1, count - 2 * turn)
    if tally.megabytes > 20 + MEGABYTES_A_RUN * runs:
        tally.faults.append(f"{tally.megabytes:.0f} MB more after {runs} runs")
    for at, (name, most) in enumerate(
        [("open files", FILES), ("threads", THREADS), ("hooks", 0), ("modules", 0)], start=1
    ):
        grown = max(row[at] for row in late) - max(row[at] for row in early)
        if grown > most:
            tally.faults.append(f"{grown} more {name} after {runs} runs")
    return [tally]
