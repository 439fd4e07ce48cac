"""Which SAE, or which site, steers better: the same pairs through each, side by side.

python scripts/compare_saes.py runs/sae/A/sae runs/sae/B/sae --pairs agreeableness optimism
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.utils.progress import terminal_progress
from saesteer.utils.settings import load_config


def main() -> None:
    """Run every SAE on every set of pairs and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("saes", nargs="+")
    parser.add_argument("--pairs", nargs="+", default=["agreeableness", "optimism", "extraversion"])
    parser.add_argument("--config", default="configs/agreeableness.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    fixed = ["evaluation.random_directions=0", "completions.n_questions=0", *options.overrides]
    print("| SAE | pairs | features | cosine | E, SAE features | E, difference in means |")
    print("| --- | --- | --- | --- | --- | --- |")
    for sae in options.saes:
        for pairs in options.pairs:
            config = load_config(
                options.config,
                [*fixed, f"sae={sae}", f"pairs.source={pairs}", f"name={Path(pairs).stem}"],
                kind=RunConfig,
            )
            metrics = run_experiment(config, terminal_progress()).metrics
            fit = metrics["fit"]
            print(
                f"| {sae} | {pairs} | {fit['features']} | {fit['cosine_to_mean_delta']:.2f} | "
                f"{_effect(metrics['vector'])} | {_effect(metrics['difference_in_means'])} |",
                flush=True,
            )


def _effect(record: dict[str, Any]) -> str:
    effect = record["effect"]
    if effect is None:
        return "KL target not reached"
    return f"{effect['effect']:.3f} ({effect['low']:.3f} to {effect['high']:.3f})"


if __name__ == "__main__":
    main()
