"""Output scores: does steering with a feature make the model say what the feature stands for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.hooks import hooked
from saesteer.models.reading import read_rows
from saesteer.models.sites import resolve_target
from saesteer.models.tokens import encode_texts, input_device
from saesteer.saes.adapter import RESIDUAL_HOOKS
from saesteer.saes.lens import token_directions
from saesteer.utils.errors import ConfigError, SaeError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

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
        ConfigError: No feature fires at the prompt's end.
        SaeError: The SAE does not write into the residual stream, where the logit lens says
            nothing, or has no such feature.
        HookError: Nothing passed through the SAE's site.
    """
    if sae.write_site.hook not in RESIDUAL_HOOKS:
        raise SaeError(
            f"SAE {sae.name} writes at {sae.write_site}, where the logit lens says nothing; use "
            "one of the residual stream, hook_mlp_out or hook_attn_out."
        )
    wanted = np.unique(np.asarray(features, dtype=np.int64))
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] < sae.d_sae:
        raise SaeError(
            f"features: SAE {sae.name} has features 0 to {sae.d_sae - 1}; choose some of them."
        )
    assert model.tokenizer is not None
    row = encode_texts(model.tokenizer, [prompt], prepend_bos=sae.prepend_bos, what="prompt")[0]
    read = read_rows(model, [row], [sae.site])[sae.site]
    largest = float(sae.encode(read.text(0))[-1].max())
    if not largest > 0:
        raise ConfigError(
            f"prompt: no feature of SAE {sae.name} fires at the end of {prompt!r}, so there is no "
            "measure of how strongly to steer; give another prompt."
        )
    unembed, target = token_directions(model), resolve_target(model, sae.write_site)
    ids = torch.tensor([row.ids], device=input_device(target.model))
    scores = np.full(sae.d_sae, np.nan)
    for start in range(0, len(wanted), batch_size):
        chosen = wanted[start : start + batch_size]
        rows = sae.decoder[torch.from_numpy(chosen)]
        promoted = (rows @ unembed.T).topk(min(n_tokens, len(unembed)), dim=1).indices
        added = factor * largest * rows

        def steer(hidden: Tensor, added: Tensor = added) -> Tensor:
            steered = hidden.clone()
            steered[:, -1] += added.to(hidden.device, hidden.dtype)
            return steered

        with torch.inference_mode(), hooked([(target, steer)]):
            logits = target.model(input_ids=ids.expand(len(rows), -1), use_cache=False).logits
        scores[chosen] = _score(logits[:, -1, : len(unembed)].to("cpu", torch.float32), promoted)
    return scores


def _score(
    logits: Float[Tensor, "feature vocab"], promoted: Int[Tensor, "feature token"]
) -> Float[np.ndarray, " feature"]:
    best = logits.gather(1, promoted).amax(dim=1, keepdim=True)
    # Rank from 0: how many tokens the best promoted one has above it.
    rank = (logits > best).sum(dim=1)
    probability = torch.exp(best[:, 0] - logits.logsumexp(dim=1))
    return ((1 - rank / logits.shape[1]) * probability).double().numpy()
