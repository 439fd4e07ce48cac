"""Circuits: sets of heads, each at the position where it does its work, and how good they are.

Does a circuit do the task, is anything missing from it, and is every head of it needed? The three
criteria are those of Wang et al. 2022 (arXiv:2211.00593), section 4. F(C) is the mean metric with
every head outside C at its mean; M is the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saesteer.data.checks import shorten
from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from saesteer.patching.ablation import Ablation

_NODE = re.compile(r"(\d{1,4})\.(\d{1,4})(?:@(\S+))?")

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


@dataclass(frozen=True)
class Node:
    """One head, everywhere or at one position.

    Attributes:
        layer: Its layer, from 0.
        head: Its number in the layer, from 0.
        role: The position's role, such as "S2" or "end"; None for every position.
    """

    layer: int
    head: int
    role: str | None = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}" + (f"@{self.role}" if self.role else "")

    @classmethod
    def parse(cls, text: str) -> Node:
        """Return the node named by text such as "9.9" or "9.9@end".

        Raises:
            ConfigError: The text does not have that form.
        """
        match = _NODE.fullmatch(str(text).strip())
        if match is None:
            raise ConfigError(
                f"{shorten(text)} names no head; write layer.head, such as 9.9, or with a "
                "position's role, such as 9.9@end"
            )
        return cls(int(match[1]), int(match[2]), match[3])


@dataclass(frozen=True)
class Circuit:
    """A set of heads, sorted into classes.

    Attributes:
        classes: The nodes of every class, by the class's name.
    """

    classes: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[Node], name: str = "heads") -> Circuit:
        """Return a circuit of one class."""
        return cls({name: tuple(dict.fromkeys(nodes))})

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, each once, in the order of the classes."""
        return tuple(dict.fromkeys(node for nodes in self.classes.values() for node in nodes))

    def __len__(self) -> int:
        return len(self.nodes)

    def without(self, nodes: Iterable[Node]) -> Circuit:
        """Return the circuit without some nodes."""
        gone = set(nodes)
        kept = {
            name: tuple(node for node in own if node not in gone)
            for name, own in self.classes.items()
        }
        return Circuit({name: own for name, own in kept.items() if own})

    def record(self) -> dict[str, list[str]]:
        """Return the circuit as JSON values: the nodes of every class as text."""
        return {name: [str(node) for node in nodes] for name, nodes in self.classes.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Iterable[str]]) -> Circuit:
        """Return the circuit that `record` wrote."""
        return cls(
            {name: tuple(Node.parse(text) for text in nodes) for name, nodes in record.items()}
        )


def published_ioi_circuit() -> Circuit:
    """Return the IOI circuit of GPT-2 small, 26 heads in 7 classes (Wang et al. 2022)."""
    return Circuit.from_record(
        {name: [f"{head}@{role}" for head in heads.split()] for name, (role, heads) in _IOI.items()}
    )


@dataclass(frozen=True)
class Faithfulness:
    """How much of the whole model's metric a circuit has.

    Attributes:
        whole: F(M), the metric of every pair on the whole model.
        circuit: F(C), with everything outside the circuit ablated.
        nothing: F of no head at all: what embeddings and MLPs do on their own.
    """

    whole: Float[np.ndarray, " pair"]
    circuit: Float[np.ndarray, " pair"]
    nothing: Float[np.ndarray, " pair"]

    @property
    def gap(self) -> float:
        """|F(M) - F(C)| of the means: 0 for a faithful circuit, in units of the metric."""
        return abs(float(self.whole.mean() - self.circuit.mean()))

    @property
    def share(self) -> float:
        """F(C) / F(M), the figure usually quoted; NaN where F(M) is 0."""
        whole = float(self.whole.mean())
        return float(self.circuit.mean()) / whole if whole else float("nan")

    @property
    def recovered(self) -> float:
        """(F(C) - F(nothing)) / (F(M) - F(nothing)): 0 for no head, 1 for the whole model."""
        return recovered(
            float(self.circuit.mean()), float(self.whole.mean()), float(self.nothing.mean())
        )

    def summary(self) -> dict[str, float]:
        """Return the numbers for a report."""
        return {
            "whole": float(self.whole.mean()),
            "circuit": float(self.circuit.mean()),
            "nothing": float(self.nothing.mean()),
            "gap": self.gap,
            "share": self.share,
            "recovered": self.recovered,
        }


@dataclass(frozen=True)
class Completeness:
    """How the circuit and the whole model compare when both lose the same heads.

    Attributes:
        name: How the heads were chosen.
        removed: The heads, K.
        circuit: F(C - K).
        whole: F(M - K).
    """

    name: str
    removed: tuple[Node, ...]
    circuit: float
    whole: float

    @property
    def gap(self) -> float:
        """|F(C - K) - F(M - K)|: 0 for a complete circuit, in units of the metric."""
        return abs(self.circuit - self.whole)


@dataclass(frozen=True)
class Minimality:
    """What the circuit loses with one head, at best over several sets K taken away before.

    Attributes:
        node: The head.
        beside: The set K that shows it best, without the head.
        change: |F(C - K) - F(C - K - head)|, in units of the metric.
        share: The change relative to |F(M)|; Wang et al. ask for at least 0.01.
    """

    node: Node
    beside: tuple[Node, ...]
    change: float
    share: float


def recovered(circuit: float, whole: float, nothing: float) -> float:
    """Return where a metric lies between that of no head (0) and that of all heads (1)."""
    return (circuit - nothing) / (whole - nothing) if whole != nothing else float("nan")


def faithfulness(ablation: Ablation, circuit: Circuit) -> Faithfulness:
    """Measure a circuit's faithfulness."""
    _check_not_empty(circuit)
    return Faithfulness(
        whole=ablation.without(()),
        circuit=ablation.keeping(circuit.nodes),
        nothing=ablation.keeping(()),
    )


def completeness(
    ablation: Ablation,
    circuit: Circuit,
    *,
    random_sets: int = 10,
    greedy_steps: int = 0,
    greedy_candidates: int = 10,
    seed: int = 0,
) -> tuple[Completeness, ...]:
    """Measure a circuit's completeness on several sets of its heads.

    Args:
        ablation: The model and the prompts.
        circuit: The circuit.
        random_sets: How many random sets K, each head in it with probability one half.
        greedy_steps: How many heads to take away one after another, each the one among some
            candidates that widens the gap most; 0 for no greedy set.
        greedy_candidates: How many random candidates to try at each step.
        seed: Seed of the random sets and candidates.

    Returns:
        The empty set, every class, the random sets, and the greedy set.

    Raises:
        ConfigError: The circuit is empty or has a head that the model lacks.
    """
    _check_not_empty(circuit)
    rng = np.random.default_rng(seed)
    nodes = circuit.nodes
    sets: list[tuple[str, tuple[Node, ...]]] = [("nothing", ())]
    if len(circuit.classes) > 1:
        sets += [(name, tuple(own)) for name, own in circuit.classes.items()]
    for number in range(random_sets):
        drawn = rng.random(len(nodes)) < 0.5
        chosen = tuple(node for node, taken in zip(nodes, drawn, strict=True) if taken)
        sets.append((f"random {number + 1}", chosen))
    found = [_compare(ablation, circuit, name, removed) for name, removed in sets]
    if greedy_steps:
        found.append(_greedy(ablation, circuit, greedy_steps, greedy_candidates, rng))
    return tuple(found)


def minimality(
    ablation: Ablation,
    circuit: Circuit,
    *,
    beside: Mapping[Node, Sequence[Iterable[Node]]] | None = None,
) -> tuple[Minimality, ...]:
    """Measure what every head of a circuit is needed for.

    Returns:
        One record for every head, the least needed last.
    """
    _check_not_empty(circuit)
    whole = abs(_mean(ablation.without(())))
    found = []
    for node in circuit.nodes:
        sets: list[tuple[Node, ...]] = [()]
        if len(circuit.classes) > 1:
            sets += [tuple(own) for own in circuit.classes.values() if node in own]
        sets += [tuple(own) for own in (beside or {}).get(node, ())]
        best: tuple[float, tuple[Node, ...]] = (-1.0, ())
        for others in dict.fromkeys(tuple(one for one in own if one != node) for own in sets):
            with_it = _mean(ablation.keeping(circuit.without(others).nodes))
            without_it = _mean(ablation.keeping(circuit.without((*others, node)).nodes))
            best = max(best, (abs(with_it - without_it), others), key=lambda pair: pair[0])
        share = best[0] / whole if whole else float("nan")
        found.append(Minimality(node, best[1], best[0], share))
    return tuple(sorted(found, key=lambda record: -record.change))


def _compare(
    ablation: Ablation, circuit: Circuit, name: str, removed: tuple[Node, ...]
) -> Completeness:
    inside = _mean(ablation.keeping(circuit.without(removed).nodes))
    return Completeness(name, removed, inside, _mean(ablation.without(removed)))


def _greedy(
    ablation: Ablation,
    circuit: Circuit,
    steps: int,
    candidates: int,
    rng: np.random.Generator,
) -> Completeness:
    best = _compare(ablation, circuit, "greedy", ())
    for _ in range(min(steps, len(circuit))):
        left = [node for node in circuit.nodes if node not in best.removed]
        drawn = rng.permutation(len(left))[:candidates]
        tried = [
            _compare(ablation, circuit, "greedy", (*best.removed, left[i])) for i in drawn.tolist()
        ]
        widest = max(tried, key=lambda record: record.gap, default=best)
        if widest.gap <= best.gap:
            break
        best = widest
    return best


def _mean(values: Float[np.ndarray, " pair"]) -> float:
    return float(values.mean())


def _check_not_empty(circuit: Circuit) -> None:
    if not len(circuit):
        raise ConfigError("the circuit holds no head; give it at least one")
