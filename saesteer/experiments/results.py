"""What an experiment found, read from its folder, and the numbers that it is judged by."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from saesteer.experiments.kinds import KINDS, experiment_named, kind_name
from saesteer.utils.errors import OutputError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import in_present_words

CONFIG, METRICS, REPORT, RECORD = "config.json", "metrics.json", "report.html", "run.json"


class Results:
    """What an experiment found; nothing is read before it is asked for.

    Args:
        folder: The experiment's folder.

    Example:
        >>> from saesteer.experiments.steer.config import RunConfig
        >>> results = ss.Results.open(ss.run(RunConfig(**settings)).folder.path)
        >>> results.report.is_file()
        True
    """

    report_name: ClassVar[str] = REPORT

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Results:
        """What a finished experiment of any kind found.

        Raises:
            OutputError: The folder holds no finished experiment.
        """
        folder = RunFolder(Path(path))
        record = folder.read_json(RECORD) if folder.has(RECORD) else None
        kind = kind_name(record.get("kind")) if isinstance(record, dict) else ""
        found = experiment_named(kind).Results(folder) if kind in KINDS else Results(folder)
        if not found.finished or not folder.has(CONFIG):
            raise OutputError(
                f"{path} holds no finished experiment; give the folder that its command names at "
                "its end, or run that command again to go on."
            )
        return found

    @property
    def finished(self) -> bool:
        """Whether everything was computed."""
        return self.folder.has(METRICS)

    def check(self) -> None:
        """Read what a caller may ask for, so that a damaged file is told at once."""
        _ = self.metrics

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`."""
        found = in_present_words(self.folder.read_json(METRICS))
        if not isinstance(found, dict):
            raise self.damaged("it is no object")
        return found

    def damaged(self, reason: object) -> OutputError:
        """What to say of a `metrics.json` that holds something else than was written."""
        return OutputError(
            f"{self.folder.path / METRICS} is damaged ({reason}); delete it, and run the same "
            "command again."
        )

    @property
    def report(self) -> Path:
        """The page, which opens offline."""
        return self.folder.path / self.report_name


def number_at(metrics: Mapping[str, Any], path: str) -> float | None:
    """The finite number at a dotted path."""
    place: Any = metrics
    for part in path.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    if isinstance(place, bool) or not isinstance(place, int | float):
        return None
    return float(place) if math.isfinite(place) else None


def numbers_of(
    headline: Mapping[str, Any], metrics: Mapping[str, Any], metric: str | None
) -> dict[str, float | None]:
    """A headline's single numbers, with the metric at a dotted path that is wanted besides."""
    numbers = {name: number_at(headline, name) for name in headline}
    found = {name: n for name, n in numbers.items() if n is not None or headline[name] is None}
    if metric is not None and metric not in found:
        found[metric] = number_at(metrics, metric)
    return found
