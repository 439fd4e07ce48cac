"""Personas in several processes: each measures its share, and the caller sums up."""

from __future__ import annotations

import os
import subprocess
import sys

from saesteer.experiments.compare.plan import ComparePlan
from saesteer.experiments.results import CONFIG
from saesteer.utils.errors import SaesteerError
from saesteer.utils.progress import Progress


def measure_in_processes(plan: ComparePlan, n_workers: int, progress: Progress) -> None:
    """Measure personas in worker processes, which share nothing but the folder.

    A worker that is killed costs its persona's running record; the same command goes on.

    Args:
        plan: The comparison; every worker reads its settings from its folder.
        n_workers: How many processes.
        progress: Where to say what happens.

    Raises:
        SaesteerError: A worker failed; its own sentence stands above.
    """
    pending = [persona.name for persona in plan.personas if not persona.done]
    shares = [pending[start::n_workers] for start in range(n_workers)]
    workers = []
    threads = str(max(1, (os.cpu_count() or 1) // n_workers))
    try:
        for share in filter(None, shares):
            command = [sys.executable, "-m", "saesteer.cli.main", "compare"]
            command.append(str(plan.folder / CONFIG))
            for name in share:
                command += ["--only", name]
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            workers.append(subprocess.Popen([*command, "--measure-only"], env=environment))
        progress.say(f"{len(workers)} workers with {threads} threads each; {len(pending)} personas")
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
    if any(codes):
        raise SaesteerError(
            f"{sum(map(bool, codes))} of {len(codes)} workers failed, see above; correct that and "
            "run the same command again to go on."
        )
