"""Completions meet the same noise, are measured one by one, and come back from JSON."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import train_judge
from saesteer.evaluation.sentiment import vader_compound
from saesteer.evaluation.text_quality import completion_nll, distinct_share, repeated_share
from saesteer.evaluation.written import (
    BaseCompletions,
    WritingSettings,
    WrittenEvaluation,
    write_base,
)
from saesteer.models import Site
from saesteer.steering import SteeringVector, generate
from saesteer.utils.errors import DataError, SteeringError

QUESTIONS = ("Why is the sky blue?", "Who are you?", "What did you eat today?")
SETTINGS = WritingSettings(n_samples=2, max_new_tokens=6, seed=3)


class LetterEmbedder(SentenceEmbedder):
    """Counts letters by hash; never negative, so every text is somewhat like every other."""

    def __init__(self):
        super().__init__("letters")

    def embed(self, texts):
        rows = np.zeros((len(texts), 8), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text or " ":
                row[zlib.crc32(letter.encode("utf-8", "replace")) % 8] += 1
            row /= np.linalg.norm(row)
        return rows


@pytest.fixture(scope="module")
def judge():
    rng = np.random.default_rng(0)

    def words():
        return " ".join("".join(rng.choice(list("abcdefghiklmno"), 6)) for _ in range(4))

    def pairs(n):
        return pairs_from([(f"uuuu {words()}", f"zzzz {words()}") for _ in range(n)])

    return train_judge("u", pairs(12), pairs(6), embedder=LetterEmbedder())


@pytest.fixture(scope="module")
def base(tiny_model):
    return write_base(tiny_model("llama"), QUESTIONS, SETTINGS, embedder=LetterEmbedder())


@pytest.fixture(scope="module")
def evaluation(tiny_model, base, judge):
    return WrittenEvaluation(tiny_model("llama"), base, judge)


@pytest.fixture(scope="module")
def vector(tiny_model):
    raw = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return SteeringVector.from_raw(raw, site=Site(1), model="tiny", residual_norm=1.0)


def _texts(records, sign):
    return [r.text for r in records if r.sign == sign]


def _generate(model, **how):
    result = generate(
        model, QUESTIONS, max_new_tokens=6, temperature=1.0, n_samples=2, seed=3, **how
    )
    return [r.text for r in result.records]


def test_what_is_written_is_what_generate_gives_at_each_strength(tiny_llama, evaluation, vector):
    records = evaluation.steered(vector, 1.5, -2.0)
    assert _texts(records, 0) == _generate(tiny_llama)
    assert _texts(records, 1) == _generate(tiny_llama, vector=vector, strength=1.5)
    assert _texts(records, -1) == _generate(tiny_llama, vector=vector, strength=-2.0)
    assert len({tuple(_texts(records, sign)) for sign in (0, 1, -1)}) == 3
    places = [(r.question, r.sample) for r in records if r.sign == -1]
    assert places == [(q, s) for q in range(3) for s in range(2)]


def test_strength_zero_writes_the_unsteered_completions(evaluation, vector):
    records = evaluation.steered(vector, 0.0, None)
    assert _texts(records, 1) == _texts(records, 0)
    assert _texts(records, -1) == []
    pairs = zip([r for r in records if r.sign], [r for r in records if not r.sign], strict=True)
    for steered, unsteered in pairs:
        # Batches of other widths differ in the last bits.
        assert steered.judge == pytest.approx(unsteered.judge, abs=1e-6)
        assert steered.nll == pytest.approx(unsteered.nll, abs=1e-4)


def test_no_strength_reached_leaves_the_unsteered_records(evaluation, vector):
    assert evaluation.steered(vector, None, None) == evaluation.unsteered


def test_every_measure_is_that_of_the_completion_alone(tiny_llama, evaluation, judge, vector):
    record = evaluation.steered(vector, 1.5, -1.5)[-3]
    question = QUESTIONS[record.question]
    asked, said = LetterEmbedder().embed([question, record.text])
    assert record.judge == pytest.approx(judge.logit([record.text])[0])
    assert record.sentiment == vader_compound([record.text])[0]
    nll = completion_nll(tiny_llama, [question], [record.text])[0]
    assert record.nll == pytest.approx(nll, abs=1e-4)
    assert record.similarity == pytest.approx(asked @ said, abs=1e-6)
    rep4 = repeated_share(record.text)
    assert record.rep4 == (None if np.isnan(rep4) else rep4)
    distinct2 = distinct_share(record.text)
    assert record.distinct2 == (None if np.isnan(distinct2) else distinct2)
    assert 0 <= record.composite_proxy <= 1


def test_a_system_prompt_is_written_under_but_not_measured_under(tiny_llama, evaluation):
    records = evaluation.prompted("You are glad.", "You are grim.")
    assert _texts(records, 1) == _generate(tiny_llama, system="You are glad.")
    assert _texts(records, -1) == _generate(tiny_llama, system="You are grim.")
    assert _texts(records, 0) == _texts(evaluation.unsteered, 0)
    last = records[-1]
    nll = completion_nll(tiny_llama, [QUESTIONS[last.question]], [last.text])[0]
    assert last.nll == pytest.approx(nll, abs=1e-4)
    assert {r.sign for r in evaluation.prompted(None, "You are grim.")} == {0, -1}


def test_a_system_prompt_without_chat_template_is_refused(tiny_model, judge):
    model = tiny_model("llama", chat=False)
    plain = write_base(model, QUESTIONS, SETTINGS, embedder=LetterEmbedder())
    with pytest.raises(SteeringError, match="chat template"):
        WrittenEvaluation(model, plain, judge).prompted("You are glad.", None)


def test_the_unsteered_completions_come_back_from_json(tiny_llama, base, judge, evaluation):
    record = json.loads(json.dumps(base.as_dict(), allow_nan=False))
    again = BaseCompletions.from_dict(record, embedder=LetterEmbedder())
    assert again.completions == base.completions
    assert again.settings == base.settings
    assert again.reference == base.reference
    assert WrittenEvaluation(tiny_llama, again, judge).unsteered == evaluation.unsteered


def test_an_empty_completion_is_missing_in_every_measure(tiny_llama, base, judge):
    record = base.as_dict()
    blank = {"text": " ", "sentiment": None, "nll": None, "rep4": None, "distinct2": None}
    record["completions"][2] |= {**blank, "similarity": None}
    again = BaseCompletions.from_dict(record, embedder=LetterEmbedder())
    empty = WrittenEvaluation(tiny_llama, again, judge).unsteered[2]
    assert (empty.judge, empty.composite_proxy, empty.sentiment) == (None, None, None)


def test_a_model_that_ends_at_once_gives_missing_measures(
    tiny_llama, evaluation, vector, monkeypatch
):
    from saesteer.evaluation import written

    texts = ["", "glad to help you today", "", "", "", ""]
    monkeypatch.setattr(written, "_generate", lambda *a, **k: list(texts))
    records = [r for r in evaluation.steered(vector, 1.0, None) if r.sign]
    for record in records[:1] + records[2:]:
        measures = replace(record, text="", question=0, sample=0, sign=0)
        assert set(measures.as_dict().values()) == {None, "", 0}
    assert records[1].nll is not None and records[1].judge is not None


@pytest.mark.parametrize("part", ["questions", "settings", "completions", "embedding"])
def test_damaged_completions_are_refused(base, part):
    record = base.as_dict()
    record.pop(part)
    with pytest.raises(DataError, match=part):
        BaseCompletions.from_dict(record, embedder=LetterEmbedder())


def test_other_embeddings_are_refused(tiny_llama, base, judge):
    with pytest.raises(DataError, match="letters"):
        BaseCompletions.from_dict(base.as_dict(), embedder=SentenceEmbedder())
    with pytest.raises(DataError, match="one embedder"):
        WrittenEvaluation(tiny_llama, base, replace(judge, embedding="others"))


def test_settings_out_of_range_are_refused_before_generating(tiny_llama):
    with pytest.raises(SteeringError, match="top_p"):
        write_base(tiny_llama, QUESTIONS, replace(SETTINGS, top_p=0.0))
    with pytest.raises(SteeringError, match="no prompts"):
        write_base(tiny_llama, ())
