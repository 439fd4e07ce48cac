"""Where work runs: commands as processes of this machine, as jobs of Slurm or tasks of Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.experiments.kinds import kind_name
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.files import portable_name
from saesteer.utils.progress import Progress
from saesteer.utils.settings import read_word
from saesteer.utils.text import one_line, spoken_list

if TYPE_CHECKING:
    from saesteer.experiments.base import Experiment

POLL_SECONDS = 0.5
# A task that dies is started again so often: its machine may be gone, or its memory full.
MOST_RESTARTS = 3
# The exit codes of what said in a sentence why it cannot be done, and of what fell silent.
REFUSED, LOST = 2, -1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# submitit's parameters that not only Slurm knows.
_SHARED = (
    "name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node",
    "stderr_to_stdout",
)  # fmt: skip


class Task(NamedTuple):
    """A command that any machine can run which sees the same files."""

    # Of its log.
    name: str
    command: Sequence[str]
    # Whether what it is for is there, whoever made it.
    done: Callable[[], bool]


class Launch:
    """Runs tasks, so many at once, and those again whose process or machine is gone.

    What they print goes into a folder of logs. Each has so many CPU threads (a fair share of this
    machine's cores if None, and 1 on others) and a fair share of the GPUs, where there are any.

    Args:
        tasks: What is to be run.
        workers: How many at once.
        logs: The folder of logs; other machines must see it by the same path.
        threads: The CPU threads of each.
        environment: What the tasks' environment has besides; written nowhere.
        tell: Says how far they are; each that ends is told if None.
        progress: Where that is shown.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        workers: int,
        logs: Path,
        *,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        tell: Callable[[], str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.tasks, self.workers, self.logs = tasks, workers, logs.absolute()
        self.threads, self.environment = threads, dict(environment or {})
        self.progress = progress or Progress()
        self._line, self._told = tell, ""

    def run(self, launcher: str, options: Mapping[str, Any] | None = None) -> None:
        """Run them by "local", "slurm" (with submitit's parameters) or "ray"."""
        if launcher == "ray":
            self.ray()
        elif launcher == "slurm":
            self.slurm(options or {})
        else:
            self.local()

    def local(self) -> None:
        """Run them in processes of this machine."""
        workers = min(self.workers, len(self.tasks))
        threads = self.threads or max(1, (os.cpu_count() or 1) // workers)
        what = f"{len(self.tasks)} tasks, {workers} at once, {threads} threads each"
        self.progress.say(f"{what}; logs in {self.logs}")
        with ExitStack() as stack:

            def start(batch: Mapping[int, Task]) -> list[subprocess.Popen[bytes]]:
                found = []
                for slot, task in batch.items():
                    environment = self.environment | _gpus(slot, workers)
                    process = _started(task.command, threads, None, self._log(task), environment)
                    stack.callback(_end, process)
                    found.append(process)
                return found

            self._work(start, subprocess.Popen.poll, workers, POLL_SECONDS)

    def slurm(
        self, options: Mapping[str, Any], *, cluster: str = "slurm", seconds: float = 5.0
    ) -> None:
        """Run them as jobs, of which Slurm itself lets so many run at once.

        Args:
            options: submitit's own parameters, such as timeout_min, gpus_per_node or
                slurm_partition; names that only Slurm knows may leave out "slurm_".
            cluster: "slurm", or "local" for processes of this machine.
            seconds: How often to look.
        """

        def start(batch: Mapping[int, Task]) -> list[Any]:
            jobs = self.submit(list(batch.values()), options, cluster=cluster) if batch else []
            if jobs:
                names = spoken_list([job.job_id for job in jobs])
                self.progress.say(f"{cluster} jobs {names}; logs in {self.logs}")
            return jobs

        def code(job: Any) -> int | None:
            if not job.done():
                return None
            return LOST if job.exception() is not None else job.result()

        self._work(start, code, len(self.tasks), seconds)

    def submit(
        self, tasks: Sequence[Task], options: Mapping[str, Any], *, cluster: str = "slurm"
    ) -> list[Any]:
        """Submit tasks as one array of jobs, and return submitit's jobs."""
        try:
            import submitit
        except ImportError as error:
            raise SaesteerError(
                "--launcher slurm needs submitit; pip install 'saesteer[slurm]'."
            ) from error
        threads = self.threads or 1
        parameters = {"name": "saesteer", "timeout_min": 240, "stderr_to_stdout": True}
        parameters |= {"cpus_per_task": threads, "slurm_array_parallelism": self.workers}
        for name, value in options.items():
            plain = name in _SHARED or name.startswith(("slurm_", "local_"))
            parameters[name if plain else f"slurm_{name}"] = value
        # sbatch passes the environment on; what submitit is given is written into the logs.
        os.environ.update(self.environment)
        try:
            executor = submitit.AutoExecutor(folder=self.logs / "%j", cluster=cluster)
            executor.update_parameters(**parameters)
            with executor.batch():
                return [
                    executor.submit(_run_here, task.command, threads, os.getcwd(), self._log(task))
                    for task in tasks
                ]
        except (RuntimeError, NameError, ValueError, FileNotFoundError) as error:
            raise SaesteerError(
                f"Slurm did not take the jobs ({one_line(error)}); correct --slurm."
            ) from error

    def ray(self, address: str | None = None) -> list[str]:
        """Run them as tasks of a Ray cluster, and return the node of each that ended.

        Every node must see the logs and the results by the same paths, or have its database.

        Args:
            address: The cluster's; RAY_ADDRESS, or a cluster of this machine alone, if None.
        """
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise SaesteerError("--launcher ray needs ray; pip install 'saesteer[ray]'.") from error
        begun = not ray.is_initialized()
        if begun:
            _connect_ray(ray, address or os.environ.get("RAY_ADDRESS"))
        try:
            threads, nodes = self.threads or 1, [n for n in ray.nodes() if n["Alive"]]
            workers = min(self.workers, len(self.tasks))
            gpus = [int(node["Resources"].get("GPU", 0)) for node in nodes]
            each = max(1, min(sum(gpus) // workers, max(gpus))) if sum(gpus) else 0
            # No two tasks share a GPU.
            workers = min(workers, sum(gpus) // each) if each else workers
            what = f"{each} GPUs" if each else f"{threads} CPUs"
            self.progress.say(f"Ray: {workers} tasks at once with {what} each, {len(nodes)} nodes")
            remote = ray.remote(_run_on_ray).options(
                num_cpus=threads,
                num_gpus=each,
                # Those that are lost are started again by us, as everywhere.
                max_retries=0,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": self.environment},
            )
            places: list[str] = []

            def start(batch: Mapping[int, Task]) -> list[Any]:
                how = (threads, os.getcwd())
                return [remote.remote(t.command, *how, self._log(t)) for t in batch.values()]

            def code(reference: Any) -> int | None:
                if not ray.wait([reference], timeout=0)[0]:
                    return None
                try:
                    found, node = ray.get(reference)
                except RayError:
                    return LOST
                places.append(node)
                return found

            self._work(start, code, workers, POLL_SECONDS)
            return places
        finally:
            if begun:
                ray.shutdown()

    def _log(self, task: Task) -> Path:
        return self.logs / f"{portable_name(task.name)}.log"

    def _work(
        self,
        start: Callable[[Mapping[int, Task]], Sequence[Any]],
        code_of: Callable[[Any], int | None],
        workers: int,
        seconds: float,
    ) -> None:
        """Start tasks in so many slots; `code_of` what was started is its exit code, once known."""
        waiting, running = deque(self.tasks), dict[int, tuple[Task, Any]]()
        restarts, failed, ended = Counter[str](), list[Task](), 0
        while waiting or running:
            while waiting and waiting[0].done():
                waiting.popleft()
            free = [slot for slot in range(workers) if slot not in running][: len(waiting)]
            batch = {slot: waiting.popleft() for slot in free}
            for (slot, task), handle in zip(batch.items(), start(batch), strict=True):
                running[slot] = (task, handle)
            time.sleep(seconds)
            for slot, (task, handle) in list(running.items()):
                code = code_of(handle)
                if code is None:
                    continue
                del running[slot]
                if not code or task.done():
                    ended += 1
                    if self._line is None:
                        self.progress.say(f"{task.name} ended, {ended} of {len(self.tasks)}")
                    continue
                how = "is gone" if code == LOST else f"ended with code {code}"
                restarts[task.name] += 1
                if code == REFUSED or restarts[task.name] > MOST_RESTARTS:
                    failed.append(task)
                    self.progress.say(f"{task.name} {how}; see {self._log(task)}")
                else:
                    self.progress.say(f"{task.name} {how}; it is started again")
                    waiting.append(task)
            self._tell()
        # Another task, or another command, may have done it since.
        failed = [task for task in failed if not task.done()]
        if failed:
            names = spoken_list([task.name for task in failed])
            raise SaesteerError(
                f"{len(failed)} of {len(self.tasks)} tasks failed ({names}); see "
                f"{self._log(failed[0])}, correct that, and run the same command again to go on."
            )

    def _tell(self) -> None:
        line = "" if self._line is None else self._line()
        if line and line != self._told:
            self._told = line
            self.progress.say(line)


def make_elsewhere(
    experiment: Experiment[Any],
    launcher: str,
    workers: int | None,
    *,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Have an experiment's parts made, a task each: all at once if `workers` is None."""
    kind = kind_name(experiment.config.kind)
    command = [sys.executable, "-m", "saesteer.cli.main", "part", kind]
    # What "auto" stands for is settled once: each machine would measure it anew.
    dtype = str(experiment.dtype).removeprefix("torch.")
    command += [str(experiment.folder.path.absolute()), "--dtype", dtype, "--name"]
    names = list(experiment.parts())
    if launcher == "local" and len(names) == 1:
        # A stage makes it as well, without another process.
        return

    def made(name: str) -> bool:
        return name not in experiment.parts()

    tasks = [Task(name, [*command, name], partial(made, name)) for name in names]
    workers, logs = workers or len(tasks), experiment.folder.path / "logs"
    launch = Launch(tasks, workers, logs, threads=threads, progress=experiment.progress)
    launch.run(launcher, options)


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


def _started(
    command: Sequence[str],
    threads: int,
    folder: str | None,
    log: Path,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))
    with log.open("ab") as stream:
        return subprocess.Popen(
            list(command),
            env={**os.environ, **pinned, **environment},
            # Where relative paths of settings start.
            cwd=folder if folder is not None and Path(folder).is_dir() else None,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def _run_here(command: Sequence[str], threads: int, folder: str, log: Path) -> int:
    """Run a command on the machine that calls this, and return its exit code."""
    process = _started(command, threads, folder, log, {})
    try:
        return process.wait()
    finally:
        _end(process)


def _run_on_ray(command: Sequence[str], threads: int, folder: str, log: Path) -> tuple[int, str]:
    import ray

    return _run_here(command, threads, folder, log), ray.get_runtime_context().get_node_id()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # A trial that it has goes back into the queue.
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _gpus(slot: int, workers: int) -> dict[str, str]:
    """Return which GPUs a slot's task sees, where there are any: its share, or one."""
    import torch

    given = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    gpus = given or [str(number) for number in range(torch.cuda.device_count())]
    share = gpus[slot * len(gpus) // workers : (slot + 1) * len(gpus) // workers]
    own = share or gpus[slot % len(gpus) :][:1] if gpus else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}


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
