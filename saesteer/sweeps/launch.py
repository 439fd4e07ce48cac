"""The workers of a sweep, wherever they run: all run the same loop on one study."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from saesteer.experiments.launch import Launch, Task
from saesteer.sweeps.storage import URL_VARIABLE, is_url
from saesteer.sweeps.study import SweepStudy
from saesteer.utils.progress import Progress


def launch_workers(
    study: SweepStudy,
    workers: int,
    logs: Path,
    *,
    threads: int | None = None,
    parent: str | None = None,
    progress: Progress | None = None,
) -> Launch:
    """Return the launch of a study's workers; `parent` is the id of the sweep's own record."""
    # A database's URL goes by the environment, unseen.
    url, where = {URL_VARIABLE: study.where}, str(Path(study.where).absolute())
    here = is_url(study.where)
    command = [sys.executable, "-m", "saesteer.cli.main", "worker", "--name", study.sweep.study]
    command += [] if here else ["--study", where]
    command += [] if parent is None else ["--parent", parent]

    def closed() -> bool:
        return not study.is_open()

    tasks = [Task(f"worker-{number}", command, closed) for number in range(workers)]
    return Launch(
        tasks,
        workers,
        logs,
        threads=threads,
        environment=url if here else None,
        tell=partial(standing, study),
        progress=progress,
    )


def standing(study: SweepStudy) -> str:
    """Return how far a study is; nothing before its first trial has ended."""
    rows, sweep = study.rows(), study.sweep
    ended = [row for row in rows if row.state not in ("waiting", "running")]
    failed = sum(row.state == "failed" for row in rows)
    total = max(len(rows), sweep.count or 0) if sweep.method == "bayes" else len(rows)
    line = f"{len(ended)} of {total} trials ended" + (f", {failed} failed" if failed else "")
    values = [row.value for row in rows if row.value is not None]
    if values:
        best = max(values, key=lambda value: sweep.sign * value)
        line += f"; best {sweep.metric} {best:.4g}"
    return line if ended else ""
