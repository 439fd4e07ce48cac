"""A sweep file in W&B's own layout, checked before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from saesteer.experiments.registry import experiment_named
from saesteer.sweeps.overrides import merged
from saesteer.sweeps.parameters import BELLS, read_parameters
from saesteer.sweeps.sweep import EarlyTerminate, Sweep
from saesteer.utils.errors import ConfigError
from saesteer.utils.redaction import check_no_secret
from saesteer.utils.settings import Settings, parse_config, read_word, read_yaml

# What a command's first word may be; "run" or "train" may stand behind it.
KINDS = ("run", "steer", "compare", "corrupt", "patch", "probe")
PROGRAM = "saesteer"
EXAMPLE = f"[${{env}}, {PROGRAM}, run, configs/agreeableness.yaml, ${{args_no_hyphens}}]"
# What stands for the trial's parameters in a command.
_ARGUMENTS = ("${args", "${args_no_hyphens}", "${args_json")


class Metric(Settings):
    """What is looked for."""

    # A name of `saesteer.experiments.results`, such as "effect", or a dotted path in metrics.json.
    name: str = Field(min_length=1)
    # W&B's default.
    goal: Literal["minimize", "maximize"] = "minimize"
    # A value that is good enough: no trial is begun once one has reached it.
    target: float | None = None


class SweepFile(Settings):
    """The fields of a sweep file."""

    method: Literal["grid", "random", "bayes"]
    parameters: dict[str, Any] = Field(min_length=1)
    program: str | None = None
    command: list[str] | None = None
    metric: Metric | None = None
    early_terminate: EarlyTerminate | None = None
    run_cap: int | None = Field(default=None, ge=1)
    name: Annotated[str, AfterValidator(check_no_secret)] | None = None
    # W&B's own affairs, which a local sweep has no use for.
    description: str | None = None
    project: str | None = None
    entity: str | None = None
    controller: dict[str, Any] | None = None


def read_sweep(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    count: int | None = None,
    seed: int = 0,
    lease: float = 120.0,
) -> Sweep:
    """Read a sweep file and the settings file that its command names, and check both.

    Args:
        path: The sweep file.
        overrides: Settings of the form a.b=c that win over the settings file's and the command's;
            parameters win over them.
        count: The most trials, in place of the file's run_cap.
        seed: Seeds the draws.
        lease: Seconds of silence after which another machine's worker counts as gone.
    """
    file = Path(path)
    data = read_yaml(file, empty="sweep; write method, parameters and command")
    fields = parse_config(data, kind=SweepFile, place=str(file))
    kind, base_file, words = _command(fields, file)
    if fields.metric is None and fields.method == "bayes":
        raise ConfigError(f"{file}: bayes needs a metric with name and goal; give one.")
    metric = fields.metric or Metric(name="effect", goal="maximize")
    base = read_yaml(base_file, empty="settings; write 'name: value' lines")
    for word in (*words, *overrides):
        base = merged(base, dict([read_word(word)]))
    sweep = Sweep(
        name=_plain_name(fields.name or file.stem),
        kind=kind,
        base=json.loads(json.dumps(base, default=str)),
        base_file=base_file,
        method=fields.method,
        parameters=read_parameters(fields.parameters, str(file)),
        metric=metric.name,
        goal=metric.goal,
        target=metric.target,
        count=count or fields.run_cap,
        seed=seed,
        early=fields.early_terminate,
        lease=lease,
        cwd=os.getcwd(),
    )
    _check_search(sweep, file)
    return sweep


def _check_search(sweep: Sweep, file: Path) -> None:
    """Refuse a metric that no trial can have, a search without end, and what bayes cannot do."""
    # What another experiment's headline holds may depend on its settings.
    known = experiment_named(sweep.kind).numbers
    if known and sweep.metric not in known and "." not in sweep.metric:
        raise ConfigError(
            f"{file}: metric.name {sweep.metric!r} is not known; choose one of {', '.join(known)}, "
            "or a dotted path in metrics.json."
        )
    if sweep.count is None and sweep.method != "grid":
        raise ConfigError(f"{file}: {sweep.method} never ends by itself; give run_cap, or --count.")
    for parameter in sweep.parameters if sweep.method == "bayes" else ():
        if parameter.distribution in BELLS:
            raise ConfigError(
                f"{file}: parameters.{parameter.name}: bayes here needs bounds, and "
                f"{parameter.distribution} has none; give min and max."
            )


def _command(fields: SweepFile, file: Path) -> tuple[str, str, list[str]]:
    """Return what a trial is, its settings file and the settings that the command names."""
    words = _words(fields)
    if words is None:
        raise ConfigError(f"{file}: command does not call {PROGRAM}; write it as {EXAMPLE}.")
    kind, behind = "".join(words[:1]), words[1:]
    if behind[:1] in (["run"], ["train"]):
        behind = behind[1:]
    if kind not in KINDS or not behind or behind[0].startswith(("-", "${")):
        raise ConfigError(
            f"{file}: command must call {PROGRAM} with one of {', '.join(KINDS)} and a settings "
            f"file; write it as {EXAMPLE}."
        )
    settings = [
        word.removeprefix("--set=")
        for word in behind[1:]
        if word != "--set" and not word.startswith(_ARGUMENTS)
    ]
    for setting in settings:
        if "=" not in setting or setting.startswith("-"):
            raise ConfigError(
                f"{file}: command: {setting!r} is neither key=value nor ${{args_no_hyphens}}; "
                "leave it out."
            )
    return "run" if kind == "steer" else kind, behind[0], settings


def _words(fields: SweepFile) -> list[str] | None:
    """Return the words behind the program's name; None where another one is called."""
    program = (fields.program or "").split()
    if fields.command is None:
        # A settings file, or the whole command without its parameters.
        if len(program) == 1 and program[0].endswith((".yaml", ".yml")):
            return ["run", *program]
        return program[1:] if program[:1] == [PROGRAM] else None
    words: list[str] = []
    for word in fields.command:
        words += program if word == "${program}" else [word]
    words = [word for word in words if word not in ("${env}", "${interpreter}", "python", "-m")]
    if words[:1] == [f"{PROGRAM}.cli.main"] or "".join(words[:1]).rpartition("/")[2] == PROGRAM:
        return words[1:]
    return None


def _plain_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return kept.strip("-._")[:60] or "sweep"
