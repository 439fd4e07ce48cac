"""One parameter of a sweep: its values or its distribution, as W&B's layout names them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, model_validator

from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, parse_config

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution

BOUNDED = ("uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values")
# Their bounds are natural logarithms of the values.
OF_LOGARITHMS = ("log_uniform", "q_log_uniform")
BELLS = ("normal", "q_normal", "log_normal", "q_log_normal")
DISTRIBUTIONS = ("constant", "categorical", *BOUNDED, *OF_LOGARITHMS, *BELLS)
# A bell is cut here, where a draw falls once in 10**15 times.
BELL_REACH = 8.0


class Parameter(Settings):
    """What a setting may be; `settled` values go into a run, `code`s are what Optuna is told."""

    model_config = ConfigDict(frozen=True)

    # The setting, dotted.
    name: str
    distribution: str
    values: tuple[Any, ...] = Field(default=(), description="Of constant and categorical.")
    probabilities: tuple[float, ...] = ()
    min: int | float | None = None
    max: int | float | None = None
    # Of bells; of the logarithm for logarithmic ones.
    mu: float = 0.0
    sigma: float = Field(default=1.0, gt=0)
    # The step of quantised distributions.
    q: float = Field(default=1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, data: Any) -> Any:
        """Take the distribution that W&B takes where none is named."""
        if not isinstance(data, Mapping):
            return data
        fields = dict(data)
        kind = fields.get("distribution")
        if "value" in fields and kind in (None, "constant"):
            kind, fields["values"] = "constant", [fields["value"]]
        elif kind is None and fields.get("values") is not None:
            kind = "categorical"
        elif kind is None and None not in (fields.get("min"), fields.get("max")):
            whole = isinstance(fields["min"], int) and isinstance(fields["max"], int)
            kind = "int_uniform" if whole else "uniform"
        elif kind == "categorical_w_probabilities":
            kind = "categorical"
        fields.pop("value", None)
        return {**fields, "distribution": "" if kind is None else kind}

    @model_validator(mode="after")
    def _fits(self) -> Parameter:
        kind = self.distribution
        if not kind:
            raise ValueError("nothing to choose from is there; give value, values, or min and max")
        if kind not in DISTRIBUTIONS:
            known = ", ".join(DISTRIBUTIONS)
            raise ValueError(f"distribution {kind!r} is not known here; choose one of {known}")
        if kind in ("constant", "categorical"):
            self._check_values()
        elif kind not in BELLS:
            self._check_bounds()
        return self

    def _check_values(self) -> None:
        if not self.values:
            needed = "a value; give one" if self.is_constant else "values; give some"
            raise ValueError(f"it is {self.distribution} without {needed}")
        codes = [coded(value) for value in self.values]
        # 1 and true are equal in Python, and could not be told apart afterwards.
        if any(code in codes[:at] for at, code in enumerate(codes)):
            raise ValueError("values names a value twice; name each once")
        chances = self.probabilities
        fits = len(chances) == len(codes) and min(chances) >= 0 and abs(sum(chances) - 1) <= 1e-6
        if chances and not fits:
            raise ValueError("probabilities must be as many as the values and sum to 1; mend them")

    def _check_bounds(self) -> None:
        kind, low, high = self.distribution, self.min, self.max
        if low is None or high is None:
            raise ValueError(f"{kind} needs min and max; give both")
        if low > high:
            raise ValueError(f"min ({low}) is above max ({high}); swap them")
        if kind == "int_uniform" and not (float(low).is_integer() and float(high).is_integer()):
            raise ValueError("int_uniform needs whole numbers as min and max; round them")
        if kind.endswith("_values") and low <= 0:
            raise ValueError(f"{kind} needs a min above 0, and it is {low}; raise it")
        if kind in OF_LOGARITHMS and high > 700:
            raise ValueError(
                f"{kind} takes logarithms, and e to the {high} is no number; use log_uniform_values"
            )

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
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest value, before it is quantised."""
        if self.distribution in BELLS:
            reach = BELL_REACH * self.sigma
            low, high = self.mu - reach, self.mu + reach
        else:
            assert self.min is not None and self.max is not None
            low, high = float(self.min), float(self.max)
        if self.distribution in OF_LOGARITHMS or (self.distribution in BELLS and self.is_log):
            return math.exp(low), math.exp(high)
        return low, high

    def choices(self) -> tuple[Any, ...] | None:
        """Return every value in order, or None where there are too many to count."""
        if self.values:
            return self.values
        low, high = self.bounds()
        if self.distribution == "int_uniform":
            return tuple(range(int(low), int(high) + 1))
        if self.distribution == "q_uniform":
            steps = range(round(low / self.q), round(high / self.q) + 1)
            return tuple(_tidy(step * self.q) for step in steps)
        return None

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value, before it is quantised."""
        if self.values:
            total = sum(self.probabilities)
            weights = [chance / total for chance in self.probabilities] or None
            return self.values[int(rng.choice(len(self.values), p=weights))]
        low, high = self.bounds()
        if self.distribution == "int_uniform":
            return int(rng.integers(int(low), int(high), endpoint=True))
        if self.distribution in BELLS:
            drawn = float(rng.normal(self.mu, self.sigma))
            drawn = math.exp(drawn) if self.is_log else drawn
        elif self.is_log:
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            drawn = float(rng.uniform(low, high))
        return min(max(drawn, low), high)

    def settled(self, drawn: Any) -> Any:
        """Return the value that a run is given for what was drawn."""
        if not self.distribution.startswith("q_"):
            return drawn
        return _tidy(round(drawn / self.q) * self.q)

    def space(self) -> BaseDistribution:
        """Return the distribution in Optuna's terms."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.values:
            return CategoricalDistribution([coded(value) for value in self.values])
        low, high = self.bounds()
        if self.distribution == "int_uniform":
            return IntDistribution(int(low), int(high))
        return FloatDistribution(low, high, log=self.is_log)

    def code(self, value: Any) -> Any:
        """Return what Optuna is told of a value."""
        if self.values or self.distribution == "int_uniform":
            return coded(value)
        low, high = self.bounds()
        # A quantised value may lie past the bounds.
        return min(max(float(value), low), high)

    def decoded(self, code: Any) -> Any:
        """Return the value of a code that Optuna suggests."""
        if not self.values:
            return self.settled(code)
        return next(v for v in self.values if coded(v) == code and type(coded(v)) is type(code))


def coded(value: Any) -> Any:
    """Return a value as Optuna's categories hold it: lists and mappings as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, ensure_ascii=False)


def read_parameters(data: Mapping[str, Any], place: str) -> tuple[Parameter, ...]:
    """Check the parameters of a sweep file; nested ones get dotted names."""
    found: dict[str, Parameter] = {}
    for name, fields in _leaves(data, f"{place}: parameters"):
        where = f"{place}: parameters.{name}"
        for twin in found:
            if f"{twin}.".startswith(f"{name}.") or f"{name}.".startswith(f"{twin}."):
                raise ConfigError(f"{where}: {name} and {twin} set the same thing; leave one out.")
        if not isinstance(fields, Mapping):
            raise ConfigError(
                f"{where} is not a mapping; write 'values: [...]' or 'min:' below it."
            )
        found[name] = parse_config({**fields, "name": name}, kind=Parameter, place=where)
    return tuple(found.values())


def _leaves(data: Mapping[str, Any], place: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, fields in data.items():
        name, where = f"{prefix}{key}", f"{place}.{key}"
        if not all(str(key).split(".")):
            raise ConfigError(f"{where} is no name of a setting; write it as a.b.")
        inner = fields.get("parameters") if isinstance(fields, Mapping) else None
        if inner is None:
            yield name, fields
        elif not isinstance(inner, Mapping) or len(fields) > 1 or not inner:
            raise ConfigError(
                f"{where}: parameters stands alone and holds parameters by name; correct it."
            )
        else:
            yield from _leaves(inner, f"{where}.parameters", f"{name}.")


def _tidy(value: float) -> float | int:
    """Return a multiple of a step without the noise of its rounding; whole ones as integers."""
    tidy = float(f"{value:.12g}")
    return int(tidy) if tidy.is_integer() and abs(tidy) < 2**53 else tidy
