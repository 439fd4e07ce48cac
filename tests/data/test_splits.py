from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.data import (
    PairSet,
    Split,
    bundled_pair_names,
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
    """Breadth-first search over all pairs of sets: slow and plain."""
    sets = [grams(text, n) for text in texts]
    label = [-1] * len(texts)
    n_groups = 0
    for start in range(len(texts)):
        if label[start] >= 0:
            continue
        queue = [start]
        while queue:
            at = queue.pop()
            label[at] = n_groups
            queue += [
                other
                for other in range(len(texts))
                if label[other] < 0
                and len(sets[at] & sets[other]) / len(sets[at] | sets[other]) >= threshold
            ]
        n_groups += 1
    return label


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


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("n", [1, 4])
def test_groups_are_those_a_comparison_of_all_sets_finds(threshold: float, n: int):
    texts = varied_texts(500 if n == 4 else 200, seed=5)
    groups = near_duplicate_groups(texts, threshold=threshold, n=n)
    assert groups.tolist() == groups_by_hand(texts, threshold, n)
    assert n == 1 or 1 < groups.max() + 1 < len(texts)


def test_a_jaccard_index_of_exactly_the_threshold_counts():
    one, other = "abcdef", "abcdez"
    assert jaccard(one, other) == 0.5
    assert near_duplicate_groups([one, other], threshold=0.5).tolist() == [0, 0]
    assert near_duplicate_groups([one, other], threshold=0.51).tolist() == [0, 1]


def test_case_and_white_space_make_no_difference():
    assert near_duplicate_groups(["I  AM\nhere", "i am here", "elsewhere"]).tolist() == [0, 0, 1]


def test_unicode_forms_make_no_difference():
    texts = ["caf\u00e9 noir", "CAFE\u0301 noir", "cafe\u0301\u200b noir", "cafe noir au lait"]
    assert near_duplicate_groups(texts, threshold=1.0).tolist() == [0, 0, 0, 1]


def test_texts_shorter_than_a_gram_equal_only_themselves():
    texts = ["no", "yes", "No", "", "not now", "  "]
    assert near_duplicate_groups(texts).tolist() == [0, 1, 0, 2, 3, 2]


def test_neighbours_of_neighbours_belong_together():
    words = random_sentence(np.random.default_rng(0), 12).split()
    chain = [" ".join(words[start : start + 6]) for start in range(7)]
    assert jaccard(chain[0], chain[-1]) < 0.5
    assert set(near_duplicate_groups(chain).tolist()) == {0}


def test_no_texts_no_groups_and_one_text_one_group():
    assert near_duplicate_groups([]).shape == (0,)
    assert near_duplicate_groups(["alone"]).tolist() == [0]


@pytest.mark.parametrize(
    "arguments", [{"threshold": 0}, {"threshold": 1.1}, {"threshold": float("nan")}, {"n": 0}]
)
def test_a_threshold_or_gram_out_of_range_is_refused(arguments: dict[str, Any]):
    with pytest.raises(ConfigError, match="; give"):
        near_duplicate_groups(["a", "b"], **arguments)


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


@pytest.mark.parametrize("seed", range(5))
def test_no_statement_and_no_near_duplicate_stands_in_two_parts(seed: int):
    pairs = make_pairs(60, twins=40)
    split = split_pairs(pairs, seed=seed)
    assert sorted(p.id for part in parts(split) for p in part) == sorted(p.id for p in pairs)
    texts = [part.positives + part.negatives for part in parts(split)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert max(jaccard(a, b) for a in texts[one] for b in texts[other]) < 0.5


def test_swapped_sides_of_the_same_statement_stay_together():
    rows = [("warm and kind words", "icy silence all day")]
    rows += [("stormy market prices", "warm and kind words")]
    rows += [(f"{WORDS[2 * i]} {WORDS[2 * i]}", f"{WORDS[2 * i + 1]}") for i in range(8)]
    for seed in range(5):
        split = split_pairs(pairs_from(rows), seed=seed)
        homes = [i for i, part in enumerate(parts(split)) for pair in part if "warm" in str(pair)]
        assert len(homes) == 2
        assert homes[0] == homes[1]


def test_a_pair_may_have_two_sides_that_are_alike():
    rows = [(f"I enjoy the {word} a great deal", f"I hate the {word} a great deal") for word in "x"]
    rows += [(f"{word} {word} {word}", f"{word} {word} {word} {word}") for word in WORDS[:9]]
    split = split_pairs(pairs_from(rows))
    assert [len(part) for part in parts(split)] == [5, 2, 3]


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ({}, [50, 20, 30]),
        ({"validation": 0.1, "test": 0.1}, [80, 10, 10]),
        ({"validation": 0.25, "test": 0.5}, [25, 25, 50]),
        ({"validation": 0.0, "test": 0.3}, [70, 0, 30]),
        ({"validation": 0.01, "test": 0.98}, [1, 1, 98]),
    ],
)
def test_unlike_pairs_are_divided_exactly_as_asked(shares: dict[str, Any], sizes: list[int]):
    assert [len(part) for part in parts(split_pairs(make_pairs(100), **shares))] == sizes


def test_sizes_come_as_close_as_the_groups_allow():
    rng = np.random.default_rng(1)
    rows: list[tuple[str, str]] = []
    for size in (12, 9, 9, 6, 6, 3, 3, 2):
        stem = random_sentence(rng, 9)
        rows += [(f"{stem} {i}", f"{random_sentence(rng, 9)} {i}") for i in range(size)]
    split = split_pairs(pairs_from(rows))
    assert [len(part) for part in parts(split)] == [25, 10, 15] or np.allclose(
        [len(part) for part in parts(split)], [25, 10, 15], atol=3
    )


def test_one_large_family_goes_where_it_fits_and_the_rest_is_still_divided():
    rng = np.random.default_rng(2)
    stem = random_sentence(rng, 9)
    rows = [(f"{stem} {i}", f"{random_sentence(rng, 9)} {i}") for i in range(70)]
    rows += [(f"{random_sentence(rng, 9)} {i}", f"{random_sentence(rng, 9)}.") for i in range(30)]
    assert [len(part) for part in parts(split_pairs(pairs_from(rows)))] == [70, 10, 20]


def test_the_seed_alone_decides_and_the_order_of_the_file_is_kept():
    pairs = make_pairs(80, twins=10)
    assert split_pairs(pairs, seed=4) == split_pairs(pairs, seed=4)
    assert split_pairs(pairs, seed=4) != split_pairs(pairs, seed=5)
    position = {pair.id: number for number, pair in enumerate(pairs)}
    for part in parts(split_pairs(pairs, seed=4)):
        places = [position[pair.id] for pair in part]
        assert places == sorted(places)
        assert (part.name, part.source) == (pairs.name, pairs.source)


def test_sizes_do_not_depend_on_the_seed():
    pairs = make_pairs(80, twins=20)
    sizes = {tuple(len(part) for part in parts(split_pairs(pairs, seed=s))) for s in range(8)}
    assert sizes == {(50, 20, 30)}


@pytest.mark.parametrize("sizes", [(98, 1, 1), (1, 1, 1), (5, 2, 1)])
def test_no_part_stays_empty_while_there_are_enough_groups(sizes: tuple[int, ...]):
    rng = np.random.default_rng(3)
    rows: list[tuple[str, str]] = []
    for size in sizes:
        stem = random_sentence(rng, 9)
        rows += [(f"{stem} {i}", f"{random_sentence(rng, 9)} {i}") for i in range(size)]
    assert all(len(part) > 0 for part in parts(split_pairs(pairs_from(rows))))


def test_too_few_groups_are_refused_with_their_number_and_two_texts():
    alike = pairs_from(
        [(f"I like tea very much {i}", f"I like rain so much {i}") for i in range(9)]
    )
    with pytest.raises(
        DataError,
        match=r"9 pairs cannot fill 3 parts .* 9 of them hang together .*'I like tea very much \d' "
        r"and 'I like tea very much \d'; add",
    ):
        split_pairs(alike)
    with pytest.raises(DataError, match="2 pairs are too few for 3 parts"):
        split_pairs(make_pairs(2))
    with pytest.raises(DataError, match="0 pairs are too few for 3 parts"):
        split_pairs(PairSet("none", (), "python"))


@pytest.mark.parametrize(
    "shares",
    [
        {"validation": 0.5, "test": 0.5},
        {"validation": -0.1},
        {"test": 1.2},
        {"test": float("nan")},
    ],
)
def test_shares_that_leave_no_training_pairs_are_refused(shares: dict[str, Any]):
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


def repeated(n: int) -> PairSet:
    rng = np.random.default_rng(4)
    sides = [[random_sentence(rng, 7) for _ in range(15)] for _ in range(2)]
    rows = [(str(rng.choice(sides[0])), str(rng.choice(sides[1]))) for _ in range(n)]
    return pairs_from(rows)


def chain_by_meaning(n: int) -> PairSet:
    texts = chain_of(np.random.default_rng(5), n)
    return pairs_from([(f"{text} so good", f"{text} awfully bad") for text in texts])


# Each set with the pairs that it has to keep.
SETS: dict[str, tuple[Any, int]] = {
    **{path.stem: (lambda path=path: read_pairs(path), 500) for path in EVALS},
    **{f"own {name}": (lambda name=name: read_pairs(name), 320) for name in bundled_pair_names()},
    **({"worried": (lambda: read_pairs(WORRIED), 114)} if WORRIED.is_file() else {}),
    "families of 3": (lambda: zipped(40, chain=0), 39),
    "families of 6": (lambda: zipped(500, chain=0, size=6), 490),
    "half a chain": (lambda: zipped(120, chain=60), 114),
    "all a chain": (lambda: zipped(120, chain=118), 108),
    "many": (lambda: zipped(1000, chain=300), 980),
    "repeated": (lambda: repeated(200), 190),
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
    assert split == split_pairs(pairs, seed=1)
    for side in ("positives", "negatives"):
        said = sorted(text for part in parts(split) for text in getattr(part, side))
        rest = sorted(getattr(pairs, side))
        for text in said:
            rest.remove(text)
        assert len(rest) == len(pairs) - len(said)


@pytest.mark.parametrize("name", [name for name in SETS if name != "tiny"])
def test_the_four_parts_of_a_comparison_share_no_near_duplicate(name: str):
    pairs = SETS[name][0]()
    split = split_persona(pairs, SplitSettings(), seed=1)
    four = [split.train, split.validation, split.test, split.judge]
    assert most_alike_across(four) < 0.5
    assert sum(map(len, four)) >= 0.9 * min(len(pairs), 298)


@pytest.mark.parametrize("name", ["own optimism", "chain by meaning", "repeated"])
def test_sides_that_belong_together_stay_together(name: str):
    pairs = SETS[name][0]()
    if name == "repeated":
        # One prompt makes the answers to it a pair.
        pairs = pairs_from(
            [{"positive": p.positive, "negative": p.negative, "prompt": "So?"} for p in pairs]
        )
        with pytest.raises(DataError, match="200 pairs cannot fill 3 parts"):
            split_pairs(pairs)
        return
    split = split_pairs(pairs)
    assert {pair for part in parts(split) for pair in part} <= set(pairs)
    record = split_record(pairs, {"train": split.train})
    assert "negatives" not in record
    assert record["left_out"] == len(pairs) - len(split.train)


def test_a_split_that_pairs_anew_says_so_in_its_record():
    pairs = zipped(120, chain=60)
    split = split_pairs(pairs)
    named = {"train": split.train, "validation": split.validation, "test": split.test}
    record = split_record(pairs, named)
    by_id = {pair.id: pair for pair in pairs}
    assert record["left_out"] == 120 - sum(map(len, named.values()))
    assert len(record["negatives"]) > 60
    for name, part in named.items():
        assert record[name] == [pair.id for pair in part]
        for pair in part:
            assert pair.positive == by_id[pair.id].positive
            assert pair.negative == by_id[record["negatives"].get(pair.id, pair.id)].negative


def test_one_text_on_a_whole_side_is_refused_by_name():
    rng = np.random.default_rng(6)
    pairs = pairs_from([("I am kind", random_sentence(rng, 7)) for _ in range(60)])
    with pytest.raises(DataError, match=r"60 of them hang together .* 'I am kind' and 'I am kind'"):
        split_pairs(pairs)


def test_pairs_made_anew_are_of_about_the_same_length():
    pairs = zipped(500, chain=200)
    for part in parts(split_pairs(pairs)):
        lengths = np.array([[len(pair.positive), len(pair.negative)] for pair in part])
        by_rank = np.abs(np.diff(np.sort(lengths, axis=0), axis=1)).mean()
        at_random = np.abs(lengths[:, :1] - lengths[:, 1]).mean()
        assert np.abs(np.diff(lengths, axis=1)).mean() <= by_rank + 0.3 * (at_random - by_rank)
