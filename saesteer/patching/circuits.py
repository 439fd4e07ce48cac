"""Circuits: sets of heads, each at the position where it does its work; their search and worth.

Does a circuit do the task, is anything missing from it, and is every head of it needed? The three
criteria are those of Wang et al. 2022 (arXiv:2211.00593), section 4. F(C) is the mean metric with
every head outside C at its mean; M is the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress, Task

if TYPE_CHECKING:
    from saesteer.patching.ablation import Ablation

# Wang et al. 2022 (arXiv:2211.00593), figure 2 and section 3: the classes of heads of GPT-2 small
# and the position at which each acts.
_IOI = {
    "name mover": ("end", "9.9 10.0 9.6"),
    "backup name mover": ("end", "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9"),
    "negative name mover": ("end", "10.7 11.10"),
    "S-inhibition": ("end", "7.3 7.9 8.6 8.10"),
    "induction": ("S2", "5.5 5.8 5.9 6.9"),
    "duplicate token": ("S2", "0.1 0.10 3.0"),
    "previous token": ("S1+1", "2.2 4.11"),
}
# How many of the next strongest heads are tried at each step of growing.
_WINDOW = 6


class Node(NamedTuple):
    """One head at a position's role, such as "S2" or "end"; at every position if None."""

    layer: int
    head: int
    role: str | None = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}" + (f"@{self.role}" if self.role else "")

    @classmethod
    def parse(cls, text: str) -> Node:
        """Return the node named by text such as "9.9" or "9.9@end"."""
        name, _, role = text.partition("@")
        layer, head = map(int, name.split("."))
        return cls(layer, head, role or None)


@dataclass(frozen=True)
class Circuit:
    """A set of heads, sorted into classes by name."""

    classes: Mapping[str, tuple[Node, ...]]

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Circuit:
        """Return a circuit of one class."""
        return cls({"heads": tuple(dict.fromkeys(nodes))})

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, each once, in the order of the classes."""
        return tuple(dict.fromkeys(node for nodes in self.classes.values() for node in nodes))

    def __len__(self) -> int:
        return len(self.nodes)

    def without(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """Return all nodes but some."""
        gone = set(nodes)
        return tuple(node for node in self.nodes if node not in gone)

    def record(self) -> dict[str, list[str]]:
        """Return the circuit as JSON values: the nodes of every class as text."""
        return {name: [str(node) for node in nodes] for name, nodes in self.classes.items()}


def published_ioi_circuit() -> Circuit:
    """Return the IOI circuit of GPT-2 small, 26 heads in 7 classes (Wang et al. 2022)."""
    return Circuit(
        {
            name: tuple(Node.parse(f"{head}@{role}") for head in heads.split())
            for name, (role, heads) in _IOI.items()
        }
    )


def recovered(circuit: float, whole: float, nothing: float) -> float:
    """Return where a metric lies between that of no head (0) and that of all heads (1)."""
    return (circuit - nothing) / (whole - nothing) if whole != nothing else float("nan")


def faithfulness(ablation: Ablation, circuit: Circuit) -> dict[str, float]:
    """Return how much of the whole model's metric a circuit has.

    Returns:
        "whole" F(M), "circuit" F(C), "nothing" F of no head (what embeddings and MLPs do on their
        own), "gap" |F(M) - F(C)|, "share" F(C) / F(M), the figure usually quoted, and "recovered":
        0 for no head, 1 for the whole model.
    """
    whole, inside = _mean(ablation.without(())), _mean(ablation.keeping(circuit.nodes))
    nothing = _mean(ablation.keeping(()))
    return {
        "whole": whole,
        "circuit": inside,
        "nothing": nothing,
        "gap": abs(whole - inside),
        "share": inside / whole if whole else float("nan"),
        "recovered": recovered(inside, whole, nothing),
    }


def completeness(
    ablation: Ablation, circuit: Circuit, *, random_sets: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    """Return how circuit and whole model compare when both lose the same heads K.

    K is the empty set, every class, and random sets, each head in it with probability one half.

    Returns:
        Of every K "name", "removed", "circuit" F(C - K), "whole" F(M - K) and "gap", the distance
        of the two: 0 for a complete circuit.
    """
    rng, nodes = np.random.default_rng(seed), circuit.nodes
    sets: list[tuple[str, tuple[Node, ...]]] = [("nothing", ())]
    if len(circuit.classes) > 1:
        sets += circuit.classes.items()
    for number in range(random_sets):
        drawn = rng.random(len(nodes)) < 0.5
        chosen = tuple(node for node, taken in zip(nodes, drawn, strict=True) if taken)
        sets.append((f"random {number + 1}", chosen))
    found = []
    for name, removed in sets:
        inside = _mean(ablation.keeping(circuit.without(removed)))
        whole = _mean(ablation.without(removed))
        found.append(
            {
                "name": name,
                "removed": [str(node) for node in removed],
                "circuit": inside,
                "whole": whole,
                "gap": abs(inside - whole),
            }
        )
    return found


def minimality(ablation: Ablation, circuit: Circuit) -> list[dict[str, Any]]:
    """Return what every head of a circuit is needed for, the least needed last.

    A head is taken away from the circuit alone and from the circuit without the rest of its class,
    where a backup cannot step in, and counts by the larger change.

    Returns:
        Of every node "head", "layer", "number", "change" |F(C - K) - F(C - K - head)| and "share",
        the change relative to |F(M)|; Wang et al. ask for at least 0.01.
    """
    whole = abs(_mean(ablation.without(())))
    found = []
    for node in circuit.nodes:
        sets: list[tuple[Node, ...]] = [()]
        if len(circuit.classes) > 1:
            sets += [own for own in circuit.classes.values() if node in own]
        change = 0.0
        for own in sets:
            beside = [other for other in own if other != node]
            with_it = _mean(ablation.keeping(circuit.without(beside)))
            without_it = _mean(ablation.keeping(circuit.without([*beside, node])))
            change = max(change, abs(with_it - without_it))
        found.append(
            {
                "head": str(node),
                "layer": node.layer,
                "number": node.head,
                "change": change,
                "share": change / whole if whole else float("nan"),
            }
        )
    return sorted(found, key=lambda record: -record["change"])


def find_circuit(
    ablation: Ablation,
    target: float,
    *,
    roles: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """Search for the smallest circuit that keeps a faithfulness, its heads strongest first.

    Heads are ranked by attribution patching towards the mean (Syed et al. 2023, arXiv:2310.10348),
    so that it takes tens of forward passes and not hundreds. The circuit grows by the one of the
    next few strongest that brings it nearest to the whole model; where growing gets stuck, the
    fewest of the strongest that are faithful together are taken. Then every head whose loss does
    not matter is taken out, the weakest first, which is the pruning of ACDC (Conmy et al. 2023,
    arXiv:2304.14997) on heads in place of edges.

    Args:
        ablation: The model and the prompts to search on.
        target: Faithful means that the recovered share of the metric is within 1 - target of 1,
            from below or from above.
        roles: Choose heads at these positions, each by itself.
        progress: Where to show how far it is.

    Raises:
        ConfigError: The heads make no difference to the metric.
    """
    search = _Search(ablation, target)
    nodes, scores = ablation.gradient_scores(roles)
    ranked = [nodes[i] for i in np.argsort(-np.abs(scores), kind="stable")]
    with (progress or Progress()).task("searching the circuit", len(ranked), "heads") as task:
        grown = search.grow(ranked, task) or search.fewest(ranked)
        return Circuit.of(search.prune(grown))


class _Search:
    def __init__(self, ablation: Ablation, target: float) -> None:
        self._ablation, self._slack = ablation, 1 - target
        self._whole = _mean(ablation.without(()))
        self._nothing = _mean(ablation.keeping(()))
        if abs(self._whole - self._nothing) < 1e-6 * max(1.0, abs(self._whole)):
            raise ConfigError(
                "the metric is the same with all heads and with none, so no circuit of heads does "
                "this task; choose prompts that the model solves"
            )

    def off(self, nodes: Sequence[Node]) -> float:
        """Return how far the nodes alone are from the whole model: 0 is faithful."""
        value = _mean(self._ablation.keeping(nodes))
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


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
