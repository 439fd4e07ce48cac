"""How many SAE features a concept needs: texts' codes, and k-sparse and L1 probes on them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from scipy.sparse import csr_matrix, vstack

from saesteer.models.reading import Pooling, mean_norm, pool, read_rows
from saesteer.models.tokens import TokenRow
from saesteer.probes.fitting import FittedProbe, Parts, Scores
from saesteer.probes.probe import LinearProbe
from saesteer.probes.reading import length_chunks
from saesteer.saes.labels import PLACE_KEY, feature_url
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import Settings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import Sae

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
class TextCodes:
    """Codes and residual stream of texts at one SAE's site, pooled over the same tokens."""

    # Feature activations, one row per text.
    codes: csr_matrix
    residual: Float[np.ndarray, "text d_model"]
    # Mean L2 norm of the residual stream over tokens.
    residual_norm: float

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TextCodes:
        """Return what `read_codes` gave."""
        parts = tuple(arrays[name] for name in ("data", "indices", "indptr"))
        codes = csr_matrix(parts, shape=tuple(arrays["shape"].tolist()))
        return cls(codes, arrays["residual"], arrays["norm"].item())


def read_codes(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sae: Sae,
    pooling: Pooling = "mean",
    *,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Read the SAE's site and encode every read token, pooling as it goes.

    Tokens are encoded one by one and then pooled, as an SAE was trained on tokens. The arrays are
    those that `Cache.once` keeps and `TextCodes` is made of.
    """
    codes: list[csr_matrix] = []
    residual: list[np.ndarray] = []
    order: list[np.ndarray] = []
    total, tokens = 0.0, 0
    with (progress or Progress()).task("texts", len(rows), "texts") as task:
        for chunk in length_chunks(rows, sae.d_in):
            read = read_rows(model, [rows[i] for i in chunk], [sae.site])[sae.site]
            residual.append(pool(read, pooling).numpy())
            for place in range(read.n_texts):
                own = sae.encode(read.text(place)).cpu().numpy()
                row = own[-1:] if pooling == "last" else own.mean(axis=0, keepdims=True)
                codes.append(csr_matrix(row))
            order.append(chunk)
            total += mean_norm(read) * len(read.values)
            tokens += len(read.values)
            task.advance(len(chunk))
    back = np.argsort(np.concatenate(order))
    whole = csr_matrix(csr_matrix(vstack(codes))[back])
    return {
        "data": whole.data,
        "indices": whole.indices,
        "indptr": whole.indptr,
        "shape": np.array(whole.shape),
        "residual": np.concatenate(residual)[back],
        "norm": np.array(total / tokens),
    }


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A probe that reads some features alone."""

    # "k_sparse", "l1" or "all".
    kind: str
    # The features it reads, by index; the probe's columns go by them.
    features: Int[np.ndarray, " feature"]
    probe: FittedProbe
    # On the test texts.
    scores: Scores

    @property
    def last_direction(self) -> Float[np.ndarray, " feature"]:
        """The gradient of the last class's log odds against the first."""
        rows = self.probe.weight
        return rows[0] if len(rows) == 1 else rows[-1] - rows[0]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the weights left out."""
        head = {"kind": self.kind, "n_features": len(self.features), "c": self.probe.c}
        return {**head, **self.scores}


def rank_features(
    codes: csr_matrix, labels: Int[np.ndarray, " text"]
) -> tuple[Int[np.ndarray, " feature"], Float[np.ndarray, " feature"]]:
    """Return the features that fire at all and the F of each, greatest first.

    F is that of an ANOVA: how much a feature's mean differs between classes.
    """
    from sklearn.feature_selection import f_classif

    with warnings.catch_warnings():
        # Features that never fire divide zero by zero.
        warnings.simplefilter("ignore")
        f = np.asarray(f_classif(codes, labels)[0])
    alive = np.flatnonzero(np.isfinite(f))
    order = alive[np.argsort(-f[alive], kind="stable")]
    return order, f[order]


def k_sparse_probes(codes: csr_matrix, parts: Parts, counts: Sequence[int]) -> list[SparseProbe]:
    """Fit a probe on the k strongest features for each k (Gurnee et al. 2023, arXiv 2305.01610).

    Features are ranked on the training texts; the probe on them is fitted as those on the residual
    stream are, with standardised inputs and cross-validated regularisation.

    Values of k above the number of features that fire are left out.
    """
    order, _ = rank_features(csr_matrix(codes[parts.train]), parts.labels[parts.train])
    if not len(order):
        raise DataError(
            "no SAE feature fires on the training texts; check the SAE with saesteer doctor."
        )
    probes = []
    for k in sorted({min(k, len(order)) for k in counts}):
        chosen = order[:k]
        x = np.asarray(codes[:, chosen].todense(), dtype=np.float32)
        fitted = parts.fit(x)
        probes.append(SparseProbe("k_sparse", chosen, fitted, parts.score(fitted, x[parts.test])))
    return probes


def all_codes_probe(codes: csr_matrix, parts: Parts, c: float, *, l1: bool = False) -> SparseProbe:
    """Fit a logistic regression on all features; with an L1 penalty it chooses some itself.

    Codes are divided by each feature's largest training value, which keeps them sparse.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import MaxAbsScaler

    train = csr_matrix(codes[parts.train], dtype=np.float32)
    scaler = MaxAbsScaler().fit(train)
    model = LogisticRegression(
        C=c,
        l1_ratio=float(l1),
        solver="saga" if l1 else "lbfgs",
        max_iter=L1_STEPS if l1 else parts.settings.max_iter,
        tol=L1_TOLERANCE,
        class_weight=parts.settings.class_weight,
        random_state=parts.seed,
    )
    with warnings.catch_warnings():
        # The path is a picture of sparsity; its last digits do not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train), parts.labels[parts.train])
    weight = model.coef_ / scaler.scale_
    kept = np.flatnonzero(np.any(weight != 0, axis=0))
    bias = np.asarray(model.intercept_, dtype=np.float64)
    probe = FittedProbe(weight[:, kept].astype(np.float32), bias, c)
    held = np.asarray(csr_matrix(codes[parts.test])[:, kept].todense())
    return SparseProbe("l1" if l1 else "all", kept, probe, parts.score(probe, held))


def features_needed(
    probes: Sequence[SparseProbe], reference: float, share: float = 0.95
) -> int | None:
    """Return the fewest features with which a k-sparse probe reaches a share of a macro-F1."""
    found = {len(probe.features): probe.scores["macro_f1"]["value"] or 0.0 for probe in probes}
    return min((n for n, value in found.items() if value >= share * reference), default=None)


def code_vector(
    probe: SparseProbe, sae: Sae, descriptions: Mapping[int, str], *, name: str, **fields: Any
) -> SteeringVector:
    """Return what a sparse probe's weights, not all 0, amount to in the residual stream: W_dec' w.

    The number of features is added to the name; `fields` are others of `SteeringVector.from_raw`.
    """
    weights = probe.last_direction
    features = tuple(
        SteeredFeature(int(i), float(w), None, descriptions.get(int(i)))
        for i, w in zip(probe.features, weights, strict=True)
        if w
    )
    return SteeringVector.from_raw(
        torch.from_numpy(weights) @ sae.decoder[probe.features].float().cpu(),
        site=sae.write_site,
        sae=sae.name,
        sae_fingerprint=sae.fingerprint,
        features=features,
        method="k_sparse_probe",
        name=f"{name}, {len(features)} features",
        provenance={PLACE_KEY: sae.neuronpedia_id},
        **fields,
    )


def feature_records(
    codes: csr_matrix,
    parts: Parts,
    sae: Sae,
    classes: Sequence[str],
    descriptions: Mapping[int, str],
    count: int,
) -> list[dict[str, Any]]:
    """Return the strongest features with where they fire and what they stand for."""
    train, labels = csr_matrix(codes[parts.train]), parts.labels[parts.train]
    order, f = rank_features(train, labels)
    records = []
    for index, strength in zip(order[:count].tolist(), f.tolist(), strict=False):
        means = {
            name: float(train[labels == number][:, index].mean())
            for number, name in enumerate(classes)
        }
        records.append(
            {
                "feature": index,
                "f": float(strength),
                "class": max(means, key=lambda name: means[name]),
                "means": means,
                "description": descriptions.get(index),
                "url": feature_url(sae.neuronpedia_id, index),
            }
        )
    return records


def widened(
    whole: SparseProbe,
    codes: csr_matrix,
    parts: Parts,
    sae: Sae,
    classes: tuple[str, ...],
    residual_norm: float,
) -> LinearProbe:
    """Return a probe on all codes, with weight 0 at those that it leaves out."""
    weight = np.zeros((len(whole.probe.weight), sae.d_sae), dtype=np.float32)
    weight[:, whole.features] = whole.probe.weight
    labels, train = parts.labels[parts.train], codes[parts.train]
    means = [np.asarray(train[labels == c].mean(axis=0)) for c in range(len(classes))]
    return LinearProbe(
        weight=weight,
        bias=whole.probe.bias,
        c=whole.probe.c,
        site=sae.site,
        classes=classes,
        means=np.concatenate(means).astype(np.float32),
        residual_norm=residual_norm,
    )
