"""Contrastive pairs: the frozen types that every later stage takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """Two texts that differ in the trait to steer.

    Attributes:
        id: Name of the pair, unique within its set.
        positive: Text that shows the trait.
        negative: Text that shows its opposite.
        prompt: Text that stands before both sides, or None.
        positive_span: The part of the positive text to read, letter by letter; all of it if None.
        negative_span: The same for the negative text.
    """

    id: str
    positive: str
    negative: str
    prompt: str | None = None
    positive_span: str | None = None
    negative_span: str | None = None


@dataclass(frozen=True)
class PairSet:
    """A named set of pairs, as read; the readers validate, this type does not.

    Attributes:
        name: Name of the trait or of the file.
        pairs: The pairs, in the order of their source.
        source: Where they came from: a path, `bundled:<name>` or `python`.
        dropped: How many statements or pairs of the source the reader left out on purpose
            (one side longer than the other, label confidence too low, more than `max_pairs`).
    """

    name: str
    pairs: tuple[ContrastivePair, ...]
    source: str
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContrastivePair]:
        return iter(self.pairs)

    @property
    def positives(self) -> tuple[str, ...]:
        """The positive texts, one per pair."""
        return tuple(pair.positive for pair in self.pairs)

    @property
    def negatives(self) -> tuple[str, ...]:
        """The negative texts, one per pair."""
        return tuple(pair.negative for pair in self.pairs)

    @property
    def side_names(self) -> tuple[str, ...]:
        """What errors call the texts: those of the positive sides, then of the negative ones."""
        return tuple(
            f"pair {pair.id!r} of {self.source}, {side} side,"
            for side in ("positive", "negative")
            for pair in self.pairs
        )

    @property
    def question_names(self) -> tuple[str, ...]:
        """What errors call the questions that are made of the pairs' two sides."""
        return tuple(f"question on pair {pair.id!r} of {self.source}" for pair in self.pairs)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the pairs in their order; name and source do not count."""
        rows = [list(astuple(pair)) for pair in self.pairs]
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()

    def subset(self, indices: Iterable[int]) -> PairSet:
        """Choose pairs by position.

        Args:
            indices: Positions in `pairs`, kept in the order given.

        Returns:
            A set of the same name and source with only these pairs.
        """
        return replace(self, pairs=tuple(self.pairs[int(index)] for index in indices))
