"""A run's folder: the source of truth for everything the run found."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saesteer.errors import OutputError

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
    """The files of one run; each is written whole or not at all.

    Args:
        path: The folder; made if it is not there.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise OutputError(
                f"the run folder {path} cannot be written ({error.strerror}); choose another with "
                "--set folder=..."
            ) from error

    def has(self, name: str) -> bool:
        """Return whether a file is there."""
        return (self.path / name).is_file()

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write a file through `write`, which is given a draft beside it.

        Raises:
            OutputError: The file cannot be written.
        """
        target = self.path / name
        draft = target.with_name(f".{os.getpid()}-{target.name}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(draft)
            os.replace(draft, target)
        except OSError as error:
            raise OutputError(
                f"{target} cannot be written ({error.strerror}); free some space or choose another "
                "folder, and run the same command again to go on."
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value as JSON."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        return self.write(name, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            OutputError: The file is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.path / name} cannot be read ({error}); delete it and run again."
            ) from error

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a JSON file's value, computing and writing it first where it is not there."""
        if not self.has(name):
            self.write_json(name, compute())
        return self.read_json(name)


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
    folder.write_json(
        "run.json",
        {**earlier, **record, **{key: earlier[key] for key in ("started",) if key in earlier}},
    )


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
