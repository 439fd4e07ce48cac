"""Probes on SAE codes: planted features are found, and codes are those made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from saesteer.data.labelled import LabelledText
from saesteer.models.reading import read_rows
from saesteer.probes.fitting import FitSettings, Parts
from saesteer.probes.reading import ReadSettings, encode_labelled
from saesteer.probes.sparse import (
    TextCodes,
    all_codes_probe,
    features_needed,
    k_sparse_probes,
    rank_features,
    read_codes,
)
from saesteer.saes.loading import load_sae
from saesteer.utils.cache import Cache
from saesteer.utils.errors import DataError

PLANTED = {7: 0, 30: 1, 12: 2}


@pytest.fixture(scope="module")
def planted() -> tuple[csr_matrix, Parts]:
    """Sixty features that fire at random, and three that each tell one class."""
    rng = np.random.default_rng(0)
    n = 450
    labels = np.arange(n) % 3
    codes = rng.random((n, 60)) * (rng.random((n, 60)) < 0.2)
    codes[:, 50] = 0
    for feature, number in PLANTED.items():
        codes[:, feature] = (labels == number) * (0.5 + rng.random(n)) + 0.3 * rng.random(n)
    order = rng.permutation(n)
    settings = FitSettings(resamples=20)
    parts = Parts(labels, np.arange(n), order[:300], order[300:], settings)
    return csr_matrix(codes.astype(np.float32)), parts


def accuracy(probe) -> float:
    return probe.scores["accuracy"]["value"]


def test_planted_features_are_ranked_first_and_as_many_are_enough(planted):
    order, f = rank_features(planted[0], planted[1].labels)
    assert set(order[:3].tolist()) == set(PLANTED)
    # One that never fires is left out.
    assert 50 not in order and (np.diff(f) <= 0).all()
    probes = k_sparse_probes(planted[0], planted[1], [1, 2, 3, 10, 500])
    assert [len(p.features) for p in probes] == [1, 2, 3, 10, 59]
    assert accuracy(probes[0]) < 0.8 and accuracy(probes[2]) > 0.97
    assert set(probes[2].features.tolist()) == set(PLANTED)
    assert features_needed(probes, 1.0) in (2, 3)
    assert features_needed(probes[:1], 1.0) is None
    with pytest.raises(DataError, match="no SAE feature fires"):
        k_sparse_probes(csr_matrix(planted[0].shape), planted[1], [1])


def test_l1_keeps_fewer_features_the_stronger_it_is(planted):
    probes = [all_codes_probe(planted[0], planted[1], c, l1=True) for c in (1e-6, 0.03, 30.0)]
    counts = [len(p.features) for p in probes]
    # A penalty that leaves nothing still has a score.
    assert 0 == counts[0] < counts[1] < counts[2]
    assert accuracy(probes[0]) == pytest.approx(1 / 3, abs=0.1)
    assert set(PLANTED) <= set(probes[1].features.tolist())
    assert accuracy(probes[2]) > 0.97


def test_the_probe_on_all_features_is_scikit_learns(planted):
    codes, parts = planted
    dense = np.asarray(codes.todense())
    scale = np.abs(dense[parts.train]).max(axis=0)
    scale[scale == 0] = 1
    model = LogisticRegression(C=1.0, max_iter=400, tol=1e-3)
    model.fit((dense / scale)[parts.train], parts.labels[parts.train])
    expected = model.score((dense / scale)[parts.test], parts.labels[parts.test])
    assert accuracy(all_codes_probe(codes, parts, 1.0)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_codes_are_the_saes_own_pooled_over_the_texts_tokens(
    tiny_model, mirror_sae, tmp_path, pooling
):
    model, sae = tiny_model("llama"), load_sae(str(mirror_sae()))
    texts = [
        LabelledText(str(n), "the cat sat home now"[: 7 + 3 * n], "a", str(n)) for n in range(4)
    ]
    rows = encode_labelled(model.tokenizer, texts, ReadSettings())
    compute: Any = lambda: read_codes(model, rows, sae, pooling)  # noqa: E731
    again = TextCodes.of_arrays(Cache(tmp_path).once("codes", compute=compute))
    read = read_rows(model, rows, [sae.site])[sae.site]
    for number in range(4):
        own = read.text(number)
        own = own[-1:] if pooling == "last" else own
        # The mirror's codes are relu(x) and relu(-x).
        both = np.concatenate([own.clamp(min=0).numpy(), (-own).clamp(min=0).numpy()], axis=1)
        row = np.asarray(again.codes[number].todense())[0]
        assert row == pytest.approx(both.mean(axis=0), abs=1e-5)
        assert again.residual[number] == pytest.approx(own.mean(dim=0).numpy(), abs=1e-5)
    assert again.residual_norm == pytest.approx(float(read.values.norm(dim=1).mean()), rel=1e-5)
