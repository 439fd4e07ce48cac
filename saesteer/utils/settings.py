"""The settings of a run (`configs/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from saesteer.utils.errors import ConfigError
from saesteer.utils.limits import SETTINGS_BYTES, parse_yaml, read_bytes
from saesteer.utils.text import nearest, one_line, shorten

# Marks settings that name something to read or write, or to fetch.
_PLACE = "place"
Source = Annotated[str, _PLACE]
# Several of them, or one by itself.
Sources = Annotated[
    list[Source],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
# Old words and today's; the old ones are read for one release.
_RENAMED = {
    "budget": "kl_target",
    "budgets": "kl_targets",
    "headline_budget": "headline_kl_target",
    "own_words": "prompted",
    "self_generated": "prompted",
}
_POWER = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")


class Settings(BaseModel):
    """Base of every settings class: unknown fields are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    # Settings of the release before that nothing corresponds to; they are left out for one release.
    gone: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _in_present_words(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known, found = cls.model_fields, dict(data)
        for old, new in _RENAMED.items():
            if old not in found or old in known or new not in known:
                continue
            if new in found:
                raise ValueError(f"{old} is called {new} now, and both are given; leave {old} out")
            _say_once(
                f"the setting {old} is called {new} now; the old name is read for one release."
            )
            found[new] = found.pop(old)
        for old in cls.gone & found.keys():
            _say_once(f"the setting {old} is no more, and is left out.")
            del found[old]
        return found

    @field_validator("*", mode="wrap")
    @classmethod
    def _yes_is_no_number(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        # YAML reads yes and on as true, and pydantic reads true as 1.
        made = handler(value)
        if _booleans(made) < _booleans(value):
            word = "false" if value is False else "true"
            raise ValueError(f"{word} is a yes or no; give a value of its own kind")
        return made


def _booleans(value: object) -> float:
    """Count every true and false in a value, however deep; settings within check their own."""
    if isinstance(value, BaseModel):
        return math.inf
    if isinstance(value, Mapping):
        return sum(_booleans(key) + _booleans(inner) for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_booleans, value))
    return isinstance(value, bool)


def in_present_words(record: Any) -> Any:
    """Return an old record with the keys that it would have today."""
    if isinstance(record, Mapping):
        return {_RENAMED.get(key, key): in_present_words(value) for key, value in record.items()}
    return [in_present_words(value) for value in record] if isinstance(record, list) else record


@cache
def _say_once(note: str) -> None:
    logging.getLogger("saesteer").warning(note)


def named_places(settings: BaseModel) -> Iterator[tuple[str, str]]:
    """Give name and text of every setting of type `Source`, in groups and lists of them too."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        items = value if isinstance(value, list) else [value]
        marked = _PLACE in field.metadata or _is_marked(field.annotation)
        for item in items:
            if isinstance(item, BaseModel):
                yield from ((f"{name}.{inner}", word) for inner, word in named_places(item))
            elif marked and isinstance(item, str):
                yield name, item


def _is_marked(annotation: Any) -> bool:
    return any(part == _PLACE or _is_marked(part) for part in get_args(annotation))


class TrackingSettings(Settings):
    """Where a run is recorded besides its folder.

    None of it changes what a run computes, so none of it counts in a run's digest.
    """

    # Null to go by WANDB_MODE and WANDB_SWEEP_ID.
    wandb: Literal["off", "online", "offline"] | None = None
    # WANDB_PROJECT, or "saesteer", if null.
    project: str | None = None
    # WANDB_ENTITY, or the account's own, if null.
    entity: str | None = None
    # What runs that belong together share, here and at W&B; WANDB_RUN_GROUP if null.
    group: str | None = None
    # Here and at W&B.
    tags: list[str] = Field(default=[])

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        # YAML reads off as false.
        return {False: "off", True: "online"}[value] if isinstance(value, bool) else value


Model = TypeVar("Model", bound=BaseModel)


def short_hash(record: object) -> str:
    """Return ten hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:10]


def load_config(path: str | Path, overrides: Sequence[str] = (), *, kind: type[Model]) -> Model:
    """Read a YAML file of settings.

    Args:
        path: The file.
        overrides: Settings that win over the file's, such as "selection.n_features=32"; the value
            is read as YAML.
        kind: The settings class.

    Raises:
        ConfigError: The file is missing or not YAML, a field is unknown (the nearest known one is
            named), or a value does not fit.

    Example:
        >>> from saesteer.experiments.steer.config import RunConfig
        >>> path = folder / "mine.yaml"
        >>> _ = path.write_text("{name: mine, pairs: {source: agreeableness}}")
        >>> ss.load_config(path, ["seed=1"], kind=RunConfig).seed
        1
    """
    data = read_yaml(path, empty="settings; write 'name: value' lines")
    for override in overrides:
        apply_override(data, override)
    return parse_config(data, kind=kind, place=str(Path(path)))


def load_yaml(text: str) -> Any:
    """Read YAML in which 1e-3 is a number, as in JSON and YAML 1.2, and no word."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("+-.0123456789"))
    return parse_yaml(text, Loader)


def read_yaml(path: str | Path, *, empty: str) -> dict[str, Any]:
    """Read a YAML file of named fields; `empty` is what it lacks where it holds something else."""
    import yaml

    file = Path(path)
    try:
        data = load_yaml(read_bytes(file, SETTINGS_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is not YAML ({one_line(error, 160)}); correct it.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no {empty}.")
    return data


def parse_config(data: dict[str, Any], *, kind: type[Model], place: str) -> Model:
    """Check settings that are already in memory; `place` is where errors say they stand."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt field is also a missing one; the misspelling says more.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        # Whatever somebody has called it.
        field = one_line(".".join(str(part) for part in first["loc"]))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{place}: {field} is not a known setting{_nearest(kind, first['loc'])}; correct "
                f"or remove it{more}."
            ) from None
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = "needs fields of its own, each on a line 'name: value' below it"
        where = f"{place}: {field}" if field else place
        raise ConfigError(f"{where}: {message[:1].lower()}{message[1:]}{more}.") from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put a setting such as "selection.n_features=32" into settings in memory; see `read_word`."""
    put(data, *read_word(override))


def read_word(word: str) -> tuple[str, Any]:
    """Return name and value of a word such as "selection.n_features=32"; the value is YAML."""
    import yaml

    name, equals, text = word.partition("=")
    name = name.strip()
    if not equals or name.startswith("-") or not all(name.split(".")):
        raise ConfigError(f"--set {shorten(word, 80)} is not of the form a.b=c; write it so.")
    try:
        return name, load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {shorten(word, 80)} is not YAML ({one_line(error, 160)}); correct it."
        ) from error


def put(data: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under a dotted name into settings in memory; missing groups are made."""
    *groups, last = name.split(".")
    for group in groups:
        if data.get(group) is None:
            data[group] = {}
        data = data[group]
        if not isinstance(data, dict):
            raise ConfigError(
                f"setting {name}: {group} is a single value and has no fields; correct the name."
            )
    data[last] = value


def _nearest(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = _model_in(annotation)
        if inner is None:
            return ""
        kind = inner
    name = str(location[-1])
    # Settings are given in full: a field's bare name is one of its group's.
    inside = [
        f"{group}.{name}"
        for group, field in kind.model_fields.items()
        if (inner := _model_in(field.annotation)) and name in inner.model_fields
    ]
    return f" (did you mean '{inside[0]}'?)" if inside else nearest(name, kind.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return inner[0] if inner else None
