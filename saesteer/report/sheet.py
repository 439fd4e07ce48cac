"""The older names of `saesteer.report`, for callers that have not moved yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saesteer.report.layout import Remark, Section, Table, Tile
from saesteer.report.report import Report

__all__ = ["Part", "Remark", "Sheet", "Table", "write_sheet"]
Part = Section


def Sheet(parts: Any = (), tiles: Any = (), **fields: Any) -> Report:
    """Return a report of parts, as sections were called."""
    return Report(sections=list(parts), tiles=[Tile(*tile) for tile in tiles], **fields)


def write_sheet(sheet: Report, path: str | os.PathLike[str]) -> Path:
    """Write a page."""
    return sheet.write(path)
