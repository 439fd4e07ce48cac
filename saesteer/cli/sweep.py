"""`saesteer sweep`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.options import Overrides

if TYPE_CHECKING:
    from saesteer.sweeps.launch import Launch
    from saesteer.sweeps.spec import SweepSpec
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
    from saesteer.sweeps.early import early_note
    from saesteer.sweeps.launch import slurm_options
    from saesteer.sweeps.spec import check_spec, make_spec, with_pinned_dtype
    from saesteer.sweeps.study import create_study
    from saesteer.sweeps.sweep_file import read_sweep_file
    from saesteer.utils.progress import terminal_progress

    options = slurm_options(slurm or ())
    spec = make_spec(
        read_sweep_file(file), overrides=set_ or (), count=count, seed=seed, lease=lease
    )
    cells = spec.cells()
    check_spec(spec, cells)
    if dry_run:
        show_sweep_plan(spec, cells, console())
        return
    progress = terminal_progress()
    note = early_note(spec.hyperband, spec.kind)
    if note:
        progress.say(note)
    if launcher is Launcher.local:
        spec = with_pinned_dtype(spec)
    study = create_study(spec, storage)
    study.enqueue(cells)
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
    from saesteer.cli.show_sweep import show_sweep_result
    from saesteer.sweeps.launch import Launch
    from saesteer.sweeps.results import sweep_result, tell_sweep, write_results
    from saesteer.tracking.recording import recorded_run
    from saesteer.utils.run_folder import RunFolder
    from saesteer.utils.settings import TrackingSettings

    spec = study.spec
    folder = RunFolder(spec.folder)
    with recorded_run(
        folder,
        kind="sweep",
        name=spec.name,
        config=spec.as_dict(),
        group=spec.study,
        wandb=TrackingSettings.model_validate(spec.base.get("tracking") or {}),
        root=spec.folder.parent.parent,
        progress=progress,
    ) as recorded:
        launch = Launch(workers, spec.folder / "logs", threads, recorded.id)
        try:
            if study.is_open() or _asks(spec, study):
                _work(study, launch, launcher, options, progress)
        finally:
            result = sweep_result(spec, study.rows())
            write_results(result, spec.folder)
        tell_sweep(recorded, result)
    show_sweep_result(result, spec.folder, console())


def _asks(spec: SweepSpec, study: SweepStudy) -> bool:
    return spec.method == "bayes" and len(study.rows()) < (spec.count or 0)


def _work(
    study: SweepStudy,
    launch: Launch,
    launcher: Launcher,
    options: dict[str, object],
    progress: Progress,
) -> None:
    from saesteer.cli.show_sweep import Tally
    from saesteer.sweeps.launch import launch_local, launch_submitit, wait_for_jobs

    tally = Tally(study, progress)
    if launcher is Launcher.ray:
        from saesteer.sweeps.launch_ray import launch_ray

        launch_ray(study, launch, progress, tally)
    elif launcher is Launcher.slurm:
        jobs = launch_submitit(study, launch, options)
        progress.say(f"Slurm jobs {', '.join(job.job_id for job in jobs)}; logs in {launch.logs}")
        wait_for_jobs(study, jobs, tally)
    elif launch.workers > 1:
        launch_local(study, launch, progress, tally)
    else:
        _work_here(study, launch, progress)
    tally()


def _work_here(study: SweepStudy, launch: Launch, progress: Progress) -> None:
    import torch

    from saesteer.sweeps.worker import Worker

    if launch.threads is not None:
        torch.set_num_threads(launch.threads)
    Worker(study, progress, parent=launch.parent).work()
