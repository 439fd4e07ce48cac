"""What every way to a steering vector has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Int

from saesteer.methods.estimator import Estimator
from saesteer.methods.fit_context import FitContext
from saesteer.steering import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data import PairSet
    from saesteer.models import Site
    from saesteer.saes.adapter import Sae


class Method(Estimator):
    """A way from contrastive pairs to a steering vector, after scikit-learn's conventions.

    A method of one's own is a dataclass with `_name` and `_vector`, whose fields are its settings.

    Attributes:
        vector_: The vector, which points to the positive side.
        features_: `[feature]` the SAE features that it is made of at its own site, strongest first;
            empty for a dense direction.

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
