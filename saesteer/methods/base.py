"""What every way to a steering vector has in common."""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import numpy as np
from jaxtyping import Int
from pydantic import ConfigDict, create_model
from sklearn.base import BaseEstimator

from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector
from saesteer.utils.settings import Settings, parse_config

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data import PairSet
    from saesteer.models import Site
    from saesteer.saes.adapter import Sae


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


class Method(Estimator):
    """A way from contrastive pairs to a steering vector, after scikit-learn's conventions.

    A method of one's own is a dataclass with `_name` and `_vector`, whose fields are its settings.

    Attributes:
        vector_: The vector, which points to the positive side.
        features_: `[feature]` the SAE features that it is made of, strongest first; empty for a
            dense direction.

    Example:
        >>> fitted = ss.PCA(variant="pca_center").fit(model, train, site=sae.site)
        >>> fitted.vector_.site == sae.site
        True
    """

    _name: ClassVar[str]
    vector_: SteeringVector
    features_: Int[np.ndarray, " feature"]

    @property
    def name(self) -> str:
        """What settings files call the method."""
        return self._name

    def fit(
        self,
        model: TransformerBridge,
        pairs: PairSet,
        *,
        sae: Sae | None = None,
        site: Site | str | None = None,
        **context: Any,
    ) -> Self:
        """Fit the vector to pairs.

        Args:
            model: A model from `load_model`.
            pairs: Training pairs.
            sae: The SAE; methods that know of no features do without.
            site: Where to read and to steer, such as "blocks.15.hook_resid_post"; where the SAE
                writes if None.
            **context: What else `FitContext` takes: validation, seed, reading, objective, progress.

        Raises:
            ConfigError: A setting is out of range, or an SAE or a site is missing.
            MismatchError: Model, SAE and site do not belong together.
            DataError: A text does not fit the model, or the pairs give nothing to fit.
            SteeringError: The pairs' sides do not differ.
        """
        return self.fit_in(FitContext(model, pairs, sae=sae, site=site, **context))

    def fit_in(self, given: FitContext) -> Self:
        """Fit the vector to what other methods were fitted to as well."""
        self.check()
        self.vector_ = self._vector(given)
        self.features_ = np.array([f.index for f in self.vector_.sae_features], dtype=np.int64)
        return self

    @abstractmethod
    def _vector(self, given: FitContext) -> SteeringVector:
        """Return the vector, asking for what it needs."""
