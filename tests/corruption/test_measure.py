"""Losses of tasks against the Hugging Face model's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.measure import TaskScores, largest_places, score_task
from saesteer.corruption.program import parse_program
from saesteer.corruption.tasks import Example, parse_task, task_rows
from saesteer.models import plain_model
from saesteer.utils.errors import DataError

TASK = parse_task(
    {
        "name": "cats",
        "description": "Where the cat is.",
        "examples": [
            {"prompt": "the cat sat on", "answer": "the mat and the dog"},
            {"prompt": "the dog ran to", "answer": "the garden"},
            {"prompt": "I like", "answer": "helping people always"},
            {"prompt": "you are", "answer": "warm"},
        ],
    },
    "test",
)


@pytest.fixture
def rows(tiny_llama):
    return task_rows(tiny_llama.tokenizer, TASK, shots=2)


def test_the_loss_is_the_hugging_face_models_own_over_every_answer_token(
    arch, tiny_model, hf_model
):
    model, reference = tiny_model(arch), hf_model(arch)
    rows = task_rows(model.tokenizer, TASK, shots=2)
    scores = score_task(model, [], rows, max_tokens=64)
    total, count = 0.0, 0
    for row in rows.rows:
        ids = torch.tensor([row.ids])
        labels = torch.where(torch.tensor([row.kept]), ids, -100)
        n = int((labels != -100).sum())
        with torch.no_grad():
            total += float(reference(ids, labels=labels).loss) * n
        count += n
    assert scores.loss()[0] == pytest.approx(total / count, rel=1e-5)
    assert scores.log_probs.shape == (1, count)


def test_every_answer_token_is_scored_and_no_other(rows, tiny_llama):
    bos = tiny_llama.tokenizer.bos_token_id
    assert all(row.ids[0] == bos and row.ids.count(bos) == 1 for row in rows.rows)
    scores = score_task(tiny_llama, [], rows)
    for number, example in enumerate(TASK.examples):
        own = [t for q, t in zip(scores.question, scores.tokens, strict=True) if q == number]
        assert "".join(own).strip() == example.answer
        assert scores.place[scores.question == number].tolist() == list(range(len(own)))


def test_a_program_scores_as_its_own_forward_pass(rows, tiny_llama):
    programs = [parse_program(text, 3) for text in ("skip 1", "[]", "zero mlp 0")]
    scores = score_task(tiny_llama, programs, rows)
    assert scores.programs == ("intact", "skip 1", "[]", "zero mlp 0")
    for place, program in enumerate(programs, start=1):
        wanted, right, confidence = [], [], []
        with corrupted(tiny_llama, program), torch.no_grad():
            for row in rows.rows:
                logits = plain_model(tiny_llama)(torch.tensor([row.ids])).logits[0]
                log_probs = torch.log_softmax(logits, dim=-1)
                for t in np.flatnonzero(row.kept):
                    wanted.append(float(log_probs[t - 1, row.ids[t]]))
                    right.append(float(log_probs[t - 1].argmax() == row.ids[t]))
                    confidence.append(float(log_probs[t - 1].max().exp()))
        np.testing.assert_allclose(scores.log_probs[place], wanted, atol=1e-5)
        np.testing.assert_allclose(scores.right[place], right)
        np.testing.assert_allclose(scores.confidence[place], confidence, atol=1e-5)


def test_tokens_that_gain_and_lose_are_those_of_the_mean_distribution(rows, tiny_llama):
    scores = score_task(tiny_llama, [parse_program("skip 2", 3)], rows, top=3)
    means = []
    for text in ("all", "skip 2"):
        probabilities = []
        with corrupted(tiny_llama, parse_program(text, 3)), torch.no_grad():
            for row in rows.rows:
                logits = plain_model(tiny_llama)(torch.tensor([row.ids])).logits[0]
                before = np.flatnonzero(row.kept) - 1
                probabilities.append(torch.softmax(logits, dim=-1)[before])
        means.append(torch.cat(probabilities).mean(dim=0))
    change, ids = (means[1] - means[0]).topk(3)
    decoded = [tiny_llama.tokenizer.decode([i]) for i in ids.tolist()]
    assert [token for token, _ in scores.gained[1]] == decoded
    np.testing.assert_allclose([c for _, c in scores.gained[1]], change.numpy(), atol=1e-6)
    fall = (means[1] - means[0]).min()
    assert scores.lost[1][0].change == pytest.approx(float(fall), abs=1e-6)
    assert scores.gained[0] == scores.lost[0] == ()


def _made_up(right, confidence) -> TaskScores:
    confidence = np.array([confidence], float)
    likeliest = np.where(np.array([right]) == 1, 7, 5)
    n = likeliest.shape[1]
    return TaskScores(
        "made up", ("intact",), np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0]), tuple("abcd"),
        np.full(n, 7), np.array([5, 5, 1, 1]), np.log(confidence), likeliest, confidence,
        ((),), ((),),
    )  # fmt: skip


def test_repeating_accuracy_and_calibration_by_hand():
    scores = _made_up([1, 0, 0, 0], [0.9, 0.9, 0.9, 0.9])
    # Guesses 7, 5, 5, 5 behind 5, 5, 1, 1; the questions' first guesses are 7, 5 and 5.
    assert scores.repeated()[0] == pytest.approx(1 / 4)
    assert scores.unmoved()[0] == pytest.approx(2 / 3)
    # A question is right only if all its tokens are.
    scores = _made_up([1, 0, 1, 1], [0.9, 0.9, 0.9, 0.9])
    assert scores.accuracy()[0] == pytest.approx(2 / 3)
    assert scores.token_accuracy()[0] == pytest.approx(3 / 4)

    # Calibration is the gap of each bin, weighed by its tokens.
    scores = _made_up([1, 0, 1, 1], [0.95, 0.91, 0.55, 1.0])
    wanted = (3 * abs((0.95 + 0.91 + 1.0) / 3 - 2 / 3) + abs(0.55 - 1)) / 4
    assert scores.calibration_error()[0] == pytest.approx(wanted)


def test_a_mark_of_the_tokenizer_and_a_question_past_the_context_are_refused(tiny_llama):
    marked = Example(prompt="<|im_start|>the cat", answer="sat")
    task = TASK.model_copy(update={"eval_questions": (marked,)})
    with pytest.raises(DataError, match="holds one of the tokenizer's own marks"):
        task_rows(tiny_llama.tokenizer, task)
    with pytest.raises(DataError, match=r"task cats: question 1 .* more than the model's context"):
        task_rows(tiny_llama.tokenizer, TASK, max_length=8)


@pytest.mark.parametrize("width", [7, 600, 1024])
def test_the_largest_place_is_argmax(width):
    values = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    assert torch.equal(largest_places(values), values.argmax(dim=1))
