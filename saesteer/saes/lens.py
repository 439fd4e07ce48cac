"""The logit lens on decoder rows: which tokens a feature's direction promotes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.models.loading import plain_model
from saesteer.saes.adapter import RESIDUAL_HOOKS, Sae

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FEATURES_AT_ONCE = 256


class TokenTexts:
    """Decodes tokens one by one, as they read inside a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space of a token that stands first.
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._anchor: list[int] = list(anchor)
        self._head: str = tokenizer.decode(self._anchor)
        self._known: dict[int, str] = {}

    def one(self, token: int) -> str:
        """Return one token's text, a leading space included."""
        if token not in self._known:
            self._known[token] = self.inside([token])
        return self._known[token]

    def inside(self, tokens: Sequence[int]) -> str:
        """Return some tokens' text, a leading space included."""
        whole = self._tokenizer.decode([*self._anchor, *tokens])
        joined = whole.startswith(self._head)
        return whole[len(self._head) :] if joined else self.span(tokens)

    def span(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    @property
    def n_ids(self) -> int:
        """The highest token id and one."""
        return max(self._tokenizer.get_vocab().values()) + 1


def extreme_words(
    model: TransformerBridge, sae: Sae, names: Mapping[int, str], *, n_top: int, n_bottom: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the words that each feature promotes and demotes most, by logit lens.

    A decoder row goes through the linear part of the final norm and the unembedding
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). A token's logit counts in standard
    deviations from its mean over all features, since some tokens are promoted by nearly all.

    Args:
        names: What tokens stand for; others do not count. Of equal names the most extreme does.

    Returns:
        For each feature the promoted and the demoted words, most extreme first; empty lists if
        the SAE does not write into the residual stream, where the lens says nothing.
    """
    if sae.write_site.hook not in RESIDUAL_HOOKS or not names:
        return [[] for _ in range(sae.d_sae)], [[] for _ in range(sae.d_sae)]
    tokens = sorted(names)
    directions = token_directions(model)[tokens]
    decoder = sae.decoder
    spread, mean = torch.cov(decoder.T, correction=0), decoder.mean(dim=0)
    deviation = ((directions @ spread) * directions).sum(dim=1).clamp_min(1e-12).sqrt()
    top: list[list[str]] = []
    bottom: list[list[str]] = []
    for rows in decoder.split(FEATURES_AT_ONCE):
        logits = (rows - mean) @ directions.T / deviation
        for sign, n, into in ((1, n_top, top), (-1, n_bottom, bottom)):
            # Twice as many, since several tokens may stand for one word.
            best = (sign * logits).topk(min(2 * n, len(tokens))).indices.tolist()
            words = (dict.fromkeys(names[tokens[at]] for at in row) for row in best)
            into.extend(list(found)[:n] for found in words)
    return top, bottom


def token_directions(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """Return the unembedding with the final norm's linear part in it, float32 on the CPU.

    The linear part is the norm's gain, and its centring where it has one.
    """
    mapping: Any = model.adapter.component_mapping
    plain = plain_model(model)
    head: Any = plain.get_output_embeddings()
    # A vocabulary padded to a round size holds rows that are no tokens.
    weight = head.weight.detach()[: TokenTexts(model.tokenizer).n_ids].to("cpu", torch.float32)
    gain, centred = norm_gain(plain.get_submodule(mapping["ln_final"].name), weight.shape[1])
    weight = weight * gain
    # To centre what is read or the unembedding comes to the same.
    return weight - weight.mean(dim=1, keepdim=True) if centred else weight


def norm_gain(norm: nn.Module, width: int) -> tuple[Float[Tensor, " d_model"], bool]:
    """Return a norm's gain and whether it centres, measured by what it does to two inputs.

    Measured rather than read from `weight`, because some families (Gemma) store gain - 1.

    Returns:
        The gain, float32 on the CPU, and whether the mean is taken away first.
    """
    own = copy.deepcopy(norm).to("cpu", torch.float32)
    signs = torch.ones(width)
    signs[1::2] = -1
    # Mean zero and root mean square one: the norm passes it as it is, but for gain and bias.
    with torch.no_grad():
        plus, minus, shifted = own(signs), own(-signs), own(signs + 1)
    gain = (plus - minus) / 2 * signs
    return gain, bool(torch.allclose(shifted, plus, rtol=1e-3, atol=1e-4))
