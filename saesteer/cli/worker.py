"""`saesteer worker`: one worker of a sweep, on any machine that sees its study."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from saesteer.sweeps.worker import WorkerReport


def worker_command(
    study: Annotated[
        str,
        typer.Option(
            envvar="SAESTEER_STUDY_URL",
            help="The folder of a sweep, or the URL of the database that holds it.",
            show_envvar=True,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Which of a database's studies; the only one if left out.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Leave after this many.")] = None,
    wait: Annotated[
        bool,
        typer.Option(help="Stay while others run trials, to take over those of workers that die."),
    ] = True,
    parent: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run trials of a sweep until none is left."""
    from saesteer.utils.progress import terminal_progress

    report = run_worker(study, name=name, trials=trials, wait=wait, parent=parent)
    done = f"{report.done} trials done, {report.failed} failed"
    taken = f", {report.reclaimed} taken over" if report.reclaimed else ""
    terminal_progress().say(done + taken)


def run_worker(
    where: str,
    *,
    name: str | None = None,
    trials: int | None = None,
    wait: bool = True,
    parent: str | None = None,
) -> WorkerReport:
    """Work on a study in this process, from where the sweep was started.

    Args:
        where: The study's folder or URL.
        name: Which one of a database's.
        trials: The most trials to run.
        wait: Whether to stay while others run trials.
        parent: The id of the sweep's own record.
    """
    from saesteer.sweeps.storage import is_url
    from saesteer.sweeps.study import open_study
    from saesteer.sweeps.worker import Worker
    from saesteer.utils.progress import terminal_progress

    progress = terminal_progress()
    place = where if is_url(where) else str(Path(where).absolute())
    study = open_study(place, name)
    if Path(study.spec.cwd).is_dir():
        # Where relative paths of the sweep's settings start.
        os.chdir(study.spec.cwd)
    else:
        progress.say(f"{study.spec.cwd} is not here; relative paths start at {Path.cwd()}")
    _pin_threads()
    return Worker(study, progress, parent=parent, wait=wait, most=trials).work()


def _pin_threads() -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        import torch

        # Where torch was imported before the variable was set.
        torch.set_num_threads(int(threads))


def _stop(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run one worker as a process of its own, which its launcher may end at any time."""
    import sys

    from saesteer.cli.main import _quiet_libraries
    from saesteer.utils.errors import SaesteerError

    # As in `saesteer.cli.main`: libraries' own bars would fill the log.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _quiet_libraries()
    # The running trial goes back into the queue, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    try:
        typer.run(worker_command)
    except SaesteerError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
