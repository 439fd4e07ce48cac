"""PCA directions are repeng's, by its own code where it is installed and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.data import pairs_from
from saesteer.methods import PCA, ReadingSettings
from saesteer.models import Site
from saesteer.utils.errors import ConfigError

SITE = Site(1)
VARIANTS = ("pca_diff", "pca_center")


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
def test_it_equals_repengs_formula_by_hand_with_its_sign(variant, given_sides):
    rng = np.random.default_rng(0)
    shape, shift = np.linspace(0.2, 3, 12), rng.normal(size=12)
    positive = rng.normal(size=(31, 12)) * shape + shift
    negative = rng.normal(size=(31, 12)) * shape - shift
    vector = PCA(variant).fit_in(given_sides(positive, negative)).vector_
    wanted = by_hand(positive, negative, variant)
    np.testing.assert_allclose(vector.direction.numpy(), wanted, atol=1e-4)
    assert vector.norm == pytest.approx(np.linalg.norm((positive - negative).mean(axis=0)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_the_package_repeng(variant, tiny_model, hf_model, monkeypatch):
    # repeng 0.4.0 names numpy 1's float_ in an annotation, and so fails to import on numpy 2.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    repeng = pytest.importorskip("repeng.extract")
    words = ["the cat", "a dog in the garden", "people", "sun and rain", "i listen to what you say"]
    pairs = pairs_from([(f"i like {word}", f"i hate {word}") for word in words])
    model = tiny_model("qwen3")
    theirs = repeng.read_representations(
        hf_model("qwen3"),
        model.tokenizer,
        [repeng.DatasetEntry(pair.positive, pair.negative) for pair in pairs],
        hidden_layers=[SITE.layer],
        method=variant,
    )[SITE.layer]
    # Without BOS, which this model's tokenizer does not have, and without a request.
    reading = ReadingSettings(positions="last", request=None)
    ours = PCA(variant).fit(model, pairs, site=SITE, reading=reading).vector_
    assert abs(float(ours.direction.numpy() @ theirs)) > 0.9999


def test_the_default_leaves_the_common_difference_out_and_the_other_keeps_it(given_sides):
    rng = np.random.default_rng(0)
    common, varying = np.eye(8)[0], np.eye(8)[1]
    negative = rng.normal(size=(40, 8)) * 0.01
    positive = negative + 5 * common + np.outer(rng.normal(size=40) + 0.1, varying)
    given = given_sides(positive, negative)
    assert abs(PCA("pca_diff").fit_in(given).vector_.direction[1]) > 0.99
    assert PCA("pca_center").fit_in(given).vector_.direction[0] > 0.98


def test_deltas_that_do_not_vary_are_the_direction_and_a_tie_goes_by_the_mean(given_sides):
    negative, delta = np.zeros((3, 4)), np.array([0.0, 2.0, 0.0, -1.0])
    vector = PCA().fit_in(given_sides(negative + delta, negative)).vector_
    np.testing.assert_allclose(vector.raw.numpy(), delta, atol=1e-5)
    deltas = np.array([[3.0, 0.0], [-1.0, 0.0]])
    for sign in (1, -1):
        vector = PCA().fit_in(given_sides(sign * deltas, np.zeros((2, 2)))).vector_
        assert float(vector.direction[0]) == pytest.approx(sign)


def test_an_unknown_variant_is_a_sentence():
    with pytest.raises(ConfigError, match=r"variant: 'umap' is not known; use 'pca_diff' or"):
        PCA("umap")  # type: ignore[arg-type]
