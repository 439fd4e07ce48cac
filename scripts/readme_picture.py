"""Draw the README's picture from a run's metrics, through a headless Chromium.

python scripts/readme_picture.py runs/agreeableness-... docs/images/agreeableness.png
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from saesteer.experiments.results import Results
from saesteer.report.steer import steer_report


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    found: Any = Results.open(options.run)
    config = found.folder.read_json("config.json")
    texts = (found.features, found.completions)
    figures = steer_report(found.metrics, config, *texts, n_pairs=0, site="").figures
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        parts = []
        for figure in (figures["margin"], figures["effect"]):
            figure.update_layout(width=500, height=420, paper_bgcolor="white")
            # The script is embedded once.
            parts.append(
                figure.to_html(
                    full_html=False,
                    include_plotlyjs=not parts,
                    config={"displayModeBar": False},
                )
            )
        style = "<style>body { margin: 8px; display: flex }</style>"
        page.write_text(f"<meta charset='utf-8'>{style}{''.join(parts)}", encoding="utf-8")
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
