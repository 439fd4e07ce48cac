"""Prompt pairs as tokens: padding, the map between positions, and answers of one token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saesteer.models import plain_model
from saesteer.patching.prompts.batch import encode_pairs, position_ids
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.utils.errors import DataError

SAME = PromptPair("The cat sat on the mat", "The dog sat on the mat", "e", "a", "same")
LONGER = PromptPair(
    "I like people, and I listen", "I like helping the people today, and I listen", "o", "u", "long"
)


def _columns(batch, i):
    return {
        (batch.corrupted_words[i][b], batch.clean_words[i][a])
        for b, a in enumerate(batch.to_clean[i].tolist())
        if a >= 0
    }


def test_prompts_of_all_lengths_end_in_the_last_column(tiny_model, arch):
    batch = encode_pairs(tiny_model(arch), [SAME, LONGER])
    assert batch.clean.shape == batch.corrupted.shape == (2, batch.width)
    for mask, words in (
        (batch.clean_mask, batch.clean_words),
        (batch.corrupted_mask, batch.corrupted_words),
    ):
        for row, own in zip(mask.tolist(), words, strict=True):
            assert row == sorted(row) and row[-1]
            assert [bool(word) for word in own] == row
    assert "".join(batch.clean_words[0]).endswith(SAME.clean)


def test_padding_changes_no_logit(tiny_model, arch):
    model = tiny_model(arch)
    alone = encode_pairs(model, [SAME])
    beside = encode_pairs(model, [SAME, LONGER])
    with torch.no_grad():
        logits = [
            plain_model(model)(
                input_ids=batch.clean[:1],
                attention_mask=batch.clean_mask[:1].long(),
                position_ids=position_ids(batch.clean_mask[:1]),
            ).logits[0, -1]
            for batch in (alone, beside)
        ]
    assert beside.width > alone.width
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)


def test_equal_lengths_map_one_to_one(tiny_llama):
    batch = encode_pairs(tiny_llama, [replace(SAME, corrupted="The mat sat on the cat")])
    assert batch.clean_mask[0].sum() == batch.corrupted_mask[0].sum()
    assert batch.to_clean[0].tolist() == list(range(batch.width))


def test_unequal_lengths_map_the_beginning_and_the_end(tiny_llama):
    batch = encode_pairs(tiny_llama, [LONGER])
    assert {(" like", " like"), (" listen", " listen"), (",", ",")} <= _columns(batch, 0)
    assert all(corrupted == clean for corrupted, clean in _columns(batch, 0))
    mapped = batch.to_clean[0]
    assert (mapped[batch.corrupted_mask[0]] == -1).any()
    assert (mapped[~batch.corrupted_mask[0]] == -1).all()
    real = mapped[mapped >= 0]
    assert len(set(real.tolist())) == len(real)
    assert batch.clean_mask[0][real].all()


def test_an_explicit_alignment_goes_before(tiny_llama):
    plain = encode_pairs(tiny_llama, [LONGER])
    start = [plain.width - int(mask[0].sum()) for mask in (plain.clean_mask, plain.corrupted_mask)]
    clean = plain.clean_words[0].index(" people") - start[0]
    corrupted = plain.corrupted_words[0].index(" people") - start[1]
    batch = encode_pairs(tiny_llama, [replace(LONGER, alignment=((clean, corrupted),))])
    assert (" people", " people") in _columns(batch, 0) - _columns(plain, 0)
    assert (" listen", " listen") in _columns(batch, 0)


def test_with_an_alignment_a_changed_middle_of_one_length_maps_only_where_it_says(tiny_llama):
    batch = encode_pairs(tiny_llama, [replace(SAME, alignment=((0, 0),))])
    apart = [a for a in batch.to_clean[0].tolist() if a < 0]
    changed = [
        i for i, (a, b) in enumerate(zip(batch.clean[0], batch.corrupted[0], strict=True)) if a != b
    ]
    assert len(apart) == len(changed) > 0


def test_both_ways_doubles_the_pairs_and_turns_their_maps(tiny_llama):
    pair = replace(LONGER, roles={"first": 0, "end": 5})
    one = encode_pairs(tiny_llama, [pair])
    two = encode_pairs(tiny_llama, [pair], both_ways=True)
    assert len(two) == 2
    assert two.clean[1].equal(one.corrupted[0]) and two.corrupted[1].equal(one.clean[0])
    assert (two.right[1], two.wrong[1]) == (one.wrong[0], one.right[0])
    forth = {(b, a) for b, a in enumerate(two.to_clean[0].tolist()) if a >= 0}
    back = {(a, b) for b, a in enumerate(two.to_clean[1].tolist()) if a >= 0}
    assert forth == back
    assert two.pairs[1].roles["first"] == 0


def test_bos_is_counted_only_where_asked_for(tiny_llama):
    with_bos = encode_pairs(tiny_llama, [SAME])
    without = encode_pairs(tiny_llama, [SAME], prepend_bos=False)
    assert with_bos.clean[0].tolist() == [
        tiny_llama.tokenizer.bos_token_id,
        *without.clean[0].tolist(),
    ]


def test_a_tokenizer_alone_is_enough(tiny_tokenizer):
    assert len(encode_pairs(tiny_tokenizer(), [SAME])) == 1


@pytest.mark.parametrize(
    ("answer", "wrong", "became"),
    [
        (" people", " weather", (" people", " weather")),
        ("people", "weather", (" people", " weather")),
        (" e", " a", None),
        ("e", "a", ("e", "a")),
    ],
)
def test_the_leading_space_is_what_makes_one_token(tiny_llama, answer, wrong, became):
    vocabulary = tiny_llama.tokenizer.get_vocab()
    batch = encode_pairs(tiny_llama, [replace(SAME, answer=answer, wrong=wrong)])
    if became is not None:
        assert batch.answers == (became,)
    for token, text in zip((batch.right[0], batch.wrong[0]), batch.answers[0], strict=True):
        assert tiny_llama.tokenizer.decode([int(token)]) == text
        assert int(token) in vocabulary.values()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answer": "unbelievably"}, r"pair 1 \('same'\): the answer 'unbelievably' is not one"),
        ({"wrong": "xyzzy"}, "the wrong answer 'xyzzy' is not one token but "),
        ({"wrong": "e"}, "both 'e'"),
        ({"answer": "  "}, "the answer is blank"),
        ({"clean": ""}, "the clean prompt is blank"),
        ({"corrupted": float("nan")}, "the corrupted prompt is nan, not text"),
        ({"corrupted": SAME.clean}, "are both 'The cat sat on the mat'"),
        ({"clean": "half \ud83d"}, "lone surrogate"),
        ({"clean": "the " * 300}, "more than the model's context of 192"),
        ({"roles": {"S2": 40}}, "role 'S2' is position 40, and the clean prompt has"),
        ({"roles": {"S2": -1}}, "role 'S2' is -1, not a token position"),
        ({"alignment": ((1, 90),)}, "corrupted position 90, and that prompt has"),
        ({"alignment": ((1, 2), (1, 3))}, "clean position 1 twice"),
        ({"alignment": ((1, True),)}, "no pair of token positions"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_with_its_way_out(tiny_llama, change, sentence):
    with pytest.raises(DataError, match=sentence):
        encode_pairs(tiny_llama, [replace(SAME, **change)])


def test_the_error_shows_the_answers_tokens(tiny_llama):
    with pytest.raises(DataError, match=r"'\S+' \+ '\S+'.*or, with the leading space"):
        encode_pairs(tiny_llama, [replace(SAME, answer="unbelievably")])


def test_no_pair_is_an_error(tiny_llama):
    with pytest.raises(DataError, match="there is no pair"):
        encode_pairs(tiny_llama, [])


def test_answers_that_are_one_token_together_are_refused(tiny_tokenizer):
    # Two halves of characters that the tokenizer cannot tell apart would give a metric of zero.
    from saesteer.patching.prompts.batch import answer_tokens

    class Blind:
        def __call__(self, text, **_):
            return {"input_ids": [7]}

        def decode(self, ids):
            return "?"

    with pytest.raises(DataError, match="same token"):
        answer_tokens(Blind(), SAME, "pair 1")  # type: ignore[arg-type]
