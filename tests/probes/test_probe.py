"""Probes on disk, their directions as steering vectors, and their readings of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saesteer.data.labelled import read_labelled
from saesteer.models import Site
from saesteer.probes import LinearProbe, ProbeSet, read_texts_with, reading_page, run_checks
from saesteer.probes.reading import LayerStore
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError, MismatchError, SiteError

TEXT = "the glad cat & <b>dog</b>"


def make_probe(n_classes: int = 3, layer: int = 0) -> LinearProbe:
    rng = np.random.default_rng(layer)
    rows = 1 if n_classes == 2 else n_classes
    return LinearProbe(
        weight=rng.normal(size=(rows, 8)).astype(np.float32),
        bias=rng.normal(size=rows),
        c=0.01,
        site=Site(layer),
        classes=("negative", "neutral", "positive") if n_classes > 2 else ("no", "yes"),
        means=rng.normal(size=(n_classes, 8)).astype(np.float32),
        residual_norm=4.0,
    )


@pytest.fixture
def probes() -> ProbeSet:
    made = tuple(make_probe(layer=layer) for layer in (0, 4, 9))
    return ProbeSet(made, "tiny", "abc", "mean", best=4, before="Text:", name="set")


def test_probes_are_read_back_as_they_were_and_a_missing_or_damaged_file_is_refused(
    probes, tmp_path
):
    with pytest.raises(DataError, match="there are no probes; give the folder of a finished"):
        ProbeSet.load(tmp_path)
    path = probes.save(tmp_path / "probes.safetensors")
    again = ProbeSet.load(tmp_path)
    assert [p.site for p in again.probes] == [p.site for p in probes.probes]
    assert (again.best, again.before, again.classes) == (4, "Text:", probes.classes)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    for one, two in zip(probes.probes, again.probes, strict=True):
        assert np.array_equal(one.probabilities(x), two.probabilities(x))
        assert np.array_equal(one.means, two.means)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as probes"):
        ProbeSet.load(path)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"format": "other"})
    with pytest.raises(DataError, match=r"no saesteer\.probes file"):
        ProbeSet.load(path)


def test_a_direction_is_the_gradient_of_the_log_odds():
    probe = make_probe()
    x = np.random.default_rng(1).normal(size=(1, 8))

    def log_odds(at):
        p = probe.probabilities(at)[0]
        return np.log(p[2] / p[0])

    slopes = [(log_odds(x + s) - log_odds(x - s)) / 2e-4 for s in 1e-4 * np.eye(8)]
    assert probe.direction("positive", "negative") == pytest.approx(slopes, rel=1e-4)
    two = make_probe(2)
    assert np.array_equal(two.direction("yes", "no"), two.weight[0])
    assert np.array_equal(two.direction("no", "yes"), -two.weight[0])


@pytest.mark.parametrize("kind", ["probe", "means"])
def test_a_vector_says_where_every_class_lies_along_it(probes, tmp_path, kind):
    vector = probes.vector(9, kind=kind)
    assert (vector.site, vector.residual_norm, vector.model) == (Site(9), 4.0, "tiny")
    v = vector.direction.numpy().astype(np.float64)
    alphas: Any = vector.provenance["class_alphas"]
    for number, name in enumerate(probes.classes):
        assert alphas[name] == pytest.approx(probes.layer(9).means[number] @ v, abs=1e-5)
    assert SteeringVector.load(vector.save(tmp_path)).provenance == dict(vector.provenance)
    if kind == "means":
        assert alphas["positive"] - alphas["negative"] == pytest.approx(vector.norm, rel=1e-5)


def test_the_best_layer_is_the_default_and_what_is_not_there_is_refused(probes, tiny_llama):
    assert probes.vector().site == probes.layer().site == Site(4)
    with pytest.raises(SiteError, match="layer 3 has no probe; these have one: 0, 4, 9"):
        probes.vector(3)
    with pytest.raises(DataError, match=r"class 'positiv' \(did you mean 'positive'\?\)"):
        probes.vector(towards="positiv")
    with pytest.raises(DataError, match="both are 'neutral'"):
        probes.vector(towards="neutral", away="neutral")
    with pytest.raises(MismatchError, match=r"8 wide and the residual stream of .* is 32"):
        probes.check_belongs(tiny_llama)
    with pytest.raises(MismatchError, match="reads activations 8 wide and was given 5"):
        make_probe().probabilities(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(MismatchError, match="read codes of SAE some"):
        replace(probes, sae="some").vector()


def test_a_text_is_read_token_by_token_at_every_layer(tiny_llama, finished_run):
    [reading] = read_texts_with(tiny_llama, finished_run.probes, [TEXT])
    assert "".join(reading.tokens) == TEXT
    assert reading.layers == (0, 1, 2)
    assert reading.probabilities.shape == (3, len(reading.tokens), 3)
    [chosen] = read_texts_with(tiny_llama, finished_run.probes, [TEXT], [2, 0])
    assert chosen.layers == (2, 0)
    assert np.array_equal(chosen.probabilities, reading.probabilities[[2, 0]])

    def odds(p):
        return np.log(p[..., 2] / p[..., 0])

    assert odds(reading.probabilities).mean(axis=1) == pytest.approx(odds(reading.whole), rel=1e-3)
    page = reading_page([reading], "a <i>title</i>")
    assert "<b>dog" not in page and "<script" not in page and "<i>title" not in page
    assert "&lt;" in page and "layer 2" in page
    assert page.count("<tr>") == 3


def test_texts_and_plain_cases_are_read_as_in_training(tiny_llama, finished_run):
    texts = read_labelled(finished_run.metrics["source"]).texts[:5]
    store = LayerStore(next(finished_run.folder.path.parent.glob("activations/texts-*")))
    readings = read_texts_with(tiny_llama, finished_run.probes, [t.text for t in texts])
    for number, probe in enumerate(finished_run.probes.probes):
        trained = probe.probabilities(store.site(probe.site)[:5])
        found = np.stack([reading.whole[number] for reading in readings])
        assert found == pytest.approx(trained, abs=5e-3)
    checks = read_labelled(finished_run.folder.read_json("config.json")["checks"])
    for record in finished_run.metrics["layers"]:
        result = run_checks(tiny_llama, finished_run.probes, checks, record["layer"])
        assert result == {"layer": record["layer"], **record["checks"]}
        assert result["n"] == len(checks)


def test_what_cannot_be_read_is_refused(tiny_model, tiny_llama, finished_run, tmp_path):
    path, probes = tmp_path / "other.csv", finished_run.probes
    path.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="no text has a label of the probes' classes"):
        run_checks(tiny_llama, probes, read_labelled(path))
    with pytest.raises(DataError, match="text 2 is empty"):
        read_texts_with(tiny_llama, probes, [TEXT, "  "])
    with pytest.raises(MismatchError, match="trained on other weights"):
        read_texts_with(tiny_model("gpt2"), probes, [TEXT])
    with pytest.raises(MismatchError, match="read codes of SAE"):
        read_texts_with(tiny_llama, replace(probes, sae="some"), [TEXT])
