"""Ratings of completions: what they are, reading them out of replies, keeping them on disk."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.utils.errors import OutputError

ASPECTS = ("behaviour", "instruction", "fluency")


@dataclass(frozen=True)
class LlmRating:
    """One completion's three ratings, 0 to 2; None is missing."""

    behaviour: float | None
    instruction: float | None
    fluency: float | None

    @property
    def harmonic_mean(self) -> float | None:
        """AxBench's overall score (arXiv 2501.17148): 0 where any is 0; missing where any is."""
        values = (self.behaviour, self.instruction, self.fluency)
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return len(known) / sum(1 / value for value in known) if all(known) else 0.0


@dataclass(frozen=True)
class LlmRatings:
    """The ratings of many completions.

    Attributes:
        ratings: One per completion, in their order.
        asked: Questions sent to the endpoint (attempts of one question count once).
        cached: Ratings taken from the cache.
        missing: How many ratings are missing, by reason.
    """

    ratings: tuple[LlmRating, ...]
    asked: int
    cached: int
    missing: Mapping[str, int]

    def mean(self) -> dict[str, float | int | None]:
        """Return the means over what is known, and how many completions have no overall score."""
        scores = [rating.harmonic_mean for rating in self.ratings]
        return {
            **{aspect: _mean([getattr(r, aspect) for r in self.ratings]) for aspect in ASPECTS},
            "harmonic_mean": _mean(scores),
            "n": len(scores),
            "n_missing": sum(score is None for score in scores),
        }


class RatingCache:
    """Ratings by content hash: in memory and, given a path, in a file of JSON lines.

    A line is written whole and at once when its rating comes; a line torn by a crash is skipped
    when the file is read, and asked for again.

    Args:
        path: The file; nothing is kept on disk if None.

    Raises:
        OutputError: The file cannot be read or written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._known: dict[str, float] = {}
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = self._path.read_bytes() if self._path.exists() else b""
            with self._path.open("ab") as file:
                # What a crash tore must not run into the next line.
                file.write(b"\n" if content and not content.endswith(b"\n") else b"")
        except OSError as error:
            raise self._unusable(error) from error
        for line in content.splitlines():
            entry = _entry(line)
            if entry is not None:
                self._known[entry[0]] = entry[1]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> float | None:
        """Return a rating; None where it is not known."""
        return self._known.get(key)

    def add(self, key: str, rating: float) -> None:
        """Keep a rating."""
        line = json.dumps({"key": key, "rating": rating}) + "\n"
        with self._lock:
            self._known[key] = rating
            if self._path is not None:
                try:
                    with self._path.open("ab") as file:
                        file.write(line.encode("ascii"))
                except OSError as error:
                    raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: the cache of ratings cannot be used ({error.strerror or error}); "
            "choose a file that can be written."
        )


def parse_rating(reply: str) -> float | None:
    """Read a rating out of a judge's reply.

    Args:
        reply: Ideally `{"rating": 1}` alone; words and code fences around one such object are
            forgiven, as is what a reasoning model thinks aloud before it.

    Returns:
        The rating, 0 to 2; None where there is none, or more than one, or it is out of range or
        no number.
    """
    said = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    found = [_loads(match) for match in re.findall(r"\{[^{}]*\}", said)]
    ratings = [o["rating"] for o in found if isinstance(o, dict) and "rating" in o]
    return _valid(ratings[0]) if len(ratings) == 1 else None


def _entry(line: bytes) -> tuple[str, float] | None:
    stored = _loads(line)
    if not isinstance(stored, dict) or not isinstance(stored.get("key"), str):
        return None
    rating = _valid(stored.get("rating"))
    return None if rating is None else (stored["key"], rating)


def _loads(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _valid(rating: object) -> float | None:
    # True is an int to Python and no rating.
    if isinstance(rating, bool) or not isinstance(rating, int | float):
        return None
    # NaN compares as false, and a huge integer does not fit a float.
    return float(rating) if 0 <= rating <= 2 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
