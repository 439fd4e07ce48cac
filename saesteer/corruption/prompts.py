"""Few-shot prompts as token rows, in which every answer token is scored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saesteer.corruption.tasks import Example, Task
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskRows:
    """A task's questions, ready to be scored.

    Attributes:
        task: The task's name.
        questions: The questions.
        prompts: What stands before each answer, examples included.
        rows: Prompts with answers; the answers' tokens are kept.
    """

    task: str
    questions: tuple[Example, ...]
    prompts: tuple[str, ...]
    rows: tuple[TokenRow, ...]


def few_shot_prompt(
    examples: Sequence[Example], question: Example, *, shots: int, rng: random.Random
) -> str:
    """Return a prompt of examples, never the question's own, and the question.

    Args:
        examples: What to draw from.
        question: What is asked.
        shots: How many examples stand before it; fewer where there are not as many.
        rng: Draws them.
    """
    others = [example for example in examples if example.prompt != question.prompt]
    chosen = rng.sample(others, min(shots, len(others)))
    # Prompts of several lines are kept apart by an empty one.
    between = "\n\n" if any("\n" in e.prompt for e in (*chosen, question)) else "\n"
    return between.join([*(example.text for example in chosen), question.prompt])


def task_rows(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    shots: int = 4,
    max_questions: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
) -> TaskRows:
    """Tokenise a task's questions behind examples of their own.

    There is one BOS where the tokenizer has one, at the beginning, and none inside.

    Args:
        tokenizer: The model's tokenizer.
        task: The task.
        shots: Examples before each question, drawn for each anew.
        max_questions: The most questions; all if None.
        seed: Seeds the draw of examples.
        max_length: The model's context.

    Raises:
        DataError: A text is too long, or holds the tokenizer's own marks.
    """
    questions = task.questions[:max_questions]
    prompts = [
        few_shot_prompt(task.examples, q, shots=shots, rng=random.Random(f"{seed} {q.prompt}"))
        for q in questions
    ]
    try:
        rows = encode_statements(
            tokenizer,
            [question.answer for question in questions],
            prompts,
            chat=False,
            max_length=max_length,
            what="question",
            remedy="lower tasks.shots, or shorten it and the examples",
        )
    except DataError as error:
        raise DataError(f"task {task.name}: {error}") from None
    special = set(tokenizer.all_special_ids)
    for number, row in enumerate(rows, start=1):
        if special & set(row.ids[1:]):
            raise DataError(
                f"task {task.name}: question {number} or an example before it holds one of the "
                "tokenizer's own marks, such as its BOS; write plain text."
            )
    return TaskRows(task.name, questions, tuple(prompts), tuple(rows))
