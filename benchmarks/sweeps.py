"""How much faster two workers finish a sweep of 12 trials than one, on two cores.

Run: python benchmarks/sweeps.py [--sweep configs/sweeps/features.yaml] [--rounds 1]. Every worker
has one thread, so the figure is what a second worker adds; --both-cores adds the time of one
worker that has both. Each round starts with empty folders: nothing is shared between them. On a
machine that others use too, seconds say little; the CPU seconds beside them hardly change, and half
of what two workers take is the least that they can need.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from saesteer.sweeps.study import open_study
from saesteer.sweeps.sweep_file import read_sweep

WANTED = 1.6
SWEEP = "import typer; from saesteer.cli.sweep import sweep_command; typer.run(sweep_command)"


def timed(sweep: str, workers: int, threads: int, overrides: list[str]) -> tuple[float, dict]:
    """Return the seconds of a whole sweep, with start, loading and report, and its values."""
    with tempfile.TemporaryDirectory() as folder:
        own = [*overrides, f"folder={folder}"]
        command = [sys.executable, "-c", SWEEP, sweep]
        command += ["--workers", str(workers), "--threads", str(threads)]
        for word in own:
            command += ["--set", word]
        start, before = time.perf_counter(), _cpu()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, cpu = time.perf_counter() - start, _cpu() - before
        study = open_study(str(read_sweep(sweep, overrides=own).folder))
        values = {row.key: row.value for row in study.rows()}
        trials = [row.seconds or 0.0 for row in study.rows()]
        print(
            f"  {workers} workers, {threads} threads: {seconds:7.1f} s, CPU {cpu:.1f} s, "
            f"trials {sum(trials):.1f} s",
            flush=True,
        )
        return seconds, values


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print seconds and ratio of every round, and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", default="configs/sweeps/features.yaml")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--both-cores", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        one, alone = timed(options.sweep, 1, 1, options.set)
        two, shared = timed(options.sweep, 2, 1, options.set)
        assert alone == shared, "one and two workers found different numbers"
        if options.both_cores:
            timed(options.sweep, 1, 2, options.set)
        ratios.append(one / two)
        print(f"  ratio {ratios[-1]:.2f}, {len(alone)} trials with equal values")
    low, high = min(ratios), max(ratios)
    median = statistics.median(ratios)
    print(f"ratio {median:.2f} (rounds {low:.2f} to {high:.2f}); wanted >= {WANTED}")


if __name__ == "__main__":
    assert Path("configs").is_dir(), "start this in the repository"
    main()
