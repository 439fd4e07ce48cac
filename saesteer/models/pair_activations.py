"""Both sides of contrastive pairs, read at the statement's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from saesteer.models.pooling import Pooling, mean_norm, pool
from saesteer.models.reading import Activations, read_rows
from saesteer.models.sites import Site
from saesteer.models.tokens import encode_statements

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet


@dataclass(frozen=True)
class PairActivations:
    """The residual stream at one site for both sides of every pair.

    Attributes:
        positive: The positive sides, one text per pair.
        negative: The negative sides.
        pooling: How a side's tokens become one vector.
    """

    positive: Activations
    negative: Activations
    pooling: Pooling = "mean"

    @property
    def site(self) -> Site:
        """Where it was read."""
        return self.positive.site

    @property
    def deltas(self) -> Float[Tensor, "pair d_model"]:
        """Positive minus negative, each side pooled over its tokens."""
        return pool(self.positive, self.pooling) - pool(self.negative, self.pooling)

    @property
    def residual_norm(self) -> float:
        """Mean L2 norm of the residual stream over the tokens read."""
        sides = (self.positive, self.negative)
        tokens = [len(side.values) for side in sides]
        total = sum(mean_norm(side) * n for side, n in zip(sides, tokens, strict=True))
        return total / sum(tokens)


def read_pair_activations(
    model: TransformerBridge,
    pairs: PairSet,
    sites: Sequence[Site],
    *,
    request: str | None = None,
    chat: bool | None = None,
    system: str | None = None,
    prepend_bos: bool | None = None,
    pooling: Pooling = "mean",
) -> dict[Site, PairActivations]:
    """Read both sides of every pair at every site in one pass.

    Each statement stands as the assistant's words after the pair's own prompt, or after `request`;
    only the statement's tokens (or the pair's marked spans) are read, never BOS, the template or
    padding.

    Args:
        model: A model from `load_model`.
        pairs: The pairs.
        sites: Where to read.
        request: What stands before statements that have no prompt of their own.
        chat: Whether prompts go through the chat template; where there is one if None.
        system: A system prompt for the template.
        prepend_bos: Whether rows start with BOS; as the SAE was trained, or where the tokenizer
            has one if None.
        pooling: "mean" over the tokens or the "last" one.

    Raises:
        DataError: A statement does not fit the model's context.
        SiteError: The model has no such site.

    Example:
        >>> read = ss.read_pair_activations(model, train, [ss.Site(1)])[ss.Site(1)]
        >>> read.deltas.shape == (len(train), 32)
        True
    """
    assert model.tokenizer is not None
    prompts = [pair.prompt or request for pair in pairs]
    rows = encode_statements(
        model.tokenizer,
        [*pairs.positives, *pairs.negatives],
        [*prompts, *prompts],
        spans=[*(p.positive_span for p in pairs), *(p.negative_span for p in pairs)],
        chat=chat,
        system=system,
        prepend_bos=prepend_bos,
        max_length=int(model.cfg.n_ctx),
        what=pairs.side_names,
    )
    read = read_rows(model, rows, sites)
    n = len(pairs)
    return {
        site: PairActivations(texts.slice(0, n), texts.slice(n, 2 * n), pooling)
        for site, texts in read.items()
    }
