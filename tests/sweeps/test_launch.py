"""Workers as processes, as Slurm jobs and as tasks of a Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from saesteer.sweeps.launch import (
    Launch,
    launch_local,
    launch_submitit,
    slurm_options,
    wait_for_jobs,
    worker_command,
    worker_environment,
)
from saesteer.sweeps.study import create_study, open_study
from saesteer.sweeps.worker import Worker
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.progress import Progress

TWO = {"selection.n_features": {"values": [8, 16]}}
FOUR = {**TWO, "selection.criterion": {"values": ["mean_difference", "auroc"]}}


def started(spec, place=None):
    study = create_study(spec, place)
    study.enqueue(spec.cells())
    return study


def nothing() -> None:
    pass


def results(study):
    return {row.key: (row.values, row.value, row.numbers) for row in study.rows()}


def test_two_processes_find_what_one_finds_to_the_last_bit(spec_of, tmp_path):
    spec = spec_of(parameters=FOUR)
    study = started(spec)
    launch_local(study, Launch(2, tmp_path / "logs", threads=1), Progress(), nothing)
    rows = study.rows()
    assert [row.state for row in rows] == ["done"] * 4, [row.error for row in rows]
    assert len(list((tmp_path / "logs").iterdir())) == 2
    alone = started(spec_of({"overrides": [f"folder={tmp_path / 'alone'}"]}, parameters=FOUR))
    # A process too, because sums depend on how many threads share them.
    launch_local(alone, Launch(1, tmp_path / "log", threads=1), Progress(), nothing)
    assert [row.state for row in alone.rows()] == ["done"] * 4
    assert results(study) == results(alone)


def test_kill_9_of_a_worker_costs_its_running_trial_alone(spec_of, tmp_path):
    # Long completions, so that the kill falls into a trial.
    spec = spec_of({"overrides": ["completions.max_new_tokens=60"]}, parameters=TWO)
    study = started(spec)
    command = worker_command(study, Launch(1, tmp_path))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while "running" not in {row.state for row in study.rows()}:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert [row.state for row in study.rows()] == ["running", "waiting"]
    report = Worker(open_study(study.where)).work()
    assert (report.done, report.reclaimed) == (2, 1)
    assert [row.attempts for row in study.rows()] == [2, 1]


def test_a_worker_that_dies_is_replaced_and_one_that_keeps_dying_is_told(
    spec_of, tmp_path, monkeypatch
):
    study = started(spec_of())
    monkeypatch.setattr(
        "saesteer.sweeps.launch.worker_command", lambda *rest: [sys.executable, "-c", "exit(3)"]
    )
    monkeypatch.setattr("saesteer.sweeps.launch.POLL_SECONDS", 0.02)
    with pytest.raises(SaesteerError, match=r"1 of 1 workers ended before their time; see .*logs"):
        launch_local(study, Launch(1, tmp_path / "logs"), Progress(), nothing)
    assert {row.state for row in study.rows()} == {"waiting"}


def test_threads_are_shared_out_and_pinned(spec_of, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert Launch(4, tmp_path).cores == 4
    assert Launch(32, tmp_path).cores == 1
    assert Launch(4, tmp_path, threads=3).cores == 3
    study = started(spec_of())
    assert worker_environment(study, 4)["OMP_NUM_THREADS"] == "4"


def test_a_databases_password_is_in_no_command_line(spec_of, tmp_path):
    study = started(spec_of(), f"sqlite:///{tmp_path / 'x.db'}")
    study.where = "postgresql://me:hunter2@host/sweeps"
    assert "hunter2" not in " ".join(worker_command(study, Launch(1, tmp_path)))
    assert worker_environment(study, 1)["SAESTEER_STUDY_URL"] == study.where


def test_slurm_options_are_words_of_key_and_value():
    assert slurm_options(["timeout_min=60", "partition=gpu"]) == {
        "timeout_min": 60,
        "partition": "gpu",
    }
    with pytest.raises(ConfigError, match="not of the form key=value"):
        slurm_options(["gpu"])


@pytest.fixture
def submitit():
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not here: pip install 'saesteer[slurm]'")
    import submitit

    return submitit


SCRIPT = """\
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=saesteer
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output={logs}/%A_%a/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --signal=USR2@90
#SBATCH --time=90
#SBATCH --wckey=submitit
"""


def test_the_script_for_slurm_asks_for_what_was_said(spec_of, tmp_path, submitit, monkeypatch):
    tools, logs = tmp_path / "bin", tmp_path / "logs"
    tools.mkdir()
    # What stands in for Slurm keeps the script that it is given.
    for name, body in {
        "sbatch": f"cp $1 {tmp_path}/script.sh; echo job 42",
        "srun": "exit 1",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = slurm_options(["partition=gpu", "gpus_per_node=1", "timeout_min=90"])
    jobs = launch_submitit(started(spec_of()), Launch(3, logs, threads=4), options)
    assert [job.job_id for job in jobs] == ["42_0", "42_1", "42_2"]
    script = (tmp_path / "script.sh").read_text()
    asked = sorted(line for line in script.splitlines() if line.startswith("#SBATCH"))
    assert asked == SCRIPT.format(logs=logs).splitlines()
    assert "submitit.core._submit" in script.splitlines()[-1]


def test_a_machine_without_slurm_is_told(spec_of, tmp_path, submitit, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaesteerError, match="Slurm did not take the workers"):
        launch_submitit(started(spec_of()), Launch(1, tmp_path / "logs"), {})


@pytest.mark.slow
def test_submitits_local_executor_runs_a_sweep(spec_of, tmp_path, submitit):
    study = started(spec_of(parameters=TWO))
    launch = Launch(1, tmp_path / "logs", threads=1)
    jobs = launch_submitit(study, launch, {"timeout_min": 5}, cluster="local")
    wait_for_jobs(study, jobs, nothing, seconds=0.2)
    assert [row.state for row in study.rows()] == ["done"] * 2


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_runs_a_sweep_on_both(spec_of, tmp_path, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not here: pip install 'saesteer[ray]'")
    from saesteer.sweeps.launch_ray import launch_ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    one: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=one)
        cluster.add_node(**one)
        cluster.wait_for_nodes(timeout=120)
    except (OSError, RuntimeError, TimeoutError, ConnectionError) as error:
        pytest.skip(f"no Ray cluster starts on this machine: {error}")
    try:
        # Long enough that one node cannot run all before the other has begun.
        spec = spec_of({"overrides": ["completions.max_new_tokens=100"]}, parameters=FOUR)
        study = started(spec)
        reports = launch_ray(
            study, Launch(5, tmp_path, threads=1), Progress(), nothing, cluster.address
        )
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert [row.state for row in study.rows()] == ["done"] * 4, json.dumps(
        [row.error for row in study.rows()]
    )
    # Two GPUs, so no more than two workers, one on each node.
    assert len(reports) == 2
    assert len({report["node"] for report in reports}) == 2
