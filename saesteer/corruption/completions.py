"""How a model goes on with a prompt under a whole family of programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from saesteer.corruption.apply import corrupted
from saesteer.corruption.program import LinearSpan, Program
from saesteer.models import encode_texts, plain_model
from saesteer.models.generation import greedy_settings
from saesteer.models.tokens import TokenRow, input_device, pad_rows, padding_id
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.fitted import LinearMap, Means


def complete_prompts(
    model: TransformerBridge,
    programs: Sequence[Program],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 10,
    maps: Mapping[LinearSpan, LinearMap] | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
) -> list[dict[str, str]]:
    """Complete prompts under every program, likeliest token by likeliest token.

    Args:
        model: A model from `load_model`.
        programs: The programs.
        prompts: Plain prompts, all of them rows of one batch.
        max_new_tokens: The most tokens.
        maps: As in `corrupted`, as are `means`.

    Returns:
        Each prompt, program and text: program by program, the prompts in order.

    Raises:
        DataError: A prompt is empty, or too long for the model's context.
    """
    rows = prompt_rows(model, prompts, max_new_tokens)
    tokenizer: Any = model.tokenizer
    plain: Any = plain_model(model)
    batch = pad_rows(rows, padding_id(model), input_device(plain))
    width = batch.input_ids.shape[1]
    found = []
    with (progress or Progress()).task("completions", len(programs), "programs") as task:
        for program in programs:
            with corrupted(model, program, maps=maps, means=means), torch.inference_mode():
                ends = plain.generation_config.eos_token_id
                config = greedy_settings(max_new_tokens, ends=ends, pad=padding_id(model))
                said = plain.generate(**batch.inputs, generation_config=config)[:, width:].tolist()
            for prompt, ids in zip(prompts, said, strict=True):
                text = _text(tokenizer, ids, config)
                found.append({"prompt": prompt, "program": str(program), "text": text})
            task.advance(1, str(program))
    return found


def prompt_rows(
    model: TransformerBridge, prompts: Sequence[str], max_new_tokens: int
) -> list[TokenRow]:
    """Tokenise prompts that are to be completed.

    Raises:
        DataError: A prompt is empty, or too long for the model's context.
    """
    if not prompts or any(not prompt.strip() for prompt in prompts):
        raise DataError("a prompt is empty; give it at least one word.")
    context = int(model.cfg.n_ctx) - max_new_tokens
    if context < 1:
        raise DataError(
            f"{max_new_tokens} new tokens are more than the model's context of {model.cfg.n_ctx}; "
            "ask for fewer."
        )
    assert model.tokenizer is not None
    return encode_texts(model.tokenizer, prompts, max_length=context, what="prompt")


def _text(tokenizer: Any, ids: list[int], config: Any) -> str:
    ends = config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    # Marks that a broken model writes are part of what it says.
    return str(tokenizer.decode(ids[:stop]))
