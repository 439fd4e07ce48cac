"""Reading the residual stream: batched by length, many sites in one pass, no layer too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.models.forward import check_finite, run_rows
from saesteer.models.hooks import keeping
from saesteer.models.loading import context_length
from saesteer.models.prefix import behind, shared_cache
from saesteer.models.sites import Site, resolve_target
from saesteer.models.tokens import (
    TokenRow,
    encode_statements,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.utils.errors import ConfigError, DataError, OutputError, SiteError
from saesteer.utils.files import write_atomic

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data.pairs import PairSet

Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Activations:
    """The residual stream at one site, at the kept tokens of several texts."""

    # One row for each kept token, texts in order, on the CPU in the model's dtype.
    values: Float[Tensor, "token d_model"]
    # Where each text's tokens start in `values`, and where the last one's end.
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


def pool(activations: Activations, how: Pooling = "mean") -> Float[Tensor, "text d_model"]:
    """Return one float32 vector per text: the mean over its read tokens, or its last one."""
    if how not in get_args(Pooling):
        raise ConfigError(f"pooling {how!r} is unknown; use 'mean' or 'last'.")
    values = activations.values.to(torch.float32)
    ends = activations.offsets[1:]
    if how == "last":
        return values[ends - 1]
    counts = ends - activations.offsets[:-1]
    texts = torch.repeat_interleave(torch.arange(activations.n_texts), counts)
    sums = torch.zeros(activations.n_texts, values.shape[1]).index_add_(0, texts, values)
    return sums / counts[:, None]


def mean_norm(activations: Activations) -> float:
    """Return the mean L2 norm over all read tokens: the unit "norm" of strengths."""
    return float(activations.values.to(torch.float32).norm(dim=1).mean())


@dataclass(frozen=True)
class PairActivations:
    """The residual stream at one site for both sides of every pair, one text per pair each."""

    positive: Activations
    negative: Activations
    # How a side's tokens become one vector.
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

    def save(self, path: Path) -> None:
        """Write both sides as one safetensors file; a write that is cut off leaves none."""
        from safetensors.torch import save_file

        # Slices share memory, which safetensors refuses.
        tensors = {
            f"{name}.{part}": getattr(getattr(self, name), part).clone()
            for name in ("positive", "negative")
            for part in ("values", "offsets")
        }
        metadata = {"site": str(self.site), "pooling": self.pooling}
        write_atomic(path, lambda draft: save_file(tensors, draft, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> PairActivations:
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                site, pooling = Site.parse(metadata["site"]), metadata["pooling"]
                positive, negative = (
                    Activations(
                        file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.offsets"), site
                    )
                    for name in ("positive", "negative")
                )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} cannot be read ({error}); delete it and run the same command again."
            ) from error
        return cls(positive, negative, "last" if pooling == "last" else "mean")


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


def read_rows(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sites: Sequence[Site],
    *,
    max_tokens: int = 4096,
    max_rows: int = 64,
) -> dict[Site, Activations]:
    """Read the kept tokens' activations at every site in one pass.

    Rows run in batches of like length, of at most so many rows, and tokens with their padding; the
    pass ends at the deepest site. What stands before the kept tokens of all rows alike, such as a
    template with one request, runs once.
    """
    _check_rows(rows, context_length(model))
    if not sites:
        raise SiteError("there is no site to read; give one such as blocks.10.hook_resid_post.")
    targets = {site: resolve_target(model, site) for site in sites}
    if len({id(target.model) for target in targets.values()}) > 1:
        # One pass cannot run through two models: read everything from the bridge.
        targets = {site: resolve_target(model, site, bridged=True) for site in sites}
    runner = targets[sites[0]].model
    counts = torch.tensor([sum(row.kept) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    stores: dict[Site, Tensor] = {}
    shared, cache = shared_cache(runner, rows, min(row.kept.index(True) for row in rows))
    rows = [row.part(shared) for row in rows]
    for batch in length_sorted_batches(rows, max_tokens=max_tokens, max_rows=max_rows):
        part = [rows[i] for i in batch]
        tokens = pad_rows(part, padding_id(model), input_device(runner), side="right")
        mask = torch.nn.functional.pad(tokens.attention_mask, (shared, 0), value=1)
        with torch.inference_mode(), keeping(targets, stop=True) as caught:
            run_rows(runner, tokens.input_ids, mask, **behind(runner, cache, [0] * len(part)))
        where = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
        for site, hidden in caught.items():
            if hidden.shape[:2] != tokens.span.shape:
                raise SiteError(
                    f"site {site} holds no vector for each token (shape {tuple(hidden.shape)}); "
                    "use hook_resid_post, hook_mlp_out or attn.hook_z."
                )
            kept = hidden[tokens.span.to(hidden.device)].cpu()
            check_finite(kept, f"the activations at {site} (layer {site.layer})")
            if site not in stores:
                stores[site] = kept.new_empty((int(offsets[-1]), kept.shape[1]))
            stores[site][where] = kept
    return {site: Activations(stores[site], offsets, site) for site in targets}


def _check_rows(rows: Sequence[TokenRow], context: int | None) -> None:
    if not rows:
        raise DataError("there are no texts to read; give at least one.")
    for number, row in enumerate(rows, start=1):
        if not any(row.kept):
            raise DataError(f"text {number} has no token to read; leave empty texts out.")
        if context is not None and len(row) > context:
            raise DataError(
                f"text {number} has {len(row)} tokens, more than the model's context of {context}; "
                "shorten it."
            )
