"""`saesteer agent` from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def agent_file(tiny_model_folder, tmp_path) -> Any:
    """A file of settings around a tiny model on the disk, as YAML reads it."""
    settings = {
        "name": "tiny",
        "goal": "Which of the layers costs most?",
        "experiments": {
            "corrupt": {
                "model": {"name": str(tiny_model_folder("llama"))},
                "tasks": {"source": ["copying"], "shots": 1, "max_questions": 2},
                "completions": None,
            }
        },
        "search": {
            "kind": "corrupt",
            "parameters": {"programs": "skip {layer}"},
            "batch": "programs",
            "metric": ["programs", "{candidate}", "loss"],
            "question": "the layer that costs most",
        },
        "folder": str(tmp_path / "runs"),
    }
    file = tmp_path / "agent.yaml"
    file.write_text(json.dumps(settings))
    return file


def test_it_plans_answers_and_says_where_the_report_is(saesteer, agent_file, tmp_path):
    answer = saesteer("agent", agent_file, "--goal", "Why?", "--dry-run")
    assert answer.code == 0 and "Why?" in answer.out
    assert "seeded, without a language model" in answer.out
    assert not (tmp_path / "runs").exists()
    answer = saesteer("agent", agent_file, "--budget", 2)
    assert answer.code == 0, answer
    assert "the layer that costs most is" in " ".join(answer.out.split())
    assert "supported" in answer.out and "Next:" in answer.out
    # Paths are for copying, so they are never broken.
    lines = [line for line in answer.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 100
    (folder,) = [path for path in (tmp_path / "runs").glob("tiny-*") if "corrupt" not in path.name]
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    again = saesteer("agent", agent_file, "--budget", 2)
    assert again.code == 0 and "Spent: 1 experiments" in again.out
    listed = saesteer("runs", "list", "--root", tmp_path / "runs")
    assert "agent" in listed.out and "corrupt" in listed.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--set", "experiments.corrupt.tasks.shot=1"], "tasks.shot is not a known setting"),
        (["--set", "search=null"], "needs a search"),
        (["--set", "goal=''"], "goal"),
        (["--set", "experiments={}"], "experiments"),
        (["--model", "m", "--set", "budget.money=1"], "needs planner.price_in"),
        (["--set", "search.kind=probe"], "is none of the experiments"),
        (["--set", "search.batch=seed"], "is none of the parameters"),
        (["--set", "experiments.corrupt.model.name=/nowhere"], "/nowhere"),
        (["--model", "m", "--base-url", "ftp://x"], "base_url"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(refused, agent_file, changes, said, tmp_path):
    assert said in refused("agent", agent_file, *changes)
