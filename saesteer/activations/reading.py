"""Reading the residual stream: batched by length, many sites in one pass, no layer too many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.errors import DataError, HookError
from saesteer.models.sites import HookTarget, Site, resolve_target
from saesteer.models.tokens import (
    TokenRow,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)

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
    offsets: Int[Tensor, text_plus_one]
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


class _Stop(Exception):
    """Ends a forward pass once the deepest site has been read."""


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
        SiteError: The model has no such site.
        DataError: There are no rows, or a row keeps no token.
        HookError: A site did not fire.
    """
    if not rows or not all(any(row.kept) for row in rows):
        raise DataError("there is a text with no token to read; leave empty texts out.")
    targets = _targets(model, sites)
    counts = torch.tensor([sum(row.kept) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    stores: dict[Site, Tensor] = {}
    device = input_device(targets[0].model)
    pad = padding_id(model)
    for batch in length_sorted_batches(rows, max_tokens=max_tokens, max_rows=max_rows):
        tokens = pad_rows([rows[i] for i in batch], pad, device, side="right")
        caught = _forward(targets, tokens.inputs)
        where = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
        for site, hidden in caught.items():
            kept = hidden[tokens.span.to(hidden.device)].cpu()
            if site not in stores:
                stores[site] = kept.new_empty((int(offsets[-1]), kept.shape[1]))
            stores[site][where] = kept
    return {site: Activations(stores[site], offsets, site) for site in dict.fromkeys(sites)}


def _targets(model: TransformerBridge, sites: Sequence[Site]) -> list[HookTarget]:
    targets = [resolve_target(model, site) for site in dict.fromkeys(sites)]
    if len({id(target.model) for target in targets}) > 1:
        # One pass cannot run through two models: read everything from the bridge.
        return [resolve_target(model, site, bridged=True) for site in dict.fromkeys(sites)]
    return targets


def _forward(targets: Sequence[HookTarget], inputs: dict[str, Tensor]) -> dict[Site, Tensor]:
    caught: dict[Site, Tensor] = {}

    def catch(site: Site):
        def function(hidden: Tensor) -> None:
            caught[site] = hidden.detach()
            if len(caught) == len(targets):
                raise _Stop

        return function

    with ExitStack() as stack, torch.inference_mode():
        for target in targets:
            stack.callback(target.hook(catch(target.site)).remove)
        try:
            targets[0].model(**inputs, use_cache=False)
        except _Stop:
            pass
    missing = [str(target.site) for target in targets if target.site not in caught]
    if missing:
        raise HookError(f"nothing passed through {', '.join(missing)}; choose another site.")
    return caught
