"""Steering vectors at equal cost on held-out pairs, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from saesteer.data.texts import ANSWERS_NAME, read_answers
from saesteer.evaluation.effect import EffectMeter, PropensityMeter
from saesteer.models.sites import Site
from saesteer.models.tokens import encode_statements
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import DivergenceMeter
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet


def evaluate(
    model: TransformerBridge,
    pairs: PairSet,
    vectors: SteeringVector | Sequence[SteeringVector],
    *,
    kl_target: float = 0.3,
    request: str = "What would you say?",
    neutral: str = ANSWERS_NAME,
    neutral_answers: int = 6,
    chat: bool | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure how far vectors move held-out pairs, each at the strengths of one KL divergence.

    As in `saesteer steer` and `saesteer compare`, to the same numbers: for each vector and sign
    the strength is found that costs `kl_target` on neutral answers, and E is half the difference
    of the pairs' mean margins between the two.

    Args:
        model: A model from `load_model`.
        pairs: Held-out pairs.
        vectors: One vector or several, of any sites.
        kl_target: KL(steered || base) that each is given either way, nats per token.
        request: The neutral request before statements that have no prompt of their own; not the
            one that was read with.
        neutral: Neutral answers that KL is measured on: the bundled ones or a file with question
            and answer.
        neutral_answers: How many of them.
        chat: Whether prompts go through the chat template; where there is one if None.
        progress: Where to show progress.

    Returns:
        One row for each vector: method, strength (the positive one, in units of the residual norm)
        with the kl measured there, effect (E, nats per token) with the ends low and high of its
        95% bootstrap interval over the pairs. Where a KL target is not reached the effect is NaN.

    Raises:
        DataError: There are no pairs, or a text does not fit the model's context.

    Example:
        >>> table = ss.evaluate(model, test, [vector], kl_target=0.05)
        >>> list(table.columns)
        ['method', 'strength', 'kl', 'effect', 'low', 'high']
    """
    import pandas as pd

    @cache
    def meter(site: Site) -> EffectMeter:
        return EffectMeter(
            DivergenceMeter(model, rows, site=site),
            PropensityMeter(model, pairs, request=request, chat=chat, site=site),
        )

    answers = read_answers(neutral)[:neutral_answers]
    assert model.tokenizer is not None
    rows = encode_statements(
        model.tokenizer,
        [answer.answer for answer in answers],
        [answer.question for answer in answers],
        chat=chat,
        max_length=int(model.cfg.n_ctx),
        what=f"a neutral answer of {neutral}",
    )
    given = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    table = []
    with (progress or Progress()).task("vectors", total=len(given), unit="vectors") as task:
        for vector in given:
            found = meter(vector.site).measure(vector, kl_target)
            effect = found.effect
            ends = (
                (None, None, None) if effect is None else (effect.effect, effect.low, effect.high)
            )
            table.append((vector.method, found.plus.strength, found.plus.kl, *ends))
            task.advance(1, vector.name)
    columns = ["method", "strength", "kl", "effect", "low", "high"]
    return pd.DataFrame(table, columns=columns).astype(dict.fromkeys(columns[1:], float))
