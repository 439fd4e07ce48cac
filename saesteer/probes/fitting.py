"""Fitting one probe: logistic regression whose regularisation is chosen by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from saesteer.utils.errors import DataError, MismatchError
from saesteer.utils.settings import Settings


class FitSettings(Settings):
    """How probes are fitted; see `fit_probe`.

    Attributes:
        classes: Fit on texts of these classes alone, in this order; all if null. Texts of the
            others are read all the same, so that runs share their activations.
        c: Inverse regularisation strengths to choose from, in scikit-learn's sense.
        folds: Folds of the cross-validation that chooses; groups stay together.
        class_weight: "balanced" weighs every class alike.
        max_iter: The most steps of the solver.
        tol: Where the solver stops.
        resamples: Bootstrap resamples of the intervals.
        control: Whether a control probe on shuffled labels is fitted at every layer.
    """

    classes: list[str] | None = Field(default=None, min_length=2)
    c: list[float] = Field(default=[1e-4, 1e-3, 1e-2, 1e-1], min_length=1)
    folds: int = Field(default=3, ge=2)
    class_weight: Literal["balanced"] | None = None
    max_iter: int = Field(default=400, ge=1)
    tol: float = Field(default=1e-3, gt=0)
    resamples: int = Field(default=1000, ge=0)
    control: bool = True

    @field_validator("c")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if min(values) <= 0 or len(set(values)) < len(values):
            raise ValueError(f"{values} are not different numbers above 0; give some")
        return sorted(values)


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """Logistic regression on raw activations, the standardisation folded in."""

    # One row per class, or the second class's alone where there are two.
    weight: Float[np.ndarray, "row d_model"]
    bias: Float[np.ndarray, " row"]
    # The inverse regularisation.
    c: float
    # Mean log loss over the folds at each strength tried, nats per text.
    cv_loss: dict[float, float] = field(default_factory=dict, kw_only=True)
    # Whether the last fit met its tolerance.
    converged: bool = field(default=True, kw_only=True)

    def probabilities(
        self, x: Float[np.ndarray, "*text d_model"]
    ) -> Float[np.ndarray, "*text class"]:
        """Return each class's probability.

        Raises:
            MismatchError: The activations have another width.
        """
        from scipy.special import softmax

        if x.shape[-1] != self.weight.shape[1]:
            raise MismatchError(
                f"the probe reads activations {self.weight.shape[1]} wide and was given "
                f"{x.shape[-1]}; read them on the model that the probe was trained on."
            )
        logits = x.astype(np.float64) @ self.weight.astype(np.float64).T + self.bias
        if logits.shape[-1] == 1:
            # The second class's logit against the first.
            logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        return softmax(logits, axis=-1)


def fit_probe(
    x: Float[np.ndarray, "text d_model"],
    labels: Int[np.ndarray, " text"],
    groups: Int[np.ndarray, " text"],
    settings: FitSettings,
    *,
    c: float | None = None,
    seed: int = 0,
) -> FittedProbe:
    """Fit a probe to activations and class numbers from 0.

    Inputs are standardised with the training texts' mean and deviation. C has the least mean log
    loss over stratified folds that keep groups together; each fold walks up the strengths, starting
    from the last one's solution. The last fit is scikit-learn's alone, from zero, on all texts.

    Args:
        x: Activations, float32.
        labels: Every class is present.
        groups: Texts of one group stay in one fold.
        settings: Strengths to choose from, folds and solver.
        c: Use this strength instead of choosing one.
        seed: Shuffles the folds.

    Raises:
        DataError: Activations are not finite, or a class is missing.
    """
    from sklearn.preprocessing import StandardScaler

    if not np.isfinite(x).all():
        raise DataError(
            "activations hold NaN or infinite numbers; read them again with model.dtype: float32 "
            "or reading.storage: bfloat16."
        )
    if len(np.unique(labels)) < 2:
        raise DataError("all training texts have one class; a probe needs two or more.")
    losses: dict[float, float] = {}
    if c is None and len(settings.c) > 1:
        losses = _cross_validated(x, labels, groups, settings, seed)
    chosen = c or (min(losses, key=lambda key: losses[key]) if losses else settings.c[0])
    scaler = StandardScaler().fit(x)
    model = _regression(settings, chosen)
    converged = _fit(model, np.asarray(scaler.transform(x)), labels)
    scale = np.asarray(scaler.scale_, dtype=np.float64)
    weight = model.coef_.astype(np.float64) / scale
    bias = model.intercept_.astype(np.float64) - weight @ np.asarray(scaler.mean_)
    return FittedProbe(
        weight.astype(np.float32),
        bias.astype(np.float64),
        chosen,
        cv_loss=losses,
        converged=converged,
    )


def folds(
    labels: Int[np.ndarray, " text"], groups: Int[np.ndarray, " text"], n: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (fitting, scoring) places of stratified folds that keep groups together.

    Raises:
        DataError: There are too few texts or groups of a class for the folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(np.unique(groups[labels == c])) for c in np.unique(labels))
    if fewest < n:
        raise DataError(
            f"a class has {fewest} groups of texts, too few for fit.folds {n}; add texts or lower "
            "fit.folds."
        )
    splitter = StratifiedGroupKFold(n_splits=n, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros(len(labels)), labels, groups)


def _cross_validated(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, settings: FitSettings, seed: int
) -> dict[float, float]:
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(labels)
    losses: dict[float, list[float]] = {c: [] for c in settings.c}
    for fitting, scoring in folds(labels, groups, settings.folds, seed):
        if len(np.unique(labels[fitting])) < len(classes):
            raise DataError(
                "a fold lacks a class, because groups stay together; add texts of other groups or "
                "lower fit.folds."
            )
        scaler = StandardScaler().fit(x[fitting])
        inner, outer = (np.asarray(scaler.transform(x[part])) for part in (fitting, scoring))
        model = _regression(settings, settings.c[0], warm_start=True)
        for c in settings.c:
            model.C = c
            _fit(model, inner, labels[fitting])
            losses[c].append(log_loss(labels[scoring], model.predict_proba(outer), labels=classes))
    return {c: float(np.mean(values)) for c, values in losses.items()}


def _regression(settings: FitSettings, c: float, **more: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=c,
        class_weight=settings.class_weight,
        max_iter=settings.max_iter,
        tol=settings.tol,
        **more,
    )


def _fit(model: Any, x: np.ndarray, labels: np.ndarray) -> bool:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, labels)
    return not any(issubclass(w.category, ConvergenceWarning) for w in caught)
