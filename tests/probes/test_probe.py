"""Probes on disk, their readings, and their directions as steering vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saesteer.models import Site
from saesteer.probes import LinearProbe, ProbeSet
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError, MismatchError, SiteError


def make_probe(n_classes: int = 3, layer: int = 0, width: int = 8, seed: int = 0) -> LinearProbe:
    rng = np.random.default_rng(seed)
    rows = 1 if n_classes == 2 else n_classes
    classes = ("negative", "neutral", "positive") if n_classes > 2 else ("no", "yes")
    return LinearProbe(
        weight=rng.normal(size=(rows, width)).astype(np.float32),
        bias=rng.normal(size=rows),
        c=0.01,
        site=Site(layer),
        classes=classes,
        means=rng.normal(size=(n_classes, width)).astype(np.float32),
        residual_norm=4.0,
    )


def make_set(n_classes: int = 3) -> ProbeSet:
    probes = tuple(make_probe(n_classes, layer, seed=layer) for layer in (0, 4, 9))
    return ProbeSet(probes, "tiny", "abc", "mean", best=4, before="Text:", name="set")


def test_probes_are_read_back_as_they_were(tmp_path):
    probes = make_set()
    again = ProbeSet.load(probes.save(tmp_path / "probes.safetensors"))
    assert [p.site for p in again.probes] == [p.site for p in probes.probes]
    assert (again.best, again.before, again.classes) == (4, "Text:", probes.classes)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    for one, two in zip(probes.probes, again.probes, strict=True):
        assert np.array_equal(one.probabilities(x), two.probabilities(x))
        assert np.array_equal(one.means, two.means)


def test_probabilities_are_softmax_over_the_rows():
    probe, x = make_probe(), np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    logits = x @ probe.weight.T + probe.bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probe.probabilities(x) == pytest.approx(expected, rel=1e-5)
    two = make_probe(2)
    sigmoid = 1 / (1 + np.exp(-(x @ two.weight[0] + two.bias[0])))
    assert two.probabilities(x)[:, 1] == pytest.approx(sigmoid, rel=1e-5)


def test_a_direction_is_the_gradient_of_the_log_odds():
    probe = make_probe()
    x = np.random.default_rng(1).normal(size=(1, 8))
    raw = probe.direction("positive", "negative").astype(np.float64)

    def log_odds(at):
        p = probe.probabilities(at)[0]
        return np.log(p[2] / p[0])

    steps = 1e-4 * np.eye(8)
    slopes = [(log_odds(x + s) - log_odds(x - s)) / 2e-4 for s in steps]
    assert raw == pytest.approx(slopes, rel=1e-4)
    two = make_probe(2)
    assert np.array_equal(two.direction("yes", "no"), two.weight[0])
    assert np.array_equal(two.direction("no", "yes"), -two.weight[0])


@pytest.mark.parametrize("kind", ["probe", "means"])
def test_a_vector_says_where_every_class_lies_along_it(tmp_path, kind):
    probes = make_set()
    vector = probes.vector(9, kind=kind)
    assert isinstance(vector, SteeringVector)
    assert (vector.site, vector.residual_norm, vector.model) == (Site(9), 4.0, "tiny")
    v = vector.direction.numpy().astype(np.float64)
    alphas: Any = vector.provenance["class_alphas"]
    for number, name in enumerate(probes.classes):
        assert alphas[name] == pytest.approx(probes.layer(9).means[number] @ v, abs=1e-5)
    again = SteeringVector.load(vector.save(tmp_path))
    assert again.provenance == dict(vector.provenance)
    if kind == "means":
        assert alphas["positive"] - alphas["negative"] == pytest.approx(vector.norm, rel=1e-5)


def test_the_best_layer_is_the_default_and_unknown_ones_are_refused():
    probes = make_set()
    assert probes.vector().site == probes.layer().site == Site(4)
    with pytest.raises(SiteError, match="layer 3 has no probe; these have one: 0, 4, 9"):
        probes.vector(3)
    with pytest.raises(DataError, match=r"class 'positiv' \(did you mean 'positive'\?\)"):
        probes.vector(towards="positiv")
    with pytest.raises(DataError, match="both are 'neutral'"):
        probes.vector(towards="neutral", away="neutral")


def test_probes_of_another_model_are_refused(tiny_model, finished_run):
    finished_run.probes.check_belongs(tiny_model("llama"))
    with pytest.raises(MismatchError, match="trained on other weights"):
        finished_run.probes.check_belongs(tiny_model("qwen3"))
    with pytest.raises(MismatchError, match=r"8 wide and the residual stream of .* is 32"):
        make_set().check_belongs(tiny_model("llama"))
    with pytest.raises(MismatchError, match="reads activations 8 wide and was given 5"):
        make_probe().probabilities(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(MismatchError, match="read codes of SAE some"):
        replace(make_set(), sae="some").vector()


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="there are no probes; give the folder of a finished"):
        ProbeSet.load(tmp_path)
    path = make_set().save(tmp_path / "probes.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as probes"):
        ProbeSet.load(path)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"format": "other"})
    with pytest.raises(DataError, match=r"no saesteer\.probes file"):
        ProbeSet.load(path)
