"""How a completion is written: repetition, likelihood under the base model, relevance, mood."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.effect import statement_log_likelihoods
from saesteer.models.tokens import ChatPrompt, TokenRow, encode_statements, has_chat_template
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MAX_BATCH_TOKENS = 1024
_TOKEN = re.compile(r"\w+|[^\w\s]")


def repeated_share(text: str, n: int = 4) -> float:
    """Return the share of a text's n-grams that repeat an earlier one: 1 - unique / total.

    seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319), here over lower-case words and
    punctuation marks, so that it does not depend on the model's tokenizer. NaN, that is missing,
    for a text shorter than n words.
    """
    words = _TOKEN.findall(text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def distinct_share(text: str, n: int = 2) -> float:
    """Return unique / total n-grams of a text: distinct-n (Li et al. 2016, arXiv 1510.03055)."""
    return 1 - repeated_share(text, n)


def completion_nll(
    model: TransformerBridge,
    questions: Sequence[str],
    completions: Sequence[str],
    *,
    chat: bool | None = None,
) -> Float[np.ndarray, " completion"]:
    """Return each completion's negative log-likelihood under the unsteered model.

    Args:
        model: A model from `load_model`.
        questions: The question that each completion answers, one each; without the system prompt
            it may have been written under, so that all completions meet one yardstick.
        completions: What was written.
        chat: Whether the question goes through the chat template; where there is one if None.

    Returns:
        The mean over the completion's tokens of -log p, nats per token; NaN, that is missing,
        where a completion has no token.
    """
    assert model.tokenizer is not None
    use_chat = has_chat_template(model.tokenizer) if chat is None else chat
    rows: dict[int, TokenRow] = {}
    for place, (question, text) in enumerate(zip(questions, completions, strict=True)):
        row = _row(model, question, text, use_chat) if text.strip() else None
        if row is not None:
            rows[place] = row
    out = np.full(len(completions), np.nan)
    if rows:
        # Their logits over the vocabulary are what takes memory.
        prepared = TeacherForced(model, list(rows.values()), max_tokens=MAX_BATCH_TOKENS)
        out[list(rows)] = -statement_log_likelihoods(prepared)
    return out


def answer_similarity(
    questions: Float[np.ndarray, "completion dim"], completions: Float[np.ndarray, "completion dim"]
) -> Float[np.ndarray, " completion"]:
    """Return the cosine of each completion's embedding with its question's.

    A row of NaN, for a blank completion, gives NaN, that is missing.
    """
    lengths = np.linalg.norm(questions, axis=1) * np.linalg.norm(completions, axis=1)
    return ((questions * completions).sum(axis=1) / lengths).astype(np.float64)


class QualityReference(NamedTuple):
    """Means of the unsteered completions, against which the composite proxy is measured."""

    nll: float
    similarity: float


def quality_reference(
    nll: Float[np.ndarray, " completion"], similarity: Float[np.ndarray, " completion"]
) -> QualityReference:
    """Average the unsteered completions' measures, missing ones left out.

    Raises:
        DataError: No completion has any text, or they bear no relation to the questions.
    """
    known = np.isfinite(nll) & np.isfinite(similarity)
    if not known.any():
        raise DataError(
            "the unsteered model wrote nothing, so there is nothing to hold quality against; give "
            "more questions or more new tokens."
        )
    mean = float(similarity[known].mean())
    if mean <= 0:
        raise DataError(
            f"the unsteered completions' mean similarity to their questions is {mean:.3f}, which "
            "nothing can be measured against; give a model that answers, or other questions."
        )
    return QualityReference(float(nll[known].mean()), mean)


def composite_proxy(
    nll: Float[np.ndarray, " completion"],
    rep4: Float[np.ndarray, " completion"],
    similarity: Float[np.ndarray, " completion"],
    reference: QualityReference,
) -> Float[np.ndarray, " completion"]:
    """Return the harmonic mean of fluency and relevance: a proxy of quality, no rating.

    Fluency is min(1, exp(nll_base - nll)) * (1 - rep4). The first factor is the ratio of
    perplexities, unsteered to this text, capped at 1: a text likelier than usual is no more fluent
    for it, and degenerate text is caught by the second. A text too short to have a 4-gram repeats
    none. Relevance is similarity over the unsteered completions' mean, cut to [0, 1]. Harmonic, as
    AxBench's (arXiv 2501.17148), so that one good half cannot make up for a bad one.

    In [0, 1], 0 where either half is 0; NaN where either is missing.
    """
    likelihood = np.exp(np.minimum(0.0, reference.nll - nll))
    fluency = likelihood * (1 - np.nan_to_num(rep4, nan=0.0))
    relevance = np.clip(similarity / reference.similarity, 0.0, 1.0)
    total = fluency + relevance
    return np.where(total > 0, 2 * fluency * relevance / np.where(total > 0, total, 1.0), total)


def _row(model: TransformerBridge, question: str, text: str, use_chat: bool) -> TokenRow | None:
    # A plain prompt is joined to its answer by a space, which the completion may bring itself.
    said = text if use_chat or isinstance(question, ChatPrompt) else text.lstrip(" ")
    try:
        (row,) = encode_statements(model.tokenizer, [said], question, chat=use_chat)
    except DataError:
        # Text of nothing but special tokens spelled out has no token of its own.
        return None
    # Text read back may take a few tokens more than were generated.
    longest = int(model.cfg.n_ctx)
    cut = row.part(0, longest)
    return cut if any(cut.kept) else None


def vader_compound(texts: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Return VADER's compound score of each text (Hutto and Gilbert 2014, ICWSM).

    A confound check that knows nothing of the persona: from -1 (most negative) over 0 (neutral, or
    no word that VADER knows) to 1; NaN, that is missing, for a text without a visible character.

    Raises:
        ModelError: The package vaderSentiment is not installed.
    """
    analyzer = _analyzer()
    return np.array(
        [analyzer.polarity_scores(t)["compound"] if t.strip() else math.nan for t in texts],
        dtype=np.float64,
    )


# Reading the lexicon takes a tenth of a second, and it never changes.
@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ModelError(
            "sentiment needs the package vaderSentiment, which is not installed; run: pip install "
            "vaderSentiment"
        ) from error
    return SentimentIntensityAnalyzer()
