"""Draw the README's picture from a run's metrics.

python scripts/readme_picture.py runs/agreeableness-... docs/images/agreeableness.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from saesteer.experiments.results import Results
from saesteer.report.pictures import save_png
from saesteer.report.steer import effect_figure, margin_figure


def main() -> None:
    """Write the picture: margin by strength, and below it the effects beside the random null."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    metrics = Results.open(options.run).metrics
    options.target.parent.mkdir(parents=True, exist_ok=True)
    save_png([margin_figure(metrics), effect_figure(metrics)], options.target)
    print(f"wrote {options.target}")


if __name__ == "__main__":
    main()
