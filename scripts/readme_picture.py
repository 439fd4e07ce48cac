"""Draw the README's picture from a run's metrics, through a headless Chromium.

python scripts/readme_picture.py runs/agreeableness-... docs/images/agreeableness.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from saesteer.report import propensity_data, propensity_figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    metrics = json.loads((options.run / "metrics.json").read_text(encoding="utf-8"))
    figure = propensity_figure(propensity_data(metrics), options.run.name.rsplit("-", 1)[0])
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        subprocess.run(
            [
                options.browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--window-size=1016,446",
                "--virtual-time-budget=4000",
                f"--user-data-dir={folder}/profile",
                f"--screenshot={options.target.resolve()}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )
    print(f"wrote {options.target}")


if __name__ == "__main__":
    main()
