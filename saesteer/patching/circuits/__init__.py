"""Circuits: sets of heads, what they do alone, and finding the smallest set that does the task."""

from saesteer.patching.circuits.ablation import Ablation
from saesteer.patching.circuits.circuit import Circuit, Node, published_ioi_circuit
from saesteer.patching.circuits.counterfactuals import (
    Counterfactuals,
    corrupted_counterfactuals,
    encode_counterfactuals,
    ioi_counterfactuals,
    mean_heads,
)
from saesteer.patching.circuits.evaluation import (
    Completeness,
    Faithfulness,
    Minimality,
    completeness,
    faithfulness,
    minimality,
)
from saesteer.patching.circuits.search import FoundCircuit, find_circuit

__all__ = [
    "Ablation",
    "Circuit",
    "Completeness",
    "Counterfactuals",
    "Faithfulness",
    "FoundCircuit",
    "Minimality",
    "Node",
    "completeness",
    "corrupted_counterfactuals",
    "encode_counterfactuals",
    "faithfulness",
    "find_circuit",
    "ioi_counterfactuals",
    "mean_heads",
    "minimality",
    "published_ioi_circuit",
]
