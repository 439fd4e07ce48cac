"""`saesteer worker`: one worker of a sweep, on any machine that sees its study."""

from __future__ import annotations

import signal
from typing import Annotated

import typer


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
    from saesteer.sweeps.worker import run_worker
    from saesteer.utils.progress import terminal_progress

    report = run_worker(study, name=name, trials=trials, wait=wait, parent=parent)
    done = f"{report.done} trials done, {report.failed} failed"
    taken = f", {report.reclaimed} taken over" if report.reclaimed else ""
    terminal_progress().say(done + taken)


def _stop(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run one worker as a process of its own, which its launcher may end at any time."""
    import sys

    from saesteer.cli.quiet import quiet_libraries
    from saesteer.utils.errors import SaesteerError

    quiet_libraries()
    # The running trial goes back into the queue, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    try:
        typer.run(worker_command)
    except SaesteerError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
