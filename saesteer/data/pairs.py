"""Contrastive pairs: the frozen types that every later stage takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields, replace
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


class Description(NamedTuple):
    """Either side of a trait in a line that completes "You are ...", such as "a kind person"."""

    positive: str
    negative: str


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """Two texts that differ in the trait to steer.

    Example:
        >>> ss.ContrastivePair("1", positive="I like you", negative="I hate you").id
        '1'
    """

    id: str  # Unique within its set.
    positive: str  # Shows the trait.
    negative: str  # Shows its opposite.
    prompt: str | None = None  # Stands before both sides.
    positive_span: str | None = None  # The part to read, letter by letter; all of it if None.
    negative_span: str | None = None


_COLUMNS = [field.name for field in fields(ContrastivePair)]
_ALWAYS = ("id", "positive", "negative")


@dataclass(frozen=True)
class PairSet:
    """A named set of pairs, as `load_pairs` read them, in the order of their source.

    Example:
        >>> pairs = ss.pairs_from([("I like you", "I hate you")])
        >>> len(pairs), pairs.positives
        (1, ('I like you',))
    """

    name: str  # Of the trait or of the file.
    pairs: tuple[ContrastivePair, ...]
    source: str  # A path, `bundled:<name>` or `python`.
    # How many statements or pairs were left out on purpose (one side longer than the other, label
    # confidence too low, more than `max_pairs`).
    dropped: int = 0
    # Whether the sides of a pair were joined by length and not by meaning, so that other pairs of
    # the same texts are as good.
    joined: bool = False
    describe: Description | None = None  # What the two sides are, where the source says it.

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContrastivePair]:
        return iter(self.pairs)

    @property
    def positives(self) -> tuple[str, ...]:
        return tuple(pair.positive for pair in self.pairs)

    @property
    def negatives(self) -> tuple[str, ...]:
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
        """Return the pairs at these positions, in the order given, under the same name."""
        return replace(self, pairs=tuple(self.pairs[int(index)] for index in indices))

    def split(self, test: float = 0.3, seed: int = 0) -> tuple[PairSet, PairSet]:
        """Divide into train and test, with no near-duplicate across the two.

        Pairs that share a statement, or nearly, stay on one side (`split_pairs` says more), so the
        sizes come as close to the share as that allows.

        Args:
            test: Share of the pairs for test, above 0 and below 1.
            seed: Decides which pairs go where; the same seed gives the same parts.

        Raises:
            DataError: There are too few pairs that are worded differently.
            ConfigError: The share is out of range.
        """
        from saesteer.data.splits import split_pairs

        if not 0 < test < 1:
            raise ConfigError(f"test is {test}; give a share above 0 and below 1")
        parts = split_pairs(self, validation=0.0, test=test, seed=seed)
        return parts.train, parts.test

    @property
    def table(self) -> pd.DataFrame:
        """One row for each pair, by id: positive, negative, and what else is given."""
        import pandas as pd

        rows = [asdict(pair) for pair in self.pairs]
        given = [c for c in _COLUMNS if c in _ALWAYS or any(row[c] is not None for row in rows)]
        return pd.DataFrame(rows, columns=given).set_index("id")

    def __repr__(self) -> str:
        return f"PairSet({self.name!r}, {len(self)} pairs from {self.source})"

    def _repr_html_(self) -> str:
        left_out = f", {self.dropped} left out" if self.dropped else ""
        title = escape(f"{self.name}: {len(self)} pairs from {self.source}{left_out}")
        return f"<p>{title}</p>{self.table.to_html(max_rows=10)}"
