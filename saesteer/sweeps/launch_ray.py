"""Workers on a Ray cluster: one for each GPU, or for a few CPUs where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from saesteer.sweeps.launch import Launch, worker_environment
from saesteer.sweeps.study import SweepStudy
from saesteer.utils.errors import SaesteerError
from saesteer.utils.progress import Progress

ADDRESS_VARIABLE = "RAY_ADDRESS"
WAIT_SECONDS = 1.0


def launch_ray(
    study: SweepStudy,
    launch: Launch,
    progress: Progress,
    tell: Callable[[], None],
    address: str | None = None,
) -> list[dict[str, Any]]:
    """Run workers as tasks of a Ray cluster and wait for them.

    Every node must see the study: its folder by the same path, or its database. Each worker gets
    one GPU where the cluster has any, so that no two trials share one.

    Args:
        study: The study.
        launch: How workers are started; with GPUs, there are no more than these.
        progress: Where to say what happens.
        tell: Called now and then, to show how far the study is.
        address: The cluster's; RAY_ADDRESS, or a cluster of this machine alone, if None.

    Returns:
        What each worker did, with its node.

    Raises:
        SaesteerError: Ray is not installed, cannot be reached, or a worker failed.
    """
    try:
        import ray
    except ImportError as error:
        raise SaesteerError("--launcher ray needs ray; pip install 'saesteer[ray]'.") from error
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address or os.environ.get(ADDRESS_VARIABLE))
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(launch.workers, gpus) if gpus else launch.workers
        what = "one GPU" if gpus else f"{launch.threads or 1} CPUs"
        nodes = sum(node["Alive"] for node in ray.nodes())
        progress.say(f"Ray: {count} workers with {what} each, on {nodes} nodes")
        task = ray.remote(_work).options(
            num_cpus=launch.threads or 1,
            num_gpus=1 if gpus else 0,
            # Another worker takes over the trial; a task run twice would be one too many.
            max_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": worker_environment(study, launch.threads or 1)},
        )
        where, name, cwd = study.where, study.spec.study, study.spec.cwd
        pending = [task.remote(where, name, cwd, launch.parent) for _ in range(count)]
        return _gather(ray, study, pending, progress, tell)
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise SaesteerError(
            f"the Ray cluster {address or 'of this machine'} cannot be reached ({said}); check "
            f"{ADDRESS_VARIABLE}."
        ) from error


def _gather(
    ray: Any,
    study: SweepStudy,
    pending: list[Any],
    progress: Progress,
    tell: Callable[[], None],
) -> list[dict[str, Any]]:
    reports, errors = [], []
    while pending:
        ended, pending = ray.wait(pending, timeout=WAIT_SECONDS)
        tell()
        for one in ended:
            try:
                reports.append(ray.get(one))
            except ray.exceptions.RayError as error:
                errors.append(" ".join(str(error).split())[-300:])
                progress.say("a worker of the cluster is gone; the others take over its trial")
    if errors and study.is_open():
        raise SaesteerError(
            f"{len(errors)} workers of the cluster failed ({errors[0]}); correct that and run the "
            "same command again to go on."
        )
    return reports


def _work(where: str, name: str, cwd: str, parent: str | None) -> dict[str, Any]:
    import ray

    from saesteer.sweeps.worker import run_worker

    report = run_worker(where, name=name, parent=parent)
    node = ray.get_runtime_context().get_node_id()
    return {"done": report.done, "failed": report.failed, "node": node}
