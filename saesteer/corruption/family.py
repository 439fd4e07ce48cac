"""Many programs over one batch in one pass: what they share at their beginning runs once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    from saesteer.corruption.edits import Means
    from saesteer.corruption.linear_map import LinearMap
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
        model: A model from `load_model`.
        programs: What to run.
        batch: The rows, right-padded.
        chosen: The positions whose residual stream is returned, row by row.
        maps: As in `corrupted`.
        means: As in `corrupted`.
    """
    found: list[Tensor] = [torch.empty(0)] * len(programs)
    groups: dict[tuple[Edit, ...], list[int]] = {}
    for place, program in enumerate(programs):
        groups.setdefault(program.edits, []).append(place)
    plain, _ = block_lists(model)
    for edits, places in groups.items():
        orders = [programs[place].steps for place in places]
        with edited(model, edits, means), torch.inference_mode():
            states = _Walk(plain, orders, chosen, maps or {}).run(batch)
        for place, state in zip(places, states, strict=True):
            found[place] = state
    return found


class _Walk:
    """Runs a tree of programs, every visit once."""

    def __init__(
        self,
        place: BlockList,
        orders: Sequence[Sequence[Step]],
        chosen: Bool[Tensor, "row pos"],
        maps: Mapping[LinearSpan, LinearMap],
    ) -> None:
        self._place, self._chosen, self._maps = place, chosen, maps
        self._at_root, self._visits = shared_walk(orders)
        self._found: list[Tensor] = [torch.empty(0)] * len(orders)

    def run(self, batch: TokenBatch) -> list[Tensor]:
        root: Any = self._place.root

        def walk(hidden: Tensor, calls: Sequence[Call]) -> Tensor:
            return self._run(hidden, calls, batch.attention_mask)

        with stood_in(self._place, walk):
            root.base_model(**batch.inputs, use_cache=False)
        return self._found

    def _run(self, hidden: Tensor, calls: Sequence[Call], mask: Tensor) -> Tensor:
        positions = token_positions(hidden, calls, mask)
        last_child = {visit.parent: i for i, visit in enumerate(self._visits)}
        kept = {ROOT: hidden}
        self._arrive(self._at_root, hidden)
        for number, visit in enumerate(self._visits):
            last = last_child[visit.parent] == number
            source = kept.pop(visit.parent) if last else kept[visit.parent]
            if isinstance(visit.step, int):
                args, kwargs = calls[visit.step]
                state = first_of(self._place.blocks[visit.step](source, *args, **kwargs))
            else:
                state = self._maps[visit.step](source, positions)
            self._arrive(visit.ends, state)
            if number in last_child:
                kept[number] = state
        return hidden

    def _arrive(self, ends: Sequence[int], hidden: Tensor) -> None:
        for program in ends:
            self._found[program] = hidden[self._chosen]


class Unembedding:
    """The model's own final norm and unembedding, in Hugging Face's code, on states alone.

    What the model does to its logits (caps, scales) is done too.

    Args:
        model: A model from `load_model`.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._place, _ = block_lists(model)

    def __call__(self, states: Float[Tensor, "state d_model"]) -> Float[Tensor, "state vocab"]:
        """Return logits."""
        root: Any = self._place.root
        device = root.get_input_embeddings().weight.device
        # Rows of one token each: then no position is past the model's context.
        tokens = torch.zeros((len(states), 1), dtype=torch.long, device=device)
        with torch.inference_mode(), stood_in(self._place, lambda *_: states[:, None]):
            return root(input_ids=tokens, use_cache=False).logits[:, 0]


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover n items, each at most `size` long."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
