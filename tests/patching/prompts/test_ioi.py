"""Generated IOI prompts: balance, roles, and the eight well-known ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.ioi import eight_ioi_pairs, generate_ioi, with_ioi_roles
from saesteer.utils.errors import DataError

# Words of the tiny tokenizer's own corpus are one token for it.
NAMES = ("people", "weather", "system", "assistant", "user", "cat", "dog", "garden", "the", "you")


@pytest.fixture
def tokenizer(tiny_tokenizer):
    made = tiny_tokenizer()
    coded = made([f" {name}" for name in NAMES], add_special_tokens=False)["input_ids"]
    assert sum(len(ids) == 1 for ids in coded) >= 5
    return made


@pytest.fixture
def make(tokenizer):
    frames = ("So {A} and {B} met at a {place}: {S} gave a {object} to",)
    words = {"names": NAMES, "places": ("like",), "objects": ("help",), "frames": frames}
    return lambda n, **more: generate_ioi(tokenizer, n, **(words | more))


def test_only_the_repeated_name_differs(make):
    for pair in make(24).pairs:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        differ = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        assert len(differ) == 1
        assert clean[differ[0]] == pair.wrong.strip()
        assert corrupted[differ[0]] == pair.answer.strip()


def test_roles_are_where_the_tokens_are(make, tokenizer):
    made = make(24)
    batch = encode_pairs(tokenizer, made.pairs)
    for i, pair in enumerate(batch.pairs):
        start = batch.width - int(batch.clean_mask[i].sum())
        words = {role: batch.clean_words[i][start + at] for role, at in pair.roles.items()}
        assert words["IO"] == pair.answer
        assert words["S1"] == words["S2"] == pair.wrong
        assert pair.roles["S1"] + 1 == pair.roles["S1+1"]
        assert pair.roles["S1"] < pair.roles["S2"] < pair.roles["end"]
        assert start + pair.roles["end"] == batch.width - 1


def test_without_bos_every_role_is_one_earlier(make):
    with_bos, without = make(6), make(6, prepend_bos=False)
    for a, b in zip(with_bos.pairs, without.pairs, strict=True):
        assert {role: at - 1 for role, at in a.roles.items()} == b.roles


def test_orders_and_names_come_equally_often(make):
    made = make(40)
    orders = Counter(made.orders)
    assert orders == {"ABBA": 20, "BABA": 20}
    for pair, order in zip(made.pairs, made.orders, strict=True):
        assert (pair.roles["IO"] < pair.roles["S1"]) == (order == "ABBA")
    for side in ("answer", "wrong"):
        counts = Counter(getattr(pair, side) for pair in made.pairs)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_counterfactuals_have_three_other_names_in_the_same_frame(make):
    made = make(24)
    for pair, text in zip(made.pairs, made.counterfactuals, strict=True):
        old, new = pair.clean.split(), text.split()
        changed = {b for a, b in zip(old, new, strict=True) if a != b}
        assert len(changed) == 3
        assert not changed & {pair.answer.strip(), pair.wrong.strip()}


def test_a_seed_gives_the_same_prompts_and_another_seed_others(make):
    assert make(8, seed=3) == make(8, seed=3)
    assert make(8, seed=3) != make(8, seed=4)


def test_a_subset_keeps_what_belongs_together(make):
    made = make(8)
    part = made.subset([5, 2])
    assert part.pairs == (made.pairs[5], made.pairs[2])
    assert part.counterfactuals == (made.counterfactuals[5], made.counterfactuals[2])
    assert len(part) == 2 and part.orders[0] == made.orders[5]


def test_too_few_names_are_an_error(tokenizer, make):
    with pytest.raises(DataError, match=r"of the \d+ names are one token .* names="):
        generate_ioi(tokenizer, 4)
    with pytest.raises(DataError, match="at least one"):
        make(0)


def test_a_prompt_without_its_roles_says_what_it_lacks(make, tokenizer):
    pair = make(1).pairs[0]
    with pytest.raises(DataError, match=r"1 times as one token, not 2"):
        with_ioi_roles(tokenizer, replace(pair, clean=pair.clean.replace(pair.wrong, "", 1)))


@pytest.mark.real
def test_the_eight_prompts_are_the_lessons_own(smollm2):
    pairs = eight_ioi_pairs(smollm2)
    assert len(pairs) == 8
    assert pairs[0].clean == "When John and Mary went to the shops, John gave the bag to"
    assert [pair.answer for pair in pairs] == [
        f" {name}" for name in ("Mary", "John", "Tom", "James", "Dan", "Sid", "Martin", "Amy")
    ]
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first.clean, first.corrupted) == (second.corrupted, second.clean)
    assert {tuple(pair.roles.values()) for pair in pairs} == {(4, 2, 3, 10, 14), (2, 4, 5, 10, 14)}


@pytest.mark.real
def test_smollm2_solves_generated_prompts(smollm2):
    from saesteer.patching.reading.answers import task_answers

    made = generate_ioi(smollm2, 12, seed=5)
    found = task_answers(smollm2, encode_pairs(smollm2, made.pairs))
    assert found.accuracy > 0.85
    assert np.mean(found.clean.logit_difference) > 1.5
