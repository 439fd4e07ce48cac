"""The commands of all experiments, made of their kinds' settings."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from saesteer.cli.options import (
    AsJson,
    DryRun,
    Launcher,
    Model,
    Overrides,
    SlurmOptions,
    SuggestSite,
    Threads,
)
from saesteer.utils.terminal import say, say_json
from saesteer.utils.text import near_names

if TYPE_CHECKING:
    from saesteer.experiments.base import Experiment

_SETTING = re.compile(r"[A-Za-z_][\w.]*\s*=")

_OPTIONS: dict[str, Any] = {
    "model": Model,
    "sae": Annotated[str | None, typer.Option("--sae", help="smollm2, a folder, or release:id.")],
    "kl": Annotated[
        float | None,
        typer.Option("--kl", help="The KL divergence, nats per token, that vectors are given."),
    ],
    "persona": Annotated[
        list[str] | None,
        typer.Option(help="Pairs to compare on, in place of the file's: a bundled name or a file."),
    ],
    "describe": Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="POSITIVE NEGATIVE",
            help='Each side in a line, such as "a kind person" "a cruel person".',
        ),
    ],
    "only": Annotated[list[str] | None, typer.Option(help="Only these of the personas, by name.")],
    "workers": Annotated[
        int | None,
        typer.Option(min=1, help="How many processes, jobs or tasks share the work at once."),
    ],
    "launcher": Annotated[Launcher | None, typer.Option(help="Where they run: here if left out.")],
    "threads": Threads,
    "slurm": SlurmOptions,
    "suggest_site": SuggestSite,
    "n": Annotated[int | None, typer.Option("--n", min=2, help="How many pairs of prompts.")],
    "seed": Annotated[int | None, typer.Option(min=0, help="Seeds names, places and objects.")],
    "eight": Annotated[
        bool | None, typer.Option("--eight", help="The eight well-known prompts instead.")
    ],
    "circuit": Annotated[
        bool | None, typer.Option("--circuit/--no-circuit", help="Search a circuit of heads.")
    ],
}
# The options of each command, with the settings that they stand for, as --set takes them.
_MODEL, _SAE = ["model.name={}"], ["sae={}"]
_SHARED: dict[str, list[str]] = {"workers": [], "launcher": [], "threads": [], "slurm": []}
_PATCH: dict[str, list[str]] = {"model": _MODEL, "sae": _SAE, "suggest_site": [], **_SHARED}
_TAKES: dict[str, dict[str, list[str]]] = {
    "steer": {"model": _MODEL, "sae": _SAE, "kl": ["evaluation.kl_target={}"]},
    "compare": {
        "model": _MODEL,
        "sae": _SAE,
        "kl": [
            "evaluation.kl_targets=[{}]",
            "evaluation.headline_kl_target={}",
            "writing.kl_targets=[{}]",
        ],
        "persona": ["personas={}"],
        "describe": ["describe={}"],
        "only": [],
        **_SHARED,
    },
    "corrupt": {"model": _MODEL},
    "patch": _PATCH,
    "ioi": {
        **_PATCH,
        "n": ["pairs.ioi.n={}"],
        "seed": ["seed={}"],
        "eight": ["pairs.ioi.eight={}"],
        "circuit": [],
    },
    "probe": {"model": _MODEL, "sae": ["reading.sae={}"], **_SHARED},
    "steering_bench": {"model": _MODEL, "sae": _SAE},
    "axbench": {"model": _MODEL, "sae": _SAE},
    "train_sae": {"model": _MODEL},
}


class DefaultGroup(TyperGroup):
    """A group whose first command is meant where none is named: `saesteer probe my.csv`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command that was left out, unless the first word is a misspelt one."""
        if args and args[0] not in (*self.commands, "--help"):
            near = near_names(args[0], self.commands, cutoff=0.7)
            if not near or re.search(r"[./]", args[0]):
                args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def experiment_command(kind: str, about: str, *, name: str | None = None) -> Callable[..., None]:
    """Return the command that runs a kind of experiment, for typer.

    Args:
        kind: The kind, by its name in the registry.
        about: What it says of itself.
        name: The one bundled configuration that it runs; any settings or data if None.
    """
    shown = "KEY=VALUE" if name else "SOURCE|KEY=VALUE"
    what = "Settings." if name else "A bundled name, a file of data or a YAML file; settings."
    given: dict[str, Any] = {
        "words": Annotated[list[str] | None, typer.Argument(metavar=shown, help=what)],
        "set_": Overrides,
        **{option: _OPTIONS[option] for option in _TAKES[name or kind]},
        "dry_run": DryRun,
        "print_config": Annotated[
            bool, typer.Option("--print-config", help="Print all settings as YAML, and do nothing.")
        ],
        "as_json": AsJson,
    }
    flags = ("dry_run", "print_config", "as_json", "suggest_site")

    def command(**chosen: Any) -> None:
        _run(kind, name, **chosen)

    command.__doc__ = about
    command.__annotations__ = {**given, "return": None}
    parameters = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=False if option in flags else None,
        )
        for option, annotation in given.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _run(
    kind: str,
    name: str | None,
    *,
    words: list[str] | None,
    set_: list[str] | None,
    dry_run: bool,
    print_config: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from saesteer.experiments.registry import experiment_named, full_yaml, load_experiments
    from saesteer.sweeps.overrides import swept_overrides
    from saesteer.utils.errors import ConfigError
    from saesteer.utils.progress import terminal_progress

    sources, settings = _divided(words or ())
    if name is not None and sources:
        raise ConfigError(f"{sources[0]!r} is no setting of the form key=value; correct it.")
    sources = [name] if name is not None else sources
    if not sources:
        raise ConfigError(
            f"there is nothing to run; give a name, a file of data or a YAML file (saesteer "
            f"configs lists the bundled ones of kind {kind})."
        )
    swept = swept_overrides(settings, os.environ)
    overrides = [*_shortcuts(name or kind, options), *(set_ or ()), *swept]
    # All of them are read before the first one is run.
    configs = load_experiments(sources, overrides, kind=kind)
    if print_config:
        say("---\n".join(full_yaml(config) for config in configs), end="")
        return
    found = []
    for config in configs:
        experiment: Any = experiment_named(kind)(config, terminal_progress())
        if options.get("only"):
            experiment.only(options["only"])
        if dry_run:
            found.append(_planned(experiment))
            if not as_json:
                _show_plan(kind, experiment)
        else:
            _share_out(experiment, **{option: options.get(option) for option in _SHARED})
            results = experiment.run()
            found.append(results.metrics)
            if not as_json:
                _show_found(experiment, results, suggest=bool(options.get("suggest_site")))
    if as_json:
        say_json(found[0] if len(found) == 1 else found)


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return sources, and settings of the form key=value."""
    settings = [word for word in words if _SETTING.match(word) and not os.path.exists(word)]
    return [word for word in words if word not in settings], settings


def _shortcuts(command: str, options: dict[str, Any]) -> list[str]:
    """Return the settings that options stand for."""
    found = ["circuit=null"] if options.get("circuit") is False else []
    for option, settings in _TAKES[command].items():
        value = options[option]
        if value not in (None, []):
            # JSON is YAML, whatever a name holds.
            found += [setting.format(json.dumps(value)) for setting in settings]
    return found


def _share_out(
    experiment: Experiment[Any],
    *,
    workers: int | None,
    launcher: Launcher | None,
    threads: int | None,
    slurm: list[str] | None,
) -> None:
    if launcher in (None, Launcher.local) and (workers or 1) == 1:
        return
    from saesteer.experiments.launch import make_elsewhere, slurm_options

    where, settings = launcher or Launcher.local, slurm_options(slurm or ())
    how: Any = {"threads": threads, "options": settings}
    experiment.elsewhere = lambda given: make_elsewhere(given, where, workers, **how)


def part_command(
    kind: Annotated[str, typer.Argument(help="The kind of experiment.")],
    folder: Annotated[Path, typer.Argument(help="The folder of its run, with its settings.")],
    name: Annotated[str, typer.Option(help="Which of its parts.")],
    dtype: Annotated[str | None, typer.Option(help="What model.dtype auto stands for.")] = None,
) -> None:
    """Make one part of an experiment that shares them out; --workers calls this."""
    from saesteer.experiments.registry import experiment_named, load_experiments
    from saesteer.experiments.results import CONFIG
    from saesteer.tracking.liveness import Heartbeat
    from saesteer.utils.errors import MismatchError
    from saesteer.utils.progress import terminal_progress

    (config,) = load_experiments([str(folder / CONFIG)], kind=kind)
    experiment = experiment_named(kind)(config, terminal_progress())
    if experiment.folder.path.absolute() != folder.absolute():
        raise MismatchError(
            f"the settings of {folder} lead to {experiment.folder.path} here, so data, model or "
            "version differ from those of the machine that began it; put the same in place."
        )
    experiment.settled_dtype = dtype
    giver = os.getppid()

    def stop_alone() -> None:
        # Whoever gave this part out is gone, and with it who would wait: another will be given it.
        if os.getppid() != giver:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Heartbeat(stop_alone, 1.0):
        experiment.make(name)


def _planned(experiment: Experiment) -> dict[str, Any]:
    return {
        "folder": str(experiment.folder.path),
        "finished": experiment.finished,
        "to_do": [stage.name for stage in experiment.pending()],
        "settings": experiment.config.model_dump(mode="json"),
    }


def _show_plan(kind: str, experiment: Any) -> None:
    if kind == "steer":
        from saesteer.cli.show import show_steer_plan

        show_steer_plan(experiment)
    elif kind == "compare":
        from saesteer.cli.show import show_compare_plan

        show_compare_plan(experiment.plan)
    elif kind == "corrupt":
        from saesteer.cli.corrupt_show import show_corrupt_plan

        show_corrupt_plan(experiment.plan)
    elif kind == "patch":
        from saesteer.cli.patch_show import show_patch_plan

        show_patch_plan(experiment.plan)
    elif kind in ("steering_bench", "axbench"):
        from saesteer.cli.show import show_measure_plan

        show_measure_plan(experiment)
    elif kind == "probe":
        from saesteer.cli.probe_show import show_probe_plan

        show_probe_plan(experiment.plan)
    else:
        from saesteer.report.terminal import show_plan

        site = f"{experiment.config.site} of {experiment.plan.model.name}"
        to_do = ", ".join(stage.name for stage in experiment.pending()) or "nothing"
        show_plan({"site": site, "to do": to_do}, experiment.folder.path)


def _show_found(experiment: Any, results: Any, *, suggest: bool) -> None:
    from saesteer.report.terminal import console

    if suggest:
        from saesteer.cli.patch_show import show_suggestion
        from saesteer.experiments.patch.results import PatchResults

        show_suggestion(PatchResults(results.folder).suggestion(), results.metrics["verdict"])
    experiment.report(results).print(console(), results.folder.path)
