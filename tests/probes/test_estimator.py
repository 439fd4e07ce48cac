"""`ss.Probe`: an estimator after scikit-learn, with the command's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import saesteer as ss
from saesteer.data.labelled import read_labelled
from saesteer.utils.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def parts(finished_run):
    """The command's training and test texts."""
    texts = {text.id: text for text in read_labelled(finished_run.metrics["source"]).texts}
    split = finished_run.folder.read_json("split.json")
    return {part: [texts[i] for i in ids] for part, ids in split.items()}


@pytest.fixture(scope="module")
def probe(tiny_model, parts):
    train = parts["train"]
    made = ss.Probe(c=(0.01, 0.1))
    return made.fit(tiny_model("llama"), [t.text for t in train], [t.label for t in train])


def test_it_finds_what_the_command_finds(probe, finished_run, parts):
    assert probe.layers_ == [0, 1, 2]
    assert list(probe.classes_) == ["negative", "neutral", "positive"]
    assert probe.best_layer_ == finished_run.metrics["best"]
    for row, record in zip(probe.scores_.itertuples(), finished_run.metrics["layers"], strict=True):
        assert row.c == record["c"]
        assert row.cv_loss == pytest.approx(min(record["cv_loss"].values()), rel=1e-6)
    for ours, theirs in zip(probe.probes_.probes, finished_run.probes.probes, strict=True):
        np.testing.assert_allclose(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)
        # The command measures norms over its test texts too.
        assert ours.residual_norm == pytest.approx(theirs.residual_norm, rel=0.01)
    test = parts["test"]
    accuracy = probe.score([t.text for t in test], [t.label for t in test])
    best = finished_run.metrics["layers"][probe.best_layer_]
    assert accuracy == pytest.approx(best["accuracy"]["value"], abs=0.04)


def test_it_predicts_and_its_vector_steers(probe, tiny_model, parts):
    texts = [text.text for text in parts["test"][:6]]
    chances = probe.predict_proba(texts)
    assert chances.sum(axis=1) == pytest.approx(1.0)
    assert list(probe.predict(texts)) == [probe.classes_[i] for i in chances.argmax(axis=1)]
    assert probe.vector_.site.layer == probe.best_layer_
    result = ss.generate(tiny_model("llama"), "the cat", probe.vector_, strength=[-1, 1])
    assert len(set(result.texts(-1) + result.texts(1))) == 2


def test_it_is_an_estimator(probe, tiny_model):
    fresh: Any = clone(probe)
    assert fresh.get_params() == probe.get_params()
    assert not hasattr(fresh, "classes_")
    fresh.set_params(layers=[1], pooling="last", c=(0.1,))
    # Labels of any kind, and words that the texts do not hold themselves.
    texts = [f"the {word} {n}" for n in range(8) for word in ("cat", "dog")]
    fresh.fit(tiny_model("llama"), texts, [True, False] * 8, groups=np.arange(16) // 2)
    assert fresh.layers_ == [1] and fresh.score(texts, [True, False] * 8) > 0.9


def test_what_does_not_fit_is_said(tiny_model):
    model, texts = tiny_model("llama"), ["the cat", "the dog"]
    with pytest.raises(ConfigError, match=r"Probe: c: .*above 0"):
        ss.Probe(c=(-1.0,)).fit(model, texts, [0, 1])
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        ss.Probe().fit(model, texts, [0])
