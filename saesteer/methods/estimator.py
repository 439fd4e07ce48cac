"""Settings as the fields of a dataclass, checked by their types."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, create_model
from sklearn.base import BaseEstimator

from saesteer.utils.settings import Settings, parse_config


class _Parameters(Settings):
    model_config = ConfigDict(arbitrary_types_allowed=True)


@cache
def parameters_of(kind: type[Any], skip: frozenset[str] = frozenset()) -> type[Settings]:
    """Return the settings class of an estimator, whose types say what may stand in its fields."""
    hints = get_type_hints(kind, include_extras=True)
    own: Any = {n: (hints.get(n, Any), None) for n in signature(kind).parameters if n not in skip}
    return create_model(kind.__name__, __base__=_Parameters, **own)


class Estimator(BaseEstimator):
    """After scikit-learn's conventions: settings are the fields of a dataclass.

    So `get_params`, `set_params` and `sklearn.base.clone` work. What may stand in a field is said
    by its type, such as `Annotated[int, Field(ge=1)]`.
    """

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: One is out of range.
        """
        given = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }
        kind = parameters_of(type(self))
        parse_config(given, kind=kind, place=kind.__name__)
