"""Personas shared out among processes."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import Compare, measure_in_processes
from saesteer.experiments.compare.plan import plan_compare
from saesteer.experiments.registry import run_experiment
from saesteer.utils.errors import SaesteerError
from saesteer.utils.progress import Progress


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Every number and word of a comparison by its place; times and folders are its own."""
    if isinstance(value, dict):
        parts = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {place: value}
    own = ("/seconds", "/vectors", "/config/folder")
    return {
        leaf: word
        for key, inner in parts
        if f"{place}/{key}" not in own
        for leaf, word in leaves(inner, f"{place}/{key}").items()
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(few, tmp_path):
    settings = few(methods=["difference_in_means", "pca"], headline="pca", random={"features": 0})
    other = tmp_path / "runs of two"
    experiment = Compare(CompareConfig(**{**settings, "folder": str(other)}))
    experiment.elsewhere = lambda plan: measure_in_processes(plan, 2, Progress())
    found = leaves(experiment.run().metrics)
    alone = leaves(run_experiment(CompareConfig(**settings)).metrics)
    assert found.keys() == alone.keys()
    # The workers run on fewer threads than this process, which add in another order.
    for place, word in alone.items():
        close = pytest.approx(word, rel=1e-3, abs=1e-4) if isinstance(word, float) else word
        assert found[place] == close, place


@pytest.fixture
def started(monkeypatch) -> list[Any]:
    """Stand-ins for the processes that would be started; give each its `code` first."""
    made: list[Any] = []

    def popen(command: list[str], env: dict[str, str]) -> Any:
        code = 2 if "boldly" in command else 0
        process = SimpleNamespace(
            command=command, env=env, wait=lambda: code, poll=lambda: code, terminate=None
        )
        made.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    return made


def named(command: list[str]) -> list[str]:
    return [command[i + 1] for i, word in enumerate(command) if word == "--only"]


def test_every_persona_goes_to_one_process_and_failures_are_one_sentence(few, started):
    plan = plan_compare(CompareConfig(**few()))
    with pytest.raises(SaesteerError, match=r"^1 of 2 workers failed, see above; correct that"):
        measure_in_processes(plan, 2, Progress())
    assert [named(process.command) for process in started] == [["kindly"], ["boldly"]]
    for process in started:
        assert process.command[-1] == "--measure-only"
        assert str(plan.folder / "config.json") in process.command
        assert int(process.env["OMP_NUM_THREADS"]) >= 1


def test_what_is_done_is_not_given_out_again(few, started):
    plan = plan_compare(CompareConfig(**few()))
    boldly = plan.personas[1]
    boldly.folder.mkdir(parents=True)
    (boldly.folder / "done.json").write_text(json.dumps({"files": [], "seconds": {}}))
    measure_in_processes(plan, 4, Progress())
    assert [named(process.command) for process in started] == [["kindly"]]
