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
    """

    pairs: tuple[str, ...]
    # Positions included.
    embed: Float[np.ndarray, " pair"]
    attn: Float[np.ndarray, "pair layer"]
    mlp: Float[np.ndarray, "pair layer"]
    heads: Float[np.ndarray, "pair layer head"]
    # What attention adds that is no head's: the output's bias, and a post-norm's.
    attn_bias: Float[np.ndarray, "pair layer"]
    # The final norm's and the unembedding's.
    bias: Float[np.ndarray, " pair"]
    # The logit difference, from the model's own logits.
    total: Float[np.ndarray, " pair"]

    def frame(self) -> pd.DataFrame:
        """Return one row per pair and component: pair, component, layer, head, share.

        layer and head are -1 where a component has none.
        """
        import pandas as pd

        layers = {"attn_bias": self.attn_bias, "attn_out": self.attn, "mlp_out": self.mlp}
        rows: list[tuple[str, str, int, int, float]] = []
        for i, name in enumerate(self.pairs):
            rows.append((name, "embed", -1, -1, self.embed[i]))
            for layer, shares in enumerate(self.heads[i]):
                rows += [(name, "head", layer, head, share) for head, share in enumerate(shares)]
                rows += [(name, what, layer, -1, own[i, layer]) for what, own in layers.items()]
            rows += [(name, "bias", -1, -1, self.bias[i]), (name, "total", -1, -1, self.total[i])]
        table = pd.DataFrame(rows, columns=["pair", "component", "layer", "head", "share"])
        return table.astype({"share": float})


def direct_attribution(
    model: Any, batch: PairBatch, *, side: Side = "clean", max_tokens: int = 4096
) -> DirectAttribution:
    """Split the logit difference into what every component writes at the answer's position.

    The answers are the clean prompts' on either side.

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
    outputs = [_AttentionOutput(model, layer) for layer in layers]
    ids, mask = batch.side(side)
    found: list[dict[str, Tensor]] = []
    for rows in slices(ids, max_tokens):
        with torch.no_grad():
            with keeping(targets, keep=_last_column) as parts:
                logits = last_logits(plain_model(model), ids[rows], mask[rows]).float()
            answers = batch.right[rows], batch.wrong[rows]
            found.append(_shares(model, unembedding, outputs, parts, middle, logits, *answers))
    parts = {name: torch.cat([part[name] for part in found]).cpu().numpy() for name in found[0]}
    return DirectAttribution(batch.names, **parts)


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


class _AttentionOutput:
    """From the heads' values to what attention adds to the residual stream."""

    def __init__(self, model: Any, layer: int) -> None:
        module: Any = required_target(model, "z", layer).module
        weight = module.weight.detach().float()
        # GPT-2's Conv1D keeps its weight the other way round than a Linear.
        weight = weight if isinstance(module, nn.Linear) else weight.T
        self.weight: Float[Tensor, "d_model head d_head"]
        self.weight = weight.unflatten(1, (heads_of(model, "z"), -1))
        bias = getattr(module, "bias", None)
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        post = model.adapter.component_mapping["blocks"].submodules.get("ln1_post")
        blocks = plain_blocks(model)
        self.post = None if post is None else blocks[layer].get_submodule(post.name)

    def split(
        self, z: Float[Tensor, "row columns"]
    ) -> tuple[Float[Tensor, "head row d_model"], Float[Tensor, "row d_model"]]:
        """Return what every head adds, and what is added beside them."""
        each = z.unflatten(1, (self.weight.shape[1], -1))
        by_head = torch.einsum("rhd,mhd->hrm", each, self.weight)
        rest = self.bias.expand_as(by_head[0])
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
