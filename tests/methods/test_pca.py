"""PCA directions are repeng's, by its own code where it is installed and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.methods import MethodInputs, Pca
from saesteer.models import Site
from saesteer.models.pair_activations import PairActivations, read_pair_activations
from saesteer.models.pooling import pool
from saesteer.models.reading import Activations
from saesteer.utils.errors import ConfigError

SITE = Site(1)
VARIANTS = ("pca_diff", "pca_center")


def inputs_of(positive: np.ndarray, negative: np.ndarray) -> MethodInputs:
    offsets = torch.arange(len(positive) + 1)
    sides = [Activations(torch.tensor(x).float(), offsets, SITE) for x in (positive, negative)]
    return MethodInputs(PairActivations(sides[0], sides[1]), "tiny", "f")


def spread(n: int = 30, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = np.linspace(0.2, 3, width)
    shift = rng.normal(size=width)
    return rng.normal(size=(n, width)) * shape + shift, rng.normal(size=(n, width)) * shape - shift


def by_hand(positive: np.ndarray, negative: np.ndarray, variant: str) -> np.ndarray:
    """repeng 0.4.0's `read_representations`, written out with numpy's own decomposition."""
    hidden = np.empty((2 * len(positive), positive.shape[1]))
    hidden[::2], hidden[1::2] = positive, negative
    if variant == "pca_diff":
        train = hidden[::2] - hidden[1::2]
    else:
        train = hidden - np.repeat((hidden[::2] + hidden[1::2]) / 2, 2, axis=0)
    train = train - train.mean(axis=0)
    direction = np.linalg.eigh(train.T @ train)[1][:, -1]
    projected = hidden @ direction
    if (projected[::2] < projected[1::2]).mean() > (projected[::2] > projected[1::2]).mean():
        direction = -direction
    return direction


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_repengs_formula_by_hand_with_its_sign(variant, seed):
    positive, negative = spread(31, seed=seed)
    vector = Pca(variant)(inputs_of(positive, negative))
    np.testing.assert_allclose(
        vector.direction.numpy(), by_hand(positive, negative, variant), atol=1e-4
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_the_package_repeng(variant, tiny_model, hf_model, monkeypatch):
    # repeng 0.4.0 names numpy 1's float_ in an annotation, and so fails to import on numpy 2.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    repeng = pytest.importorskip("repeng.extract")
    words = ["the cat", "a dog in the garden", "people", "sun and rain", "i listen to what you say"]
    pairs = pairs_from([(f"i like {word}", f"i hate {word}") for word in words])
    model = tiny_model("llama")
    theirs = repeng.read_representations(
        hf_model("llama"),
        model.tokenizer,
        [repeng.DatasetEntry(pair.positive, pair.negative) for pair in pairs],
        hidden_layers=[SITE.layer],
        method=variant,
    )[SITE.layer]
    read = read_pair_activations(model, pairs, [SITE], prepend_bos=False, pooling="last")[SITE]
    ours = Pca(variant)(MethodInputs(read, "tiny", "f"))
    assert abs(float(ours.direction.numpy() @ theirs)) > 0.9999


def test_it_is_as_long_as_the_mean_delta():
    positive, negative = spread()
    vector = Pca()(inputs_of(positive, negative))
    assert vector.norm == pytest.approx(np.linalg.norm((positive - negative).mean(axis=0)))
    assert vector.sae_features == ()


def test_the_default_leaves_the_common_difference_out_and_the_other_keeps_it():
    rng = np.random.default_rng(0)
    common, varying = np.eye(8)[0], np.eye(8)[1]
    negative = rng.normal(size=(40, 8)) * 0.01
    positive = negative + 5 * common + np.outer(rng.normal(size=40) + 0.1, varying)
    given = inputs_of(positive, negative)
    assert abs(Pca("pca_diff")(given).direction[1]) > 0.99
    assert Pca("pca_center")(given).direction[0] > 0.98


@pytest.mark.parametrize("variant", VARIANTS)
def test_deltas_that_do_not_vary_are_the_direction(variant):
    negative = np.zeros((3, 4))
    delta = np.array([0.0, 2.0, 0.0, -1.0])
    for count in (1, 3):
        vector = Pca(variant)(inputs_of(negative[:count] + delta, negative[:count]))
        np.testing.assert_allclose(vector.raw.numpy(), delta, atol=1e-5)


def test_a_tie_between_pairs_goes_by_the_mean():
    deltas = np.array([[3.0, 0.0], [-1.0, 0.0]])
    for sign in (1, -1):
        vector = Pca()(inputs_of(sign * deltas, np.zeros((2, 2))))
        assert float(vector.direction[0]) == pytest.approx(sign)


def test_pooling_is_the_pairs_own():
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 2, 3, 6])
    side = Activations(values, offsets, SITE)
    other = Activations(-values.flip(0), offsets, SITE)
    last = MethodInputs(PairActivations(side, other, "last"), "tiny", "f")
    sides = [pool(texts, "last").numpy() for texts in (side, other)]
    wanted = by_hand(sides[0].astype(float), sides[1].astype(float), "pca_diff")
    np.testing.assert_allclose(Pca()(last).direction.numpy(), wanted, atol=1e-4)
    mean = replace(last, activations=PairActivations(side, other, "mean"))
    assert not np.allclose(Pca()(mean).direction.numpy(), wanted, atol=1e-2)


def test_an_unknown_variant_is_a_sentence():
    with pytest.raises(ConfigError, match=r"variant: 'umap' is not known; use 'pca_diff' or"):
        Pca("umap")  # type: ignore[arg-type]
