"""What the model answers when asked: Yes/No and A/B margins of held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from saesteer.evaluation.effect import statement_log_likelihoods
from saesteer.models.tokens import TokenRow, encode_statements, has_chat_template
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from saesteer.data.pairs import PairSet
    from saesteer.models.sites import Site
    from saesteer.steering import SteeringVector, Unit

Kind = Literal["yes_no", "a_b"]
QUESTION = "Which of these statements would you be more likely to say?"
LETTERS = ("A", "B")
YES_NO_QUESTION = "Is the following statement something you would say?"


def choice_question(first: str, second: str, question: str = QUESTION) -> str:
    """Return a question with two options, (A) and (B), laid out as in CAA's data sets."""
    return f"{question}\n\nChoices:\n (A) {first}\n (B) {second}"


def answer_cue(tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> str:
    """Return what must follow a question so that the answer comes next.

    Nothing in a chat template, whose header says so; after a plain prompt "Answer:", without
    which the answer would read as one more line of the question.
    """
    use_chat = has_chat_template(tokenizer) if chat is None else chat
    return "" if use_chat else "\n\nAnswer:"


class ChoiceAccuracy(NamedTuple):
    """How often the matching answer is the likelier one, with an exact 95% binomial interval."""

    accuracy: float  # share of pairs with a margin above 0, ties one half
    low: float
    high: float

    @property
    def at_chance(self) -> bool:
        """Whether the interval holds one half, so that margins say little."""
        return self.low <= 0.5 <= self.high


def accuracy_of(margins: Float[np.ndarray, " pair"]) -> ChoiceAccuracy:
    """Summarise margins as an accuracy with its interval (Clopper & Pearson 1934).

    Raises:
        DataError: There is no margin, or one is not a number.
    """
    from scipy.stats import binomtest

    if not len(margins) or not np.isfinite(margins).all():
        raise DataError("margins: there are none, or some are not numbers; measure some pairs.")
    share = float((margins > 0).mean() + (margins == 0).mean() / 2)
    n = len(margins)
    interval = binomtest(round(share * n), n).proportion_ci(0.95, method="exact")
    return ChoiceAccuracy(share, float(interval.low), float(interval.high))


class AnswerMeter:
    """How much likelier one answer to a question is than another, with and without steering.

    Args:
        model: A model from `load_model`.
        questions: What is asked.
        first: The answer to each, as the assistant's first words.
        second: The other answer to each.
        chat: Whether to use the chat template; where there is one if None.
        system: A system prompt for the template.
        site: Where vectors will be added; others work but share less.
        what: What errors call the questions.

    Raises:
        DataError: There are no questions, or one does not fit the model's context.
    """

    def __init__(
        self,
        model: TransformerBridge,
        questions: Sequence[str],
        first: Sequence[str],
        second: Sequence[str],
        *,
        chat: bool | None = None,
        system: str | None = None,
        site: Site | None = None,
        what: str | Sequence[str] = "question",
    ) -> None:
        assert model.tokenizer is not None
        cue = answer_cue(model.tokenizer, chat)
        asked = [f"{question}{cue}" for question in questions]
        one, other = (
            encode_statements(
                model.tokenizer,
                answers,
                asked,
                chat=chat,
                system=system,
                max_length=int(model.cfg.n_ctx),
                what=what,
                remedy="shorten its sides",
            )
            for answers in (first, second)
        )
        self._other = _last_ids(one, other)
        rows = one if self._other is not None else [*one, *other]
        self._lengths = np.array([sum(row.kept) for row in rows])
        self._rows = TeacherForced(model, rows, site=site)

    def differences(
        self, vector: SteeringVector | None = None, strength: float = 0.0, unit: Unit = "norm"
    ) -> Float[np.ndarray, " question"]:
        """Return the log-probability of each first answer less that of the second, in nats."""
        if self._other is not None:
            return self._at_last_token(self._other, vector, strength, unit)
        flat = self._lengths * statement_log_likelihoods(self._rows, vector, strength, unit)
        half = len(flat) // 2
        return flat[:half] - flat[half:]

    def _at_last_token(
        self, other: Sequence[int], vector: SteeringVector | None, strength: float, unit: Unit
    ) -> Float[np.ndarray, " question"]:
        """Return the difference of two answers that part at their last token, from one pass."""
        out = np.zeros(self._rows.n_rows)
        for index, logits, after, row, _ in self._rows.passes(vector, strength, unit):
            # A row's last token stands before the next row's first.
            last = torch.bincount(row).cumsum(0) - 1
            for place, says, token in zip(index, logits[last], after[last].tolist(), strict=True):
                two = says[[token, other[place]]].double()
                out[place] = float(two[0] - two[1])
        return out


class ChoiceMeter(AnswerMeter):
    """Margins of answers to questions about held-out pairs, with and without steering.

    A margin is the log-probability of the matching answer less that of the other, in nats, as the
    assistant's first words, averaged over the two questions of a pair so that a liking for an
    answer as such cancels:

    - "yes_no": whether each statement is something the model would say; "Yes" matches for the
      positive one, "No" for the negative one.
    - "a_b": which of the two it would rather say, in both orders of the options. The answer is
      written "(A", whose bracket is common to both answers and cancels.

    After a chat template's header an answer has no leading space; a plain prompt ends in "Answer:"
    and a space. In bfloat16 logits come in steps of up to 1/8, so that small margins tie at 0;
    where they matter load the model in float32.

    Args:
        model: A model from `load_model`.
        pairs: Held-out pairs.
        kind: Which questions to ask.
        question: What to ask; where None, "Is the following statement something you would say?",
            or for "a_b" the pair's own prompt, or which statement the model would rather say.
        chat: Whether to use the chat template; where there is one if None.
        system: A system prompt for the template.
        site: Where vectors will be added; others work but share less.

    Raises:
        DataError: There are no pairs, or a question does not fit the model's context.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: PairSet,
        *,
        kind: Kind = "yes_no",
        question: str | None = None,
        chat: bool | None = None,
        system: str | None = None,
        site: Site | None = None,
    ) -> None:
        if not len(pairs):
            raise DataError(f"pairs {pairs.name!r} are empty; give at least one held-out pair.")
        self.n_pairs = len(pairs)
        asked = _yes_no(pairs, question) if kind == "yes_no" else _a_b(pairs, question)
        answers = ("Yes", "No") if kind == "yes_no" else tuple(f"({x}" for x in LETTERS)
        first, second = ([answer] * len(asked) for answer in answers)
        how: Any = {"chat": chat, "system": system, "site": site}
        super().__init__(model, asked, first, second, what=pairs.question_names * 2, **how)

    def margins(
        self, vector: SteeringVector | None = None, strength: float = 0.0, unit: Unit = "norm"
    ) -> Float[np.ndarray, " pair"]:
        """Return each pair's margin at a strength, in nats."""
        difference = self.differences(vector, strength, unit)
        # In the first question of a pair the first answer matches, in the second the other one.
        positive, negative = difference.reshape(2, self.n_pairs)
        return (positive - negative) / 2

    @cached_property
    def unsteered(self) -> Float[np.ndarray, " pair"]:
        """The margins without steering, measured once."""
        return self.margins()

    @property
    def accuracy(self) -> ChoiceAccuracy:
        """The unsteered model's accuracy."""
        return accuracy_of(self.unsteered)


def _yes_no(pairs: PairSet, question: str | None) -> list[str]:
    asked = question or YES_NO_QUESTION
    return [f'{asked}\n"{text}"' for text in (*pairs.positives, *pairs.negatives)]


def _a_b(pairs: PairSet, question: str | None) -> list[str]:
    heads = [question or pair.prompt or QUESTION for pair in pairs]
    sides = (pairs.positives, pairs.negatives)
    return [
        choice_question(*options)
        for first, second in (sides, sides[::-1])
        for options in zip(first, second, heads, strict=True)
    ]


def _last_ids(first: Sequence[TokenRow], second: Sequence[TokenRow]) -> list[int] | None:
    """Return the second answers' last tokens if that is all in which they differ, else None."""
    alike = all(
        a.ids[:-1] == b.ids[:-1] and a.kept == b.kept and a.ids[-1] != b.ids[-1]
        for a, b in zip(first, second, strict=True)
    )
    return [row.ids[-1] for row in second] if alike else None
