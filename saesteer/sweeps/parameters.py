"""One parameter of a sweep: its values or its distribution, as W&B's layout names them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution

BOUNDED = ("uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values")
# Their bounds are natural logarithms of the values.
OF_LOGARITHMS = ("log_uniform", "q_log_uniform")
BELLS = ("normal", "q_normal", "log_normal", "q_log_normal")
DISTRIBUTIONS = ("constant", "categorical", *BOUNDED, *OF_LOGARITHMS, *BELLS)
COUNTABLE = ("constant", "categorical", "int_uniform", "q_uniform")
# A bell is cut here, where a draw falls once in 10**15 times.
BELL_REACH = 8.0


class ParameterFields(Settings):
    """What a sweep file may say of a parameter."""

    value: Any = None
    values: list[Any] | None = Field(default=None, min_length=1)
    probabilities: list[float] | None = None
    distribution: str | None = None
    min: int | float | None = None
    max: int | float | None = None
    mu: float = 0.0
    sigma: float = Field(default=1.0, gt=0)
    q: float = Field(default=1.0, gt=0)


@dataclass(frozen=True)
class Parameter:
    """A checked parameter.

    Attributes:
        name: The setting, dotted.
        distribution: One of `DISTRIBUTIONS`.
        values: What it may be, for constant and categorical.
        probabilities: Of the values, summing to 1.
        low: The smallest value; for bells the mean, of the logarithm for logarithmic ones.
        high: The largest value; for bells the standard deviation.
        q: The step of quantised distributions.
    """

    name: str
    distribution: str
    values: tuple[Any, ...] = ()
    probabilities: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 1.0
    q: float = 1.0

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing to search."""
        return self.distribution == "constant"

    @property
    def is_log(self) -> bool:
        """Whether it belongs on a logarithmic axis."""
        return "log" in self.distribution

    @property
    def is_number(self) -> bool:
        """Whether it has an axis of numbers."""
        if self.values:
            return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        return True

    def choices(self) -> tuple[Any, ...] | None:
        """Return every value in order, or None where there are too many to count."""
        if self.values:
            return self.values
        if self.distribution == "int_uniform":
            return tuple(range(int(self.low), int(self.high) + 1))
        if self.distribution == "q_uniform":
            first, last = round(self.low / self.q), round(self.high / self.q)
            return tuple(_tidy(step * self.q) for step in range(first, last + 1))
        return None

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw what is searched over: the value, before it is quantised."""
        if self.values:
            weights = list(self.probabilities) or None
            return self.values[int(rng.choice(len(self.values), p=weights))]
        if self.distribution == "int_uniform":
            return int(rng.integers(int(self.low), int(self.high), endpoint=True))
        if self.distribution in BELLS:
            drawn = float(rng.normal(self.low, self.high))
            low, high = self._bell()
            drawn = min(max(drawn, low), high)
            return math.exp(drawn) if self.is_log else drawn
        if self.is_log:
            low, high = self._bounds()
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
            return min(max(drawn, low), high)
        return float(rng.uniform(self.low, self.high))

    def settled(self, drawn: Any) -> Any:
        """Return the value that a run is given for what was drawn."""
        if self.values or not self.distribution.startswith("q_"):
            return drawn
        return _tidy(round(drawn / self.q) * self.q)

    def space(self) -> BaseDistribution:
        """Return the distribution in Optuna's terms; what it says is only ever a `coded` value."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.values:
            return CategoricalDistribution([coded(value) for value in self.values])
        if self.distribution == "int_uniform":
            return IntDistribution(int(self.low), int(self.high))
        if self.distribution in BELLS:
            low, high = self._bell()
            if self.is_log:
                return FloatDistribution(math.exp(low), math.exp(high), log=True)
            return FloatDistribution(low, high)
        low, high = self._bounds()
        return FloatDistribution(low, high, log=self.is_log)

    def code(self, drawn: Any) -> Any:
        """Return what Optuna is told was drawn."""
        if self.values or self.distribution == "int_uniform":
            return coded(drawn)
        low, high = self._bell() if self.distribution in BELLS else self._bounds()
        if self.distribution in BELLS and self.is_log:
            low, high = math.exp(low), math.exp(high)
        # A quantised value of a grid may lie past the bounds.
        return min(max(float(drawn), low), high)

    def decoded(self, code: Any) -> Any:
        """Return the value of a code that Optuna suggests."""
        if not self.values:
            return self.settled(code)
        return next(v for v in self.values if coded(v) == code and type(coded(v)) is type(code))

    def _bounds(self) -> tuple[float, float]:
        if self.distribution in OF_LOGARITHMS:
            return math.exp(self.low), math.exp(self.high)
        return float(self.low), float(self.high)

    def _bell(self) -> tuple[float, float]:
        return self.low - BELL_REACH * self.high, self.low + BELL_REACH * self.high


def coded(value: Any) -> Any:
    """Return a value as Optuna's categories hold it: lists and mappings as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, ensure_ascii=False)


def read_parameter(name: str, data: Any, place: str) -> Parameter:
    """Check one parameter of a sweep file.

    Args:
        name: Its dotted name.
        data: What the file says of it.
        place: The file and field, for errors.

    Raises:
        ConfigError: A field is unknown, missing or does not fit.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{place} is not a mapping; write 'values: [...]' or 'min:' below it.")
    try:
        fields = ParameterFields.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(ParameterFields.model_fields)
        said = (
            f"is no field of a parameter (known: {known}, parameters)"
            if first["type"] == "extra_forbidden"
            else str(first["msg"]).lower()
        )
        raise ConfigError(f"{place}.{field}: {said}; correct it.") from None
    given = fields.model_fields_set
    kind = fields.distribution or _usual(fields, given)
    if kind is None:
        raise ConfigError(
            f"{place} says nothing to choose from; give value, values, or min and max."
        )
    kind = "categorical" if kind == "categorical_w_probabilities" else kind
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"{place}.distribution {kind!r} is not known here; choose one of "
            f"{', '.join(DISTRIBUTIONS)}."
        )
    if kind == "constant":
        if "value" not in given:
            raise ConfigError(f"{place} is constant without a value; give one.")
        return Parameter(name, kind, values=(fields.value,))
    if kind == "categorical":
        return _categorical(name, fields, place)
    if kind in BELLS:
        return Parameter(name, kind, low=fields.mu, high=fields.sigma, q=fields.q)
    return _bounded(name, kind, fields, place)


def _usual(fields: ParameterFields, given: set[str]) -> str | None:
    """Return the distribution that W&B takes where none is named."""
    if "value" in given:
        return "constant"
    if fields.values is not None:
        return "categorical"
    if fields.min is not None and fields.max is not None:
        whole = isinstance(fields.min, int) and isinstance(fields.max, int)
        return "int_uniform" if whole else "uniform"
    return None


def _categorical(name: str, fields: ParameterFields, place: str) -> Parameter:
    values = fields.values
    if not values:
        raise ConfigError(f"{place} is categorical without values; give some.")
    codes = [coded(value) for value in values]
    # 1 and true are equal in Python, and could not be told apart afterwards.
    if any(code in codes[:at] for at, code in enumerate(codes)):
        raise ConfigError(f"{place}.values names a value twice; name each once.")
    chances = fields.probabilities
    if chances is None:
        return Parameter(name, "categorical", values=tuple(values))
    fits = len(chances) == len(values) and min(chances) >= 0
    if not fits or abs(sum(chances) - 1) > 1e-6:
        raise ConfigError(
            f"{place}.probabilities must be as many as the values and sum to 1; correct them."
        )
    total = sum(chances)
    shares = tuple(chance / total for chance in chances)
    return Parameter(name, "categorical", values=tuple(values), probabilities=shares)


def _bounded(name: str, kind: str, fields: ParameterFields, place: str) -> Parameter:
    low, high = fields.min, fields.max
    if low is None or high is None:
        raise ConfigError(f"{place}: {kind} needs min and max; give both.")
    if low > high:
        raise ConfigError(f"{place}: min ({low}) is above max ({high}); swap them.")
    if kind == "int_uniform" and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"{place}: int_uniform needs whole numbers as min and max.")
    if kind.endswith("_values") and low <= 0:
        raise ConfigError(f"{place}: {kind} needs a min above 0, and it is {low}; raise it.")
    if kind in OF_LOGARITHMS and high > 700:
        raise ConfigError(
            f"{place}: {kind} takes logarithms as min and max, and e to the {high} is no number; "
            "use log_uniform_values for plain ones."
        )
    return Parameter(name, kind, low=low, high=high, q=fields.q)


def _tidy(value: float) -> float | int:
    """Return a multiple of a step without the noise of its rounding; whole ones as integers."""
    tidy = float(f"{value:.12g}")
    return int(tidy) if tidy.is_integer() and abs(tidy) < 2**53 else tidy
