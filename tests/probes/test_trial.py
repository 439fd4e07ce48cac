"""Trials: base and intervened text, measured from outside, beside random directions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from saesteer.probes import parse_schedule
from saesteer.probes.independent import TextClassifier, load_text_classifier, train_text_classifier
from saesteer.probes.settings import FitSettings
from saesteer.probes.trial import (
    Trial,
    TrialSettings,
    independent_measures,
    match_divergence,
    movement,
    random_doing,
    wilson,
)
from saesteer.probes.trial_record import (
    default_layers,
    intended_changes,
    make_doing,
    parse_layers,
    trial_record,
)
from saesteer.utils.errors import DataError, SiteError, SteeringError

PROMPTS = ["The cat sat on", "I like helping people", "What do you think"]


def letters(texts):
    """A measure that needs no model: the share of letters up to m."""
    return np.array(
        [np.mean([c <= "m" for c in t.lower() if c.isalpha()] or [np.nan]) for t in texts]
    )


@pytest.fixture(scope="module")
def trial(tiny_model):
    settings = TrialSettings(max_new_tokens=10)
    return Trial(tiny_model("llama"), PROMPTS, {"letters": letters}, settings)


def test_the_base_texts_are_the_untouched_models(trial, tiny_model, probe_vector):
    from saesteer.steering import generate

    made = generate(tiny_model("llama"), PROMPTS, max_new_tokens=10, chat=False)
    assert trial.base.texts == tuple(record.text for record in made.records)
    assert trial.base.kl == 0.0
    after = trial.run(make_doing([probe_vector()], mode="set", amount="60"))
    assert after.texts != trial.base.texts
    assert after.kl > 0 and after.readings["letters"].shape == (3,)


def test_a_random_direction_is_brought_to_the_same_divergence(trial, probe_vector):
    doing = make_doing([probe_vector(layer=0), probe_vector(layer=1)], amount="2")
    budget = trial.divergence(doing)
    matched, match = match_divergence(trial, random_doing(doing, 3), budget)
    assert match.reached
    assert trial.divergence(matched) == pytest.approx(budget, rel=0.06)
    assert match.kl == pytest.approx(budget, rel=0.06)


def test_random_directions_differ_by_draw_and_by_site_and_repeat(probe_vector):
    doing = make_doing([probe_vector(layer=0), probe_vector(layer=1)], centre="midpoint")
    one, same, other = (random_doing(doing, draw).interventions for draw in (0, 0, 1))
    first = one[0].vector.direction
    assert first.equal(same[0].vector.direction)
    assert not first.equal(other[0].vector.direction)
    assert not first.equal(one[1].vector.direction)
    assert {item.centre for item in one} == {0.0}
    assert float(first.norm()) == pytest.approx(1.0)


def test_a_share_that_moved_counts_only_what_moved_the_right_way():
    base = np.array([0.5, 0.5, -0.5, 0.2, np.nan])
    after = np.array([-0.1, 0.7, 0.0, 0.2, 0.3])
    found = movement("m", base, after, np.array([-1.0, -1.0, 1.0, -1.0, 1.0]))
    assert (found.n, found.moved) == (4, 0.5)
    assert found.base == pytest.approx((0.5 + 0.5 + 0.5 + 0.2) / 4)
    assert found.after == pytest.approx((-0.1 + 0.7 - 0.0 + 0.2) / 4)
    nothing = movement("m", np.array([np.nan]), np.array([1.0]), np.array([1.0]))
    assert (nothing.n, nothing.moved) == (0, None)


def test_the_interval_of_a_share_is_wilsons():
    count, n, z = 28, 32, norm.ppf(0.975)
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(count, n) == pytest.approx((centre - half, centre + half))


def test_what_is_intended_follows_mode_and_label(probe_vector):
    labels = ["positive", "negative", "neutral", None]

    def intended(**settings):
        doing = make_doing([probe_vector()], **settings)
        return intended_changes(doing, labels, "positive", "negative").tolist()

    assert intended(mode="flip") == [-1, 1, 0, 0]
    assert intended(mode="ablate") == [-1, 1, 0, 0]
    assert intended(mode="add", amount="0.3") == [1, 1, 0, 0]
    assert intended(mode="add", amount="-0.3") == [-1, -1, 0, 0]
    # The midpoint of the classes is 1, so 0.5 is on the negative side.
    assert intended(mode="set", amount="0.5") == [-1, -1, 0, 0]
    assert intended(mode="set", amount="positive") == [1, 1, 0, 0]
    assert intended(schedule="0-3:flip") == [0, 0, 0, 0]


def test_a_record_holds_both_texts_both_readings_and_the_random_draws(trial, probe_vector):
    doing = make_doing([probe_vector()], amount="3")
    record = trial_record(
        trial, doing, ["positive", "negative", None], towards="positive", away="negative",
        random_draws=2,
    )  # fmt: skip
    assert [row["base"] for row in record["rows"]] == list(trial.base.texts)
    assert record["movement"]["letters"]["n"] == 2
    assert record["kl"] == pytest.approx(trial.divergence(doing))
    assert set(record["perplexity"]) == {"base", "intervened"}
    assert len(record["random"]) == 2
    assert record["interventions"] == ["flip x3 at layer 1"]


def test_samples_are_averaged_over_their_prompt(tiny_model):
    settings = TrialSettings(max_new_tokens=6, temperature=1.0, samples=3)
    found = Trial(tiny_model("llama"), PROMPTS, {"letters": letters}, settings)
    assert len(found.base.texts) == 9
    means = found.per_prompt(found.base.readings["letters"])
    table = found.base.readings["letters"].reshape(3, 3)
    assert means == pytest.approx(np.nanmean(table, axis=1))
    assert found.per_prompt(np.array([1.0, np.nan, 3.0] + [np.nan] * 6))[0] == 2.0


def test_labels_and_prompts_must_match(trial, probe_vector):
    with pytest.raises(DataError, match="1 labels for 3 prompts"):
        trial_record(trial, make_doing([probe_vector()]), [None], towards="a", away="b")


def test_layers_are_written_as_people_write_them(finished_run):
    probes = finished_run.probes
    assert parse_layers("0-2", probes) == [0, 1, 2]
    assert parse_layers("2, 0", probes) == [0, 2]
    assert parse_layers(None, probes) == default_layers(probes)
    assert default_layers(probes)[-1] == probes.best
    for text in ("a", "1-", "0-1-2", ""):
        with pytest.raises(SteeringError, match="not of the form"):
            parse_layers(text, probes)
    with pytest.raises(SiteError, match="layer 9 has no probe"):
        parse_layers("9", probes)


def test_a_schedule_wins_over_the_mode(probe_vector):
    vectors = [probe_vector()]
    doing = make_doing(vectors, mode="flip", schedule="0-3:set=negative", compound=True)
    assert [i.mode for i in doing.interventions] == ["set"]
    assert doing.policy == "compound"
    assert doing.interventions[0].last == parse_schedule("0-3:set=-1", vectors)[0].last


class FewWords:
    """Embeds by counting four words: stands in for MiniLM."""

    name = "few words"

    def embed(self, texts):
        words = ("good", "bad", "fine", "poor")
        return np.array([[t.count(w) for w in words] for t in texts], dtype=np.float32)


def test_the_independent_classifier_reads_texts_and_is_read_back(tmp_path):
    from saesteer.data.labelled import LabelledSet, LabelledText

    def texts(start):
        rows = [("good fine", "positive"), ("bad poor", "negative"), ("plain", "neutral")]
        made = tuple(
            LabelledText(f"{start}{n}", f"{text} {n}", label, f"{start}{n}")
            for n in range(12)
            for text, label in rows
        )
        return LabelledSet("t", made, ("negative", "neutral", "positive"), "t")

    embedder: object = FewWords()
    found = train_text_classifier(
        texts("a"), texts("b"), FitSettings(c=[1.0], resamples=10), groups=list(range(36)),
        embedder=embedder,  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.scores.accuracy.value == 1.0
    lean = found.lean(["good", "bad", " "], "positive", "negative")
    assert lean[0] > 0.3 and lean[1] < -0.3 and np.isnan(lean[2])
    again = load_text_classifier(found.save(tmp_path / "j.json"), embedder)  # type: ignore[arg-type]
    assert isinstance(again, TextClassifier)
    assert again.probabilities(["good"]) == pytest.approx(found.probabilities(["good"]), rel=1e-5)
    with pytest.raises(DataError, match="cannot be read as a text classifier"):
        load_text_classifier(tmp_path / "none.json", embedder)  # type: ignore[arg-type]


def test_vader_is_asked_about_sentiments_alone():
    pytest.importorskip("vaderSentiment")
    assert independent_measures(None, "yes", "no") == {}
    vader = independent_measures(None, "positive", "negative")["vader"]
    swapped = independent_measures(None, "negative", "positive")["vader"]
    assert vader(["I love it"])[0] > 0.5
    assert swapped(["I love it"])[0] == -vader(["I love it"])[0]
