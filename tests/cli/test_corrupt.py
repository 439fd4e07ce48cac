"""`saesteer corrupt run`, `complete` and `tasks` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corrupt_config(settings_file) -> Path:
    tasks = {"source": ["opposites"], "max_questions": 4, "shots": 1}
    keep = [{"kind": "keep"}]
    return settings_file("corrupt", tasks=tasks, programs=[], families=keep, completions=None)


def test_a_run_prints_tasks_programs_observations_and_where_it_is(saesteer, corrupt_config):
    answer = saesteer("corrupt", "run", corrupt_config)
    assert answer.code == 0
    for words in ("Tasks on the intact model", "Programs that cost most", "Observations", "keep 0"):
        assert words in answer.out
    report = next(x for x in answer.out.splitlines() if x.startswith("Report:")).split()[1]
    assert Path(report).is_file()
    wide = [line for line in answer.out.splitlines() if len(line) > 100]
    assert all(str(Path(report).parent) in line for line in wide)


def test_prompts_are_completed_side_by_side(saesteer, tiny_model_folder):
    model = tiny_model_folder("llama")
    answer = saesteer("corrupt", "complete", "the cat", "--model", model, "--max-new-tokens", "3")
    assert answer.code == 0
    assert [f"keep {k}" in answer.out for k in range(4)] == [True] * 4
    answer = saesteer(
        "corrupt", "complete", "the cat", "I like", "--model", model, "--program", "skip 1",
        "--program", "[]", "--json",
    )  # fmt: skip
    found = json.loads(answer.out)
    assert [(one["program"], one["prompt"]) for one in found] == [
        ("skip 1", "the cat"), ("skip 1", "I like"), ("[]", "the cat"), ("[]", "I like"),
    ]  # fmt: skip


def test_bundled_tasks_are_listed_and_made_anew(saesteer, tmp_path):
    answer = saesteer("corrupt", "tasks")
    assert answer.code == 0 and "json_completion" in answer.out
    answer = saesteer("corrupt", "tasks", "addition", "--write", tmp_path, "--seed", "5")
    assert answer.code == 0 and f"Wrote 1 tasks to {tmp_path}" in answer.out
    listed = saesteer("corrupt", "tasks", tmp_path, "--json")
    assert [task["name"] for task in json.loads(listed.out)] == ["addition"]
