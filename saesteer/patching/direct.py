"""Direct logit attribution: what every component writes straight into the logit difference.

With the final norm's scale held at the value it has, the logit difference is a sum over what the
embedding, every head and every MLP add to the residual stream at the answer's position (Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.models.forward import last_logits, slices
from saesteer.models.hooks import keeping
from saesteer.models.loading import plain_model
from saesteer.models.unembed import Unembedding, linear_norm
from saesteer.patching.batch import PairBatch, Side
from saesteer.patching.target import has_component, heads_of, plain_blocks, required_target
from saesteer.utils.errors import SiteError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DirectAttribution:
    """Shares of the logit difference, in logits; a soft cap behind the logits is left out.

    embed + attn + mlp + bias sum to `total`; heads + attn_bias sum to attn.

    Attributes:
        side: Which prompts were read. The answers are the clean prompts' on either side.
        pairs: The pairs' names.
        embed: The embedding's share, positions included.
        attn: Every layer's attention.
        mlp: Every layer's MLP.
        heads: Every head.
        attn_bias: What attention adds that is no head's: the output's bias, and a post-norm's.
        bias: The final norm's bias and the unembedding's.
        total: The logit difference, from the model's own logits.
    """

    side: Side
    pairs: tuple[str, ...]
    embed: Float[np.ndarray, " pair"]
    attn: Float[np.ndarray, "pair layer"]
    mlp: Float[np.ndarray, "pair layer"]
    heads: Float[np.ndarray, "pair layer head"]
    attn_bias: Float[np.ndarray, "pair layer"]
    bias: Float[np.ndarray, " pair"]
    total: Float[np.ndarray, " pair"]

    def frame(self) -> pd.DataFrame:
        """Return one row per pair and component: pair, component, layer, head, share.

        layer and head are -1 where a component has none.
        """
        import pandas as pd

        pairs, layers, heads = self.heads.shape
        rows: list[tuple[str, str, int, int, float]] = []
        for i in range(pairs):
            name = self.pairs[i]
            rows.append((name, "embed", -1, -1, float(self.embed[i])))
            for layer in range(layers):
                for head in range(heads):
                    share = float(self.heads[i, layer, head])
                    rows.append((name, "head", layer, head, share))
                for what, values in (
                    ("attn_bias", self.attn_bias),
                    ("attn_out", self.attn),
                    ("mlp_out", self.mlp),
                ):
                    rows.append((name, what, layer, -1, float(values[i, layer])))
            rows.append((name, "bias", -1, -1, float(self.bias[i])))
            rows.append((name, "total", -1, -1, float(self.total[i])))
        return pd.DataFrame(rows, columns=["pair", "component", "layer", "head", "share"])

    def strongest_heads(self, n: int = 10) -> list[tuple[int, int, float]]:
        """Return the heads with the largest mean share by size: (layer, head, share)."""
        mean = self.heads.mean(axis=0)
        order = np.argsort(-np.abs(mean), axis=None, kind="stable")[:n]
        places = [divmod(int(flat), mean.shape[1]) for flat in order]
        return [(layer, head, float(mean[layer, head])) for layer, head in places]


def direct_attribution(
    model: Any, batch: PairBatch, *, side: Side = "clean", max_tokens: int = 4096
) -> DirectAttribution:
    """Split the logit difference into what every component writes at the answer's position.

    Raises:
        SiteError: The model's final norm is no LayerNorm or RMSNorm, its heads do not add up to
            what attention writes, or it does more than norm and unembed behind its last block.
    """
    unembedding = Unembedding(model)
    layers = range(model.cfg.n_layers)
    middle = "resid_mid" if has_component(model, "resid_mid") else "attn_out"
    wanted = [("resid_pre", 0)]
    wanted += [(name, layer) for layer in layers for name in (middle, "resid_post", "z")]
    targets = {key: required_target(model, *key) for key in wanted}
    outputs = [_AttentionOutput.of(model, layer) for layer in layers]
    ids, mask = batch.side(side)
    found: list[dict[str, Tensor]] = []
    for rows in slices(ids, max_tokens):
        with torch.no_grad():
            with keeping(targets, keep=_last_column) as parts:
                logits = last_logits(plain_model(model), ids[rows], mask[rows]).float()
            answers = batch.right[rows], batch.wrong[rows]
            found.append(_shares(model, unembedding, outputs, parts, middle, logits, *answers))
    parts = {name: torch.cat([part[name] for part in found]).cpu().numpy() for name in found[0]}
    return DirectAttribution(side=side, pairs=batch.names, **parts)


def _last_column(own: Tensor) -> Tensor:
    return own[:, -1].float().clone()


def _shares(
    model: Any,
    unembedding: Unembedding,
    outputs: list[_AttentionOutput],
    parts: Mapping[tuple[str, int], Tensor],
    middle: str,
    logits: Tensor,
    right: Tensor,
    wrong: Tensor,
) -> dict[str, Tensor]:
    layers = len(outputs)
    final = parts["resid_post", layers - 1]
    uncapped = unembedding.uncapped(final)
    logits = uncapped if unembedding.cap else logits
    norm = linear_norm(unembedding.norm, final)
    direction, head_bias = unembedding.direction(right, wrong)

    def share(part: Float[Tensor, "*parts row d_model"]) -> Float[Tensor, "*parts row"]:
        return (norm.share(part) * direction).sum(dim=-1)

    attn, mlp, heads, attn_bias = [], [], [], []
    before = parts["resid_pre", 0]
    for layer in range(layers):
        mid, after = parts[middle, layer], parts["resid_post", layer]
        added = mid - before if middle == "resid_mid" else mid
        by_head, rest = outputs[layer].split(parts["z", layer])
        _check_heads(model, layer, by_head.sum(dim=0) + rest, added, after)
        attn.append(share(added))
        mlp.append(share(after - before - added))
        heads.append(share(by_head).T)
        attn_bias.append(attn[-1] - heads[-1].sum(dim=1))
        before = after
    bias = head_bias
    if norm.bias is not None:
        bias = bias + (direction * norm.bias).sum(dim=-1)
    rows = torch.arange(len(right), device=right.device)
    return {
        "embed": share(parts["resid_pre", 0]),
        "attn": torch.stack(attn, dim=1),
        "mlp": torch.stack(mlp, dim=1),
        "heads": torch.stack(heads, dim=1),
        "attn_bias": torch.stack(attn_bias, dim=1),
        "bias": bias,
        "total": logits[rows, right] - logits[rows, wrong],
    }


@dataclass(frozen=True)
class _AttentionOutput:
    """From the heads' values to what attention adds to the residual stream."""

    weight: Float[Tensor, "d_model columns"]
    bias: Float[Tensor, " d_model"] | None
    heads: int
    post: nn.Module | None

    @classmethod
    def of(cls, model: Any, layer: int) -> _AttentionOutput:
        module: Any = required_target(model, "z", layer).module
        weight = module.weight.detach().float()
        # GPT-2's Conv1D keeps its weight the other way round than a Linear.
        weight = weight if isinstance(module, nn.Linear) else weight.T
        bias = getattr(module, "bias", None)
        post = model.adapter.component_mapping["blocks"].submodules.get("ln1_post")
        return cls(
            weight,
            None if bias is None else bias.detach().float(),
            heads_of(model, "z"),
            None if post is None else plain_blocks(model)[layer].get_submodule(post.name),
        )

    def split(
        self, z: Float[Tensor, "row columns"]
    ) -> tuple[Float[Tensor, "head row d_model"], Float[Tensor, "row d_model"]]:
        """Return what every head adds, and what is added beside them."""
        each = z.reshape(len(z), self.heads, -1)
        by_head = torch.einsum(
            "rhd,mhd->hrm", each, self.weight.reshape(len(self.weight), self.heads, -1)
        )
        rest = torch.zeros_like(by_head[0])
        if self.bias is not None:
            rest = rest + self.bias
        if self.post is None:
            return by_head, rest
        norm = linear_norm(self.post, by_head.sum(dim=0) + rest)
        after = norm.share(rest)
        return norm.share(by_head), after if norm.bias is None else after + norm.bias


def _check_heads(model: Any, layer: int, made: Tensor, added: Tensor, stream: Tensor) -> None:
    # What was added is a difference of two streams, each rounded to the model's precision.
    step = torch.finfo(next(plain_model(model).parameters()).dtype).eps
    bound = 1e-4 + 4 * step * float(stream.abs().max()) + 1e-2 * float(added.abs().max())
    if float((made - added).abs().max()) > bound:
        raise SiteError(
            f"the heads of layer {layer} of {model.cfg.model_name} do not add up to what attention "
            "writes, so they have no shares of their own; use patching on this model."
        )
