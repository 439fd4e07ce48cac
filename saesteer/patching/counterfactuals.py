"""The distribution that mean ablation averages over, and the means themselves.

A head is ablated by its mean over prompts that say nothing about the task's answer (Wang et al.
2022, section 2: "knockouts" by the mean over the ABC distribution, taken for each template and
position by itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.forward import last_logits, slices
from saesteer.models.hooks import hooked
from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_texts, input_device, pad_rows, padding_id
from saesteer.patching.batch import PairBatch
from saesteer.patching.target import required_target
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from saesteer.patching.ioi import IoiSet

Kind = tuple[int, str]


@dataclass(frozen=True)
class Counterfactuals:
    """Prompts to average heads over.

    Attributes:
        ids: Token ids, left-padded.
        mask: True at real tokens.
        groups: Every prompt's group. Within a group in which all prompts, the pairs' clean ones
            too, have the same number of tokens, the means are taken for each position by itself;
            in any other for each role, for the first token and for all the rest together.
        roles: Every prompt's token positions by role; empty where a group needs none.
    """

    ids: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    groups: tuple[int, ...]
    roles: tuple[Mapping[str, int], ...]


@dataclass(frozen=True)
class MeanHeads:
    """Mean outputs of all heads (z), and which mean belongs to which token of the clean prompts.

    Attributes:
        means: For every layer and kind of position the heads' values side by side.
        kinds: The kind of every column of every clean prompt; 0 at padding, where it does not
            matter.
    """

    means: Float[Tensor, "layer kind columns"]
    kinds: Int[Tensor, "pair pos"]


def encode_counterfactuals(
    model: Any,
    texts: Sequence[str],
    *,
    groups: Sequence[int] | None = None,
    roles: Sequence[Mapping[str, int]] | None = None,
    prepend_bos: bool = True,
) -> Counterfactuals:
    """Tokenise counterfactual prompts.

    Raises:
        DataError: There is no text, one is longer than the model's context, or there are not as
            many groups or roles as texts.
    """
    if not texts:
        raise DataError("there is no counterfactual prompt to average over; give at least one")
    for what, given in (("groups", groups), ("roles", roles)):
        if given is not None and len(given) != len(texts):
            raise DataError(
                f"there are {len(given)} {what} for {len(texts)} counterfactual prompts; give one "
                "for each"
            )
    rows = encode_texts(
        model.tokenizer,
        texts,
        prepend_bos=prepend_bos,
        max_length=model.cfg.n_ctx,
        what="counterfactual prompt",
    )
    batch = pad_rows(rows, padding_id(model), input_device(plain_model(model)))
    return Counterfactuals(
        batch.input_ids,
        batch.attention_mask.bool(),
        tuple(groups) if groups is not None else (0,) * len(texts),
        tuple(roles) if roles is not None else ({},) * len(texts),
    )


def ioi_counterfactuals(model: Any, made: IoiSet, *, prepend_bos: bool = True) -> Counterfactuals:
    """Return an IOI set's prompts with three other names, grouped by frame."""
    roles = [pair.roles for pair in made.pairs]
    return encode_counterfactuals(
        model, made.counterfactuals, groups=made.frames, roles=roles, prepend_bos=prepend_bos
    )


def corrupted_counterfactuals(
    batch: PairBatch, groups: Sequence[int] | None = None
) -> Counterfactuals:
    """Return a batch's corrupted prompts, for tasks without prompts of their own to average over.

    Their roles are those of the clean prompts at the positions that stand for each other.
    """
    roles: list[dict[str, int]] = []
    for i, pair in enumerate(batch.pairs):
        start = batch.width - int(batch.clean_mask[i].sum())
        first = batch.width - int(batch.corrupted_mask[i].sum())
        back = {int(a): b for b, a in enumerate(batch.to_clean[i].tolist()) if a >= 0}
        found = {role: back.get(start + at) for role, at in pair.roles.items()}
        roles.append({role: column - first for role, column in found.items() if column is not None})
    return Counterfactuals(
        batch.corrupted,
        batch.corrupted_mask,
        tuple(groups) if groups is not None else (0,) * len(batch),
        tuple(roles),
    )


def mean_heads(
    model: Any,
    batch: PairBatch,
    counterfactuals: Counterfactuals,
    *,
    groups: Sequence[int] | None = None,
    max_tokens: int = 4096,
) -> MeanHeads:
    """Average every head's output over counterfactual prompts.

    Raises:
        DataError: A pair's group has no counterfactual prompt, or there are not as many groups as
            pairs.
        SiteError: The model's heads cannot be told apart.
    """
    own = tuple(groups) if groups is not None else (0,) * len(batch)
    if len(own) != len(batch):
        raise DataError(f"there are {len(own)} groups for {len(batch)} pairs; give one for each")
    absent = sorted(set(own) - set(counterfactuals.groups))
    if absent:
        raise DataError(
            f"group {absent[0]} of the pairs has no counterfactual prompt; give at least one of "
            "every group"
        )
    uniform = _uniform(
        [*zip(own, batch.clean_mask.sum(1).tolist(), strict=True)],
        [*zip(counterfactuals.groups, counterfactuals.mask.sum(1).tolist(), strict=True)],
    )
    there = _kinds(counterfactuals.mask, counterfactuals.groups, counterfactuals.roles, uniform)
    numbers = {kind: i for i, kind in enumerate(sorted({k for row in there for k in row if k}))}
    wanted = _kinds(batch.clean_mask, own, [pair.roles for pair in batch.pairs], uniform)
    kinds = torch.tensor([[_number(kind, numbers) for kind in row] for row in wanted])
    places = torch.tensor([[numbers[k] if k else -1 for k in row] for row in there])
    means = _means(model, counterfactuals, places, len(numbers), max_tokens)
    return MeanHeads(means, kinds.to(means.device))


def _uniform(*sides: Sequence[tuple[int, int]]) -> set[int]:
    lengths: dict[int, set[int]] = {}
    for group, length in (row for side in sides for row in side):
        lengths.setdefault(group, set()).add(length)
    return {group for group, found in lengths.items() if len(found) == 1}


def _kinds(
    mask: Bool[Tensor, "row pos"],
    groups: Sequence[int],
    roles: Sequence[Mapping[str, int]],
    uniform: set[int],
) -> list[list[Kind | None]]:
    width = mask.shape[1]
    table: list[list[Kind | None]] = []
    for real, group, named in zip(mask.sum(1).tolist(), groups, roles, strict=True):
        if group in uniform:
            own = [(group, str(at)) for at in range(real)]
        else:
            own = [(group, "first"), *((group, "rest") for _ in range(real - 1))]
            for role, at in named.items():
                own[at] = (group, f"role {role}")
            own[-1] = (group, "role end")
        table.append([None] * (width - real) + own)
    return table


def _number(kind: Kind | None, numbers: Mapping[Kind, int]) -> int:
    if kind is None:
        return 0
    # A role that no counterfactual prompt has is one position among the rest.
    for name in (kind[1], "rest", "first", "role end"):
        if (kind[0], name) in numbers:
            return numbers[kind[0], name]
    raise DataError(
        f"the counterfactual prompts of group {kind[0]} have no position {kind[1]}; give prompts "
        "of the same length"
    )


def _means(
    model: Any,
    counterfactuals: Counterfactuals,
    places: Int[Tensor, "prompt pos"],
    count: int,
    max_tokens: int,
) -> Float[Tensor, "layer kind columns"]:
    layers = range(model.cfg.n_layers)
    targets = [required_target(model, "z", layer) for layer in layers]
    sums: dict[int, Tensor] = {}
    places = places.to(counterfactuals.ids.device)

    def adder(layer: int, real: Tensor, index: Tensor) -> Any:
        def add(z: Tensor) -> None:
            z = z.float()
            total = sums.setdefault(layer, z.new_zeros(count, z.shape[-1]))
            total.index_add_(0, index.to(z.device), z[real.to(z.device)])

        return add

    for rows in slices(places, max_tokens):
        real = counterfactuals.mask[rows]
        hooks = [(targets[at], adder(at, real, places[rows][real])) for at in layers]
        with torch.no_grad(), hooked(hooks):
            last_logits(plain_model(model), counterfactuals.ids[rows], real)
    seen = places[places >= 0].bincount(minlength=count).clamp(min=1)
    stacked = torch.stack([sums[layer].to(places.device) for layer in layers])
    return stacked / seen[None, :, None]
