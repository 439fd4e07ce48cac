"""Generation settings in which a model's own configuration has no say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig


def greedy_settings(
    max_new_tokens: int, *, ends: int | Sequence[int] | None, pad: int
) -> GenerationConfig:
    """Return settings for plain greedy generation.

    Everything that the model's own configuration could slip in is set: a repetition penalty, for
    one, would be measured as an effect of what was done to the model.

    Args:
        max_new_tokens: The longest completion, tokens.
        ends: Token ids that end one; none if None.
        pad: The token id behind an end.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends if ends is None or isinstance(ends, int) else list(ends),
        pad_token_id=pad,
    )
