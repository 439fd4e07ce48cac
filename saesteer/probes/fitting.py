"""Fitting one probe, and how well it does on texts that it has not seen.

Logistic regression whose regularisation is chosen by cross-validation; bootstrap intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from saesteer.evaluation.statistics import percentiles, resample_counts
from saesteer.utils.errors import DataError, MismatchError
from saesteer.utils.settings import Settings

# As JSON has them; see `score`.
Scores = dict[str, Any]


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
        """Return each class's probability."""
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

    Where `c` is given nothing is chosen.
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
    """Yield (fitting, scoring) places of stratified folds that keep groups together."""
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


@dataclass(frozen=True, eq=False)
class Parts:
    """Classes and groups of texts in two parts: probes are fitted on one, scored on the other."""

    labels: Int[np.ndarray, " text"]
    groups: Int[np.ndarray, " text"]
    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    settings: FitSettings
    seed: int = 0

    def fit(self, x: Float[np.ndarray, "text d_model"], *, c: float | None = None) -> FittedProbe:
        """Fit a probe on the training texts; see `fit_probe`."""
        train = self.train
        x, labels, groups = x[train], self.labels[train], self.groups[train]
        return fit_probe(x, labels, groups, self.settings, c=c, seed=self.seed)

    def score(self, probe: FittedProbe, x: Float[np.ndarray, "test d_model"]) -> Scores:
        """Score a probe on activations of the test texts."""
        test, how = self.test, {"resamples": self.settings.resamples, "seed": self.seed}
        return score(self.labels[test], probe.probabilities(x), self.groups[test], **how)

    def shuffled(self) -> Parts:
        """Return the same with labels shuffled over all texts, for a control probe.

        Nothing in a text tells its shuffled label, so a probe that beats chance on it has memorised
        texts, or texts stand in two parts (Hewitt and Liang 2019, arXiv 1909.03368).
        """
        rng = np.random.default_rng([self.seed, 1])
        return replace(self, labels=rng.permutation(self.labels))


def score(
    labels: Int[np.ndarray, " text"],
    probabilities: Float[np.ndarray, "text class"],
    groups: Int[np.ndarray, " text"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score probabilities against labels.

    The intervals are percentiles over resamples of whole groups (Davison and Hinkley 1997, section
    3.8), since the sentences of one review are not independent. A resample that lacks a class
    counts for accuracy alone. Every text is a group of its own where `groups` is None.

    Returns:
        `accuracy`, the share of texts whose likeliest class is theirs; `macro_f1`, F1 averaged over
        the classes; `auroc`, the area under the ROC curve, over more than two classes the mean of
        each against the rest: each as `value` with its 95% interval `low` to `high`, None where
        there is none. And the `confusion` counts, rows true and columns predicted.
    """
    n_classes = probabilities.shape[1]
    cells = labels * n_classes + probabilities.argmax(axis=1)
    confusion = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
    own = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    # The texts themselves first, then their resamples.
    weights = np.ones((1 + resamples, len(labels)), dtype=np.float32)
    weights[1:] = resample_counts(own, resamples, np.random.default_rng([seed, 2]))
    figures = _figures(weights, labels, cells, probabilities)
    intervals = {name: _interval(values) for name, values in figures.items()}
    return {**intervals, "confusion": confusion.tolist()}


def _figures(
    weights: Float[np.ndarray, "resample text"],
    labels: np.ndarray,
    cells: np.ndarray,
    probabilities: np.ndarray,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Return the figures under each row of weights; NaN where undefined."""
    n_classes = probabilities.shape[1]
    in_cell = np.zeros((len(labels), n_classes**2), dtype=np.float32)
    in_cell[np.arange(len(labels)), cells] = 1
    table = (weights @ in_cell).reshape(-1, n_classes, n_classes).astype(np.float64)
    right = np.diagonal(table, axis1=1, axis2=2)
    true, predicted = table.sum(axis=2), table.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * right / (true + predicted)
    classes: Sequence[int] = range(n_classes) if n_classes > 2 else (1,)
    areas = [_weighted_auroc(weights, labels == c, probabilities[:, c]) for c in classes]
    return {
        "accuracy": right.sum(axis=1) / table.sum(axis=(1, 2)),
        "macro_f1": f1.mean(axis=1),
        "auroc": np.mean(areas, axis=0),
    }


def _weighted_auroc(
    weights: Float[np.ndarray, "resample text"], is_class: np.ndarray, scores: np.ndarray
) -> Float[np.ndarray, " resample"]:
    # scikit-learn has it for one set of weights at a time, far too slow for a thousand.
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered, mine = weights[:, order], is_class[order]
    inside = np.add.reduceat(np.where(mine, ordered, 0), starts, axis=1, dtype=np.float64)
    outside = np.add.reduceat(np.where(mine, 0, ordered), starts, axis=1, dtype=np.float64)
    # A tie counts half.
    below = np.cumsum(outside, axis=1) - outside / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (inside * below).sum(axis=1) / (inside.sum(axis=1) * outside.sum(axis=1))


def _interval(values: Float[np.ndarray, " resample"]) -> dict[str, float | None]:
    """Return the first value with the interval of the others."""
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return dict.fromkeys(("value", "low", "high"))
    low, high = percentiles(drawn) if len(drawn) else (None, None)
    return {"value": value, "low": low, "high": high}
