"""Divergence and loss along continuations, against passes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.probes import Intervention, parse_schedule
from saesteer.probes.measure import ContinuationMeter, Doing
from saesteer.utils.errors import SteeringError

PROMPTS = ["The cat sat on the mat while", "I like", "What do you think about"]
WORDS = [" the dog ran home", " helping people and the garden", " it"]


def test_loss_is_hugging_faces_for_each_row_alone(arch, tiny_model, hf_model):
    model, reference = tiny_model(arch), hf_model(arch)
    found = ContinuationMeter(model, PROMPTS, WORDS).loss()
    for row, (prompt, text) in enumerate(zip(PROMPTS, WORDS, strict=True)):
        from saesteer.models import encode_texts

        ids = list(encode_texts(model.tokenizer, [prompt])[0].ids)
        own = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = torch.tensor([ids + own])
        labels = whole.clone()
        labels[:, : len(ids)] = -100
        with torch.inference_mode():
            expected = float(reference(whole, labels=labels).loss)
        assert found[row] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("policy", ["once", "compound"])
def test_divergence_of_a_row_does_not_depend_on_its_batch(arch, tiny_model, probe_vector, policy):
    model = tiny_model(arch)
    items = tuple(Intervention(probe_vector(arch, n), "flip", 2.0) for n in (0, 2))
    doing = Doing(items, policy, "from_last_prompt_token")
    together = ContinuationMeter(model, PROMPTS, WORDS).divergence(doing)
    alone = [
        ContinuationMeter(model, [p], [w]).divergence(doing)[0]
        for p, w in zip(PROMPTS, WORDS, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-3)
    assert (together > 0).all()


def test_doing_nothing_costs_nothing(tiny_model, probe_vector):
    meter = ContinuationMeter(tiny_model("llama"), PROMPTS, WORDS)
    doing = Doing((Intervention(probe_vector(), "add", 0.0),))
    assert meter.divergence(doing) == pytest.approx(np.zeros(3), abs=1e-5)


def test_a_window_past_the_continuation_costs_nothing_and_one_inside_does(tiny_model, probe_vector):
    meter = ContinuationMeter(tiny_model("llama"), PROMPTS, WORDS)
    late = parse_schedule("50-60:set=30", [probe_vector()])
    early = parse_schedule("0-1:set=30", [probe_vector()])
    assert meter.divergence(Doing(late)) == pytest.approx(np.zeros(3), abs=1e-6)
    assert (meter.divergence(Doing(early)) > 1e-3).all()


def test_the_mean_weighs_every_token_alike(tiny_model, probe_vector):
    model = tiny_model("llama")
    meter = ContinuationMeter(model, PROMPTS, WORDS)
    doing = Doing((Intervention(probe_vector(), "flip", 3.0),))
    lengths = [len(model.tokenizer(w, add_special_tokens=False)["input_ids"]) for w in WORDS]
    expected = np.average(meter.divergence(doing), weights=lengths)
    assert meter.mean_divergence(doing) == pytest.approx(expected)


def test_an_empty_continuation_has_no_figure_and_does_not_hide_the_others(tiny_model, probe_vector):
    meter = ContinuationMeter(tiny_model("llama"), PROMPTS, ["", *WORDS[1:]])
    doing = Doing((Intervention(probe_vector(), "flip"),))
    assert np.isnan(meter.loss()).tolist() == [True, False, False]
    assert np.isfinite(meter.mean_divergence(doing))


def test_nothing_but_empty_continuations_is_refused(tiny_model):
    with pytest.raises(SteeringError, match="no continuation has a token"):
        ContinuationMeter(tiny_model("llama"), PROMPTS, ["", "", ""])
