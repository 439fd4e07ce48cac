"""The settings of a run (`configs/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from saesteer.utils.errors import ConfigError

CLUSTERED = "clustered_sae"
CLUSTERED_GROUPS = ("selection", "clustering", "regression")
# Marks settings that name something to read or write, or to fetch.
_PLACE = "place"
Source = Annotated[str, _PLACE]
_POWER = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")


class Settings(BaseModel):
    """Base of every settings class: unknown fields are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        check_yes_and_no(value, cls.model_fields[str(info.field_name)].annotation)
        return value


def check_yes_and_no(value: object, annotation: Any) -> None:
    """Refuse true and false, however deep in a value, where its type has a number.

    YAML reads yes and on as true, and pydantic reads true as 1.

    Raises:
        ValueError: There is one.
    """
    said = next(_yes_and_no(value), None)
    if said is not None and not _takes(annotation, value):
        raise ValueError(f"{str(said).lower()} is a yes or no; give a value of its own kind")


def _yes_and_no(value: object) -> Iterator[bool]:
    """Every true and false in a value, however deep."""
    if isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _yes_and_no(key)
            yield from _yes_and_no(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _yes_and_no(inner)


def _takes(annotation: Any, value: object) -> bool:
    """Whether every true and false in a value stands where its annotation has one."""
    kind, options = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _takes(options[0], value)
    if kind in (Union, UnionType):
        return any(_takes(option, value) for option in options)
    if kind is Literal:
        return any(value is option for option in options) or next(_yes_and_no(value), None) is None
    if annotation in (Any, object) or not (kind or isinstance(annotation, type)):
        return True  # A type variable, or a type that has a name of its own such as JsonValue.
    if isinstance(value, bool):
        return annotation is bool
    if isinstance(value, Mapping):
        if issubclass(kind or annotation, BaseModel):
            return True  # It checks its own fields.
        keys, values = options if len(options) == 2 else (Any, Any)
        return issubclass(kind or annotation, Mapping) and all(
            _takes(keys, key) and _takes(values, inner) for key, inner in value.items()
        )
    if isinstance(value, list | tuple | set | frozenset):
        if not issubclass(kind or annotation, Collection) or annotation is str:
            return False
        if kind is tuple and options[-1:] != (...,):
            return len(options) == len(value) and all(map(_takes, options, value))
        inner = options[0] if options else Any
        return all(_takes(inner, item) for item in value)
    return True


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


class ModelSettings(Settings):
    """The language model; see `saesteer.load_model`."""

    name: Source = "smollm2"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | dict[str, str | int] | None = None
    trust_remote_code: bool = False
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; torch's choice if null"
    )


class TrackingSettings(Settings):
    """Where a run is recorded besides its folder and the local store.

    None of it changes what a run computes, so none of it counts in a run's digest.

    Attributes:
        wandb: "off", "online" or "offline"; null to go by WANDB_MODE and WANDB_SWEEP_ID.
        project: W&B's project; WANDB_PROJECT, or "saesteer", if null.
        entity: W&B's entity; WANDB_ENTITY, or the account's own, if null.
        group: What runs that belong together share, here and at W&B; WANDB_RUN_GROUP if null.
        tags: Tags, here and at W&B.
    """

    wandb: Literal["off", "online", "offline"] | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default=[])

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        # YAML reads off as false.
        return {False: "off", True: "online"}[value] if isinstance(value, bool) else value


class PairSettings(Settings):
    """The contrastive pairs; see `saesteer.read_pairs` and `saesteer.split_pairs`."""

    source: Source
    format: str = "auto"
    positive_key: str = "positive"
    negative_key: str = "negative"
    min_label_confidence: float = Field(default=0.0, ge=0, le=1)
    max_pairs: int | None = Field(default=None, ge=3)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.3, gt=0, lt=1)
    near_duplicate: float = Field(default=0.5, gt=0, le=1)


class ReadingSettings(Settings):
    """Where activations are read; see `saesteer.read_pair_activations`."""

    positions: Literal["mean", "last"] = "mean"
    request: str | None = "Tell me something about yourself."
    chat: bool | None = None
    system: str | None = None


class SelectionSettings(Settings):
    """Which features are candidates; see `saesteer.select_features`."""

    criterion: str = "standardised_difference"
    n_features: int = Field(default=64, ge=1)
    min_firing: float = Field(default=0.02, ge=0, le=1)
    max_firing: float = Field(default=0.6, gt=0, le=1)
    max_density: float | None = Field(default=None, gt=0, le=1)
    min_abs_score: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _firing_in_order(self) -> SelectionSettings:
        if self.min_firing > self.max_firing:
            raise ValueError(
                f"min_firing ({self.min_firing}) is above max_firing ({self.max_firing}); lower it"
            )
        return self


class ClusteringSettings(Settings):
    """How candidates are clustered and clusters kept; see `saesteer.cluster_features`."""

    method: str = "agglomerative"
    firing_weight: float = Field(default=0.5, ge=0, le=1)
    n_clusters: int | None = Field(default=None, ge=2)
    min_clusters: int = Field(default=2, ge=2)
    max_clusters: int | None = Field(default=None, ge=2)
    min_cluster_size: int = Field(default=2, ge=2)
    min_separation: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _counts_fit(self) -> ClusteringSettings:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError("hdbscan finds its own number of clusters; leave n_clusters out")
        if self.max_clusters is not None and self.max_clusters < self.min_clusters:
            raise ValueError(
                f"max_clusters ({self.max_clusters}) is below min_clusters ({self.min_clusters}); "
                "raise it"
            )
        return self


class RegressionSettings(Settings):
    """How weights are fitted; see `saesteer.fit_weights`."""

    method: str = "sign_tied"
    basis: Literal["decoder", "decoded"] = "decoder"
    ridge_alpha: float = Field(default=0.1, ge=0)
    lasso_alpha: float | None = Field(default=None, gt=0)
    n_nonzero: int | None = Field(default=None, ge=1)
    logistic_c: float = Field(default=1.0, gt=0)


class MethodChoice(Settings):
    """A way from pairs to a vector: its name and its own settings."""

    name: str
    settings: dict[str, Any] = Field(default={})


class ObjectiveSettings(Settings):
    """What attribution raises on training data; see `saesteer.methods.attribution`.

    Methods that know of no such objective do without it.

    Attributes:
        requests: Requests that training statements answer, in turn.
        budget: KL at which the objective is linearised.
        neutral_answers: Neutral answers for cost and Fisher metric; those that the evaluation
            uses are left out.
        fisher_samples: Draws for each of them.
        own_words: Weight of the contrast between completions that the model itself writes under
            steering, rated high and low by a judge trained on training statements; 0 for none.
        own_samples: Completions for each question and sign that this contrast draws on.
        own_pairs: Pairs of a high and a low completion for each question.
    """

    requests: list[str] = Field(
        default=[
            "Tell me something about yourself.",
            "What is on your mind?",
            "Share a thought with me.",
            "How do you see things?",
        ],
        min_length=1,
    )
    budget: float = Field(default=0.3, gt=0)
    neutral_answers: int = Field(default=34, ge=1)
    fisher_samples: int = Field(default=12, ge=1)
    own_words: float = Field(default=0.5, ge=0)
    own_samples: int = Field(default=2, ge=1)
    own_pairs: int = Field(default=2, ge=1)


class EvaluationSettings(Settings):
    """How the shift is measured on held-out pairs.

    Attributes:
        budget: KL(steered || base) on neutral text, nats per token, that every vector is given.
        random_directions: How many random directions the vector is held against.
        multiples: Strengths of the curve, as multiples of the matched strength of their sign.
        request: The neutral request before held-out statements; other than the one read with.
        neutral: Neutral answers that KL is measured on: a file with question and answer, or the
            bundled set.
        neutral_answers: How many of them.
        max_pairs: The most held-out pairs to score; all if null.
    """

    budget: float = Field(default=0.3, gt=0)
    random_directions: int = Field(default=20, ge=0)
    multiples: list[float] = Field(default=[-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], min_length=2)
    request: str = "What would you say?"
    neutral: Source = "neutral_answers"
    neutral_answers: int = Field(default=6, ge=1)
    max_pairs: int | None = Field(default=None, ge=1)

    @field_validator("multiples")
    @classmethod
    def _no_multiple_twice(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} names a multiple twice; name each once")
        return values


class CompletionSettings(Settings):
    """The completions shown side by side."""

    questions: Source = "neutral_questions"
    n_questions: int = Field(default=3, ge=0)
    max_new_tokens: int = Field(default=48, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    chat: bool | Literal["auto"] = "auto"


class RunConfig(Settings):
    """Everything a run depends on.

    Attributes:
        name: What the run is called; part of its folder's name.
        sae: The bundled SAE "smollm2", a folder, or "release:id".
        site: Where to steer; the SAE's own site if null. Another one is refused.
        method: What makes the vector: a name, or a name with its settings. The default's are
            `selection`, `clustering` and `regression`.
        objective: What methods that need an objective are fitted to.
        seed: Seeds the split, the random directions and the sampling.
        folder: Where runs are kept.
        tracking: Where the run is recorded besides.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    model: ModelSettings = ModelSettings()
    sae: Source = "smollm2"
    site: str | None = None
    pairs: PairSettings
    reading: ReadingSettings = ReadingSettings()
    method: MethodChoice = MethodChoice(name=CLUSTERED)
    selection: SelectionSettings = SelectionSettings()
    clustering: ClusteringSettings = ClusteringSettings()
    regression: RegressionSettings = RegressionSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    completions: CompletionSettings = CompletionSettings()
    seed: int = Field(default=0, ge=0, lt=2**32)
    folder: Source = "runs"
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("method", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_are_the_methods(self) -> RunConfig:
        groups = {name: getattr(self, name) for name in CLUSTERED_GROUPS}
        if self.method.name == CLUSTERED:
            if self.method.settings:
                raise ValueError(
                    f"method.settings: those of {CLUSTERED} stand beside it; give "
                    f"{', '.join(groups)}"
                )
            return self
        for name, group in groups.items():
            # Whole and as it is by default, as a run's config.json has it, it asks for nothing.
            given = group.model_fields_set
            if group != type(group)() or 0 < len(given) < len(type(group).model_fields):
                raise ValueError(
                    f"{name} belongs to method {CLUSTERED}; give {self.method.name}'s own under "
                    "method.settings"
                )
        return self

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings."""
        if self.method.name != CLUSTERED:
            return self.method.settings
        return {name: getattr(self, name).model_dump() for name in CLUSTERED_GROUPS}

    def digest(self, **inputs: str) -> str:
        """Return a short hash of the settings, and of what else the results depend on."""
        left_out: Any = {"folder": True, "tracking": True, "model": {"threads"}}
        if self.method.name == CLUSTERED:
            left_out |= {"method": True, "objective": True}
        record = self.model_dump(mode="json", exclude=left_out)
        return short_hash([record, inputs])


Model = TypeVar("Model", bound=BaseModel)


def short_hash(record: object) -> str:
    """Return ten hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:10]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, kind: type[Model] = RunConfig
) -> Model:
    """Read a YAML file of settings.

    Args:
        path: The file.
        overrides: Settings that win over the file's, such as "selection.n_features=32"; the value
            is read as YAML.
        kind: The settings class.

    Raises:
        ConfigError: The file is missing or not YAML, a field is unknown (the nearest known one is
            named), or a value does not fit.
    """
    data = read_yaml(path, empty="settings; write 'name: value' lines")
    for override in overrides:
        apply_override(data, override)
    return parse_config(data, kind=kind, place=str(Path(path)))


def load_yaml(text: str) -> Any:
    """Read YAML in which 1e-3 is a number, as in JSON and YAML 1.2, and no word.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("+-.0123456789"))
    return yaml.load(text, Loader)


def read_yaml(path: str | Path, *, empty: str) -> dict[str, Any]:
    """Read a YAML file of named fields.

    Args:
        path: The file.
        empty: What it lacks where it holds something else, and what to write.

    Raises:
        ConfigError: It is missing, not YAML, or holds something else.
    """
    import yaml

    file = Path(path)
    try:
        data = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML ({_one_line(error)}); correct it.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no {empty}.")
    return data


def parse_config(data: dict[str, Any], *, kind: type[Model], place: str) -> Model:
    """Check settings that are already in memory.

    Raises:
        ConfigError: As in `load_config`.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt field is also a missing one; the misspelling says more.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        field = ".".join(str(part) for part in first["loc"]) or "settings"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{place}: {field} is not a known setting{_nearest(kind, first['loc'])}; correct "
                f"or remove it{more}."
            ) from None
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = "needs fields of its own, each on a line 'name: value' below it"
        raise ConfigError(f"{place}: {field}: {message[:1].lower()}{message[1:]}{more}.") from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put a setting such as "selection.n_features=32" into settings in memory.

    Raises:
        ConfigError: It does not have that form, or does not fit what is there.
    """
    import yaml

    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} is not of the form a.b=c; write it so.")
    place = data
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {part} is a single value and has no fields.")
        place = inner
    try:
        place[parts[-1]] = load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r} is not YAML ({_one_line(error)}).") from error


def _nearest(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        options = [annotation, *get_args(annotation)]
        inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not inner:
            return ""
        kind = inner[0]
    near = difflib.get_close_matches(str(location[-1]), kind.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(kind.model_fields)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
