"""How many SAE features a concept needs: k-sparse and L1 probes on codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from scipy.sparse import csr_matrix

from saesteer.probes.fitting import FitSettings, class_probabilities, fit_probe, logits
from saesteer.probes.scores import Scores, score
from saesteer.utils.errors import DataError
from saesteer.utils.settings import Settings

L1_STEPS = 100
L1_TOLERANCE = 1e-3


class SparseSettings(Settings):
    """How many SAE features a concept needs; see `k_sparse_probes`.

    Attributes:
        k: Numbers of features to try, the strongest by ANOVA F on the training texts.
        l1_c: Inverse L1 penalties to try.
    """

    k: list[int] = Field(default=[1, 2, 4, 8, 16, 32, 64, 128], min_length=1)
    l1_c: list[float] = Field(default=[0.01, 0.03, 0.1, 0.3, 1.0])

    @field_validator("k")
    @classmethod
    def _at_least_one(cls, values: list[int]) -> list[int]:
        if min(values) < 1 or len(set(values)) < len(values):
            raise ValueError(f"{values} are not different numbers from 1 on; give some")
        return sorted(values)


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A probe that reads some features alone."""

    # "k_sparse", "l1" or "all".
    kind: str
    # The features it reads, by index.
    features: Int[np.ndarray, " feature"]
    # One row per class, or the second class's alone of two.
    weight: Float[np.ndarray, "row feature"]
    bias: Float[np.ndarray, " row"]
    # The inverse regularisation.
    c: float
    # On the test texts.
    scores: Scores = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the weights left out."""
        head = {"kind": self.kind, "n_features": len(self.features), "c": self.c}
        return {**head, **self.scores.as_dict()}


@dataclass(frozen=True, eq=False)
class SparseData:
    """Codes of texts with their class numbers, their groups and the places of two parts."""

    codes: csr_matrix
    labels: Int[np.ndarray, " text"]
    groups: Int[np.ndarray, " text"]
    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]

    def scored(self, probabilities: np.ndarray, settings: FitSettings, seed: int) -> Scores:
        """Score probabilities of the test texts."""
        groups = self.groups[self.test]
        return score(
            self.labels[self.test], probabilities, groups, resamples=settings.resamples, seed=seed
        )


def rank_features(
    codes: csr_matrix, labels: Int[np.ndarray, " text"]
) -> tuple[Int[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """Rank features by how much their mean differs between classes (ANOVA F), greatest first.

    Returns:
        The indices of the features that fire at all, and the F of each of these.
    """
    from sklearn.feature_selection import f_classif

    with warnings.catch_warnings():
        # Features that never fire divide zero by zero.
        warnings.simplefilter("ignore")
        f = np.asarray(f_classif(codes, labels)[0])
    alive = np.flatnonzero(np.isfinite(f))
    order = alive[np.argsort(-f[alive], kind="stable")]
    return order, f[order]


def k_sparse_probes(
    data: SparseData, counts: Sequence[int], settings: FitSettings, *, seed: int = 0
) -> list[SparseProbe]:
    """Fit a probe on the k strongest features for each k (Gurnee et al. 2023, arXiv 2305.01610).

    Features are ranked on the training texts; the probe on them is fitted as those on the residual
    stream are, with standardised inputs and cross-validated regularisation.

    Values of k above the number of features that fire are left out.

    Raises:
        DataError: No feature fires on the training texts.
    """
    train = csr_matrix(data.codes[data.train])
    labels = data.labels[data.train]
    order, _ = rank_features(train, labels)
    if not len(order):
        raise DataError(
            "no SAE feature fires on the training texts; check the SAE with saesteer doctor."
        )
    test = csr_matrix(data.codes[data.test])
    probes = []
    for k in sorted({min(k, len(order)) for k in counts}):
        chosen = order[:k]
        x = np.asarray(train[:, chosen].todense(), dtype=np.float32)
        held = np.asarray(test[:, chosen].todense(), dtype=np.float32)
        fitted = fit_probe(x, labels, data.groups[data.train], settings, seed=seed)
        scores = data.scored(fitted.probabilities(held), settings, seed)
        probes.append(SparseProbe("k_sparse", chosen, fitted.weight, fitted.bias, fitted.c, scores))
    return probes


def l1_probes(
    data: SparseData, strengths: Sequence[float], settings: FitSettings, *, seed: int = 0
) -> list[SparseProbe]:
    """Fit L1 logistic regressions, one per inverse penalty; they choose features themselves.

    Codes are divided by each feature's largest training value, which keeps them sparse.
    """
    return [_on_all(data, c, 1.0, "l1", settings, seed) for c in strengths]


def all_codes_probe(
    data: SparseData, c: float, settings: FitSettings, *, seed: int = 0
) -> SparseProbe:
    """Fit an L2 logistic regression on all features, scaled as in `l1_probes`."""
    return _on_all(data, c, 0.0, "all", settings, seed)


def _on_all(
    data: SparseData, c: float, l1_ratio: float, kind: str, settings: FitSettings, seed: int
) -> SparseProbe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import MaxAbsScaler

    train = csr_matrix(data.codes[data.train], dtype=np.float32)
    scaler = MaxAbsScaler().fit(train)
    model = LogisticRegression(
        C=c,
        l1_ratio=l1_ratio,
        solver="saga" if l1_ratio else "lbfgs",
        max_iter=L1_STEPS if l1_ratio else settings.max_iter,
        tol=L1_TOLERANCE,
        class_weight=settings.class_weight,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # The path is a picture of sparsity; its last digits do not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train), data.labels[data.train])
    weight = model.coef_ / scaler.scale_
    kept = np.flatnonzero(np.any(weight != 0, axis=0))
    test = csr_matrix(data.codes[data.test])
    held = np.asarray(test[:, kept].todense())
    bias = np.asarray(model.intercept_, dtype=np.float64)
    narrow = weight[:, kept].astype(np.float32)
    found = class_probabilities(logits(held, narrow, bias))
    scores = data.scored(found, settings, seed)
    return SparseProbe(kind, kept, narrow, bias, c, scores)


def features_needed(
    probes: Sequence[SparseProbe], reference: float, share: float = 0.95
) -> int | None:
    """Return the fewest features with which a k-sparse probe reaches a share of a macro-F1."""
    enough = [
        len(probe.features)
        for probe in probes
        if probe.kind == "k_sparse" and (probe.scores.macro_f1.value or 0.0) >= share * reference
    ]
    return min(enough, default=None)
