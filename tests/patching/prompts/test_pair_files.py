"""Files of prompt pairs, and the sets that come with saesteer."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pair_files import (
    bundled_prompt_sets,
    prompt_pairs_from,
    read_prompt_pairs,
)
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.utils.errors import DataError

RECORD = {
    "clean": {"question": "The sky is", "answer": "blue"},
    "corrupted": {"question": "The grass is", "answer": "green"},
}


def _write(folder, content):
    file = folder / "pairs.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


@pytest.mark.parametrize("form", ["list", "lines", "object"])
def test_records_are_read_as_a_list_as_lines_or_in_an_object(tmp_path, form):
    text = {
        "list": json.dumps([RECORD, RECORD]),
        "lines": "\n".join([json.dumps(RECORD)] * 2),
        "object": json.dumps({"pairs": [RECORD, RECORD]}),
    }[form]
    pairs = read_prompt_pairs(_write(tmp_path, text))
    assert pairs == (PromptPair("The sky is", "The grass is", " blue", " green"),) * 2


def test_name_alignment_and_roles_are_kept(tmp_path):
    more = {"name": "colour", "alignment": [[2, 2]], "roles": {"end": 3}}
    [pair] = read_prompt_pairs(_write(tmp_path, [RECORD | more]))
    assert (pair.name, pair.alignment, pair.roles) == ("colour", ((2, 2),), {"end": 3})


@pytest.mark.parametrize(
    ("question", "answer", "read"),
    [
        ("It is:", "short", " short"),
        ("It is", " short", " short"),
        ("It is ", "short", "short"),
        ("Choose (", "A", "A"),
        ('He said "', "Yes", "Yes"),
        ("It costs", "$", "$"),
    ],
)
def test_an_answer_gets_the_space_that_a_writer_would_put(tmp_path, question, answer, read):
    record = RECORD | {"clean": {"question": question, "answer": answer}}
    assert read_prompt_pairs(_write(tmp_path, [record]))[0].answer == read


def test_python_values_are_checked_as_a_file_is():
    pair = PromptPair("a b", "a c", " d", " e")
    assert prompt_pairs_from([RECORD, pair])[1] == pair
    with pytest.raises(DataError, match=r"mine: record 2: .*both"):
        prompt_pairs_from([RECORD, PromptPair("a", "a", " d", " e")], name="mine")
    with pytest.raises(DataError, match="no pair"):
        prompt_pairs_from([])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clean": None}, "'clean' is missing"),
        ({"clean": "The sky is"}, "'clean' is 'The sky is'; write it as"),
        ({"clean": {"question": "x"}}, "'answer' of clean is missing"),
        ({"clean": {"question": "x", "answer": float("nan")}}, "'answer' of clean is nan"),
        ({"clean": {"question": "", "answer": "y"}}, "the clean prompt is blank"),
        ({"corrupted": RECORD["clean"]}, "are both 'The sky is'"),
        ({"corrupted": {"question": "x", "answer": "blue"}}, "answer are both 'blue'"),
        ({"clena": 1}, "unknown field 'clena'"),
        ({"name": 3}, "'name' is 3, not text"),
        ({"alignment": "12"}, "'alignment' is '12'"),
        ({"alignment": [[1]]}, "no pair of token positions"),
        ({"roles": [1]}, "'roles' is"),
        ({"roles": {"end": 1.5}}, "role 'end' is 1.5"),
    ],
)
def test_a_bad_record_is_named_by_line_and_number(tmp_path, change, sentence):
    text = "[\n" + json.dumps(RECORD) + ",\n" + json.dumps(RECORD | change) + "\n]"
    with pytest.raises(DataError, match=rf"pairs.json:3: record 2: .*{sentence}"):
        read_prompt_pairs(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the file is empty"),
        ("[]", "holds no records"),
        ("[{]", "not valid JSON"),
        ('["text"]', "not an object"),
    ],
)
def test_a_file_without_pairs_is_an_error(tmp_path, content, sentence):
    with pytest.raises(DataError, match=sentence):
        read_prompt_pairs(_write(tmp_path, content))


def test_a_misspelt_set_names_those_there_are(tmp_path):
    with pytest.raises(DataError, match=r"called 'capitols'; the sets are agreement, .*opposites"):
        read_prompt_pairs("capitols")
    with pytest.raises(DataError, match="no such file"):
        read_prompt_pairs(tmp_path / "absent.json")


def test_the_temporal_pairs_are_read(shared_data):
    pairs = read_prompt_pairs(shared_data / "temporal" / "clean_corrupted_pairs.json")
    assert len(pairs) == 7
    assert {(pair.answer, pair.wrong) for pair in pairs} == {(" short", " long")}


def test_the_temporal_choices_are_read_in_both_orders(shared_data):
    pairs = read_prompt_pairs(shared_data / "temporal" / "temporal_scope_caa.json")
    assert len(pairs) == 50
    clean, corrupted = (text.split("\n") for text in (pairs[0].clean, pairs[0].corrupted))
    assert clean[1][4:] == corrupted[2][4:] and clean[2][4:] == corrupted[1][4:]
    assert clean[1].startswith("(A) What works right now")
    assert (pairs[0].answer, pairs[0].wrong) == ("A", "B")


@pytest.mark.parametrize("name", sorted(set(bundled_prompt_sets()) - {"ioi-eight"}))
def test_a_bundled_set_is_large_and_has_no_pair_twice(name):
    pairs = read_prompt_pairs(name)
    assert len(pairs) >= 40
    assert len({(pair.clean, pair.corrupted) for pair in pairs}) == len(pairs)
    assert len({pair.name for pair in pairs}) == len(pairs)
    # Words alone, so that an answer that gives itself away in the prompt is seen.
    for pair in pairs:
        assert pair.answer.strip() not in pair.clean.split()[-2:]


@pytest.mark.parametrize("name", ["agreement", "pronouns", "sentiment"])
def test_a_set_of_two_answers_is_balanced(name):
    counts = Counter(pair.answer for pair in read_prompt_pairs(name))
    assert len(counts) == 2
    assert max(counts.values()) - min(counts.values()) <= 1


def test_there_are_at_least_three_sets_and_the_eight_prompts():
    assert {"agreement", "capitals", "sentiment", "ioi-eight"} <= set(bundled_prompt_sets())


@pytest.mark.real
def test_every_bundled_pair_has_answers_of_one_token_for_smollm2(smollm2):
    for name in bundled_prompt_sets():
        batch = encode_pairs(smollm2, read_prompt_pairs(name))
        assert all(right.startswith(" ") for right, _ in batch.answers), name
