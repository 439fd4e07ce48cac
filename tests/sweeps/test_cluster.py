"""Sweeps on clusters: Slurm's script, and Ray; `tests/experiments/test_launch.py` runs on both."""

from __future__ import annotations

import importlib.util
import os
from types import SimpleNamespace

import pytest

from saesteer.experiments.launch import _connect_ray, slurm_options
from saesteer.sweeps.launch import launch_workers
from saesteer.utils.errors import ConfigError, SaesteerError
from tests.sweeps.conftest import started


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


def test_a_cluster_that_is_begun_here_does_not_report_on_itself(monkeypatch):
    # So that what is set is taken back.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    seen: list[str | None] = []
    ray = SimpleNamespace(init=lambda **_: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    _connect_ray(ray, None)
    assert seen == ["0"]
