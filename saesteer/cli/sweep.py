"""`saesteer sweep`, and `saesteer worker`: one worker of it, wherever its study can be seen."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.options import DryRun, Launcher, Overrides, SlurmOptions, Threads

if TYPE_CHECKING:
    from saesteer.sweeps.study import SweepStudy
    from saesteer.sweeps.sweep import Sweep, Trial
    from saesteer.utils.progress import Progress

STUDY_URL = "SAESTEER_STUDY_URL"


def sweep_command(
    file: Annotated[
        Path, typer.Argument(help="A sweep file such as configs/sweeps/features.yaml.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="How many processes, jobs or tasks.")] = 1,
    launcher: Annotated[Launcher, typer.Option(help="Where they run.")] = Launcher.local,
    threads: Threads = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="The most trials, in place of the file's run_cap.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds random draws and bayes.")] = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed trials again.")
    ] = False,
    set_: Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar=STUDY_URL,
            show_envvar=True,
            help="A database's URL, where workers see no common folder.",
        ),
    ] = None,
    slurm: SlurmOptions = None,
    lease: Annotated[
        float,
        typer.Option(min=1, help="Seconds of silence after which another machine counts as gone."),
    ] = 120.0,
    dry_run: DryRun = False,
) -> None:
    """Run a sweep file, in W&B's own layout, and sum up what it found."""
    from saesteer.experiments.launch import slurm_options
    from saesteer.sweeps.launch import launch_workers
    from saesteer.sweeps.study import create_study
    from saesteer.sweeps.sweep_file import read_sweep
    from saesteer.utils.progress import terminal_progress

    options = slurm_options(slurm or ())
    sweep = read_sweep(file, overrides=set_ or (), count=count, seed=seed, lease=lease)
    trials = sweep.trials()
    sweep.check(trials)
    if dry_run:
        _show_plan(sweep, trials)
        return
    progress = terminal_progress()
    if sweep.early is not None:
        progress.say(sweep.early.note(sweep.kind))
    if launcher is Launcher.local:
        sweep = sweep.with_pinned_dtype()
    study = create_study(sweep, storage)
    study.enqueue(trials)
    if retry_failed:
        progress.say(f"{study.retry_failed()} failed trials are tried again")

    def work(parent: str | None) -> None:
        if launcher is Launcher.local and workers == 1:
            _work_here(study, threads, parent, progress)
            return
        if launcher is Launcher.local and (others := study.at_work()):
            earlier = f"workers of an earlier call go on (process {', '.join(others)})"
            progress.say(f"{earlier}; they share these")
        how: Any = {"threads": threads, "parent": parent, "progress": progress}
        launch_workers(study, workers, sweep.folder / "logs", **how).run(launcher, options)

    _run(study, work, progress)


def worker_command(
    study: Annotated[
        str,
        typer.Option(
            envvar=STUDY_URL,
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

    # Whoever ends a worker gets its running trial back into the queue, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    worker = run_worker(study, name=name, trials=trials, wait=wait, parent=parent)
    done = f"{worker.done} trials done, {worker.failed} failed"
    taken = f", {worker.reclaimed} taken over" if worker.reclaimed else ""
    terminal_progress().say(done + taken)


def _run(study: SweepStudy, work: Callable[[str | None], None], progress: Progress) -> None:
    """Run the trials that are left, and sum up whatever there is, also after Ctrl-C."""
    from saesteer.report.sweep import sweep_report
    from saesteer.report.terminal import console
    from saesteer.sweeps.results import sweep_record, tell_sweep, write_results
    from saesteer.tracking import recorded_run
    from saesteer.utils.run_folder import RunFolder
    from saesteer.utils.settings import TrackingSettings

    sweep = study.sweep
    with recorded_run(
        RunFolder(sweep.folder),
        kind="sweep",
        name=sweep.name,
        config=sweep.record(),
        group=sweep.study,
        wandb=TrackingSettings.model_validate(sweep.base.get("tracking") or {}),
        progress=progress,
    ) as recorded:
        try:
            if study.is_open() or study.may_ask():
                work(recorded.id)
        finally:
            record = sweep_record(sweep, study.rows())
            write_results(sweep, record)
        tell_sweep(recorded, record)
    sweep_report(record).print(console(), sweep.folder)


def _work_here(
    study: SweepStudy, threads: int | None, parent: str | None, progress: Progress
) -> None:
    import torch

    from saesteer.sweeps.worker import Worker

    if threads is not None:
        torch.set_num_threads(threads)
    Worker(study, progress, parent=parent).work()


def _show_plan(sweep: Sweep, trials: Sequence[Trial]) -> None:
    from saesteer.report import Table
    from saesteer.report.terminal import show_plan

    rows = []
    for parameter in sweep.parameters:
        words = ", ".join(str(value) for value in parameter.values[:12])
        if not words and parameter.min is None:
            words = f"mean {parameter.mu:g}, sigma {parameter.sigma:g}"
        words = words or f"{parameter.min:g} to {parameter.max:g}"
        rows.append([parameter.name, parameter.distribution, words])
    count = f"up to {sweep.count}" if sweep.method == "bayes" else len(trials)
    fields = {
        "sweep": sweep.name,
        "runs": f"{count} trials of saesteer {sweep.kind} {sweep.base_file} ({sweep.method})",
        "metric": f"{sweep.metric}, {sweep.goal}",
    }
    if sweep.early is not None:
        fields["early"] = sweep.early.note(sweep.kind)
    table = Table(["parameter", "drawn from", "values"], rows, most=len(rows))
    show_plan(fields, sweep.folder, [table])
