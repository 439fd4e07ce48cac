"""A contrast between completions that the model itself writes, rated high and low."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saesteer.steering.generate import generate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector

# Shorter completions say nothing that could be rated.
FEWEST_WORDS = 4
Rate = Callable[[Sequence[str]], Float[np.ndarray, " text"]]


def self_generated(
    model: TransformerBridge,
    questions: Sequence[str],
    vector: SteeringVector,
    strengths: Sequence[float],
    rate: Rate,
    *,
    n_samples: int = 3,
    n_pairs: int = 2,
    max_new_tokens: int = 40,
    chat: bool | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Let the model answer under steering both ways, and pair what is rated high with what is low.

    Raising the likelihood of the high one against the low one is a step of policy gradient on the
    rating with a paired baseline; the texts are the model's own, so the step moves what it writes
    and not only how likely it finds other people's statements.

    `strengths` are such as meet a KL target both ways, `rate` must have been trained on other
    statements than the judge that scores in the end, and no evaluation asks the questions. Of each
    question the highest is paired with the lowest, the second with the second lowest, and so on.

    Returns:
        questions, and for each the text rated high and the one rated low.
    """
    result = generate(
        model,
        questions,
        vector,
        strengths,
        max_new_tokens=max_new_tokens,
        chat="auto" if chat is None else chat,
        temperature=0.7,
        top_p=0.9,
        n_samples=n_samples,
        seed=seed,
        max_batch_rows=64,
    )
    kept = [r for r in result.records if len(r.text.split()) >= FEWEST_WORDS]
    ratings = rate([record.text for record in kept]) if kept else []
    by_question: dict[str, list[tuple[float, str]]] = {}
    for record, rating in zip(kept, ratings, strict=True):
        by_question.setdefault(record.prompt, []).append((float(rating), record.text))
    found: dict[str, list[str]] = {"questions": [], "high": [], "low": []}
    for question, rated in by_question.items():
        rated.sort()
        lowest = rated[: min(n_pairs, len(rated) // 2)]
        for low, high in zip(lowest, rated[::-1], strict=False):
            if high[0] > low[0]:
                for column, said in zip(found, (question, high[1], low[1]), strict=True):
                    found[column].append(said)
    return found
