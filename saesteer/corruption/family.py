"""Many programs over one batch in one pass: what they share at their beginning runs once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.corruption.apply import (
    BlockList,
    Slot,
    block_lists,
    in_order,
    returns_tuple,
    token_positions,
)
from saesteer.corruption.edits import edited
from saesteer.corruption.program import Edit, LinearSpan, Program, Step

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.edits import Means
    from saesteer.corruption.linear_map import LinearMap
    from saesteer.models.tokens import TokenBatch

ROOT = -1


@dataclass(frozen=True)
class Visit:
    """One application of a step in a walk through the tree of programs.

    Attributes:
        step: The layer or map.
        parent: The visit whose output it takes; -1 for the embedding.
        ends: The programs that end here, by their place.
    """

    step: Step
    parent: int
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
        chosen: The positions that are wanted.
        maps: As in `corrupted`.
        means: As in `corrupted`.

    Returns:
        For each program the residual stream at the chosen positions, row by row.
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
    """Runs a tree of programs as one long program whose slots jump back to where they branch."""

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
        self._last_child = {visit.parent: i for i, visit in enumerate(self._visits)}
        self._kept: dict[int, Tensor] = {}
        plain = all(isinstance(visit.step, int) for visit in self._visits)
        self._boxed = not (plain and self._visits) and returns_tuple(place)

    def run(self, batch: TokenBatch) -> list[Tensor]:
        slots: list[Slot] = [_VisitSlot(self, i) for i in range(len(self._visits))]
        kinds = [v.step if isinstance(v.step, int) else 0 for v in self._visits]
        root: Any = self._place.root
        with in_order(self._place, slots or [_RootSlot(self)], kinds or [0]):
            root.base_model(**batch.inputs, use_cache=False)
        return self._found

    def visit(self, number: int, hidden: Tensor, args: Any, kwargs: Any) -> Any:
        visit = self._visits[number]
        if number == 0:
            self.arrive(ROOT, self._at_root, hidden)
        # Right behind its parent, what comes in is the parent's output.
        source = hidden if visit.parent == number - 1 else self._kept[visit.parent]
        if self._last_child[visit.parent] == number:
            self._kept.pop(visit.parent, None)
        if isinstance(visit.step, int):
            output = self._place.blocks[visit.step](source, *args, **kwargs)
        else:
            mapped = self._maps[visit.step](source, token_positions(source, args, kwargs))
            output = (mapped,) if self._boxed else mapped
        self.arrive(number, visit.ends, output[0] if isinstance(output, tuple) else output)
        return output

    def arrive(self, number: int, ends: Sequence[int], hidden: Tensor) -> None:
        for program in ends:
            self._found[program] = hidden[self._chosen]
        if self._last_child.get(number, number + 1) > number + 1:
            self._kept[number] = hidden

    def box(self, hidden: Tensor) -> Any:
        self.arrive(ROOT, self._at_root, hidden)
        return (hidden,) if self._boxed else hidden


class _VisitSlot(Slot):
    def __init__(self, walk: _Walk, number: int) -> None:
        step = walk._visits[number].step
        super().__init__(walk._place.blocks[step if isinstance(step, int) else 0], number)
        self._walk, self._number = walk, number

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._walk.visit(self._number, hidden, args, kwargs)


class _RootSlot(Slot):
    def __init__(self, walk: _Walk) -> None:
        super().__init__(None, 0)
        self._walk = walk

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._walk.box(hidden)


class _StateSlot(Slot):
    """Hands on states in place of whatever comes in."""

    def __init__(self, *, boxed: bool) -> None:
        super().__init__(None, 0, boxed=boxed)
        self.state = torch.empty(0)

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self.state,) if self.boxed else self.state


class Unembedding:
    """The model's own final norm and unembedding, in Hugging Face's code, on states alone.

    What the model does to its logits (caps, scales) is done too.

    Args:
        model: A model from `load_model`.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._place, _ = block_lists(model)
        self._slot = _StateSlot(boxed=returns_tuple(self._place))

    def __call__(self, states: Float[Tensor, "state d_model"]) -> Float[Tensor, "state vocab"]:
        """Return logits."""
        root: Any = self._place.root
        device = root.get_input_embeddings().weight.device
        # Rows of one token each: then no position is past the model's context.
        self._slot.state = states[:, None]
        tokens = torch.zeros((len(states), 1), dtype=torch.long, device=device)
        with torch.inference_mode(), in_order(self._place, [self._slot], [0]):
            return root(input_ids=tokens, use_cache=False).logits[:, 0]


def chunks(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover n items, each at most `size` long."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
