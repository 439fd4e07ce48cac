"""How well a probe does on texts it has not seen, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saesteer.probes.fitting import FitSettings, FittedProbe, fit_probe

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Scores:
    """A probe's scores on held-out texts."""

    # Share of texts whose likeliest class is theirs.
    accuracy: Interval
    # F1 averaged over the classes.
    macro_f1: Interval
    # Area under the ROC curve; over more than two classes the mean of each against the rest.
    auroc: Interval
    # Counts.
    confusion: Int[np.ndarray, "true predicted"]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        figures = {n: asdict(getattr(self, n)) for n in ("accuracy", "macro_f1", "auroc")}
        return {**figures, "confusion": self.confusion.tolist()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scores:
        """Return what `as_dict` gave."""
        figures = {n: Interval(**record[n]) for n in ("accuracy", "macro_f1", "auroc")}
        return cls(**figures, confusion=np.array(record["confusion"], dtype=np.int64))


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
    counts for accuracy alone.

    Args:
        labels: The true classes' numbers.
        probabilities: The likeliest class is the prediction.
        groups: Every text its own if None.
        resamples: 0 for no intervals.
        seed: Seeds the resamples.
    """
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    cells = labels * n_classes + predicted
    whole = np.ones((1, len(labels)), dtype=np.float32)
    confusion = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
    point = _figures(whole, labels, cells, probabilities)
    drawn = None
    if resamples:
        own = (
            np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
        )
        drawn = _figures(_draws(own, resamples, seed), labels, cells, probabilities)
    accuracy, macro_f1, auroc = (
        _interval(point[i], None if drawn is None else drawn[i]) for i in range(3)
    )
    return Scores(accuracy, macro_f1, auroc, confusion)


def control_labels(labels: Int[np.ndarray, " text"], seed: int) -> Int[np.ndarray, " text"]:
    """Return the labels shuffled over all texts: what a control probe is fitted and scored on.

    Nothing in a text tells its shuffled label, so a probe that beats chance on it has memorised
    texts, or texts stand in two parts (Hewitt and Liang 2019, arXiv 1909.03368).
    """
    return np.random.default_rng([seed, 1]).permutation(labels)


def _draws(groups: np.ndarray, resamples: int, seed: int) -> Float[np.ndarray, "resample text"]:
    rng = np.random.default_rng([seed, 2])
    n = int(groups.max()) + 1
    counts = np.zeros((resamples, n), dtype=np.float32)
    for row in counts:
        row += np.bincount(rng.integers(0, n, n), minlength=n)
    return counts[:, groups]


def _figures(
    weights: Float[np.ndarray, "resample text"],
    labels: np.ndarray,
    cells: np.ndarray,
    probabilities: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return accuracy, macro-F1 and AUROC under each row of weights; NaN where undefined."""
    n_classes = probabilities.shape[1]
    in_cell = np.zeros((len(labels), n_classes**2), dtype=np.float32)
    in_cell[np.arange(len(labels)), cells] = 1
    table = (weights @ in_cell).reshape(-1, n_classes, n_classes).astype(np.float64)
    right = np.diagonal(table, axis1=1, axis2=2)
    true, predicted = table.sum(axis=2), table.sum(axis=1)
    accuracy = right.sum(axis=1) / table.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * right / (true + predicted)
    classes: Sequence[int] = range(n_classes) if n_classes > 2 else (1,)
    areas = [_weighted_auroc(weights, labels == c, probabilities[:, c]) for c in classes]
    return accuracy, f1.mean(axis=1), np.mean(areas, axis=0)


def _weighted_auroc(
    weights: Float[np.ndarray, "resample text"], is_class: np.ndarray, scores: np.ndarray
) -> Float[np.ndarray, " resample"]:
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered, mine = weights[:, order], is_class[order]
    inside = np.add.reduceat(np.where(mine, ordered, 0), starts, axis=1, dtype=np.float64)
    outside = np.add.reduceat(np.where(mine, 0, ordered), starts, axis=1, dtype=np.float64)
    # A tie counts half.
    below = np.cumsum(outside, axis=1) - outside / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (inside * below).sum(axis=1) / (inside.sum(axis=1) * outside.sum(axis=1))


def _interval(point: np.ndarray, drawn: np.ndarray | None) -> Interval:
    value = float(point[0]) if np.isfinite(point[0]) else None
    usable = np.array([]) if drawn is None else drawn[np.isfinite(drawn)]
    if value is None or not len(usable):
        return Interval(value, None, None)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
