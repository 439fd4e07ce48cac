"""The bundled real model: plain cases are read, and a flip turns the text."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.data.labelled import read_labelled
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.registry import run_experiment
from saesteer.probes import ProbeSet, make_intervention, run_checks
from saesteer.steering import generate
from saesteer.utils.settings import parse_config

LAYERS = [10, 12, 14]


@pytest.fixture(scope="module")
def probes(given_smollm2, tmp_path_factory) -> ProbeSet:
    """Probes of three layers, trained on 300 of the bundled texts."""
    settings = {
        "name": "real",
        "data": {"max_texts": 300, "test": 0.25, "judge": 0},
        "reading": {"layers": LAYERS},
        "fit": {"c": [0.001, 0.01], "resamples": 0, "control": False},
        "folder": str(tmp_path_factory.mktemp("runs")),
    }
    with given_smollm2():
        run = run_experiment(parse_config(settings, kind=ProbeConfig, place="test"))
    assert max(r["macro_f1"]["value"] for r in run.metrics["layers"]) > 0.8
    return run.probes


@pytest.mark.real
@pytest.mark.slow
def test_plain_cases_are_read_rightly(smollm2, probes):
    result = run_checks(smollm2, probes, read_labelled("sentiment_checks"))
    assert result["right"] / result["n"] >= 0.9


@pytest.mark.real
@pytest.mark.slow
def test_setting_the_reading_moves_vader_both_ways(smollm2, probes):
    sentiment = pytest.importorskip("saesteer.evaluation.text_quality")
    pytest.importorskip("vaderSentiment")
    prompts = ["The hotel was", "Today I feel", "My new job is", "The food here is"]
    prompts += ["The film we saw was", "Our holiday has been", "My neighbour is", "This phone is"]
    vectors = [probes.vector(layer, kind="means") for layer in LAYERS]
    means = {}
    for sign in (-1, 1):
        with make_intervention(vectors, mode="add", amount=0.25 * sign).made_on(smollm2):
            made = generate(smollm2, prompts, max_new_tokens=16, chat=False)
        scores = sentiment.vader_compound([record.text for record in made.records])
        means[sign] = float(np.nanmean(scores))
    assert means[1] - means[-1] > 0.4
