"""Made-up words, no two texts alike, files of records, what is said, and whether a key shows."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saesteer.utils.progress import Progress

LETTERS = list("abdefghiklmnoprstu")


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def words(rng: np.random.Generator, n: int) -> str:
    """Return so many words of five letters, so that no two texts are near-duplicates."""
    return " ".join("".join(rng.choice(LETTERS, 5)) for _ in range(n))


def write_lines(file: Path, records: Sequence[Any]) -> str:
    """Write records as JSON lines and return the file's path as settings name it."""
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return str(file)


def leaks(error: BaseException | None, key: str) -> bool:
    """Whether a key shows in a traceback, or in any exception that hangs on this one."""
    while error is not None:
        shown = "".join(traceback.TracebackException.from_exception(error).format())
        if key in shown or key in repr(vars(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
