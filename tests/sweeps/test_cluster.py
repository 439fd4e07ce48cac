"""Sweeps on clusters: Slurm's script, submitit on this machine, a Ray cluster of two nodes."""

from __future__ import annotations

import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments.launch import _connect_ray, slurm_options
from saesteer.sweeps.launch import launch_workers
from saesteer.utils.errors import ConfigError, SaesteerError
from tests.sweeps.conftest import TWO, started


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


def test_the_script_for_slurm_asks_for_what_was_said(
    sweep_of, tmp_path, submitit, slurm_script, monkeypatch
):
    logs = tmp_path / "logs"
    options = slurm_options(["partition=gpu", "gpus_per_node=1", "timeout_min=90"])
    with pytest.raises(ConfigError, match="not of the form key=value"):
        slurm_options(["gpu"])
    launch = launch_workers(started(sweep_of()), 3, logs, threads=4)
    jobs = launch.submit(launch.tasks, options)
    assert [job.job_id for job in jobs] == ["42_0", "42_1", "42_2"]
    script = slurm_script.read_text()
    asked = sorted(line for line in script.splitlines() if line.startswith("#SBATCH"))
    assert asked == SCRIPT.format(logs=logs).splitlines()
    assert "submitit.core._submit" in script.splitlines()[-1]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaesteerError, match="Slurm did not take the jobs"):
        launch.submit(launch.tasks, {})


@pytest.mark.slow
def test_submitits_local_executor_runs_a_sweep(sweep_of, tmp_path, submitit):
    study = started(sweep_of(parameters=TWO))
    launch = launch_workers(study, 1, tmp_path / "logs", threads=1)
    launch.slurm({"timeout_min": 5}, cluster="local", seconds=0.2)
    assert [row.state for row in study.rows()] == ["done"] * 2


def test_a_cluster_that_is_begun_here_does_not_report_on_itself(monkeypatch):
    # So that what is set is taken back.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    seen: list[str | None] = []
    ray = SimpleNamespace(init=lambda **_: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    _connect_ray(ray, None)
    assert seen == ["0"]


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_runs_a_sweep_on_both(sweep_of, tmp_path, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not here: pip install 'saesteer[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers are nicer than everything else, which on a busy machine takes minutes.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    import ray
    from ray.cluster_utils import Cluster

    one: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    one["include_dashboard"] = False
    try:
        cluster = Cluster(initialize_head=True, head_node_args=one)
        cluster.add_node(**one)
        cluster.wait_for_nodes(timeout=120)
    except (OSError, RuntimeError, TimeoutError, ConnectionError) as error:
        pytest.skip(f"no Ray cluster starts on this machine: {error}")
    try:
        study = started(sweep_of(parameters=TWO))
        nodes = launch_workers(study, 5, tmp_path, threads=1).ray(cluster.address)
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert [row.state for row in study.rows()] == ["done"] * 2, [r.error for r in study.rows()]
    # Two GPUs, so no more than two workers at once, one on each node.
    assert len(set(nodes)) == 2
