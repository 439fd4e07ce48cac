"""`saesteer sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.options import Overrides

if TYPE_CHECKING:
    from saesteer.sweeps.launch import Launch
    from saesteer.sweeps.study import SweepStudy
    from saesteer.utils.progress import Progress


class Launcher(StrEnum):
    """Where workers run."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


def sweep_command(
    file: Annotated[
        Path, typer.Argument(help="A sweep file such as configs/sweeps/features.yaml.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="How many processes, jobs or tasks.")] = 1,
    launcher: Annotated[Launcher, typer.Option(help="Where they run.")] = Launcher.local,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each; a fair share if left out.")
    ] = None,
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
            envvar="SAESTEER_STUDY_URL",
            show_envvar=True,
            help="A database's URL, where workers see no common folder.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of submitit, such as partition=gpu."),
    ] = None,
    lease: Annotated[
        float,
        typer.Option(min=1, help="Seconds of silence after which another machine counts as gone."),
    ] = 120.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load and write nothing.")
    ] = False,
) -> None:
    """Run a sweep file, in W&B's own layout, and sum up what it found."""
    from saesteer.cli.show import console
    from saesteer.cli.show_sweep import show_sweep_plan
    from saesteer.sweeps.launch import slurm_options
    from saesteer.sweeps.study import create_study
    from saesteer.sweeps.sweep_file import read_sweep
    from saesteer.utils.progress import terminal_progress

    options = slurm_options(slurm or ())
    sweep = read_sweep(file, overrides=set_ or (), count=count, seed=seed, lease=lease)
    trials = sweep.trials()
    sweep.check(trials)
    if dry_run:
        show_sweep_plan(sweep, trials, console())
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
    _run(study, workers, threads, launcher, options, progress)


def _run(
    study: SweepStudy,
    workers: int,
    threads: int | None,
    launcher: Launcher,
    options: dict[str, object],
    progress: Progress,
) -> None:
    """Run the trials that are left, and sum up whatever there is, also after Ctrl-C."""
    from saesteer.cli.show import console
    from saesteer.cli.show_sweep import Tally, show_sweep_result
    from saesteer.sweeps.launch import Launch
    from saesteer.sweeps.results import sweep_result, tell_sweep, write_results
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
        tally = Tally(study, progress)
        launch = Launch(workers, sweep.folder / "logs", threads, recorded.id, progress, tally)
        try:
            if study.is_open() or _may_ask(study):
                _work(study, launch, launcher, options)
                tally()
        finally:
            result = sweep_result(sweep, study.rows())
            write_results(result, sweep.folder)
        tell_sweep(recorded, result)
    show_sweep_result(result, sweep.folder, console())


def _may_ask(study: SweepStudy) -> bool:
    return study.sweep.method == "bayes" and len(study.rows()) < (study.sweep.count or 0)


def _work(
    study: SweepStudy, launch: Launch, launcher: Launcher, options: dict[str, object]
) -> None:
    from saesteer.sweeps.launch import launch_local, launch_ray, launch_submitit, wait_for_jobs

    if launcher is Launcher.ray:
        launch_ray(study, launch)
    elif launcher is Launcher.slurm:
        jobs = launch_submitit(study, launch, options)
        names = ", ".join(job.job_id for job in jobs)
        launch.progress.say(f"Slurm jobs {names}; logs in {launch.logs}")
        wait_for_jobs(study, launch, jobs)
    elif launch.workers > 1:
        launch_local(study, launch)
    else:
        _work_here(study, launch)


def _work_here(study: SweepStudy, launch: Launch) -> None:
    import torch

    from saesteer.sweeps.worker import Worker

    if launch.threads is not None:
        torch.set_num_threads(launch.threads)
    Worker(study, launch.progress, parent=launch.parent).work()
