"""What an experiment found, read from its folder."""

from __future__ import annotations

import os
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from saesteer.utils.errors import OutputError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import in_present_words

# Kinds, as records name them, whose results say more than their metrics; loaded when opened.
_OWN = {
    "run": "steer.results:SteerResults",
    "patch": "patch.results:PatchResults",
    "probe-train": "probe.experiment:ProbeResults",
    "sae-train": "train_sae:SaeResults",
}
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
        """Return what a finished experiment of any kind found.

        Raises:
            OutputError: The folder holds no finished experiment.
        """
        folder = RunFolder(Path(path))
        record = folder.read_json(RECORD) if folder.has(RECORD) else None
        kind = record.get("kind") if isinstance(record, dict) else None
        found = _class_of(kind)(folder)
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
        """Read what a caller may ask for.

        Raises:
            OutputError: A file is damaged.
        """
        _ = self.metrics

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`."""
        return in_present_words(self.folder.read_json(METRICS))

    @property
    def report(self) -> Path:
        """The page, which opens offline."""
        return self.folder.path / self.report_name


def _class_of(kind: Any) -> type[Results]:
    if kind not in _OWN:
        return Results
    module, name = _OWN[kind].split(":")
    return getattr(import_module(f"saesteer.experiments.{module}"), name)
