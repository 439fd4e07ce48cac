"""Where the time of `saesteer compare` goes: one persona, one seed, the headline KL target.

Run: python benchmarks/compare.py [FOLDER]. It is `saesteer compare agreeableness` with the settings
below: eight methods, the null of 40 draws, texts and their judges. Threads are pinned by
OMP_NUM_THREADS. A folder that holds an earlier, unfinished benchmark is resumed, which is what the
figure must not count: give a new one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from saesteer.experiments.registry import load_experiment, run_experiment
from saesteer.utils.progress import terminal_progress

SETTINGS = ("personas=[agreeableness]", "seeds=[0]", "evaluation.kl_targets=[0.3]")


def main() -> None:
    """Run the comparison and print each stage's share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    folder = parser.parse_args().folder or tempfile.mkdtemp()
    config = load_experiment("compare/personas", [*SETTINGS, f"folder={folder}"])
    start = time.perf_counter()
    result = run_experiment(config, terminal_progress())
    total = time.perf_counter() - start
    stages = result.metrics["seconds"]
    for stage, seconds in stages.items():
        print(f"{stage:<20} {seconds:8.1f} s  {seconds / total:6.1%}")
    rest = total - sum(stages.values())
    print(f"{'loading, summing up':<20} {rest:8.1f} s  {rest / total:6.1%}")
    print(f"{'all':<20} {total:8.1f} s; limit 300 s; results in {Path(folder)}")


if __name__ == "__main__":
    main()
