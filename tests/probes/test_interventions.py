"""Interventions as people write them, and what they make of texts, measured from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from saesteer.data.labelled import LabelledSet, LabelledText
from saesteer.models import encode_texts
from saesteer.probes import class_alpha, make_intervention
from saesteer.probes.fitting import FitSettings
from saesteer.probes.independent import load_text_classifier, train_text_classifier
from saesteer.probes.interventions import parse_layers
from saesteer.probes.trial import (
    GenerationSettings,
    InterventionTrial,
    independent_measures,
    movement,
)
from saesteer.steering import Add, Flip, Set, generate
from saesteer.utils.errors import DataError, SteeringError

PROMPTS = ["The cat sat on", "I like helping people", "What do you think"]


def letters(texts):
    """A measure that needs no model: the share of letters up to m."""
    return np.array(
        [np.mean([c <= "m" for c in t.lower() if c.isalpha()] or [np.nan]) for t in texts]
    )


def trial_of(model, prompts=PROMPTS, **settings):
    found = GenerationSettings(max_new_tokens=10, **settings)
    return InterventionTrial(model, prompts, {"letters": letters}, found)


@pytest.fixture(scope="module")
def trial(tiny_model):
    return trial_of(tiny_model("llama"))


def test_the_base_texts_are_the_untouched_models_with_hugging_faces_loss(
    tiny_model, trial, hf_model
):
    model, reference = tiny_model("llama"), hf_model("llama")
    made = generate(model, PROMPTS, max_new_tokens=10, chat=False)
    assert trial.base.texts == tuple(record.text for record in made.records)
    assert trial.base.kl == 0.0
    for prompt, text, loss in zip(PROMPTS, trial.base.texts, trial.base.loss, strict=True):
        ids = list(encode_texts(model.tokenizer, [prompt])[0].ids)
        whole = torch.tensor([ids + model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        labels = whole.clone()
        labels[:, : len(ids)] = -100
        with torch.inference_mode():
            assert loss == pytest.approx(float(reference(whole, labels=labels).loss), rel=1e-4)


def test_divergence_does_not_depend_on_the_batch(tiny_model, trial, vector_on):
    vectors = [vector_on(layer=layer) for layer in (0, 2)]
    alone = [trial_of(tiny_model("llama"), [prompt]) for prompt in PROMPTS]
    counts = [one._rows.n_scored for one in alone]
    for compound in (False, True):
        made = make_intervention(vectors, amount=2.0, compound=compound)
        expected = np.average([one.divergence(made) for one in alone], weights=counts)
        assert trial.divergence(made) == pytest.approx(expected, rel=1e-3)
        assert expected > 0

    # Only what is done inside the text costs anything.
    vectors = [vector_on()]
    nothing: Any
    for nothing in ({"mode": "add", "amount": 0.0}, {"schedule": "50-60:set=30"}):
        assert trial.divergence(make_intervention(vectors, **nothing)) == pytest.approx(0, abs=1e-5)
    assert trial.divergence(make_intervention(vectors, schedule="0-1:set=30")) > 1e-3


def test_a_share_that_moved_counts_only_what_moved_the_right_way():
    base = np.array([0.5, 0.5, -0.5, 0.2, np.nan])
    after = np.array([-0.1, 0.7, 0.0, 0.2, 0.3])
    found = movement("m", base, after, np.array([-1.0, -1.0, 1.0, -1.0, 1.0]))
    assert (found["n"], found["moved"]) == (4, 0.5)
    assert found["base"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.2) / 4)
    assert found["after"] == pytest.approx((-0.1 + 0.7 - 0.0 + 0.2) / 4)
    nothing = movement("m", np.array([np.nan]), np.array([1.0]), np.array([1.0]))
    assert (nothing["n"], nothing["moved"]) == (0, None)
    # The interval by Wilson's formula.
    n, p, z = 4, 0.5, norm.ppf(0.975)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half))


def test_a_record_holds_both_texts_both_readings_and_the_random_draws(trial, vector_on):
    made = make_intervention([vector_on()], amount=3.0)
    sides = {"towards": "positive", "away": "negative"}
    record = trial.record(made, ["positive", "negative", None], **sides, random_draws=2)
    assert [row["base"] for row in record["rows"]] == list(trial.base.texts)
    assert [row["intervened"] for row in record["rows"]] == list(trial.run(made).texts)
    assert record["movement"]["letters"]["n"] == 2
    assert record["kl"] == pytest.approx(trial.divergence(made))
    assert set(record["perplexity"]) == {"base", "intervened"}
    assert [drawn["kl"] for drawn in record["random"]] == pytest.approx([record["kl"]] * 2, rel=0.1)
    assert record["interventions"] == ["flip x3 at layer 1"]
    with pytest.raises(DataError, match="1 labels for 3 prompts"):
        trial.record(made, [None], **sides)


def test_samples_are_averaged_over_their_prompt_and_empty_ones_left_out(tiny_model, trial):
    found = trial_of(tiny_model("llama"), temperature=1.0, samples=3)
    assert len(found.base.texts) == 9
    means = found.per_prompt(found.base.readings["letters"])
    table = found.base.readings["letters"].reshape(3, 3)
    assert means == pytest.approx(np.nanmean(table, axis=1))
    assert found.per_prompt(np.array([1.0, np.nan, 3.0] + [np.nan] * 6))[0] == 2.0

    rows, places = trial._prepared(["", "the dog", "home"])
    assert (rows.n_rows, places) == (2, [1, 2])
    with pytest.raises(SteeringError, match="no continuation has a token"):
        trial._prepared(["", "", ""])


class FewWords:
    """Embeds by counting four words: stands in for MiniLM."""

    name = "few words"

    def embed(self, texts):
        words = ("good", "bad", "fine", "poor")
        return np.array([[t.count(w) for w in words] for t in texts], dtype=np.float32)


def test_the_independent_classifier_reads_texts_and_is_read_back(tmp_path):
    def texts(start):
        rows = [("good fine", "positive"), ("bad poor", "negative"), ("plain", "neutral")]
        made = tuple(
            LabelledText(f"{start}{n}", f"{text} {n}", label, f"{start}{n}")
            for n in range(12)
            for text, label in rows
        )
        return LabelledSet("t", made, ("negative", "neutral", "positive"), "t")

    embedder: Any = FewWords()
    how: Any = {"groups": list(range(36)), "embedder": embedder}
    settings = FitSettings(c=[1.0], resamples=10)
    found = train_text_classifier(texts("a"), texts("b"), settings, **how)
    assert found.scores["accuracy"]["value"] == 1.0
    lean = found.lean(["good", "bad", " "], "positive", "negative")
    assert lean[0] > 0.3 and lean[1] < -0.3 and np.isnan(lean[2])
    again = load_text_classifier(found.save(tmp_path / "j.json"), embedder)
    assert again.probabilities(["good"]) == pytest.approx(found.probabilities(["good"]), rel=1e-5)
    with pytest.raises(DataError, match="cannot be read as a text classifier"):
        load_text_classifier(tmp_path / "none.json", embedder)


def test_vader_is_asked_about_sentiments_alone():
    pytest.importorskip("vaderSentiment")
    assert independent_measures(None, "yes", "no") == {}
    vader = independent_measures(None, "positive", "negative")["vader"]
    swapped = independent_measures(None, "negative", "positive")["vader"]
    assert vader(["I love it"])[0] > 0.5
    assert swapped(["I love it"])[0] == -vader(["I love it"])[0]


def test_amounts_centres_and_windows_are_as_people_write_them(vector_on):
    vector = vector_on()
    (edit,) = make_intervention([vector], mode="set", amount="negative").edits
    assert isinstance(edit, Set) and edit.value == -1.0
    (edit,) = make_intervention([vector], amount="2", centre="midpoint").edits
    assert isinstance(edit, Flip) and (edit.scale, edit.centre) == (2.0, 1.0)
    assert class_alpha(vector, "neutral") == 0.5
    vectors = [vector_on(layer=0), vector_on(layer=2)]
    text = "0-15:set=negative, 16-:add=0.4"
    made = make_intervention(vectors, mode="flip", schedule=text, compound=True)
    assert [edit.described() for edit in made.edits] == [
        "set to -1 at layer 0, tokens 0 to 15",
        "set to -1 at layer 2, tokens 0 to 15",
        "add +0.4 norm at layer 0, tokens 16 on",
        "add +0.4 norm at layer 2, tokens 16 on",
    ]
    assert made.policy == "compound"
    steps = torch.tensor([[-2, -1, 0, 15, 16, 17]])
    first, last = made.edits[0].covers(steps), made.edits[-1].covers(steps)
    assert first.tolist() == [[True, True, True, True, False, False]]
    assert torch.equal(last, ~first)
    with pytest.raises(SteeringError, match="does not say where its classes lie"):
        make_intervention([vector_on(provenance={})], mode="set", amount="positive")
    # What the command's own tests do not say.
    for schedule, message in (
        ("0-5:flip,3-9:flip", "overlap at token 3"),
        ("5-2:flip", "end before they begin"),
    ):
        with pytest.raises(SteeringError, match=message):
            make_intervention(vectors, schedule=schedule)


def test_what_is_intended_follows_mode_and_label(vector_on):
    labels = ["positive", "negative", "neutral", None]

    def intended(**settings):
        made = make_intervention([vector_on()], **settings)
        return made.intended(labels, "positive", "negative").tolist()

    assert intended(mode="flip") == [-1, 1, 0, 0]
    assert intended(mode="ablate") == [-1, 1, 0, 0]
    assert intended(mode="add", amount="0.3") == [1, 1, 0, 0]
    assert intended(mode="add", amount="-0.3") == [-1, -1, 0, 0]
    # The midpoint of the classes is 1, so 0.5 is on the negative side.
    assert intended(mode="set", amount="0.5") == [-1, -1, 0, 0]
    assert intended(mode="set", amount="positive") == [1, 1, 0, 0]
    assert intended(schedule="0-3:flip") == [0, 0, 0, 0]


def test_random_directions_differ_by_draw_and_by_site_and_repeat(vector_on):
    made = make_intervention([vector_on(layer=0), vector_on(layer=1)], centre="midpoint")
    one, same, other = (made.randomised(draw).edits for draw in (0, 0, 1))
    first = one[0].vector.direction
    assert first.equal(same[0].vector.direction)
    assert not first.equal(other[0].vector.direction)
    assert not first.equal(one[1].vector.direction)
    assert all(isinstance(edit, Flip) and edit.centre == 0.0 for edit in one)
    adding = make_intervention([vector_on()], mode="add", amount=0.5).randomised(0).scaled(2.0)
    assert isinstance(adding.edits[0], Add) and adding.edits[0].strength == 1.0


def test_layers_are_written_as_people_write_them(finished_run):
    probes = finished_run.probes
    assert parse_layers("0-2", probes) == [0, 1, 2]
    assert parse_layers("2, 0", probes) == [0, 2]
    assert parse_layers(None, probes)[-1] == probes.best
    for text in ("a", "1-", "0-1-2", ""):
        with pytest.raises(SteeringError, match="not of the form"):
            parse_layers(text, probes)
