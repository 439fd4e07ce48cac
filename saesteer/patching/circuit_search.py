"""Finding the smallest circuit that keeps a given faithfulness.

Heads are ranked by a score (attribution by default). The circuit grows by the one of the next few
strongest that brings it nearest to the whole model; where growing gets stuck, the fewest of the
strongest that are faithful together are taken. Then every head whose loss does not matter is taken
out, the weakest first, which is the pruning of ACDC (Conmy et al. 2023, arXiv:2304.14997) on heads
in place of edges. The ranking is that of attribution patching (Syed et al. 2023, arXiv:2310.10348),
so that it takes tens of forward passes and not hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saesteer.patching.ablation import Ablation
from saesteer.patching.circuits import (
    Circuit,
    Faithfulness,
    Node,
    faithfulness,
    recovered,
)
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress, Task

# How many of the next strongest heads are tried at each step of growing.
_WINDOW = 6


@dataclass(frozen=True)
class FoundCircuit:
    """A circuit and how it was found.

    Attributes:
        circuit: The heads, strongest first.
        scores: Every kept head's score, in the order of the circuit's nodes.
        candidates: How many heads there were to choose from.
        grown: How many heads the circuit had before pruning.
        target: The faithfulness that was asked for.
        searched: Faithfulness on the prompts of the search.
        held_out: Faithfulness on other prompts; None where none were given.
        runs: Passes over the prompts that it took.
    """

    circuit: Circuit
    scores: tuple[float, ...]
    candidates: int
    grown: int
    target: float
    searched: Faithfulness
    held_out: Faithfulness | None
    runs: int

    @property
    def reached(self) -> bool:
        """Whether the circuit is as faithful as was asked for, on the prompts of the search."""
        return abs(1 - self.searched.recovered) <= 1 - self.target


def find_circuit(
    ablation: Ablation,
    *,
    target: float = 0.8,
    nodes: Sequence[Node] | None = None,
    scores: Float[np.ndarray, " node"] | Float[np.ndarray, "layer head"] | None = None,
    roles: Sequence[str] | None = None,
    held_out: Ablation | None = None,
    progress: Progress | None = None,
) -> FoundCircuit:
    """Search for the smallest circuit that keeps a faithfulness.

    Faithful to `target` means that the recovered share of the metric, (F(C) - F(nothing)) /
    (F(M) - F(nothing)), is within 1 - target of 1, from below or from above.

    Args:
        ablation: The model and the prompts to search on.
        target: The faithfulness to keep, between 0 and 1.
        nodes: The heads that `scores` are of; all heads, layer by layer, if None.
        scores: How much each head matters; only its size counts. Attribution patching towards the
            mean if None.
        roles: Without scores: choose heads at these positions, each by itself.
        held_out: The same model on other prompts, for the faithfulness that is reported.
        progress: Where to show how far it is.

    Raises:
        ConfigError: The target is not between 0 and 1, scores are not finite or not one for each
            node, or the heads make no difference to the metric.
    """
    if not 0 < target < 1:
        raise ConfigError(f"target is {target}; give a faithfulness between 0 and 1, such as 0.8")
    ranked_nodes, ranked_scores = _ranking(ablation, nodes, scores, roles)
    before = ablation.runs
    search = _Search(ablation, target)
    with (progress or Progress()).task("searching the circuit", len(ranked_nodes), "heads") as task:
        grown = search.grow(ranked_nodes, task) or search.fewest(ranked_nodes)
        kept = search.prune(grown)
    circuit = Circuit.of(kept)
    score_of = dict(zip(ranked_nodes, ranked_scores, strict=True))
    return FoundCircuit(
        circuit=circuit,
        scores=tuple(score_of[node] for node in kept),
        candidates=len(ranked_nodes),
        grown=len(grown),
        target=target,
        searched=faithfulness(ablation, circuit),
        held_out=None if held_out is None else faithfulness(held_out, circuit),
        runs=ablation.runs - before,
    )


class _Search:
    def __init__(self, ablation: Ablation, target: float) -> None:
        self._ablation = ablation
        self._slack = 1 - target
        self._whole = float(ablation.without(()).mean())
        self._nothing = float(ablation.keeping(()).mean())
        if abs(self._whole - self._nothing) < 1e-6 * max(1.0, abs(self._whole)):
            raise ConfigError(
                "the metric is the same with all heads and with none, so no circuit of heads does "
                "this task; choose prompts that the model solves"
            )

    def off(self, nodes: Sequence[Node]) -> float:
        """Return how far the nodes alone are from the whole model: 0 is faithful."""
        value = float(self._ablation.keeping(nodes).mean())
        return abs(1 - recovered(value, self._whole, self._nothing))

    def grow(self, ranked: Sequence[Node], task: Task) -> list[Node]:
        """Add nodes one at a time until they are faithful; empty where that gets stuck."""
        chosen: list[Node] = []
        left = list(ranked)
        nearest = self.off(())
        while nearest > self._slack and left:
            offs = [self.off([*chosen, node]) for node in left[:_WINDOW]]
            best = int(np.argmin(offs))
            if offs[best] < nearest:
                nearest = offs[best]
                chosen.append(left.pop(best))
                task.advance()
            else:
                task.advance(len(offs))
                left = left[_WINDOW:]
        return [node for node in ranked if node in chosen] if nearest <= self._slack else []

    def fewest(self, ranked: Sequence[Node]) -> list[Node]:
        """Return the fewest of the strongest nodes that are faithful together."""
        # Doubling, then halving the last step: faithfulness rises with the count but for ripples.
        low, high = 0, 1
        while high < len(ranked) and self.off(ranked[:high]) > self._slack:
            low, high = high, min(2 * high, len(ranked))
        while high - low > 1:
            middle = (low + high) // 2
            if self.off(ranked[:middle]) <= self._slack:
                high = middle
            else:
                low = middle
        return list(ranked[:high])

    def prune(self, kept: Sequence[Node]) -> list[Node]:
        """Take out every node whose loss keeps the faithfulness, the weakest first.

        Again until nothing more goes: what was needed beside a node may not be without it.
        """
        left = list(kept)
        before = len(left) + 1
        while len(left) < before:
            before = len(left)
            for node in reversed(tuple(left)):
                fewer = [one for one in left if one != node]
                if fewer and self.off(fewer) <= self._slack:
                    left = fewer
        return left


def _ranking(
    ablation: Ablation,
    nodes: Sequence[Node] | None,
    scores: np.ndarray | None,
    roles: Sequence[str] | None,
) -> tuple[list[Node], list[float]]:
    if scores is None:
        if nodes is not None:
            raise ConfigError("nodes are given without scores; give one score for each, or neither")
        own, values = ablation.gradient_scores(roles)
    else:
        layers, heads = ablation.shape
        every = [Node(layer, head) for layer in range(layers) for head in range(heads)]
        own, values = tuple(nodes or every), np.asarray(scores, dtype=float).ravel()
    if len(own) != len(values):
        raise ConfigError(f"there are {len(values)} scores for {len(own)} heads; give one for each")
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{int((~np.isfinite(values)).sum())} scores are not finite numbers; leave those heads "
            "out"
        )
    order = np.argsort(-np.abs(values), kind="stable")
    return [own[i] for i in order], [float(values[i]) for i in order]
