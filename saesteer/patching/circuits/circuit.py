"""A circuit as a set of heads, each at the position where it does its work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from saesteer.data.checks import shorten
from saesteer.utils.errors import ConfigError

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
        """Return the circuit that `record` wrote.

        Raises:
            ConfigError: A node is not written as layer.head or layer.head@role.
        """
        return cls(
            {name: tuple(Node.parse(text) for text in nodes) for name, nodes in record.items()}
        )


def published_ioi_circuit() -> Circuit:
    """Return the IOI circuit of GPT-2 small, 26 heads in 7 classes (Wang et al. 2022)."""
    return Circuit.from_record(
        {name: [f"{head}@{role}" for head in heads.split()] for name, (role, heads) in _IOI.items()}
    )
