"""Token readings, their page, and the list of plain cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saesteer.data.labelled import read_labelled
from saesteer.probes import read_texts_with, reading_page, run_checks
from saesteer.utils.errors import DataError, MismatchError, SiteError

TEXT = "the glad cat & <b>dog</b>"


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama")


def test_a_text_is_read_token_by_token_at_every_layer(llama, finished_run):
    [reading] = read_texts_with(llama, finished_run.probes, [TEXT])
    assert "".join(reading.tokens) == TEXT
    assert reading.layers == (0, 1, 2)
    assert reading.probabilities.shape == (3, len(reading.tokens), 3)
    assert reading.probabilities.sum(axis=-1) == pytest.approx(1.0)
    [chosen] = read_texts_with(llama, finished_run.probes, [TEXT], [2, 0])
    assert chosen.layers == (2, 0)
    assert np.array_equal(chosen.probabilities, reading.probabilities[[2, 0]])

    def odds(p):
        return np.log(p[..., 2] / p[..., 0])

    assert odds(reading.probabilities).mean(axis=1) == pytest.approx(odds(reading.whole), rel=1e-3)


def test_a_text_is_read_as_in_training(llama, finished_run):
    from saesteer.probes.reading import LayerStore

    texts = read_labelled(finished_run.metrics["source"])
    store = LayerStore(next(finished_run.folder.path.parent.glob("activations/texts-*")))
    readings = read_texts_with(llama, finished_run.probes, [t.text for t in texts.texts[:5]])
    for number, probe in enumerate(finished_run.probes.probes):
        trained = probe.probabilities(store.site(probe.site)[:5])
        found = np.stack([reading.whole[number] for reading in readings])
        assert found == pytest.approx(trained, abs=5e-3)


def test_the_page_shows_the_text_and_runs_nothing_in_it(llama, finished_run):
    page = reading_page(read_texts_with(llama, finished_run.probes, [TEXT]), "a <i>title</i>")
    assert "<b>dog" not in page and "<script" not in page and "<i>title" not in page
    assert "&lt;" in page
    for layer in range(3):
        assert f"layer {layer}" in page
    assert page.count("<tr>") == 3


def test_checks_are_scored_as_in_training(llama, finished_run):
    checks = read_labelled(finished_run.folder.read_json("config.json")["checks"])
    for record in finished_run.metrics["layers"]:
        result = run_checks(llama, finished_run.probes, checks, record["layer"])
        assert result == {"layer": record["layer"], **record["checks"]}
        assert result["n"] == len(checks)


def test_what_cannot_be_read_is_refused(tiny_model, llama, finished_run, tmp_path):
    path, probes = tmp_path / "other.csv", finished_run.probes
    path.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="no text has a label of the probes' classes"):
        run_checks(llama, probes, read_labelled(path))
    with pytest.raises(DataError, match="text 2 is empty"):
        read_texts_with(llama, probes, [TEXT, "  "])
    with pytest.raises(SiteError, match="layer 7 has no probe"):
        read_texts_with(llama, probes, [TEXT], [7])
    with pytest.raises(MismatchError, match="trained on other weights"):
        read_texts_with(tiny_model("gpt2"), probes, [TEXT])
    with pytest.raises(MismatchError, match="read codes of SAE"):
        read_texts_with(llama, replace(probes, sae="some"), [TEXT])
