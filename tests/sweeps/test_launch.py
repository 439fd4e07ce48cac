"""Workers as processes: what is killed, dies or stops loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.context import cpu_threads
from saesteer.experiments.registry import experiment_named
from saesteer.experiments.results import numbers_of
from saesteer.sweeps.launch import launch_workers
from saesteer.sweeps.results import sweep_record, write_results
from saesteer.sweeps.storage import plain_url
from saesteer.sweeps.study import create_study, open_study
from saesteer.sweeps.sweep_file import read_sweep
from saesteer.sweeps.worker import Worker
from saesteer.tracking import list_runs
from saesteer.utils.errors import SaesteerError
from tests.experiments import conftest as fixtures
from tests.sweeps.conftest import FOUR, results, started

SAESTEER = (sys.executable, "-m", "saesteer.cli.main")
compare_data, embeds, tiny_compare = fixtures.compare_data, fixtures.embeds, fixtures.tiny_compare


@pytest.mark.slow
def test_kill_9_of_a_worker_and_its_parent_does_nothing_twice_and_changes_no_bit(
    sweep_of, tmp_path
):
    # Long completions, so that the kill falls into trials.
    long = "completions.max_new_tokens=60"
    sweep = sweep_of({"overrides": [long]}, parameters=FOUR)
    command = [*SAESTEER, "sweep", str(tmp_path / "tiny-sweep.yaml")]
    command += ["--workers", "2", "--threads", "1", "--set", long]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = wait_for_workers(sweep, parent)
    os.kill(workers[0], signal.SIGKILL)
    parent.kill()
    parent.wait(30)
    # The worker that is still there and new ones share what is left.
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    others = "workers of an earlier call go on (process "
    assert f"{others}{workers[1]} on " in again.stdout + again.stderr
    study = open_study(str(sweep.folder))
    rows = study.rows()
    assert [row.state for row in rows] == ["done"] * 4, [row.error for row in rows]
    assert sorted(row.attempts for row in rows) == [1, 1, 1, 2]
    assert {run.status for run in list_runs(tmp_path / "runs")} == {"finished"}
    # One process that nobody kills finds the same.
    alone = started(
        sweep_of({"overrides": [long, f"folder={tmp_path / 'alone'}"]}, parameters=FOUR)
    )
    # Sums depend on how many threads share them.
    with cpu_threads(1):
        assert Worker(alone).work().done == 4
    assert results(study) == results(alone)


def wait_for_workers(sweep, parent) -> list[int]:
    """Return the numbers of two processes that have a trial under way."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert parent.poll() is None
        # It may just be made.
        with suppress(SaesteerError):
            rows = open_study(str(sweep.folder)).rows()
            found = [row.worker for row in rows if row.state == "running" and row.worker]
            if len(found) == 2:
                return [int(worker.rpartition(":")[2]) for worker in found]
        time.sleep(0.05)
    raise AssertionError("no two workers began")


def test_a_worker_that_dies_is_replaced_and_one_that_keeps_dying_is_told(
    sweep_of, tmp_path, monkeypatch
):
    study = started(sweep_of())
    dies = [sys.executable, "-c", "exit(3)"]
    monkeypatch.setattr("saesteer.experiments.launch.POLL_SECONDS", 0.02)
    launch = launch_workers(study, 1, tmp_path / "logs")
    launch.tasks = [task._replace(command=dies) for task in launch.tasks]
    with pytest.raises(SaesteerError, match=r"1 of 1 tasks failed \(worker-0\); see .*logs"):
        launch.local()
    assert {row.state for row in study.rows()} == {"waiting"}


def test_a_databases_password_is_in_no_command_line(sweep_of, tmp_path):
    study = started(sweep_of(), f"sqlite:///{tmp_path / 'x.db'}")
    study.where = "postgresql://me:hunter2@host/sweeps"
    launch = launch_workers(study, 1, tmp_path)
    assert "hunter2" not in " ".join(launch.tasks[0].command)
    assert launch.environment == {"SAESTEER_STUDY_URL": study.where}
    # Nor is it shown.
    assert plain_url("postgresql://me:pa@ss@host/db") == "postgresql://me:***@host/db"
    for plain in ("mysql+pymysql://me@host/db", "sqlite:///study.db"):
        assert plain_url(plain) == plain


SMALL = {
    "writing": {"n_questions": 0},
    "random": {"directions": 0, "features": 0},
    "side_effects": {"choices": 0, "n_prose": 0, "pairs": 0},
    "seeds": [0],
}


def test_an_experiments_numbers_are_those_of_its_metrics():
    # A comparison's are the headline method's at the headline KL target.
    rows = [
        {"method": "pca", "kl_target": 0.1, "effect": 1.0},
        {"method": "pca", "kl_target": 0.3, "effect": 2.0, "low": 1.5, "ratio": 1.2},
        {"method": "other", "kl_target": 0.3, "effect": 9.0},
    ]
    metrics = {"summary": rows, "headline_method": "pca", "headline_kl_target": 0.3}
    compare: Any = object.__new__(experiment_named("compare"))
    found = compare.headline(metrics)
    assert (found["effect"], found["effect_low"], found["ratio"]) == (2.0, 1.5, 1.2)
    assert (found["kl_target"], found["kl"]) == (0.3, 0.3)
    assert compare.headline({})["effect"] is None
    metrics["seconds"] = {"evaluation": 3.5}
    assert numbers_of(found, metrics, "seconds.evaluation")["seconds.evaluation"] == 3.5


def test_personas_times_methods_is_a_sweep_of_comparisons(tiny_compare, compare_data, tmp_path):
    folder = tmp_path / "runs"
    base = tmp_path / "compare.yaml"
    base.write_text(json.dumps(tiny_compare(**SMALL) | {"folder": str(folder)}))
    methods = [
        {"headline": name, "methods": [name, "difference_in_means"]}
        for name in ("pca", "logistic_probe")
    ]
    file = tmp_path / "personas.yaml"
    fields = {
        "command": ["${env}", "saesteer", "compare", str(base), "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "effect", "goal": "maximize"},
        "parameters": {
            "personas": {"values": [[compare_data["kindly"]], [compare_data["boldly"]]]},
            "together.method": {"values": methods},
        },
    }
    file.write_text(json.dumps(fields))
    sweep = read_sweep(file)
    study = create_study(sweep)
    assert study.enqueue(sweep.trials()) == 4
    assert Worker(study).work().done == 4, [row.error for row in study.rows()]
    rows = study.rows()
    compare: Any = object.__new__(experiment_named("compare"))
    for row in rows:
        stored = json.loads((Path(str(row.folder)) / "metrics.json").read_text(encoding="utf-8"))
        assert stored["headline_method"] == row.values["together.method"]["headline"]
        assert row.value == compare.headline(stored)["effect"]
    record = sweep_record(sweep, rows)
    labels = [trial["labels"]["together.method"] for trial in record["trials"]]
    assert labels == ["pca", "logistic_probe"] * 2
    write_results(sweep, record)
    config: Any = sweep.config(rows[0].values)
    assert config.headline == "pca"
