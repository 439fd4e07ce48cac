"""Prompt pairs: files, tokens, the map between positions, generated IOI prompts, metrics."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from saesteer.patching import eight_ioi_pairs, generate_ioi
from saesteer.patching.answers import task_answers
from saesteer.patching.batch import encode_pairs
from saesteer.patching.metrics import METRICS, MetricRows, metric_named
from saesteer.patching.pairs import PromptPair, bundled_prompt_sets, load_prompt_pairs
from saesteer.utils.errors import ConfigError, DataError

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


def test_equal_lengths_map_one_to_one_and_unequal_ones_the_beginning_and_the_end(tiny_llama):
    batch = encode_pairs(tiny_llama, [replace(SAME, corrupted="The mat sat on the cat")])
    assert batch.to_clean[0].tolist() == list(range(batch.width))
    batch = encode_pairs(tiny_llama, [LONGER])
    assert {(" like", " like"), (" listen", " listen"), (",", ",")} <= _columns(batch, 0)
    assert all(corrupted == clean for corrupted, clean in _columns(batch, 0))
    mapped = batch.to_clean[0]
    assert (mapped[batch.corrupted_mask[0]] == -1).any()
    assert (mapped[~batch.corrupted_mask[0]] == -1).all()
    real = mapped[mapped >= 0]
    assert len(set(real.tolist())) == len(real)
    assert batch.clean_mask[0][real].all()
    # An explicit alignment goes before.
    start = [batch.width - int(mask[0].sum()) for mask in (batch.clean_mask, batch.corrupted_mask)]
    clean = batch.clean_words[0].index(" people") - start[0]
    corrupted = batch.corrupted_words[0].index(" people") - start[1]
    told = encode_pairs(tiny_llama, [replace(LONGER, alignment=((clean, corrupted),))])
    assert (" people", " people") in _columns(told, 0) - _columns(batch, 0)
    assert (" listen", " listen") in _columns(told, 0)


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


@pytest.mark.parametrize(
    ("answer", "wrong", "became"),
    [
        (" people", " weather", (" people", " weather")),
        ("people", "weather", (" people", " weather")),
        ("e", "a", ("e", "a")),
    ],
)
def test_the_leading_space_is_what_makes_one_token(tiny_llama, answer, wrong, became):
    batch = encode_pairs(tiny_llama, [replace(SAME, answer=answer, wrong=wrong)])
    assert batch.answers == (became,)
    told = tiny_llama.tokenizer.batch_decode([[int(batch.right[0])], [int(batch.wrong[0])]])
    assert tuple(told) == became


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answer": "unbelievably"}, r"pair 1 \('same'\): the answer 'unbelievably' is not one"),
        ({"wrong": "e"}, "both 'e'"),
        ({"corrupted": SAME.clean}, "are both 'The cat sat on the mat'"),
        ({"clean": "the " * 300}, "more than the model's context of 192"),
        ({"roles": {"S2": 40}}, "role 'S2' is position 40, and the clean prompt has"),
        ({"alignment": ((1, 90),)}, "corrupted position 90, and that prompt has"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_with_its_way_out(tiny_llama, change, sentence):
    with pytest.raises(DataError, match=sentence):
        encode_pairs(tiny_llama, [replace(SAME, **change)])


RECORD = {
    "clean": {"question": "The sky is", "answer": "blue"},
    "corrupted": {"question": "The grass is", "answer": "green"},
}


def _write(folder, content):
    file = folder / "pairs.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


def test_records_are_read_as_a_list_as_lines_in_an_object_or_from_python(tmp_path):
    pair = PromptPair("The sky is", "The grass is", " blue", " green")
    for text in (
        json.dumps([RECORD, RECORD]),
        "\n".join([json.dumps(RECORD)] * 2),
        json.dumps({"pairs": [RECORD, RECORD]}),
    ):
        assert load_prompt_pairs(_write(tmp_path, text)) == (pair,) * 2
    assert load_prompt_pairs([RECORD, pair]) == (pair,) * 2
    with pytest.raises(DataError, match=r"pairs: record 2: .*both"):
        load_prompt_pairs([RECORD, PromptPair("a", "a", " d", " e")])
    more = {"name": "colour", "alignment": [[2, 2]], "roles": {"end": 3}}
    [pair] = load_prompt_pairs(_write(tmp_path, [RECORD | more]))
    assert (pair.name, pair.alignment, pair.roles) == ("colour", ((2, 2),), {"end": 3})


def test_an_answer_gets_the_space_that_a_writer_would_put(tmp_path):
    for question, answer, read in (
        ("It is:", "short", " short"),
        ("It is", " short", " short"),
        ("It is ", "short", "short"),
        ("Choose (", "A", "A"),
        ('He said "', "Yes", "Yes"),
        ("It costs", "$", "$"),
    ):
        record = RECORD | {"clean": {"question": question, "answer": answer}}
        assert load_prompt_pairs(_write(tmp_path, [record]))[0].answer == read, question


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clean": None}, "'clean' is missing"),
        ({"clean": {"question": "x"}}, "clean: the field 'answer' is missing"),
        ({"clena": 1}, "unknown field 'clena'"),
    ],
)
def test_a_bad_record_is_named_by_line_and_number(tmp_path, change, sentence):
    text = "[\n" + json.dumps(RECORD) + ",\n" + json.dumps(RECORD | change) + "\n]"
    with pytest.raises(DataError, match=rf"pairs.json:3: record 2: .*{sentence}"):
        load_prompt_pairs(_write(tmp_path, text))

    with pytest.raises(DataError, match=r"called 'capitols'; the sets are agreement, .*opposites"):
        load_prompt_pairs("capitols")
    with pytest.raises(DataError, match="no such file"):
        load_prompt_pairs(tmp_path / "absent.json")


def test_the_temporal_pairs_and_choices_are_read(shared_data):
    pairs = load_prompt_pairs(shared_data / "temporal" / "clean_corrupted_pairs.json")
    assert len(pairs) == 7
    assert {(pair.answer, pair.wrong) for pair in pairs} == {(" short", " long")}
    pairs = load_prompt_pairs(shared_data / "temporal" / "temporal_scope_caa.json")
    assert len(pairs) == 50
    clean, corrupted = (text.split("\n") for text in (pairs[0].clean, pairs[0].corrupted))
    assert clean[1][4:] == corrupted[2][4:] and clean[2][4:] == corrupted[1][4:]
    assert clean[1].startswith("(A) What works right now")
    assert (pairs[0].answer, pairs[0].wrong) == ("A", "B")


SETS = ("agreement", "capitals", "opposites", "pronouns", "sentiment")


def test_bundled_sets_are_large_balanced_and_have_no_pair_twice():
    assert {*SETS, "ioi-eight"} == set(bundled_prompt_sets())
    for name in SETS:
        pairs = load_prompt_pairs(name)
        assert len(pairs) >= 40, name
        assert len({(pair.clean, pair.corrupted) for pair in pairs}) == len(pairs), name
        assert len({pair.name for pair in pairs}) == len(pairs), name
        counts = Counter(pair.answer for pair in pairs)
        if name in ("agreement", "pronouns", "sentiment"):
            assert len(counts) == 2 and max(counts.values()) - min(counts.values()) <= 1, name


@pytest.mark.real
def test_smollm2_has_one_token_for_every_bundled_answer_and_the_eight_are_the_lessons_own(smollm2):
    for name in bundled_prompt_sets():
        batch = encode_pairs(smollm2, load_prompt_pairs(name))
        assert all(right.startswith(" ") for right, _ in batch.answers), name
    pairs = eight_ioi_pairs(smollm2)
    assert pairs[0].clean == "When John and Mary went to the shops, John gave the bag to"
    assert "".join(pair.answer for pair in pairs) == " Mary John Tom James Dan Sid Martin Amy"
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first.clean, first.corrupted) == (second.corrupted, second.clean)
    assert {tuple(pair.roles.values()) for pair in pairs} == {(4, 2, 3, 10, 14), (2, 4, 5, 10, 14)}


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


def test_generated_prompts_differ_in_the_repeated_name_and_counterfactuals_in_all_three(make):
    made = make(24)
    for pair, text in zip(made.pairs, made.counterfactuals, strict=True):
        old, new = pair.clean.split(), text.split()
        changed = {b for a, b in zip(old, new, strict=True) if a != b}
        assert len(changed) == 3
        assert not changed & {pair.answer.strip(), pair.wrong.strip()}
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


def test_orders_and_names_come_equally_often(make, tokenizer):
    made = make(40)
    assert Counter(made.orders) == {"ABBA": 20, "BABA": 20}
    for pair, order in zip(made.pairs, made.orders, strict=True):
        assert (pair.roles["IO"] < pair.roles["S1"]) == (order == "ABBA")
    for side in ("answer", "wrong"):
        counts = Counter(getattr(pair, side) for pair in made.pairs)
        assert max(counts.values()) - min(counts.values()) <= 1
    with pytest.raises(DataError, match="at least one"):
        make(0)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_solves_generated_prompts(smollm2):
    made = generate_ioi(smollm2, 12, seed=5)
    found = task_answers(smollm2, encode_pairs(smollm2, made.pairs))
    assert found.accuracy > 0.85
    assert np.mean(found.clean.logit_difference) > 1.5


def test_metrics_are_what_they_are_called_and_have_a_gradient():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 3.0, 3.0, -2.0]])
    clean = torch.tensor([[2.0, -1.0, 0.5, 0.0], [1.0, 0.0, 2.0, 0.0]])
    rows = MetricRows(torch.tensor([0, 2]), torch.tensor([3, 0]), clean)
    p, q = (softmax(side.numpy(), axis=1) for side in (clean, logits))
    wanted = {
        "logit_difference": [2.0, 3.0],
        "answer_log_probability": np.log(q[[0, 1], [0, 2]]),
        # 0 where nothing changed, and counted from the clean run.
        "kl": (p * np.log(p / q)).sum(axis=1),
    }
    assert set(METRICS) == set(wanted)
    for name, values in wanted.items():
        leaf = logits.clone().requires_grad_()
        found = metric_named(name).score(leaf, rows)
        assert found.detach().numpy() == pytest.approx(np.array(values), abs=1e-6)
        found.sum().backward()
        assert leaf.grad is not None and leaf.grad[1].abs().sum() > 0
    with pytest.raises(ConfigError, match=r"did you mean 'logit_difference'\?.*kl"):
        metric_named("logit_diference")
