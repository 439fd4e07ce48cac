"""Probes on SAE codes: planted features are found, and codes are those made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from saesteer.data.labelled import LabelledText
from saesteer.probes.fitting import FitSettings, Parts
from saesteer.probes.reading import ReadSettings, TextCodes, encode_labelled, read_codes
from saesteer.probes.sparse import (
    all_codes_probe,
    features_needed,
    k_sparse_probes,
    l1_probes,
    rank_features,
)
from saesteer.saes.loading import load_sae
from saesteer.utils.cache import Cache
from saesteer.utils.errors import DataError

SETTINGS = FitSettings(resamples=20)
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
    parts = Parts(labels, np.arange(n), order[:300], order[300:], SETTINGS)
    return csr_matrix(codes.astype(np.float32)), parts


def test_planted_features_are_ranked_first_and_dead_ones_left_out(planted):
    order, f = rank_features(planted[0], planted[1].labels)
    assert set(order[:3].tolist()) == set(PLANTED)
    assert 50 not in order
    assert (np.diff(f) <= 0).all()


def test_as_many_features_as_were_planted_are_enough(planted):
    probes = k_sparse_probes(planted[0], planted[1], [1, 2, 3, 10, 500])
    assert [len(p.features) for p in probes] == [1, 2, 3, 10, 59]
    scores: list[Any] = [p.scores["accuracy"]["value"] for p in probes]
    assert scores[0] < 0.8 and scores[2] > 0.97
    assert set(probes[2].features.tolist()) == set(PLANTED)
    assert features_needed(probes, 1.0) in (2, 3)
    assert features_needed(probes[:1], 1.0) is None


def test_l1_keeps_fewer_features_the_stronger_it_is(planted):
    probes: list[Any] = l1_probes(planted[0], planted[1], [0.0005, 0.03, 30.0])
    counts = [len(p.features) for p in probes]
    assert counts[0] < counts[1] < counts[2]
    assert set(PLANTED) <= set(probes[1].features.tolist())
    assert probes[2].scores["accuracy"]["value"] > 0.97


def test_the_probe_on_all_features_is_scikit_learns(planted):
    from sklearn.linear_model import LogisticRegression

    codes, parts = planted
    dense = np.asarray(codes.todense())
    scale = np.abs(dense[parts.train]).max(axis=0)
    scale[scale == 0] = 1
    model = LogisticRegression(C=1.0, max_iter=400, tol=1e-3)
    model.fit((dense / scale)[parts.train], parts.labels[parts.train])
    found = all_codes_probe(codes, parts, 1.0)
    expected = model.score((dense / scale)[parts.test], parts.labels[parts.test])
    assert found.scores["accuracy"]["value"] == pytest.approx(expected, abs=0.01)

    # A penalty that leaves nothing still has a score.
    [probe] = l1_probes(planted[0], planted[1], [1e-6])
    assert len(probe.features) == 0
    assert probe.scores["accuracy"]["value"] == pytest.approx(1 / 3, abs=0.1)

    # Features that never fire are refused.
    codes, parts = planted
    with pytest.raises(DataError, match="no SAE feature fires"):
        k_sparse_probes(csr_matrix(codes.shape), parts, [1])


@pytest.mark.parametrize("positions", ["mean", "last"])
def test_codes_are_the_saes_own_pooled_over_the_texts_tokens(
    tiny_model, mirror_sae, tmp_path, positions
):
    from saesteer.models.reading import read_rows

    model, sae = tiny_model("llama"), load_sae(str(mirror_sae()))
    texts = [
        LabelledText(str(n), "the cat sat home now"[: 7 + 3 * n], "a", str(n)) for n in range(4)
    ]
    rows = encode_labelled(model.tokenizer, texts, ReadSettings())
    found = read_codes(model, rows, sae, positions=positions)
    again = TextCodes.of_arrays(Cache(tmp_path).once("codes", compute=found.arrays))
    read = read_rows(model, rows, [sae.site])[sae.site]
    for number in range(4):
        own = read.text(number)
        own = own[-1:] if positions == "last" else own
        # The mirror's codes are relu(x) and relu(-x).
        both = np.concatenate([own.clamp(min=0).numpy(), (-own).clamp(min=0).numpy()], axis=1)
        row = np.asarray(again.codes[number].todense())[0]
        assert row == pytest.approx(both.mean(axis=0), abs=1e-5)
        assert again.residual[number] == pytest.approx(own.mean(dim=0).numpy(), abs=1e-5)
    assert again.residual_norm == pytest.approx(float(read.values.norm(dim=1).mean()), rel=1e-5)
