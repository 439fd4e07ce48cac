"""Four parts of a persona's pairs: train, validation, test, and the judge's own."""

from __future__ import annotations

from dataclasses import dataclass

from saesteer.data import PairSet, split_pairs
from saesteer.data.splits import near_duplicate_cause
from saesteer.experiments.compare.config import SplitSettings
from saesteer.utils.errors import DataError

FEWEST = {"train": 4, "validation": 2, "test": 2, "judge": 10}


@dataclass(frozen=True)
class PersonaSplit:
    """Disjoint parts; no statement nor its near-duplicate stands in two.

    Attributes:
        train: Fits vectors.
        validation: Chooses settings.
        test: Opened once, for the effects.
        judge: Trains and tests the behaviour judge; the same under every seed.
    """

    train: PairSet
    validation: PairSet
    test: PairSet
    judge: PairSet


def split_persona(pairs: PairSet, sizes: SplitSettings, seed: int) -> PersonaSplit:
    """Divide a persona's pairs.

    Args:
        pairs: All of them.
        sizes: The most pairs of each part, and their proportions.
        seed: Decides which pairs train, validate and test; never which are the judge's.

    Raises:
        DataError: A part is left too small to use.
    """
    enough = sum(FEWEST.values())
    if len(pairs) < enough:
        raise DataError(
            f"{pairs.source}: its {len(pairs)} pairs are fewer than the {enough} that train, "
            "validation, test and judge need together; give more pairs."
        )
    total = sizes.train + sizes.validation + sizes.test + sizes.judge
    how = {"threshold": sizes.near_duplicate}
    apart = split_pairs(pairs, validation=0.0, test=sizes.judge / total, seed=0, **how)
    rest = total - sizes.judge
    parts = split_pairs(
        apart.train,
        validation=sizes.validation / rest,
        test=sizes.test / rest,
        seed=seed,
        **how,
    )
    split = PersonaSplit(
        train=_at_most(parts.train, sizes.train),
        validation=_at_most(parts.validation, sizes.validation),
        test=_at_most(parts.test, sizes.test),
        judge=_at_most(apart.test, sizes.judge),
    )
    for name, fewest in FEWEST.items():
        found = len(getattr(split, name))
        if found < fewest:
            raise DataError(
                f"{pairs.source}: its {len(pairs)} pairs leave {found} for {name}, fewer than "
                f"{fewest}{near_duplicate_cause(pairs, threshold=sizes.near_duplicate)}; give more "
                "pairs, or other proportions under splits."
            )
    return split


def _at_most(pairs: PairSet, limit: int) -> PairSet:
    return pairs.subset(range(min(limit, len(pairs))))
