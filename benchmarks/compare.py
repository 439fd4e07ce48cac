"""Where the time of `saesteer compare` goes: one persona, seven methods, headline KL target.

Run: python benchmarks/compare.py [FOLDER]. Threads are pinned by OMP_NUM_THREADS. A folder that
holds an earlier, unfinished benchmark is resumed, which is what the figure must not count: give a
new one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.registry import run_experiment
from saesteer.utils.progress import terminal_progress

METHODS = (
    "attributed_sae",
    "clustered_sae",
    "natural_gradient",
    "difference_in_means",
    "logistic_probe",
    "top_feature_standardised_difference",
    "system_prompt",
)


def main() -> None:
    """Run the comparison and print each stage's share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    folder = parser.parse_args().folder or tempfile.mkdtemp()
    settings = {
        "name": "benchmark",
        "personas": ["agreeableness"],
        "methods": list(METHODS),
        "seeds": [0],
        "evaluation": {"kl_targets": [0.3]},
        # As the published figures are written: a judge by description would read longer than all
        # else takes.
        "writing": {"kl_targets": [0.3], "described": False},
        "folder": folder,
    }
    start = time.perf_counter()
    result = run_experiment(CompareConfig.model_validate(settings), terminal_progress())
    total = time.perf_counter() - start
    stages = result.metrics["seconds"]
    for stage, seconds in stages.items():
        print(f"{stage:<20} {seconds:8.1f} s  {seconds / total:6.1%}")
    rest = total - sum(stages.values())
    print(f"{'loading, summing up':<20} {rest:8.1f} s  {rest / total:6.1%}")
    print(f"{'all':<20} {total:8.1f} s; limit 1200 s; results in {Path(folder)}")


if __name__ == "__main__":
    main()
