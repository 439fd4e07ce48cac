"""`Probe`: linear probes on a model's layers, as scikit-learn has estimators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from saesteer.models.loading import model_info
from saesteer.probes.fitting import FitSettings, Parts
from saesteer.probes.probe import LinearProbe, ProbeSet
from saesteer.probes.reading import (
    ReadSettings,
    encode_labelled,
    plain_texts,
    probe_sites,
    read_layers,
)
from saesteer.probes.readout import read_texts_with
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.settings import parse_config

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector


class Probe(ClassifierMixin, BaseEstimator):
    """A linear probe on every layer, of which the best one reads; as `saesteer probe` fits them.

    Args:
        layers: The layers to probe; all if None.
        site: The hook's name inside each block.
        pooling: How a text becomes one vector: the "mean" over its tokens, its "last" token, or
            the "end" of the row, behind the words in `after`.
        before: Words before every text.
        after: Words after every text.
        c: Inverse regularisation strengths, in scikit-learn's sense; cross-validation chooses.
        folds: Folds of that cross-validation.
        class_weight: "balanced" weighs every class alike.
        max_iter: The most steps of the solver.
        tol: Where the solver stops.
        storage: How activations are rounded: "float16", as the command does, or "bfloat16".
        seed: Shuffles the folds.

    Attributes:
        classes_: The labels, sorted.
        layers_: The layers that were probed.
        scores_: One row per layer: layer, c and cv_loss, the mean log loss over the folds.
        best_layer_: The layer of least cross-validated loss.
        probes_: The `ProbeSet`, which can be saved.
        vector_: The best layer's direction from the first class to the last, to steer with.
        model_: The model that was read.

    Example:
        >>> probe = ss.Probe(layers=[1, 2]).fit(model, texts, labels)
        >>> probe.predict(texts).shape == (len(texts),)
        True
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        *,
        site: str = "hook_resid_post",
        pooling: Literal["mean", "last", "end"] = "mean",
        before: str = "",
        after: str = "",
        c: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
        folds: int = 3,
        class_weight: Literal["balanced"] | None = None,
        max_iter: int = 400,
        tol: float = 1e-3,
        storage: Literal["float16", "bfloat16"] = "float16",
        seed: int = 0,
    ) -> None:
        self.layers = layers
        self.site = site
        self.pooling = pooling
        self.before = before
        self.after = after
        self.c = c
        self.folds = folds
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.storage = storage
        self.seed = seed

    def fit(
        self,
        model: TransformerBridge,
        texts: Sequence[str],
        labels: Sequence[Any],
        groups: Sequence[Any] | None = None,
    ) -> Probe:
        """Read every layer in one pass over the texts, and fit a probe on each.

        Args:
            model: A model from `load_model`.
            texts: The training texts.
            labels: Their classes.
            groups: Texts of one group stay in one fold; every text its own if None.

        Raises:
            ConfigError: A setting does not fit.
            DataError: A text is empty or too long, or a class has too few texts.
            SiteError: The model has no such layer.
        """
        reading, fitting = self._settings()
        if not len(texts) == len(labels) == len(texts if groups is None else groups):
            raise DataError(
                f"there are {len(texts)} texts and {len(labels)} labels; give one label (and one "
                "group) for each text."
            )
        self.classes_, numbers = np.unique(np.asarray(labels), return_inverse=True)
        each = np.arange(len(texts))
        own = each if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        parts = Parts(numbers, own, each, each[:0], fitting, self.seed)
        classes = [str(name) for name in self.classes_]
        sites = probe_sites(int(model.cfg.n_layers), reading)
        rows = encode_labelled(
            model.tokenizer, plain_texts(texts), reading, max_length=int(model.cfg.n_ctx)
        )
        with TemporaryDirectory(prefix="saesteer-") as folder:
            store = read_layers(model, rows, sites, Path(folder), reading)
            found = [
                LinearProbe.fit(site, classes, store.site(site), parts, store.residual_norm(site))
                for site in sites
            ]
        losses = [min(probe.cv_loss.values(), default=float("nan")) for probe in found]
        self.layers_ = [site.layer for site in sites]
        self.scores_ = pd.DataFrame(
            {"layer": self.layers_, "c": [probe.c for probe in found], "cv_loss": losses}
        )
        self.best_layer_ = self.layers_[int(np.argmin(self.scores_["cv_loss"].fillna(0.0)))]
        info = model_info(model)
        self.model_ = model
        self.probes_ = ProbeSet(
            tuple(found),
            info.source.name,
            info.fingerprint,
            self.pooling,
            self.best_layer_,
            self.before,
            self.after,
            name="probe",
        )
        self.vector_: SteeringVector = self.probes_.vector()
        return self

    def predict_proba(self, texts: Sequence[str]) -> Float[np.ndarray, "text class"]:
        """Return each class's probability by the best layer's probe.

        Raises:
            DataError: A text is empty or longer than the context.
        """
        check_is_fitted(self)
        readings = read_texts_with(self.model_, self.probes_, list(texts), [self.best_layer_])
        return np.stack([reading.whole[0] for reading in readings])

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return each text's likeliest class."""
        return self.classes_[self.predict_proba(texts).argmax(axis=1)]

    def _settings(self) -> tuple[ReadSettings, FitSettings]:
        reading = {
            "positions": self.pooling,
            "before": self.before,
            "after": self.after,
            "hook": self.site,
            "layers": None if self.layers is None else list(self.layers),
            "storage": self.storage,
        }
        names = ("folds", "class_weight", "max_iter", "tol")
        fitting = {"c": list(self.c), **{name: getattr(self, name) for name in names}}
        if self.pooling == "span":
            raise ConfigError("pooling 'span' needs labelled spans; use saesteer probe train.")
        return (
            parse_config(reading, kind=ReadSettings, place="Probe"),
            parse_config(fitting, kind=FitSettings, place="Probe"),
        )
