"""Reading the residual stream: batched by length, many sites in one pass, no layer too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.hooks import HookTarget, keeping
from saesteer.models.loading import plain_model
from saesteer.models.sites import Site, resolve_target
from saesteer.models.tokens import (
    TokenRow,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.utils.errors import DataError, SiteError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Activations:
    """The residual stream at one site, at the kept tokens of several texts.

    Attributes:
        values: One row for each kept token, texts in order, on the CPU in the model's dtype.
        offsets: Where each text's tokens start in `values`, and where the last one's end.
        site: Where it was read.
    """

    values: Float[Tensor, "token d_model"]
    offsets: Int[Tensor, " text_plus_one"]
    site: Site

    @property
    def n_texts(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def text(self, index: int) -> Float[Tensor, "token d_model"]:
        """Return one text's rows."""
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def slice(self, start: int, stop: int) -> Activations:
        """Return the texts from `start` up to `stop`."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - first
        return Activations(self.values[first:last], offsets, self.site)


def read_rows(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    *,
    max_tokens: int = 4096,
    max_rows: int = 64,
) -> dict[Site, Activations]:
    """Read the kept tokens' activations at every site in one pass.

    Rows run in batches of like length, and the pass ends at the deepest site.

    Args:
        model: A model from `load_model`.
        rows: Tokenised texts; those marked kept are read.
        sites: Where to read.
        max_tokens: The most tokens in a batch, padding included.
        max_rows: The most rows in a batch.

    Returns:
        For each site the activations, the rows in the order given.

    Raises:
        SiteError: There are no sites, or the model has no such site, or one not laid out by token.
        DataError: There are no rows, or a row keeps no token or is longer than the context.
        HookError: A site did not fire.
    """
    _check_rows(model, rows)
    if not sites:
        raise SiteError("there is no site to read; give one such as blocks.10.hook_resid_post.")
    targets = _targets(model, sites)
    counts = torch.tensor([sum(row.kept) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    stores: dict[Site, Tensor] = {}
    by_site = {target.site: target for target in targets}
    device = input_device(targets[0].model)
    pad = padding_id(model)
    for batch in length_sorted_batches(rows, max_tokens=max_tokens, max_rows=max_rows):
        tokens = pad_rows([rows[i] for i in batch], pad, device, side="right")
        with torch.inference_mode(), keeping(by_site, stop=True) as caught:
            targets[0].model(**tokens.inputs, use_cache=False)
        where = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
        for site, hidden in caught.items():
            if hidden.shape[:2] != tokens.span.shape:
                raise SiteError(
                    f"site {site} holds no vector for each token (shape {tuple(hidden.shape)}); "
                    "use hook_resid_post, hook_mlp_out or attn.hook_z."
                )
            kept = hidden[tokens.span.to(hidden.device)].cpu()
            if site not in stores:
                stores[site] = kept.new_empty((int(offsets[-1]), kept.shape[1]))
            stores[site][where] = kept
    return {site: Activations(stores[site], offsets, site) for site in dict.fromkeys(sites)}


def _check_rows(model: TransformerBridge, rows: Sequence[TokenRow]) -> None:
    if not rows:
        raise DataError("there are no texts to read; give at least one.")
    config = plain_model(model).config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if not any(row.kept):
            raise DataError(f"text {number} has no token to read; leave empty texts out.")
        if context is not None and len(row) > context:
            raise DataError(
                f"text {number} has {len(row)} tokens, more than the model's context of {context}; "
                "shorten it."
            )


def _targets(model: TransformerBridge, sites: Sequence[Site]) -> list[HookTarget]:
    targets = [resolve_target(model, site) for site in dict.fromkeys(sites)]
    if len({id(target.model) for target in targets}) > 1:
        # One pass cannot run through two models: read everything from the bridge.
        return [resolve_target(model, site, bridged=True) for site in dict.fromkeys(sites)]
    return targets
