"""Circuits as data."""

from __future__ import annotations

import pytest

from saesteer.patching.circuits import Circuit, Node, published_ioi_circuit
from saesteer.utils.errors import ConfigError


def test_the_published_circuit_has_its_26_heads_where_they_act():
    circuit = published_ioi_circuit()
    sizes = {name: len(nodes) for name, nodes in circuit.classes.items()}
    assert sizes == {
        "name mover": 3,
        "backup name mover": 8,
        "negative name mover": 2,
        "S-inhibition": 4,
        "induction": 4,
        "duplicate token": 3,
        "previous token": 2,
    }
    assert len(circuit) == 26
    assert {node.role for node in circuit.nodes} == {"end", "S2", "S1+1"}
    assert {Node(9, 9, "end"), Node(10, 0, "end"), Node(2, 2, "S1+1")} <= set(circuit.nodes)
    assert Node(5, 5, "S2") in circuit.classes["induction"]
    assert all(node.layer < 12 and node.head < 12 for node in circuit.nodes)


def test_a_circuit_survives_being_written():
    circuit = published_ioi_circuit()
    assert Circuit.from_record(circuit.record()) == circuit
    assert Circuit.from_record({"x": ["3.1"]}).nodes == (Node(3, 1),)


def test_a_node_taken_out_is_gone_from_every_class():
    circuit = Circuit({"a": (Node(0, 1), Node(1, 1)), "b": (Node(0, 1),)})
    assert circuit.nodes == (Node(0, 1), Node(1, 1))
    assert circuit.without([Node(0, 1)]).classes == {"a": (Node(1, 1),)}


@pytest.mark.parametrize("text", ["", "9", "9.9.9", "a.b", "9.9@", "-1.2", "9.9 @end"])
def test_a_text_that_names_no_head_is_refused(text):
    with pytest.raises(ConfigError, match=r"names no head; write layer\.head"):
        Node.parse(text)
