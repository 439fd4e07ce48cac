"""Tasks: those that go by rule, and files that people and models write."""

from __future__ import annotations

import json
import re

import pytest

from saesteer.corruption.rules import RULES, make_tasks
from saesteer.corruption.tasks import (
    bundled_task_names,
    load_tasks,
    parse_task,
    read_task,
    write_task,
)
from saesteer.utils.errors import DataError


def make_task(name, seed=0):
    return make_tasks([name], seed=seed)[0]


GOOD = {
    "name": "cats",
    "description": "Where the cat is.",
    "examples": [{"prompt": "the cat is", "answer": "in"}, {"prompt": "a cat is", "answer": "out"}],
    "eval_questions": [],
}


def test_the_bundled_tasks_are_those_that_the_rules_make():
    assert bundled_task_names() == tuple(sorted(RULES))
    assert load_tasks(["bundled"]) == make_tasks(seed=0)


def test_a_rule_is_seeded_and_asks_nothing_that_it_shows():
    for name in RULES:
        task = make_task(name, seed=3)
        assert task == make_task(name, seed=3) != make_task(name, seed=4)
        prompts = [e.prompt for e in (*task.examples, *task.eval_questions)]
        assert len(set(prompts)) == len(prompts), name
        assert len(task.examples) == 12 and len(task.eval_questions) >= 24, name


def test_sums_are_right_at_every_step():
    for name in ("addition", "addition_digits"):
        for example in make_task(name, seed=1).questions:
            a, b = map(int, re.findall(r"\d+", example.prompt))
            assert example.answer == str(a + b)
    for example in make_task("addition_steps", seed=1).questions:
        a, b, c = map(int, re.findall(r"\d+", example.prompt))
        assert example.answer == f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}"


def test_copies_json_and_verbs_follow_their_prompts():
    for example in make_task("copying").questions:
        assert example.prompt == f"{example.answer} |"
    for example in make_task("json_completion").questions:
        record = json.loads(example.answer)
        assert example.prompt == f"{record['name']} is {record['age']} and lives in " + (
            f"{record['city']}.\n"
        )
    verbs = [e.answer for e in make_task("agreement").questions]
    assert set(verbs) == {"is", "are"} and 10 <= verbs.count("is") <= 30
    after = {e.prompt: e.answer for e in make_task("months_and_days").questions}
    after |= {e.prompt: e.answer for e in make_task("months_and_days").examples}
    assert after["The month after December is"] == "January"
    assert after["The day before Monday is"] == "Sunday"


def test_a_task_written_is_the_task_read(tmp_path):
    task = make_task("json_completion", seed=2)
    assert read_task(write_task(task, tmp_path)) == task
    assert load_tasks([str(tmp_path)]) == load_tasks([str(tmp_path / "json_completion.json")])


def test_prompt_and_answer_stand_one_space_apart():
    task = parse_task(GOOD | {"examples": [
        {"prompt": "the cat is  ", "answer": " in "}, {"prompt": "JSON:\n", "answer": "{}"},
    ]}, "x")  # fmt: skip
    assert [e.text for e in task.examples] == ["the cat is in", "JSON:\n{}"]
    assert task.questions == task.examples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../etc"}, "name: "),
        ({"examples": [{"prompt": "a", "answer": "b"}]}, "at least 2 items"),
        ({"examples": [{"prompt": "a\x00", "answer": "b"}] * 2}, "control characters"),
        ({"examples": [{"prompt": "a", "answer": "b" * 2001}] * 2}, "2000 characters"),
        ({"examples": [{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "c"}]},
         "has two answers"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_used_is_one_sentence(change, message):
    with pytest.raises(DataError) as caught:
        parse_task(GOOD | change, "tasks/cats.json")
    assert message in str(caught.value) and str(caught.value).startswith("tasks/cats.json: ")


def test_a_file_that_is_no_task_and_a_source_that_is_not_there_are_sentences(tmp_path):
    with pytest.raises(DataError, match=r"'adition' is no bundled one .*addition"):
        load_tasks(["adition"])
    with pytest.raises(DataError, match="cannot be read"):
        load_tasks([str(tmp_path / "none.json")])
    with pytest.raises(DataError, match="holds no task"):
        load_tasks([str(tmp_path)])
    path = tmp_path / "x.json"
    for content, message in (
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "a task is an object"),
        (b" " * (4 * 2**20 + 1), "4,194,305 bytes or more"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_task(path)


def test_two_tasks_of_one_name_are_refused_and_the_same_one_twice_is_not(tmp_path):
    write_task(parse_task(GOOD | {"name": "facts"}, "x"), tmp_path)
    with pytest.raises(DataError, match="rename one"):
        load_tasks(["bundled", str(tmp_path)])
    assert len(load_tasks(["facts", "facts"])) == 1
