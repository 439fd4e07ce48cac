"""A sweep file in W&B's own layout, checked before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from saesteer.sweeps.overrides import merged, parse_word
from saesteer.sweeps.parameters import read_parameters, told
from saesteer.sweeps.sweep import EarlyTerminate, Sweep, check_metric, check_search
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, read_yaml

# What a command's first word runs; "run" or "train" may stand behind it.
KINDS = {
    "run": "run",
    "steer": "run",
    "compare": "compare",
    "corrupt": "corrupt",
    "patch": "patch",
    "probe": "probe",
}
# The command of a kind, where it is not its name.
COMMANDS = {"corrupt": "corrupt run", "patch": "patch run", "probe": "probe train"}
PROGRAM = "saesteer"
# What stands for the trial's parameters in a command.
_ARGUMENTS = ("${args", "${args_no_hyphens}", "${args_json")


class Metric(Settings):
    """What is looked for.

    Attributes:
        name: A name of the headline, such as "effect", or a dotted path in the
            run's metrics.json.
        goal: Minimise, W&B's default, or maximise.
        target: A value that is good enough: no trial is begun once one has reached it.
    """

    name: str = Field(min_length=1)
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None


class _Fields(Settings):
    method: Literal["grid", "random", "bayes"]
    parameters: dict[str, Any] = Field(min_length=1)
    program: str | None = None
    command: list[str] | None = None
    metric: Metric | None = None
    early_terminate: EarlyTerminate | None = None
    run_cap: int | None = Field(default=None, ge=1)
    name: str | None = None
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
    fields = _checked(read_yaml(file, empty="sweep; write method, parameters and command"), file)
    kind, base_file, words = _command(fields, file)
    parameters = read_parameters(fields.parameters, str(file))
    if fields.metric is None and fields.method == "bayes":
        raise ConfigError(f"{file}: bayes needs a metric with name and goal; give one.")
    metric = fields.metric or Metric(name="effect", goal="maximize")
    check_metric(kind, metric.name, str(file))
    base = read_yaml(base_file, empty="settings; write 'name: value' lines")
    for word in (*words, *overrides):
        base = merged(base, parse_word(word))
    sweep = Sweep(
        name=_plain_name(fields.name or file.stem),
        kind=kind,
        base=json.loads(json.dumps(base, default=str)),
        base_file=base_file,
        method=fields.method,
        parameters=parameters,
        metric=metric.name,
        goal=metric.goal,
        target=metric.target,
        count=count or fields.run_cap,
        seed=seed,
        early=fields.early_terminate,
        lease=lease,
        cwd=os.getcwd(),
    )
    check_search(sweep, str(file))
    return sweep


def _checked(data: dict[str, Any], file: Path) -> _Fields:
    unknown = next((name for name in data if name not in _Fields.model_fields), None)
    if unknown is not None:
        raise ConfigError(
            f"{file}: {unknown}: is no field of a sweep that saesteer knows; correct it."
        )
    try:
        return _Fields.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{file}: {told(error).removeprefix('.')}") from None


def _command(fields: _Fields, file: Path) -> tuple[str, str, list[str]]:
    """Return what a trial is, its settings file and the settings that the command names."""
    example = f"[${{env}}, {PROGRAM}, run, configs/agreeableness.yaml, ${{args_no_hyphens}}]"
    words = _words(fields)
    if words is None:
        raise ConfigError(f"{file}: command does not call {PROGRAM}; write it as {example}.")
    kind, behind = KINDS.get("".join(words[:1])), words[1:]
    if behind[:1] in (["run"], ["train"]):
        behind = behind[1:]
    if kind is None or not behind or behind[0].startswith(("-", "${")):
        raise ConfigError(
            f"{file}: command must call {PROGRAM} with one of {', '.join(KINDS)} and a settings "
            f"file; write it as {example}."
        )
    settings = []
    for word in behind[1:]:
        if word == "--set" or word.startswith(_ARGUMENTS):
            continue
        setting = word.removeprefix("--set=")
        try:
            parse_word(setting)
        except ConfigError:
            raise ConfigError(
                f"{file}: command: {word!r} is neither key=value nor ${{args_no_hyphens}}; leave "
                "it out."
            ) from None
        settings.append(setting)
    return kind, behind[0], settings


def _words(fields: _Fields) -> list[str] | None:
    """Return the words behind the program's name."""
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
    called = words[:1] == [f"{PROGRAM}.cli.main"] or (
        bool(words) and words[0].rpartition("/")[2] == PROGRAM
    )
    return words[1:] if called else None


def _plain_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return kept.strip("-._")[:60] or "sweep"
