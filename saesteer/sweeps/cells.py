"""Which trials a sweep has: every cell of a grid, or draws that depend on their number alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saesteer.sweeps.parameters import COUNTABLE, Parameter
from saesteer.utils.errors import ConfigError

MOST_CELLS = 10_000
# Draws in a row that were there already, after which a space counts as used up.
PATIENCE = 200


@dataclass(frozen=True)
class Cell:
    """One trial to be.

    Attributes:
        number: Its place in the sweep, from 0.
        codes: What Optuna calls its parameters' values.
        values: The values themselves, with the constants.
        key: A hash of the settings that they give.
    """

    number: int
    codes: Mapping[str, Any]
    values: Mapping[str, Any]
    key: str


# Settings that change no number.
PLACES = ("folder", "tracking")
KeyOf = Callable[[Mapping[str, Any]], str]


def grid_cells(parameters: Sequence[Parameter], key_of: KeyOf, cap: int | None) -> list[Cell]:
    """Return the cells of a grid, the last parameter changing fastest, each setting once.

    Args:
        parameters: What is searched.
        key_of: Gives the hash of a cell's settings.
        cap: The most cells; all if None.

    Raises:
        ConfigError: A parameter cannot be counted, or there are more cells than anybody waits for.
    """
    axes = []
    for parameter in parameters:
        choices = parameter.choices() if parameter.distribution in COUNTABLE else None
        if choices is None:
            raise ConfigError(
                f"parameters.{parameter.name}: a grid cannot count {parameter.distribution!r}; "
                "give values, or use method random or bayes."
            )
        axes.append(choices)
    size = math.prod(map(len, axes))
    if size > MOST_CELLS and cap is None:
        raise ConfigError(
            f"the grid has {size:,} cells; give fewer values, or run_cap (at most {MOST_CELLS:,})."
        )
    names = [parameter.name for parameter in parameters]
    cells: dict[str, Cell] = {}
    for combination in itertools.product(*axes):
        if len(cells) >= min(cap or MOST_CELLS, MOST_CELLS):
            break
        values = dict(zip(names, combination, strict=True))
        key = key_of(values)
        cells.setdefault(key, Cell(len(cells), _codes(parameters, values), values, key))
    return list(cells.values())


def random_cells(
    parameters: Sequence[Parameter], key_of: KeyOf, count: int, seed: int
) -> list[Cell]:
    """Return draws, no two alike; the same seed gives the same ones, however many are asked for.

    Args:
        parameters: What is searched.
        key_of: Gives the hash of a cell's settings.
        count: How many; fewer where the parameters have no more different values.
        seed: Seeds every draw, with its number.
    """
    import numpy as np

    cells: dict[str, Cell] = {}
    draw = missed = 0
    while len(cells) < count and missed < PATIENCE:
        rng = np.random.default_rng([seed, draw])
        draw += 1
        drawn = {parameter.name: parameter.draw(rng) for parameter in parameters}
        values = {p.name: p.settled(drawn[p.name]) for p in parameters}
        key = key_of(values)
        missed = missed + 1 if key in cells else 0
        cells.setdefault(key, Cell(len(cells), _codes(parameters, drawn), values, key))
    return list(cells.values())


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return a hash of checked settings; where results are kept and threads do not count."""
    record = {name: value for name, value in settings.items() if name not in PLACES}
    if isinstance(record.get("model"), Mapping):
        record["model"] = {k: v for k, v in record["model"].items() if k != "threads"}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def _codes(parameters: Sequence[Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    return {p.name: p.code(drawn[p.name]) for p in parameters if not p.is_constant}
