"""Workers on this machine, on Slurm and on a Ray cluster: all run the same loop on one study."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesteer.sweeps.overrides import parse_word
from saesteer.sweeps.storage import URL_VARIABLE, is_url
from saesteer.sweeps.study import SweepStudy
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.progress import Progress

POLL_SECONDS = 0.5
# Workers that died in a row, for each that was asked for, after which no more are started.
MOST_RESTARTS = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# submitit's parameters that not only Slurm knows.
_SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node",
    "stderr_to_stdout",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """How workers are started, and how the study is told of meanwhile."""

    workers: int
    # Where their words go.
    logs: Path
    # CPU threads of each; a fair share of this machine's cores if None, and 1 on others.
    threads: int | None = None
    # The id of the sweep's own record.
    parent: str | None = None
    progress: Progress = field(default_factory=Progress)
    # Called now and then, to show how far the study is.
    tell: Callable[[], None] = lambda: None

    @property
    def cores(self) -> int:
        """Threads of each worker on this machine."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)


def worker_command(study: SweepStudy, launch: Launch) -> list[str]:
    """Return the command of one worker; a database's URL goes by the environment, unseen."""
    command = [sys.executable, "-m", "saesteer.cli.worker", "--name", study.sweep.study]
    if not is_url(study.where):
        command += ["--study", study.where]
    if launch.parent is not None:
        command += ["--parent", launch.parent]
    return command


def worker_environment(study: SweepStudy, threads: int) -> dict[str, str]:
    """Return what a worker's environment has besides."""
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return pinned | ({URL_VARIABLE: study.where} if is_url(study.where) else {})


def launch_local(study: SweepStudy, launch: Launch) -> None:
    """Run workers in processes of this machine; one that dies is replaced."""
    restarts = launch.workers * MOST_RESTARTS
    launch.progress.say(
        f"{launch.workers} workers with {launch.cores} threads each; logs in {launch.logs}"
    )
    with ExitStack() as stack:
        running = [_start(study, launch, slot, stack) for slot in range(launch.workers)]
        while True:
            time.sleep(POLL_SECONDS)
            launch.tell()
            for slot, process in enumerate(running):
                code = process.poll()
                if not code or restarts <= 0 or not study.is_open():
                    continue
                restarts -= 1
                launch.progress.say(
                    f"worker {slot} ended with code {code}; another takes its place"
                )
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
    """Return submitit's parameters from words such as "partition=gpu"."""
    found = {}
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--slurm {word!r} is not of the form key=value, such as timeout_min=60; write it "
                "so."
            )
        found |= parse_word(word)
    return found


def launch_submitit(
    study: SweepStudy, launch: Launch, options: Mapping[str, Any], *, cluster: str = "slurm"
) -> list[Any]:
    """Submit workers as jobs, and return submitit's jobs.

    Args:
        study: The study.
        launch: How workers are started.
        options: submitit's own parameters, such as timeout_min, gpus_per_node or
            slurm_partition; names that only Slurm knows may leave out "slurm_".
        cluster: "slurm", or "local" for processes of this machine.
    """
    try:
        import submitit
    except ImportError as error:
        raise SaesteerError(
            "--launcher slurm needs submitit; pip install 'saesteer[slurm]'."
        ) from error
    threads = launch.threads or 1
    parameters = {"name": "saesteer", "timeout_min": 240, "stderr_to_stdout": True}
    parameters["cpus_per_task"] = threads
    for name, value in options.items():
        plain = name in _SHARED or name.startswith(("slurm_", "local_"))
        parameters[name if plain else f"slurm_{name}"] = value
    try:
        executor = submitit.AutoExecutor(folder=launch.logs / "%j", cluster=cluster)
        executor.update_parameters(**parameters)
        # The URL of a database stays in the environment, which sbatch passes on; the rest is
        # no secret.
        command = ["env", *(f"{name}={threads}" for name in THREAD_VARIABLES)]
        command += worker_command(study, launch)
        work = submitit.helpers.CommandFunction(command, cwd=study.sweep.cwd)
        if is_url(study.where):
            os.environ[URL_VARIABLE] = study.where
        with executor.batch():
            return [executor.submit(work) for _ in range(launch.workers)]
    except (RuntimeError, NameError, ValueError, FileNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise SaesteerError(f"Slurm did not take the workers ({said}); correct --slurm.") from error


def wait_for_jobs(
    study: SweepStudy, launch: Launch, jobs: Sequence[Any], seconds: float = 5.0
) -> None:
    """Wait until every job has ended."""
    while not all(job.done() for job in jobs):
        launch.tell()
        time.sleep(seconds)
    launch.tell()
    if study.is_open():
        raise SaesteerError(
            f"the jobs ended before the sweep did; see {jobs[0].paths.folder.parent}, and run the "
            "same command again to go on."
        )


def launch_ray(
    study: SweepStudy, launch: Launch, address: str | None = None
) -> list[dict[str, Any]]:
    """Run workers as tasks of a Ray cluster, wait for them, and return what each did, and where.

    Every node must see the study: its folder by the same path, or its database. Each worker gets
    one GPU where the cluster has any, so that no two trials share one; there are no more then.

    Args:
        study: The study.
        launch: How workers are started.
        address: The cluster's; RAY_ADDRESS, or a cluster of this machine alone, if None.
    """
    try:
        import ray
    except ImportError as error:
        raise SaesteerError("--launcher ray needs ray; pip install 'saesteer[ray]'.") from error
    begun = not ray.is_initialized()
    if begun:
        _connect_ray(ray, address or os.environ.get("RAY_ADDRESS"))
    try:
        threads = launch.threads or 1
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(launch.workers, gpus) if gpus else launch.workers
        nodes = sum(node["Alive"] for node in ray.nodes())
        what = "one GPU" if gpus else f"{threads} CPUs"
        launch.progress.say(f"Ray: {count} workers with {what} each, on {nodes} nodes")
        task = ray.remote(_ray_task).options(
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
            # Another worker takes over the trial; a task run twice would be one too many.
            max_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": worker_environment(study, threads)},
        )
        sweep = study.sweep
        pending = [task.remote(study.where, sweep.study, launch.parent) for _ in range(count)]
        return _gather(ray, study, launch, pending)
    finally:
        if begun:
            ray.shutdown()


def _connect_ray(ray: Any, address: str | None) -> None:
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise SaesteerError(
            f"the Ray cluster {address or 'of this machine'} cannot be reached ({said}); check "
            "RAY_ADDRESS."
        ) from error


def _gather(
    ray: Any, study: SweepStudy, launch: Launch, pending: list[Any]
) -> list[dict[str, Any]]:
    reports, errors = [], []
    while pending:
        ended, pending = ray.wait(pending, timeout=1.0)
        launch.tell()
        for one in ended:
            try:
                reports.append(ray.get(one))
            except ray.exceptions.RayError as error:
                errors.append(" ".join(str(error).split())[-300:])
                launch.progress.say(
                    "a worker of the cluster is gone; the others take over its trial"
                )
    if errors and study.is_open():
        raise SaesteerError(
            f"{len(errors)} workers of the cluster failed ({errors[0]}); correct that and run the "
            "same command again to go on."
        )
    return reports


def _ray_task(where: str, name: str, parent: str | None) -> dict[str, Any]:
    import ray

    from saesteer.sweeps.worker import run_worker

    report = run_worker(where, name=name, parent=parent)
    node = ray.get_runtime_context().get_node_id()
    return {"done": report.done, "failed": report.failed, "node": node}
