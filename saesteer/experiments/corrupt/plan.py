"""What a corruption run will do, worked out and checked before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saesteer.corruption.families import Family, make_family
from saesteer.corruption.program import LinearSpan, Program, intact_program, parse_program
from saesteer.corruption.tasks import Task, load_tasks
from saesteer.experiments.corrupt.settings import CorruptConfig
from saesteer.experiments.steer.plan import check_writable
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.utils.content import content_digest
from saesteer.utils.errors import ConfigError


class Shape(NamedTuple):
    """How many layers a model has, and how many heads each of them; 0 where that is unknown."""

    n_layers: int
    n_heads: int


@dataclass(frozen=True)
class CorruptPlan:
    """A checked corruption run.

    Attributes:
        config: Its settings.
        tasks: The tasks.
        model: Where the model comes from.
        shape: Its layers, where they can be told without loading it.
        folder: The run's folder; the same settings and tasks give the same one.
    """

    config: CorruptConfig
    tasks: tuple[Task, ...]
    model: ModelSource
    shape: Shape | None
    folder: Path


@dataclass(frozen=True)
class Programs:
    """Everything that is run: the intact model first, no program twice.

    Attributes:
        all: The programs.
        families: The families, and the single programs as the last one.
        shown: The programs that complete prompts.
    """

    all: tuple[Program, ...]
    families: tuple[Family, ...]
    shown: tuple[Program, ...]

    @property
    def spans(self) -> tuple[LinearSpan, ...]:
        """The linear maps that they need."""
        every = (*self.all, *self.shown)
        return tuple(dict.fromkeys(span for program in every for span in program.spans))

    @property
    def need_means(self) -> bool:
        """Whether one of them puts something to its mean."""
        from saesteer.corruption.edits import needs_means

        return any(needs_means(program.edits) for program in (*self.all, *self.shown))


def plan_corruption(config: CorruptConfig) -> CorruptPlan:
    """Read the tasks and check every program; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    tasks = load_tasks(config.tasks.source)
    model = resolve_model(config.model.name)
    shape = known_shape(model)
    if shape is not None:
        expand(config, shape)
    if not config.families and not config.programs:
        raise ConfigError(
            "there is nothing to run; name families (such as {kind: keep}) or programs."
        )
    if config.reference.source != "bundled" and not Path(config.reference.source).is_file():
        raise ConfigError(
            f"reference.source {config.reference.source!r} is not there; give a file, or bundled."
        )
    weights = model.sha256 or ("" if model.kind == "hub" else content_digest(Path(model.location)))
    digest = config.digest(tasks=str(tasks), model=weights)
    folder = Path(config.folder) / f"{config.name}-{digest}"
    check_writable(folder)
    return CorruptPlan(config, tasks, model, shape, folder)


def expand(config: CorruptConfig, shape: Shape) -> Programs:
    """Return a run's programs for a model of this shape.

    Raises:
        ConfigError: A program names a layer or head that is not there.
    """
    families = [
        make_family(family.kind, shape.n_layers, width=family.width, count=family.count)
        for family in config.families
    ]
    names = [family.name for family in families]
    if len(set(names)) < len(names):
        raise ConfigError("families names a kind twice with the same width; name it once.")
    single = _parsed(config.programs, shape)
    if single:
        families.append(Family("programs", "program", single))
    first = intact_program(shape.n_layers)
    every = {str(first): first}
    for family in families:
        every.update({str(program): program for program in family.programs})
    return Programs(tuple(every.values()), tuple(families), _shown(config, shape))


def every_so_manieth(family: Family, every: int) -> tuple[Program, ...]:
    """Return every so manieth program of a family, and always the last."""
    return (*family.programs[:-1:every], *family.programs[-1:])


def _shown(config: CorruptConfig, shape: Shape) -> tuple[Program, ...]:
    shown = config.completions
    if shown is None or not shown.prompts:
        return ()
    if shown.programs:
        return _parsed(shown.programs, shape)
    return every_so_manieth(make_family(shown.family, shape.n_layers), shown.every)


def _parsed(texts: Sequence[str | list[int]], shape: Shape) -> tuple[Program, ...]:
    return tuple(parse_program(text, shape.n_layers, n_heads=shape.n_heads) for text in texts)


def known_shape(model: ModelSource) -> Shape | None:
    """Return a model's shape from its configuration alone; None where that is not at hand."""
    try:
        path = Path(model.location) / "config.json"
        if model.kind == "gguf":
            path = _converted(model)
            if not path.is_file():
                return _gguf_shape(model.location)
        if model.kind == "hub":
            path = Path(str(_cached(model.location)))
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, IndexError, ImportError):
        return None
    return _shape(record.get("text_config") or record) if isinstance(record, dict) else None


def _shape(record: dict[str, Any]) -> Shape | None:
    layers = record.get("num_hidden_layers", record.get("n_layer"))
    heads = record.get("num_attention_heads", record.get("n_head"))
    if not isinstance(layers, int):
        return None
    return Shape(layers, heads if isinstance(heads, int) else 0)


def _converted(model: ModelSource) -> Path:
    # A GGUF file lists its whole vocabulary before it says what is wanted here.
    from saesteer.utils.cache_folder import cache_folder

    name = f"{Path(model.location).stem}-{(model.sha256 or 'unknown')[:12]}"
    return cache_folder() / "models" / name / "config.json"


def _cached(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return found if isinstance(found, str) else None


def _gguf_shape(path: str) -> Shape | None:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    arch = bytes(fields["general.architecture"].parts[-1]).decode()
    counts = [int(fields[f"{arch}.{n}"].parts[-1][0]) for n in _GGUF_COUNTS]
    return Shape(*counts)


_GGUF_COUNTS = ("block_count", "attention.head_count")
