"""A sweep file in W&B's own layout, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from saesteer.sweeps.overrides import parse_word
from saesteer.sweeps.parameters import Parameter, read_parameter
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, read_yaml

# The words of the commands that run an experiment from a settings file.
COMMANDS = {
    "run": ("run",),
    "compare": ("compare",),
    "corrupt": ("corrupt", "run"),
    "patch": ("patch", "run"),
    "probe": ("probe", "train"),
}
PROGRAM = "saesteer"
# What stands for the trial's parameters in a command.
_ARGUMENTS = ("${args", "${args_no_hyphens}", "${args_json")


class Metric(Settings):
    """What is looked for.

    Attributes:
        name: A name of `saesteer.sweeps.trials`, such as "effect", or a dotted path in the run's
            metrics.json.
        goal: Minimise, W&B's default, or maximise.
        target: A value that is good enough: no trial is begun once one has reached it.
    """

    name: str = Field(min_length=1)
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None


class EarlyTerminate(Settings):
    """W&B's hyperband; see `saesteer.sweeps.early` for what becomes of it."""

    type: Literal["hyperband"]
    min_iter: int | None = Field(default=None, ge=1)
    max_iter: int | None = Field(default=None, ge=1)
    s: int | None = Field(default=None, ge=1)
    eta: float = Field(default=3.0, gt=1)
    strict: bool = False


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


@dataclass(frozen=True)
class SweepFile:
    """A checked sweep file.

    Attributes:
        file: Where it was read.
        name: What the sweep is called.
        kind: What a trial is: one of `COMMANDS`.
        base: The trial's settings file.
        words: Settings that its command names besides, as key=value.
        method: grid, random or bayes.
        metric: What is looked for; None for a grid without one.
        parameters: What is searched, constants among them.
        early: When trials are ended early, if at all.
        run_cap: The most trials.
    """

    file: Path
    name: str
    kind: str
    base: Path
    words: tuple[str, ...]
    method: str
    metric: Metric | None
    parameters: tuple[Parameter, ...]
    early: EarlyTerminate | None = None
    run_cap: int | None = None


def read_sweep_file(path: str | Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        ConfigError: It is missing, not YAML, or a field is unknown, missing or does not fit.
    """
    file = Path(path)
    data = read_yaml(file, empty="sweep; write method, parameters and command")
    fields = _checked(data, file)
    kind, base, words = _command(fields, file)
    parameters = read_parameters(fields.parameters, str(file))
    if fields.metric is None and fields.method == "bayes":
        raise ConfigError(f"{file}: bayes needs a metric with name and goal; give one.")
    return SweepFile(
        file=file,
        name=_plain_name(fields.name or file.stem),
        kind=kind,
        base=base,
        words=words,
        method=fields.method,
        metric=fields.metric,
        parameters=parameters,
        early=fields.early_terminate,
        run_cap=fields.run_cap,
    )


def read_parameters(data: Mapping[str, Any], place: str) -> tuple[Parameter, ...]:
    """Check the parameters of a sweep; nested ones get dotted names.

    Args:
        data: As the file has them.
        place: The file, for errors.

    Raises:
        ConfigError: A parameter does not fit, or two have one name.
    """
    found: dict[str, Parameter] = {}
    for name, fields, where in _leaves(data, "", f"{place}: parameters"):
        twin = next((n for n in found if _overlap(n, name)), None)
        if twin is not None:
            raise ConfigError(f"{where}: {name} and {twin} set the same thing; leave one out.")
        found[name] = read_parameter(name, fields, where)
    return tuple(found.values())


def _leaves(data: Mapping[str, Any], prefix: str, place: str) -> list[tuple[str, Any, str]]:
    found = []
    for key, fields in data.items():
        name, where = f"{prefix}{key}", f"{place}.{key}"
        if not all(str(key).split(".")):
            raise ConfigError(f"{where} is no name of a setting; write it as a.b.")
        inner = fields.get("parameters") if isinstance(fields, Mapping) else None
        if inner is None:
            found.append((name, fields, where))
        elif not isinstance(inner, Mapping) or len(fields) > 1 or not inner:
            raise ConfigError(
                f"{where}: parameters stands alone and holds parameters by name; correct it."
            )
        else:
            found += _leaves(inner, f"{name}.", f"{where}.parameters")
    return found


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _checked(data: dict[str, Any], file: Path) -> _Fields:
    try:
        return _Fields.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            said = "is no field of a sweep that saesteer knows"
        else:
            said = str(first["msg"][:1]).lower() + str(first["msg"][1:])
        raise ConfigError(f"{file}: {field}: {said}; correct it.") from None


def _command(fields: _Fields, file: Path) -> tuple[str, Path, tuple[str, ...]]:
    """Return what a trial is, its settings file and the settings that the command names."""
    example = f"[${{env}}, {PROGRAM}, run, configs/agreeableness.yaml, ${{args_no_hyphens}}]"
    words = _words(fields)
    if words is None:
        raise ConfigError(f"{file}: command does not call {PROGRAM}; write it as {example}.")
    kind = next((k for k, known in COMMANDS.items() if tuple(words[: len(known)]) == known), None)
    behind = words[len(COMMANDS[kind]) :] if kind else []
    if kind is None or not behind or behind[0].startswith(("-", "${")):
        known = ", ".join(" ".join(command) for command in COMMANDS.values())
        raise ConfigError(
            f"{file}: command must call {PROGRAM} with one of {known} and a settings file; write "
            f"it as {example}."
        )
    rest = [word for word in behind[1:] if not word.startswith(_ARGUMENTS)]
    settings = []
    while rest:
        word = rest.pop(0)
        if word == "--set" and rest:
            word = rest.pop(0)
        try:
            parse_word(word.removeprefix("--set="))
        except ConfigError:
            raise ConfigError(
                f"{file}: command: {word!r} is neither key=value nor ${{args_no_hyphens}}; leave "
                "it out."
            ) from None
        settings.append(word.removeprefix("--set="))
    return kind, Path(behind[0]), tuple(settings)


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
    named = words[:1]
    called = bool(named) and (
        named[0].rpartition("/")[2] == PROGRAM or named[0] == f"{PROGRAM}.cli.main"
    )
    return words[1:] if called else None


def _plain_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return kept.strip("-._")[:60] or "sweep"


def settings_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words of the form key=value hold."""
    found: dict[str, Any] = {}
    for word in words:
        found |= parse_word(word)
    return found
