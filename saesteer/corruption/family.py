"""Many programs over one batch in one pass: what they share at their beginning runs once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.corruption.apply import token_positions
from saesteer.corruption.edits import edited
from saesteer.corruption.program import Edit, LinearSpan, Program, Step
from saesteer.models.blocks import BlockList, Call, block_lists, first_of, stood_in

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.fitted import LinearMap, Means
    from saesteer.models.tokens import TokenBatch

ROOT = -1


class Visit(NamedTuple):
    """One application of a layer or map in a walk through the tree of programs."""

    step: Step
    # The visit whose output it takes; -1 for the embedding.
    parent: int
    # The programs that end here, by their place.
    ends: tuple[int, ...]


@dataclass
class _Node:
    children: dict[Step, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


def shared_walk(orders: Sequence[Sequence[Step]]) -> tuple[tuple[int, ...], list[Visit]]:
    """Merge orders of steps into one walk that runs every shared beginning once.

    Returns:
        The programs that have no step at all, and the visits, parents before children.
    """
    root = _Node()
    for place, order in enumerate(orders):
        node = root
        for step in order:
            node = node.children.setdefault(step, _Node())
        node.ends.append(place)
    visits: list[Visit] = []
    waiting = [(step, node, ROOT) for step, node in reversed(root.children.items())]
    while waiting:
        step, node, parent = waiting.pop()
        visits.append(Visit(step, parent, tuple(node.ends)))
        own = len(visits) - 1
        waiting += [(s, child, own) for s, child in reversed(node.children.items())]
    return tuple(root.ends), visits


def family_states(
    model: TransformerBridge,
    programs: Sequence[Program],
    batch: TokenBatch,
    chosen: Bool[Tensor, "row pos"],
    *,
    maps: Mapping[LinearSpan, LinearMap] | None = None,
    means: Means | None = None,
) -> list[Float[Tensor, "chosen d_model"]]:
    """Run programs over one batch and return what each hands to the final norm.

    Programs with the same edits share every beginning they have in common, so the family "keep 0"
    to "keep n" costs one pass through the n blocks.

    Args:
        programs: What to run.
        batch: The rows, right-padded.
        chosen: The positions whose residual stream is returned, row by row.
    """
    found: list[Tensor] = [torch.empty(0)] * len(programs)
    groups: dict[tuple[Edit, ...], list[int]] = {}
    for place, program in enumerate(programs):
        groups.setdefault(program.edits, []).append(place)
    for edits, places in groups.items():
        orders = [programs[place].steps for place in places]
        with edited(model, edits, means):
            states = _walked(block_lists(model)[0], orders, batch, chosen, maps or {})
        for place, state in zip(places, states, strict=True):
            found[place] = state
    return found


@torch.inference_mode()
def _walked(
    place: BlockList,
    orders: Sequence[Sequence[Step]],
    batch: TokenBatch,
    chosen: Bool[Tensor, "row pos"],
    maps: Mapping[LinearSpan, LinearMap],
) -> list[Tensor]:
    """Run every visit of the orders' tree once."""
    at_root, visits = shared_walk(orders)
    last_child = {visit.parent: number for number, visit in enumerate(visits)}
    found: list[Tensor] = [torch.empty(0)] * len(orders)

    def walk(hidden: Tensor, calls: Sequence[Call]) -> Tensor:
        positions = token_positions(hidden, calls, batch.attention_mask)
        kept = {ROOT: hidden}
        for end in at_root:
            found[end] = hidden[chosen]
        for number, (step, parent, ends) in enumerate(visits):
            source = kept.pop(parent) if last_child[parent] == number else kept[parent]
            if isinstance(step, int):
                args, kwargs = calls[step]
                state = first_of(place.blocks[step](source, *args, **kwargs))
            else:
                state = maps[step](source, positions)
            for end in ends:
                found[end] = state[chosen]
            if number in last_child:
                kept[number] = state
        return hidden

    root: Any = place.root
    with stood_in(place, walk):
        root.base_model(**batch.inputs, use_cache=False)
    return found
