"""How likely a model finds statements as its own words, with and without steering."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.sites import resolve_target
from saesteer.models.tokens import (
    TokenRow,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector, Unit

SHORTEST_SHARED_PREFIX = 8


@dataclass(frozen=True)
class _Block:
    """Rows that run together behind one shared prefix.

    Attributes:
        index: The rows' places in the caller's order.
        ids: What follows the shared prefix, right-padded.
        attention: 1 at the prefix and at real tokens.
        scored: True where the NEXT token is one to score.
        steered: Over prefix and rest: True from the last prompt token on, never at padding.
    """

    index: list[int]
    ids: Tensor
    attention: Tensor
    scored: Tensor
    steered: Tensor


class TeacherForced:
    """Rows prepared once for many passes under different steering.

    Rows that share their beginning (a common request in the chat template) share its keys and
    values too: steering starts at the last prompt token, so everything before it is the same
    under every vector and strength, and is computed once.

    Args:
        model: A model from `load_model`.
        rows: Prompts with answers; the kept tokens are the answer's and must be its last tokens.
        site_vector: Any vector of the site that will be steered; decides which of the bridge's
            two models runs. The plain Hugging Face model if None.
        max_tokens: The most tokens in a batch.
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[TokenRow],
        *,
        site_vector: SteeringVector | None = None,
        max_tokens: int = 4096,
    ) -> None:
        from saesteer.models.loading import plain_model

        self._bridge = model
        self._model: Any = (
            plain_model(model)
            if site_vector is None
            else resolve_target(model, site_vector.site).model
        )
        self.n_rows = len(rows)
        device = input_device(self._model)
        shared = _shared_prefix(rows)
        self._prefix = torch.tensor([rows[0].ids[:shared]], device=device) if shared else None
        self._cache = self._prefix_cache()
        self._blocks = [
            _block(rows, index, shared, padding_id(model), device)
            for index in length_sorted_batches(rows, max_tokens=max_tokens)
        ]

    def passes(
        self,
        vector: SteeringVector | None = None,
        strength: float = 0.0,
        unit: Unit = "norm",
    ):
        """Yield, block by block, (row indices, logits [n, pos, vocab], next ids, scored mask)."""
        from saesteer.steering import steer

        for block in self._blocks:
            if vector is None or strength == 0.0:
                context: Any = nullcontext()
            else:
                context = steer(self._bridge, vector, strength, unit, positions=block.steered)
            with torch.inference_mode(), context:
                logits = self._forward(block)
            after = torch.roll(block.ids, -1, dims=1)
            yield block.index, logits, after, block.scored

    def _forward(self, block: _Block) -> Tensor:
        if self._cache is None:
            return self._model(
                input_ids=block.ids, attention_mask=block.attention, use_cache=False
            ).logits
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(block.ids))
        return self._model(
            input_ids=block.ids,
            attention_mask=block.attention,
            past_key_values=cache,
            use_cache=True,
        ).logits

    def _prefix_cache(self) -> Any:
        if self._prefix is None:
            return None
        with torch.inference_mode():
            return self._model(input_ids=self._prefix, use_cache=True).past_key_values


def statement_log_likelihoods(
    rows: TeacherForced,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
    unit: Unit = "norm",
) -> Float[np.ndarray, " row"]:
    """Return each row's mean log-probability per kept token, in nats.

    Args:
        rows: The prepared rows.
        vector: What to steer with; nothing if None.
        strength: How strongly.
        unit: The strength's unit.
    """
    out = np.zeros(rows.n_rows)
    for index, logits, after, scored in rows.passes(vector, strength, unit):
        for place, row_logits, ids, kept in zip(index, logits, after, scored, strict=True):
            log_probs = torch.log_softmax(row_logits[kept].float(), dim=-1)
            out[place] = float(log_probs.gather(1, ids[kept][:, None]).mean())
    return out


def _shared_prefix(rows: Sequence[TokenRow]) -> int:
    """Return how many first tokens all rows share, before anybody's last prompt token."""
    limit = min(_first_kept(row) for row in rows) - 1
    first = rows[0].ids
    shared = 0
    while shared < limit and all(row.ids[shared] == first[shared] for row in rows):
        shared += 1
    return shared if shared >= SHORTEST_SHARED_PREFIX else 0


def _first_kept(row: TokenRow) -> int:
    return row.kept.index(True)


def _block(
    rows: Sequence[TokenRow], index: list[int], shared: int, pad: int, device: torch.device
) -> _Block:
    rest = [TokenRow(rows[i].ids[shared:], rows[i].kept[shared:]) for i in index]
    tokens = pad_rows(rest, pad, device, side="right")
    prefix = torch.ones((len(index), shared), dtype=torch.long, device=device)
    scored = torch.zeros_like(tokens.span)
    scored[:, :-1] = tokens.span[:, 1:]
    # The mask covers the shared prefix too, which nothing is written to.
    steered = torch.zeros((len(index), shared + tokens.span.shape[1]), dtype=torch.bool)
    for i, row in enumerate(rest):
        steered[i, shared + max(0, _first_kept(row) - 1) : shared + len(row)] = True
    return _Block(
        index,
        tokens.input_ids,
        torch.cat([prefix, tokens.attention_mask], dim=1),
        scored,
        steered.to(device),
    )
