"""Workers on this machine, on Slurm and on a Ray cluster: all run the same loop on one study."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.sweeps.storage import URL_VARIABLE, is_url
from saesteer.sweeps.study import SweepStudy
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.progress import Progress

POLL_SECONDS = 0.5
# Workers that died in a row, for each that was asked for, after which no more are started.
MOST_RESTARTS = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Launch:
    """How workers are started.

    Attributes:
        workers: How many.
        threads: CPU threads of each; a fair share of this machine's cores if None.
        parent: The id of the sweep's own record.
        logs: Where their words go.
    """

    workers: int
    logs: Path
    threads: int | None = None
    parent: str | None = None

    @property
    def cores(self) -> int:
        """Threads of each worker on this machine."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)


def worker_command(study: SweepStudy, launch: Launch, *, in_url: bool = False) -> list[str]:
    """Return the command of one worker; a database's URL goes by the environment, unseen.

    Args:
        study: The study.
        launch: How workers are started.
        in_url: Name the URL all the same; for tests of what is printed.
    """
    command = [sys.executable, "-m", "saesteer.cli.worker", "--name", study.spec.study]
    if in_url or not is_url(study.where):
        command += ["--study", study.where]
    if launch.parent is not None:
        command += ["--parent", launch.parent]
    return command


def worker_environment(study: SweepStudy, threads: int) -> dict[str, str]:
    """Return what a worker's environment has besides."""
    pinned = {name: str(threads) for name in THREAD_VARIABLES}
    return pinned | ({URL_VARIABLE: study.where} if is_url(study.where) else {})


def launch_local(
    study: SweepStudy, launch: Launch, progress: Progress, tell: Callable[[], None]
) -> None:
    """Run workers in processes of this machine; one that dies is replaced.

    Args:
        study: The study.
        launch: How workers are started.
        progress: Where to say what happens.
        tell: Called now and then, to show how far the study is.

    Raises:
        SaesteerError: Workers kept dying.
    """
    restarts = launch.workers * MOST_RESTARTS
    progress.say(
        f"{launch.workers} workers with {launch.cores} threads each; logs in {launch.logs}"
    )
    with ExitStack() as stack:
        running = [_start(study, launch, slot, stack) for slot in range(launch.workers)]
        while True:
            time.sleep(POLL_SECONDS)
            tell()
            for slot, process in enumerate(running):
                code = process.poll()
                if not code or restarts <= 0 or not study.is_open():
                    continue
                restarts -= 1
                progress.say(f"worker {slot} ended with code {code}; another takes its place")
                running[slot] = _start(study, launch, slot, stack)
            codes = [process.poll() for process in running]
            if None not in codes:
                break
    if any(codes) and study.is_open():
        raise SaesteerError(
            f"{sum(map(bool, codes))} of {launch.workers} workers ended before their time; see "
            f"{launch.logs}, correct that, and run the same command again to go on."
        )


def _start(
    study: SweepStudy, launch: Launch, slot: int, stack: ExitStack
) -> subprocess.Popen[bytes]:
    launch.logs.mkdir(parents=True, exist_ok=True)
    log = stack.enter_context((launch.logs / f"worker-{slot}.log").open("ab"))
    environment = {**os.environ, **worker_environment(study, launch.cores), **_one_gpu(slot)}
    process = subprocess.Popen(
        worker_command(study, launch), env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # Its trial goes back into the queue.
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _one_gpu(slot: int) -> dict[str, str]:
    """Return which GPU a worker sees, where there are any: one trial each."""
    import torch

    given = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    gpus = given or [str(number) for number in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}


def slurm_options(words: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters from words such as "partition=gpu".

    Raises:
        ConfigError: A word is not of the form key=value.
    """
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--slurm {word!r} is not of the form key=value, such as timeout_min=60; write it "
                "so."
            )
        found[name] = yaml.safe_load(value)
    return found


def launch_submitit(
    study: SweepStudy,
    launch: Launch,
    options: Mapping[str, Any],
    *,
    cluster: str = "slurm",
) -> list[Any]:
    """Submit workers as jobs.

    Args:
        study: The study.
        launch: How workers are started.
        options: submitit's own parameters, such as timeout_min, gpus_per_node or
            slurm_partition; names that only Slurm knows may leave out "slurm_".
        cluster: "slurm", or "local" for processes of this machine.

    Returns:
        submitit's jobs.

    Raises:
        SaesteerError: submitit is not installed, Slurm is not there or a parameter is unknown.
    """
    try:
        import submitit
    except ImportError as error:
        raise SaesteerError(
            "--launcher slurm needs submitit; pip install 'saesteer[slurm]'."
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=launch.logs / "%j", cluster=cluster)
        executor.update_parameters(**_slurm_names(launch, options))
        # The URL of a database stays in the environment, which sbatch passes on; the rest is
        # no secret.
        command = ["env", *(f"{n}={v}" for n, v in _pinned(launch).items())]
        command += worker_command(study, launch)
        work = submitit.helpers.CommandFunction(command, cwd=study.spec.cwd)
        if is_url(study.where):
            os.environ[URL_VARIABLE] = study.where
        with executor.batch():
            return [executor.submit(work) for _ in range(launch.workers)]
    except (RuntimeError, NameError, ValueError, FileNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise SaesteerError(f"Slurm did not take the workers ({said}); correct --slurm.") from error


def _pinned(launch: Launch) -> dict[str, str]:
    return {name: str(launch.threads or 1) for name in THREAD_VARIABLES}


def _slurm_names(launch: Launch, options: Mapping[str, Any]) -> dict[str, Any]:
    shared = ("name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task")
    shared += ("gpus_per_node", "stderr_to_stdout")
    found: dict[str, Any] = {"name": "saesteer", "timeout_min": 240, "stderr_to_stdout": True}
    found["cpus_per_task"] = launch.threads or 1
    for name, value in options.items():
        plain = name in shared or name.startswith(("slurm_", "local_"))
        found[name if plain else f"slurm_{name}"] = value
    return found


def wait_for_jobs(
    study: SweepStudy, jobs: Sequence[Any], tell: Callable[[], None], seconds: float = 5.0
) -> None:
    """Wait until every job has ended.

    Raises:
        SaesteerError: They ended before the study did.
    """
    while not all(job.done() for job in jobs):
        tell()
        time.sleep(seconds)
    tell()
    if study.is_open():
        folder = jobs[0].paths.folder.parent if jobs else "the logs"
        raise SaesteerError(
            f"the jobs ended before the sweep did; see {folder}, and run the same command again "
            "to go on."
        )
