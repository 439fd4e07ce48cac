from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.data import (
    PairSet,
    Split,
    near_duplicate_groups,
    pairs_from,
    read_pairs,
    split_pairs,
)
from saesteer.data.splits import split_record
from saesteer.experiments.compare.config import SplitSettings
from saesteer.experiments.compare.plan import split_persona
from saesteer.utils.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared"
EVALS = sorted((SHARED / "data" / "model_written_evals").glob("*.jsonl"))
WORRIED = SHARED / "cases" / "near_duplicates" / "worried.jsonl"

WORDS = [
    *("river", "stone", "lamp", "quiet", "garden", "winter", "copper", "violin", "harbour"),
    *("ladder", "meadow", "thunder", "candle", "orchard", "pepper", "saddle", "velvet"),
    *("whistle", "anchor", "basket", "cradle", "dragon", "engine", "falcon", "goblet"),
]


def grams(text: str, n: int) -> set[str]:
    text = " ".join(text.lower().split())
    return {text[i : i + n] for i in range(len(text) - n + 1)} if len(text) >= n else {text}


def jaccard(one: str, other: str, n: int = 4) -> float:
    a, b = grams(one, n), grams(other, n)
    return len(a & b) / len(a | b)


def groups_by_hand(texts: Sequence[str], threshold: float, n: int) -> list[int]:
    """Every two sets compared, and what is near joined under the earliest's number."""
    sets = [grams(text, n) for text in texts]
    label = list(range(len(texts)))
    for at, one in enumerate(sets):
        for other in range(at):
            if len(one & sets[other]) / len(one | sets[other]) >= threshold:
                old, new = sorted((label[at], label[other]), reverse=True)
                label = [new if mark == old else mark for mark in label]
    return [sorted(set(label)).index(mark) for mark in label]


def random_sentence(rng: np.random.Generator, n_words: int) -> str:
    return " ".join(rng.choice(WORDS, size=n_words))


def varied_texts(n: int, seed: int) -> list[str]:
    """Sentences, many of them copies of an earlier one with a word, case or space changed."""
    rng = np.random.default_rng(seed)
    texts = ["", " ", "a", "A", "no", "no ", "NO!", "yes", "yes\n"]
    while len(texts) < n:
        if rng.random() < 0.4:
            words = texts[rng.integers(9, len(texts))].split() if len(texts) > 9 else ["start"]
            words[rng.integers(len(words))] = str(rng.choice(WORDS))
            texts.append(str(rng.choice([" ", "  ", "\n"])).join(words))
        else:
            texts.append(random_sentence(rng, int(rng.integers(1, 12))).capitalize())
    return texts


@pytest.mark.parametrize(("threshold", "n"), [(0.2, 4), (0.5, 4), (1.0, 4), (0.5, 1)])
def test_groups_are_those_a_comparison_of_all_sets_finds(threshold: float, n: int):
    texts = varied_texts(300 if n == 4 else 150, seed=5)
    groups = near_duplicate_groups(texts, threshold=threshold, n=n)
    assert groups.tolist() == groups_by_hand(texts, threshold, n)
    assert n == 1 or 1 < groups.max() + 1 < len(texts)


def test_what_counts_as_near():
    def groups(*texts: str, **how: Any) -> list[int]:
        return near_duplicate_groups(texts, **how).tolist()

    assert groups("I  AM\nhere", "i am here", "elsewhere") == [0, 0, 1]
    cafes = "caf\u00e9 noir", "CAFE\u0301 noir", "cafe\u0301\u200b noir", "cafe noir au lait"
    assert groups(*cafes, threshold=1.0) == [0, 0, 0, 1]
    # A text shorter than a gram equals only itself.
    assert groups("no", "yes", "No", "", "not now", "  ") == [0, 1, 0, 2, 3, 2]
    assert groups() == []
    # A Jaccard index of exactly the threshold counts.
    assert jaccard("abcdef", "abcdez") == 0.5
    assert groups("abcdef", "abcdez", threshold=0.5) == [0, 0]
    assert groups("abcdef", "abcdez", threshold=0.51) == [0, 1]
    # Neighbours of neighbours belong together.
    chain = chain_of(np.random.default_rng(0), 7)
    assert jaccard(chain[0], chain[-1]) < 0.5
    assert set(groups(*chain)) == {0}
    for wrong in ({"threshold": 0}, {"threshold": 1.1}, {"threshold": float("nan")}, {"n": 0}):
        with pytest.raises(ConfigError, match="; give"):
            groups("a", "b", **wrong)


def test_thousands_of_alike_texts_stay_within_memory():
    # Every two of these share n-grams, so the full product would hold 6,000 x 6,000 entries
    # of 12 bytes (430 MB).
    texts = [f"the usual beginning, then number {number * 7919:09d}" for number in range(6000)]
    tracemalloc.start()
    groups = near_duplicate_groups(texts, threshold=0.95)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(groups) == 6000
    assert peak < 200e6


def make_pairs(n: int, seed: int = 0, twins: int = 0) -> PairSet:
    """n pairs of unlike texts, then `twins` pairs that nearly repeat an earlier statement."""
    rng = np.random.default_rng(seed)
    rows = [(f"{random_sentence(rng, 8)} {i}", f"{random_sentence(rng, 8)} {i}.") for i in range(n)]
    for i in range(twins):
        fresh = random_sentence(rng, 8)
        source = rows[int(rng.integers(n))]
        rows.append((f"{source[0]} indeed", fresh) if i % 2 else (fresh, f"{source[1]} indeed"))
    return pairs_from(rows, name="made")


def parts(split: Split) -> list[PairSet]:
    return [split.train, split.validation, split.test]


def test_unlike_pairs_are_divided_exactly_as_asked():
    asked: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [50, 20, 30]),
        ({"validation": 0.0, "test": 0.3}, [70, 0, 30]),
        ({"validation": 0.01, "test": 0.98}, [1, 1, 98]),
    ]
    for shares, sizes in asked:
        split = parts(split_pairs(make_pairs(100), **shares))
        assert [len(part) for part in split] == sizes


def test_the_seed_alone_decides_and_the_order_of_the_file_is_kept():
    pairs = make_pairs(80, twins=20)
    assert split_pairs(pairs, seed=4) == split_pairs(pairs, seed=4)
    assert split_pairs(pairs, seed=4) != split_pairs(pairs, seed=5)
    position = {pair.id: number for number, pair in enumerate(pairs)}
    for seed in range(5):
        split = parts(split_pairs(pairs, seed=seed))
        assert [len(part) for part in split] == [50, 20, 30]
        assert sorted(p.id for part in split for p in part) == sorted(position)
        assert most_alike_across(split) < 0.5
        for part in split:
            places = [position[pair.id] for pair in part]
            assert places == sorted(places)
            assert (part.name, part.source) == (pairs.name, pairs.source)


def test_what_cannot_be_divided_is_refused_with_its_number_and_two_texts():
    rng = np.random.default_rng(6)
    alike = [(f"I like tea very much {i}", f"I like rain so much {i}") for i in range(9)]
    told = r"9 pairs cannot fill 3 parts .* 9 of them hang together .*'I like tea very much \d' "
    one_side = [("I am kind", random_sentence(rng, 7)) for _ in range(60)]
    for pairs, message in (
        (pairs_from(alike), told + r"and 'I like tea very much \d'; add"),
        (pairs_from(one_side), r"60 of them hang together .* 'I am kind' and 'I am kind'"),
        (make_pairs(2), "2 pairs are too few for 3 parts"),
        (PairSet("none", (), "python"), "0 pairs are too few for 3 parts"),
    ):
        with pytest.raises(DataError, match=message):
            split_pairs(pairs)
    wrong: Any = ({"validation": 0.5, "test": 0.5}, {"validation": -0.1}, {"test": float("nan")})
    for shares in wrong:
        with pytest.raises(ConfigError, match="leave nothing to train on; give two numbers"):
            split_pairs(make_pairs(20), **shares)


def families(rng: np.random.Generator, n: int, size: int) -> list[str]:
    """n texts in families of `size` that differ in their last word."""
    stems = [random_sentence(rng, 6) for _ in range(-(-n // size))]
    texts = [f"{stem} {word}" for stem in stems for word in rng.choice(WORDS, size, replace=False)]
    return texts[:n]


def chain_of(rng: np.random.Generator, n: int) -> list[str]:
    """n texts of which each nearly says what the one before it says."""
    words = rng.choice(WORDS, size=n + 5).tolist()
    return [" ".join(words[start : start + 6]) for start in range(n)]


def zipped(n: int, chain: int, size: int = 3, seed: int = 0) -> PairSet:
    """Two sides that have nothing to do with each other, joined by chance."""
    rng = np.random.default_rng(seed)
    positives = rng.permutation(families(rng, n, size)).tolist()
    negatives = rng.permutation([*families(rng, n - chain, size), *chain_of(rng, chain)]).tolist()
    return pairs_from(list(zip(positives, negatives, strict=True)), name="zipped")


def chain_by_meaning(n: int) -> PairSet:
    texts = chain_of(np.random.default_rng(5), n)
    return pairs_from([(f"{text} so good", f"{text} awfully bad") for text in texts])


# Each set with the pairs that it has to keep.
SETS: dict[str, tuple[Any, int]] = {
    **{path.stem: (lambda path=path: read_pairs(path), 500) for path in EVALS[:1]},
    "own optimism": (lambda: read_pairs("optimism"), 320),
    **({"worried": (lambda: read_pairs(WORRIED), 114)} if WORRIED.is_file() else {}),
    "families of 3": (lambda: zipped(40, chain=0), 39),
    "families of 6": (lambda: zipped(500, chain=0, size=6), 490),
    "half a chain": (lambda: zipped(120, chain=60), 114),
    "all a chain": (lambda: zipped(120, chain=118), 108),
    "chain by meaning": (lambda: chain_by_meaning(120), 108),
    "tiny": (lambda: make_pairs(3), 3),
}


def most_alike_across(parts: Sequence[PairSet]) -> float:
    """The largest Jaccard index of two texts in different parts, every two compared."""
    sets = [[grams(text, 4) for text in {*p.positives, *p.negatives}] for p in parts]
    column = {gram: i for i, gram in enumerate(set().union(*(g for part in sets for g in part)))}
    found = [0.0]
    has = [np.zeros((len(part), len(column)), dtype=np.float32) for part in sets]
    for part, rows in zip(sets, has, strict=True):
        for row, said in zip(rows, part, strict=True):
            row[[column[gram] for gram in said]] = 1
    for number, one in enumerate(has):
        for other in has[:number]:
            both = one @ other.T
            found.append(float((both / (one.sum(1)[:, None] + other.sum(1) - both)).max(initial=0)))
    return max(found)


@pytest.mark.parametrize("name", SETS)
def test_sets_that_hang_together_are_divided_and_most_pairs_used(name: str):
    make, kept = SETS[name]
    pairs = make()
    split = split_pairs(pairs, seed=1)
    sizes = np.array([len(part) for part in parts(split)])
    assert sizes.sum() >= kept
    assert (sizes >= 0.25 * len(pairs) * np.array([0.5, 0.2, 0.3])).all()
    assert most_alike_across(parts(split)) < 0.5
    for side in ("positives", "negatives"):
        said = Counter(text for part in parts(split) for text in getattr(part, side))
        assert said <= Counter(getattr(pairs, side))
    if name != "tiny":
        # So are the four parts of a comparison.
        four = split_persona(pairs, SplitSettings(), seed=1)
        divided = [four.train, four.validation, four.test, four.judge]
        assert most_alike_across(divided) < 0.5
        assert sum(map(len, divided)) >= 0.9 * min(len(pairs), 298)
    if name in ("own optimism", "chain by meaning"):
        # Sides that belong together stay together.
        assert {pair for part in parts(split) for pair in part} <= set(pairs)
        record = split_record(pairs, {"train": split.train})
        assert "negatives" not in record
        assert record["left_out"] == len(pairs) - len(split.train)


def test_pairs_made_anew_are_of_about_the_same_length_and_recorded():
    pairs = zipped(500, chain=200)
    split = split_pairs(pairs)
    named = {"train": split.train, "validation": split.validation, "test": split.test}
    record = split_record(pairs, named)
    by_id = {pair.id: pair for pair in pairs}
    assert record["left_out"] == 500 - sum(map(len, named.values()))
    assert len(record["negatives"]) > 250
    for name, part in named.items():
        assert record[name] == [pair.id for pair in part]
        for pair in part:
            assert pair.positive == by_id[pair.id].positive
            assert pair.negative == by_id[record["negatives"].get(pair.id, pair.id)].negative
        lengths = np.array([[len(pair.positive), len(pair.negative)] for pair in part])
        by_rank = np.abs(np.diff(np.sort(lengths, axis=0), axis=1)).mean()
        at_random = np.abs(lengths[:, :1] - lengths[:, 1]).mean()
        assert np.abs(np.diff(lengths, axis=1)).mean() <= by_rank + 0.3 * (at_random - by_rank)
