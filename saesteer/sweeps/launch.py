"""Workers on this machine, on Slurm and on a Ray cluster: all run the same loop on one study."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saesteer.sweeps.storage import URL_VARIABLE, is_url
from saesteer.sweeps.study import SweepStudy
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import read_word
from saesteer.utils.text import one_line

POLL_SECONDS = 0.5
# Workers that died in a row, for each that was asked for, after which no more are started.
MOST_RESTARTS = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# submitit's parameters that not only Slurm knows.
_SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node",
    "stderr_to_stdout",
)  # fmt: skip


class Launch:
    """Starts the workers of a study, waits for them, and says meanwhile how far it is.

    What they print goes into a folder of logs. Each has so many CPU threads; a fair share of this
    machine's cores if None, and 1 on others. `parent` is the id of the sweep's own record.
    """

    def __init__(
        self,
        study: SweepStudy,
        workers: int,
        logs: Path,
        *,
        threads: int | None = None,
        parent: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.study, self.workers, self.logs = study, workers, logs
        self.threads, self.parent, self.progress = threads, parent, progress or Progress()
        self._told = ""

    def tell(self) -> None:
        """Say how far the study is, if that has changed."""
        rows, sweep = self.study.rows(), self.study.sweep
        ended = [row for row in rows if row.state not in ("waiting", "running")]
        failed = sum(row.state == "failed" for row in rows)
        total = max(len(rows), sweep.count or 0) if sweep.method == "bayes" else len(rows)
        line = f"{len(ended)} of {total} trials ended" + (f", {failed} failed" if failed else "")
        values = [row.value for row in rows if row.value is not None]
        if values:
            best = max(values, key=lambda value: sweep.sign * value)
            line += f"; best {sweep.metric} {best:.4g}"
        if ended and line != self._told:
            self._told = line
            self.progress.say(line)

    def command(self) -> list[str]:
        """Return the command of one worker; a database's URL goes by the environment, unseen."""
        command = [sys.executable, "-m", "saesteer.cli.main", "worker"]
        command += ["--name", self.study.sweep.study]
        if not is_url(self.study.where):
            command += ["--study", self.study.where]
        return command if self.parent is None else [*command, "--parent", self.parent]

    def environment(self, threads: int) -> dict[str, str]:
        """Return what a worker's environment has besides."""
        where = self.study.where
        pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))
        return pinned | ({URL_VARIABLE: where} if is_url(where) else {})

    def local(self) -> None:
        """Run workers in processes of this machine; one that dies is replaced."""
        restarts = self.workers * MOST_RESTARTS
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        say = self.progress.say
        if others := self.study.at_work():
            say(f"workers of an earlier call go on (process {', '.join(others)}); they share these")
        say(f"{self.workers} workers with {threads} threads each; logs in {self.logs}")
        with ExitStack() as stack:
            running = [self._start(slot, threads, stack) for slot in range(self.workers)]
            while True:
                time.sleep(POLL_SECONDS)
                self.tell()
                for slot, process in enumerate(running):
                    code = process.poll()
                    if not code or restarts <= 0 or not self.study.is_open():
                        continue
                    restarts -= 1
                    say(f"worker {slot} ended with code {code}; another takes its place")
                    running[slot] = self._start(slot, threads, stack)
                codes = [process.poll() for process in running]
                if None not in codes:
                    break
        if any(codes) and self.study.is_open():
            raise SaesteerError(
                f"{sum(map(bool, codes))} of {self.workers} workers ended before their time; see "
                f"{self.logs}, correct that, and run the same command again to go on."
            )

    def _start(self, slot: int, threads: int, stack: ExitStack) -> subprocess.Popen[bytes]:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((self.logs / f"worker-{slot}.log").open("ab"))
        environment = {**os.environ, **self.environment(threads), **_one_gpu(slot)}
        process = subprocess.Popen(
            self.command(), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(_end, process)
        return process

    def submit(self, options: Mapping[str, Any], *, cluster: str = "slurm") -> list[Any]:
        """Submit workers as jobs, and return submitit's jobs.

        Args:
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
        threads = self.threads or 1
        parameters = {"name": "saesteer", "timeout_min": 240, "stderr_to_stdout": True}
        parameters["cpus_per_task"] = threads
        for name, value in options.items():
            plain = name in _SHARED or name.startswith(("slurm_", "local_"))
            parameters[name if plain else f"slurm_{name}"] = value
        try:
            executor = submitit.AutoExecutor(folder=self.logs / "%j", cluster=cluster)
            executor.update_parameters(**parameters)
            # The URL of a database stays in the environment, which sbatch passes on; the rest is
            # no secret.
            command = ["env", *(f"{name}={threads}" for name in THREAD_VARIABLES)]
            command += self.command()
            work = submitit.helpers.CommandFunction(command, cwd=self.study.sweep.cwd)
            if is_url(self.study.where):
                os.environ[URL_VARIABLE] = self.study.where
            with executor.batch():
                return [executor.submit(work) for _ in range(self.workers)]
        except (RuntimeError, NameError, ValueError, FileNotFoundError) as error:
            raise SaesteerError(
                f"Slurm did not take the workers ({one_line(error)}); correct --slurm."
            ) from error

    def wait(self, jobs: Sequence[Any], seconds: float = 5.0) -> None:
        """Wait until every job has ended."""
        while not all(job.done() for job in jobs):
            self.tell()
            time.sleep(seconds)
        self.tell()
        if self.study.is_open():
            raise SaesteerError(
                f"the jobs ended before the sweep did; see {jobs[0].paths.folder.parent}, and run "
                "the same command again to go on."
            )

    def ray(self, address: str | None = None) -> list[dict[str, Any]]:
        """Run workers as tasks of a Ray cluster, and return what each did, and where.

        Every node must see the study: its folder by the same path, or its database. Each worker
        gets one GPU where the cluster has any, so that no two trials share one; there are no more
        then.

        Args:
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
            threads = self.threads or 1
            gpus = int(ray.cluster_resources().get("GPU", 0))
            count = min(self.workers, gpus) if gpus else self.workers
            nodes = sum(node["Alive"] for node in ray.nodes())
            what = "one GPU" if gpus else f"{threads} CPUs"
            self.progress.say(f"Ray: {count} workers with {what} each, on {nodes} nodes")
            task = ray.remote(_ray_task).options(
                num_cpus=threads,
                num_gpus=1 if gpus else 0,
                # Another worker takes over the trial; a task run twice would be one too many.
                max_retries=0,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": self.environment(threads)},
            )
            asked = (self.study.where, self.study.sweep.study, self.parent)
            return self._gather(ray, [task.remote(*asked) for _ in range(count)])
        finally:
            if begun:
                ray.shutdown()

    def _gather(self, ray: Any, pending: list[Any]) -> list[dict[str, Any]]:
        reports, errors = [], []
        while pending:
            ended, pending = ray.wait(pending, timeout=1.0)
            self.tell()
            for one in ended:
                try:
                    reports.append(ray.get(one))
                except ray.exceptions.RayError as error:
                    errors.append(" ".join(str(error).split())[-300:])
                    self.progress.say(
                        "a worker of the cluster is gone; the others take over its trial"
                    )
        if errors and self.study.is_open():
            raise SaesteerError(
                f"{len(errors)} workers of the cluster failed ({errors[0]}); correct that and run "
                "the same command again to go on."
            )
        return reports


def slurm_options(words: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters from words such as "partition=gpu"."""
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--slurm {word!r} is not of the form key=value, such as timeout_min=60; write it "
                "so."
            )
    return dict(map(read_word, words))


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


def _connect_ray(ray: Any, address: str | None) -> None:
    # A cluster that is begun here would report on itself.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SaesteerError(
            f"the Ray cluster {address or 'of this machine'} cannot be reached "
            f"({one_line(error)}); check RAY_ADDRESS."
        ) from error


def _ray_task(where: str, name: str, parent: str | None) -> dict[str, Any]:
    import ray

    from saesteer.sweeps.worker import run_worker

    worker = run_worker(where, name=name, parent=parent)
    node = ray.get_runtime_context().get_node_id()
    return {"done": worker.done, "failed": worker.failed, "node": node}
