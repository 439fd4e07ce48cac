"""A run's folder: the source of truth for everything the run found."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from saesteer.utils.errors import OutputError, UnwritableError
from saesteer.utils.files import remove_abandoned, write_atomic
from saesteer.utils.limits import read_json

# More than the record of a run takes.
RECORD_BYTES = 65_536
RECORDED_PACKAGES = (
    "saesteer",
    "torch",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "scikit-learn",
    "numpy",
)


class RunFolder:
    """The files of one run; each is written whole or not at all, and the folder with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The files that were written here or found to be there.
        self.touched: set[str] = set()

    def create(self) -> RunFolder:
        """Make the folder, and remove what runs killed while writing have left in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.path)
            # Whether it can be written, and has room for a record, shows in writing alone.
            with TemporaryFile(dir=self.path, buffering=0) as file:
                if file.write(bytes(RECORD_BYTES)) < RECORD_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnwritableError(
                f"the run folder {self.path} cannot be written ({reason}); choose another with "
                "--set folder=..."
            ) from error
        return self

    def has(self, name: str) -> bool:
        there = os.path.isfile(self.path / name)
        if there:
            self.touched.add(name)
        return there

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write a file through `write`, which is given a draft beside it."""
        self.touched.add(name)
        return write_atomic(self.path / name, write)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value as JSON; NaN, infinity and what JSON has no word for are errors."""
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise OutputError(
                f"{self.path / name} cannot be written as JSON ({error}); see `finite`."
            ) from error
        return self.write(name, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))

    def read_json(self, name: str) -> Any:
        """Read a JSON file; `OutputError` says that it is missing or damaged."""
        try:
            return read_json(self.path / name)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.path / name} is damaged or missing ({error}); delete it if it is there, "
                "and run the same command again."
            ) from error

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a JSON file's value, computing and writing it first where it is not there."""
        if not self.has(name):
            self.write_json(name, compute())
        return self.read_json(name)


def finite(value: Any) -> Any:
    """Return a value with null for every NaN and infinity in it, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment_record() -> dict[str, Any]:
    """Return versions, machine and git commit: what a number needs to be repeated."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_record(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Write `run.json`, keeping the first start of a resumed run."""
    earlier = folder.read_json("run.json") if folder.has("run.json") else {}
    first = {"started": earlier["started"]} if "started" in earlier else {}
    folder.write_json("run.json", {**earlier, **record, **first})


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    # Installed into somebody else's checkout, that one's commit would say nothing of this code.
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
