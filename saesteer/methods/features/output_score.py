"""Output scores: does steering with a feature make the model say what the feature stands for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.utils.errors import ConfigError, HookError, SaeError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.tokens import TokenRow
    from saesteer.saes.adapter import Sae

NEUTRAL_PROMPT = "In my experience,"


def output_scores(
    model: TransformerBridge,
    sae: Sae,
    features: Sequence[int] | Int[np.ndarray, " feature"],
    *,
    prompt: str = NEUTRAL_PROMPT,
    factor: float = 10.0,
    n_tokens: int = 20,
    batch_size: int = 32,
) -> Float[np.ndarray, " d_sae"]:
    """Score features by how visibly they steer the next token.

    Arad, Mueller & Belinkov 2025 (arXiv 2505.20063, and their code): S_out = (1 - r / |V|) * p.
    At the last token of a neutral prompt, `factor` * a of feature j is added, a being the largest
    activation of any feature there. Among the `n_tokens` tokens that j's decoder row promotes by
    logit lens, r is the best rank (from 0) and p the largest probability in the steered next-token
    distribution over the vocabulary V. `batch_size` features run as rows of one batch. Scores lie
    between 0 and 1, and are NaN where not computed.

    Raises:
        ConfigError: A feature does not exist, a setting is out of range, or no feature fires at
            the prompt's end.
        SaeError: The SAE does not write into the residual stream, where the logit lens says
            nothing.
        HookError: Nothing passed through the SAE's site.
    """
    from saesteer.models.tokens import encode_texts

    wanted = _checked(features, sae, factor, n_tokens, batch_size)
    assert model.tokenizer is not None
    row = encode_texts(model.tokenizer, [prompt], prepend_bos=sae.prepend_bos, what="prompt")[0]
    amplitude = factor * _largest_activation(model, sae, row, prompt)
    unembed = _unembedding(model, sae)
    scores = np.full(sae.d_sae, np.nan)
    for start in range(0, len(wanted), batch_size):
        chosen = wanted[start : start + batch_size]
        rows = sae.decoder[torch.from_numpy(chosen)]
        promoted = (rows @ unembed.T).topk(min(n_tokens, len(unembed)), dim=1).indices
        logits = _steered_logits(model, sae, row, amplitude * rows)[:, : len(unembed)]
        scores[chosen] = _score(logits, promoted)
    return scores


def _score(
    logits: Float[Tensor, "feature vocab"], promoted: Int[Tensor, "feature token"]
) -> Float[np.ndarray, " feature"]:
    best = logits.gather(1, promoted).amax(dim=1, keepdim=True)
    # Rank from 0: how many tokens the best promoted one has above it.
    rank = (logits > best).sum(dim=1)
    probability = torch.exp(best[:, 0] - logits.logsumexp(dim=1))
    return ((1 - rank / logits.shape[1]) * probability).double().numpy()


def _unembedding(model: TransformerBridge, sae: Sae) -> Float[Tensor, "vocab d_model"]:
    """Return the unembedding with the final norm's linear part in it."""
    from saesteer.models.loading import plain_model
    from saesteer.saes.lens import TokenTexts, norm_gain

    plain = plain_model(model)
    mapping: Any = model.adapter.component_mapping
    head: Any = plain.get_output_embeddings()
    # A vocabulary padded to a round size holds rows that are no tokens.
    weight = head.weight.detach()[: TokenTexts(model.tokenizer).n_ids].to("cpu", torch.float32)
    gain, centred = norm_gain(plain.get_submodule(mapping["ln_final"].name), weight.shape[1])
    weight = weight * gain
    # To centre the row or the unembedding comes to the same.
    return weight - weight.mean(dim=1, keepdim=True) if centred else weight


def _largest_activation(model: TransformerBridge, sae: Sae, row: TokenRow, prompt: str) -> float:
    from saesteer.models.reading import read_rows

    read = read_rows(model, [row], [sae.site])[sae.site]
    largest = float(sae.encode(read.text(0))[-1].max())
    if not largest > 0:
        raise ConfigError(
            f"prompt: no feature of SAE {sae.name} fires at the end of {prompt!r}, so there is no "
            "measure of how strongly to steer; give another prompt."
        )
    return largest


def _steered_logits(
    model: TransformerBridge, sae: Sae, row: TokenRow, added: Float[Tensor, "feature d_model"]
) -> Float[Tensor, "feature vocab"]:
    """Return the next-token logits after the row, steered at its last token by each vector."""
    from saesteer.models.sites import resolve_target
    from saesteer.models.tokens import input_device

    target = resolve_target(model, sae.write_site)
    fired = False

    def write(hidden: Tensor) -> Tensor:
        nonlocal fired
        fired = True
        steered = hidden.clone()
        steered[:, -1] += added.to(hidden.device, hidden.dtype)
        return steered

    ids = torch.tensor([row.ids], device=input_device(target.model)).expand(len(added), -1)
    handle = target.hook(write)
    try:
        with torch.inference_mode():
            logits = target.model(input_ids=ids, use_cache=False).logits[:, -1]
    finally:
        handle.remove()
    if not fired:
        raise HookError(f"nothing passed through {sae.write_site}; choose another site.")
    return logits.to("cpu", torch.float32)


def _checked(
    features: Sequence[int] | Int[np.ndarray, " feature"],
    sae: Sae,
    factor: float,
    n_tokens: int,
    batch_size: int,
) -> Int[np.ndarray, " feature"]:
    from saesteer.saes.lens import RESIDUAL_HOOKS

    if sae.write_site.hook not in RESIDUAL_HOOKS:
        raise SaeError(
            f"SAE {sae.name} writes at {sae.write_site}, where the logit lens says nothing; use "
            "one of the residual stream, hook_mlp_out or hook_attn_out."
        )
    for name, value in (("factor", factor), ("n_tokens", n_tokens), ("batch_size", batch_size)):
        if not 0 < value < np.inf:
            raise ConfigError(f"{name}: {value:g} is not above 0; give a positive number.")
    wanted = np.unique(np.asarray(features))
    if not np.issubdtype(wanted.dtype, np.integer) or not wanted.size:
        raise ConfigError("features: there is none to score; give at least one feature index.")
    outside = wanted[(wanted < 0) | (wanted >= sae.d_sae)]
    if outside.size:
        raise ConfigError(
            f"features: feature {outside[0]} does not exist, SAE {sae.name} has features 0 to "
            f"{sae.d_sae - 1}; use indices of this SAE."
        )
    return wanted.astype(np.int64)
