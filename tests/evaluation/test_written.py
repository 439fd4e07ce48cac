"""Completions meet the same noise, are measured one by one, and come back from JSON."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation import written
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import AdmittedJudge, EmbeddingJudge
from saesteer.evaluation.text_quality import (
    completion_nll,
    distinct_share,
    repeated_share,
    vader_compound,
)
from saesteer.evaluation.written import (
    MEASURES,
    Completion,
    Writer,
    WritingSettings,
    WrittenEvaluation,
    summarise,
)
from saesteer.models import Site
from saesteer.steering import SteeringVector, generate
from saesteer.steering.engines.settings import EngineSettings

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

    answers = pairs(12)
    return AdmittedJudge(EmbeddingJudge(pairs(12), answers, embedder=LetterEmbedder()), answers)


@pytest.fixture(scope="module")
def writer(tiny_model):
    return Writer(tiny_model("llama"), QUESTIONS, SETTINGS, embedder=LetterEmbedder())


@pytest.fixture(scope="module")
def evaluation(writer, judge):
    return WrittenEvaluation(writer, [judge], [judge.name])


@pytest.fixture(scope="module")
def vector(tiny_model):
    raw = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return SteeringVector.from_raw(raw, site=Site(1), model="tiny", residual_norm=1.0)


def _texts(records, sign):
    return [r.text for r in records if r.sign == sign]


def _generate(model, **how):
    result = generate(
        model, QUESTIONS, max_new_tokens=6, temperature=0.7, top_p=0.9, n_samples=2, seed=3, **how
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
    # Strength zero writes the unsteered completions.
    records = evaluation.steered(vector, 0.0, None)
    assert _texts(records, 1) == _texts(records, 0)
    assert _texts(records, -1) == []
    pairs = zip([r for r in records if r.sign], [r for r in records if not r.sign], strict=True)
    for steered, unsteered in pairs:
        # Batches of other widths differ in the last bits.
        assert steered.judge == pytest.approx(unsteered.judge, abs=1e-6)
        assert steered.nll == pytest.approx(unsteered.nll, abs=1e-4)
    assert evaluation.steered(vector, None, None) == evaluation.unsteered


def test_every_measure_is_that_of_the_completion_alone(tiny_llama, evaluation, judge, vector):
    record = evaluation.steered(vector, 1.5, -1.5)[-3]
    question = QUESTIONS[record.question]
    asked, said = LetterEmbedder().embed([question, record.text])
    assert record.judge == pytest.approx(judge.read([record.text], [question])[0])
    assert record.readings == {judge.name: record.judge}
    assert record.sentiment == vader_compound([record.text])[0]
    nll = completion_nll(tiny_llama, [question], [record.text])[0]
    assert record.nll == pytest.approx(nll, abs=1e-4)
    assert record.similarity == pytest.approx(asked @ said, abs=1e-6)
    rep4 = repeated_share(record.text)
    assert record.rep4 == (None if np.isnan(rep4) else rep4)
    distinct2 = distinct_share(record.text)
    assert record.distinct2 == (None if np.isnan(distinct2) else distinct2)
    assert 0 <= record.composite_proxy <= 1


def test_the_engine_that_settings_name_writes(tiny_llama, vector):
    greedy = replace(SETTINGS, n_samples=1, temperature=0.0)
    paged = replace(greedy, engine=EngineSettings(name="paged"))
    assert greedy.key in paged.key and greedy.key != paged.key
    made = [
        Writer(tiny_llama, QUESTIONS, how, embedder=LetterEmbedder()).write_steered(
            vector, {1: 1.5, -1: -2.0}, "norm"
        )
        for how in (greedy, paged)
    ]
    assert [c.text for c in made[0]] == [c.text for c in made[1]]


def test_a_system_prompt_is_written_under_but_not_measured_under(tiny_llama, evaluation):
    records = evaluation.prompted("You are glad.", "You are grim.")
    assert _texts(records, 1) == _generate(tiny_llama, system="You are glad.")
    assert _texts(records, -1) == _generate(tiny_llama, system="You are grim.")
    assert _texts(records, 0) == _texts(evaluation.unsteered, 0)
    last = records[-1]
    nll = completion_nll(tiny_llama, [QUESTIONS[last.question]], [last.text])[0]
    assert last.nll == pytest.approx(nll, abs=1e-4)
    assert {r.sign for r in evaluation.prompted(None, "You are grim.")} == {0, -1}


def test_unsteered_completions_that_were_kept_are_not_written_again(
    tiny_llama, writer, judge, evaluation, monkeypatch
):
    record = json.loads(json.dumps([asdict(c) for c in writer.unsteered], allow_nan=False))
    monkeypatch.setattr(written, "generate", None)
    kept = [Completion(**fields) for fields in record]
    again = Writer(tiny_llama, QUESTIONS, SETTINGS, embedder=LetterEmbedder(), unsteered=kept)
    assert again.unsteered == writer.unsteered
    assert WrittenEvaluation(again, [judge], [judge.name]).unsteered == evaluation.unsteered


def test_a_model_that_ends_at_once_gives_missing_measures(
    tiny_llama, evaluation, vector, monkeypatch
):
    texts = ["", "glad to help you today", "", "", "", ""]
    monkeypatch.setattr(Writer, "_generate", lambda *a, **k: list(texts))
    records = [r for r in evaluation.steered(vector, 1.0, None) if r.sign]
    for record in records[:1] + records[2:]:
        measures = replace(record, text="", question=0, sample=0, sign=0)
        assert set(measures.readings.values()) == {None}
        assert set(asdict(replace(measures, readings=None)).values()) == {None, "", 0}
    assert records[1].nll is not None and records[1].judge is not None


def _record(question, sample, sign, judge, text="words", **measures):
    fields = {**dict.fromkeys(MEASURES, 0.5), "composite_proxy": 0.5, **measures}
    return Completion(question=question, sample=sample, sign=sign, text=text, judge=judge, **fields)


def _records(n_questions=12, n_samples=3, seed=0):
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 2, n_questions)
    return [
        _record(q, s, sign, float(sign + own[q] + rng.normal(0, 0.3)))
        for q in range(n_questions)
        for s in range(n_samples)
        for sign in (1, -1, 0)
    ]


def test_means_and_range_are_plain_means():
    records = _records()
    summary = summarise(records, resamples=500)
    plus, minus, _ = summary["signs"]
    assert [sign["sign"] for sign in summary["signs"]] == [1, -1, 0]
    assert plus["judge"] == pytest.approx(np.mean([r.judge or 0.0 for r in records if r.sign == 1]))
    assert summary["judge_range"] == pytest.approx(plus["judge"] - minus["judge"])
    assert [plus[name] for name in ("n", "n_empty", "nll", "composite")] == [36, 0, 0.5, 0.5]
    assert summary["right_direction"] is True
    # Missing readings are in no mean and are counted.
    blank: Any = dict.fromkeys([*MEASURES, "composite_proxy"])
    gone = _record(0, 3, 1, None, **blank)
    with_gone = summarise([*records, replace(gone, text=" ")], resamples=500)
    assert (with_gone["signs"][0]["n"], with_gone["signs"][0]["n_empty"]) == (37, 1)
    assert with_gone["signs"][0]["judge"] == plus["judge"]
    for name in ("low", "high", "composite"):
        assert with_gone[name] == summary[name]
    # The wrong direction of either sign is wrong.
    for up, down in ((0.0, -1.0), (1.0, 0.5), (-1.0, 1.0)):
        wrong = [_record(q, 0, s, x) for q in range(4) for s, x in ((1, up), (-1, down), (0, 0.1))]
        assert summarise(wrong, resamples=100)["right_direction"] is False
    # The composite is of the steered completions alone.
    composites = {1: 0.2, -1: 0.4, 0: 0.9}
    own = [
        _record(q, 0, s, 0.0, composite_proxy=composites[s]) for q in range(3) for s in (1, -1, 0)
    ]
    assert summarise(own, resamples=100)["composite"] == pytest.approx(0.3)


def test_intervals_are_those_of_whole_questions_drawn_again():
    records = _records()
    summary = summarise(records, resamples=20_000)
    value = {(r.question, r.sample, r.sign): r.judge for r in records}
    at = {s: np.array([[value[q, k, s] for k in range(3)] for q in range(12)]) for s in (1, -1)}
    drawn = np.random.default_rng(9).integers(0, 12, (20_000, 12))
    plus, minus = (at[s].mean(axis=1)[drawn].mean(axis=1) for s in (1, -1))
    low, high = np.percentile(plus, [2.5, 97.5])
    assert summary["signs"][0]["judge_low"] == pytest.approx(low, abs=0.05)
    assert summary["signs"][0]["judge_high"] == pytest.approx(high, abs=0.05)
    # What differs between questions alone does not widen the range.
    assert high - low > 1.0
    low, high = np.percentile(plus - minus, [2.5, 97.5])
    assert summary["low"] == pytest.approx(low, abs=0.01)
    assert summary["high"] == pytest.approx(high, abs=0.01)
    assert high - low < 0.3


def test_what_was_not_written_has_no_figures():
    one_sided = summarise([r for r in _records() if r.sign >= 0], resamples=200)
    assert one_sided["judge_range"] is None and one_sided["right_direction"] is None
    assert [sign["sign"] for sign in one_sided["signs"]] == [1, 0]
    none = summarise([])
    assert (none["signs"], none["judge_range"], none["composite"]) == ([], None, None)


def test_each_judge_stands_by_itself_and_the_headline_is_the_mean_of_those_that_are_believed():
    rng = np.random.default_rng(4)
    records = [
        replace(record, readings={"one": record.judge, "other": float(rng.normal())})
        for record in _records()
    ]
    one, other = summarise(records, resamples=500)["by_judge"]
    summary = summarise(records, resamples=500)
    assert (one["judge"], other["judge"]) == ("one", "other")
    for name in ("judge_range", "low", "high", "auc", "auc_low", "auc_high"):
        assert one[name] == summary[name]
    up, down = ([r.judge for r in records if r.sign == sign] for sign in (1, -1))
    wins = np.mean(np.array(up)[:, None] > np.array(down)[None])
    assert summary["auc"] == pytest.approx(wins)
    assert other["low"] < 0 < other["high"] and other["auc_low"] < 0.5 < other["auc_high"]


def test_without_a_judge_that_is_believed_nothing_is_claimed(writer, judge, vector):
    records = WrittenEvaluation(writer, [judge], []).steered(vector, 1.0, -1.0)
    assert {r.judge for r in records} == {None}
    assert all(r.readings[judge.name] is not None for r in records)
    summary = summarise(records, resamples=100)
    assert summary["judge_range"] is None and summary["auc"] is None
    assert summary["by_judge"][0]["judge_range"] is not None
