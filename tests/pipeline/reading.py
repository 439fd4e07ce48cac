"""What a run has written, read so that two runs can be held together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saesteer.experiments.steer.experiment import STAGES


def refuse(*args: Any, **kwargs: Any):
    raise AssertionError("this must not be called")


def strict_json(path: Path) -> Any:
    """Read JSON as a strict reader does, to whom NaN and Infinity are no words."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def tensors(file: Path) -> dict[str, Any]:
    """A safetensors file, whose header is written in no fixed order."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        kept = {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118
        return kept | dict(opened.metadata())


def numbers(folder: Path) -> dict[str, Any]:
    """What must be the same in every run of the same settings, byte for byte."""
    metrics = strict_json(folder / "metrics.json")
    assert set(metrics.pop("seconds")) == set(STAGES)
    # Times differ, the figure has random ids of its parts, and the settings name their folder.
    other = ("metrics.json", "run.json", "config.json", "report.html")
    kept: dict[str, Any] = {
        name: tensors(folder / name) if name.endswith(".safetensors") else content
        for name, content in everything(folder).items()
        if name not in other and not name.startswith("stages")
    }
    return kept | {"metrics": json.dumps(metrics).encode()}
