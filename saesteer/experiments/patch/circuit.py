"""The circuit of a run's own model and prompts: found on one half of them, tested on the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.patch.results import CIRCUIT
from saesteer.experiments.patch.settings import CircuitSettings
from saesteer.patching.ablation import Ablation, Counterfactuals
from saesteer.patching.batch import encode_pairs
from saesteer.patching.circuits import (
    Circuit,
    Node,
    completeness,
    faithfulness,
    find_circuit,
    minimality,
    published_ioi_circuit,
)
from saesteer.patching.target import check_heads
from saesteer.utils.errors import DataError
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from saesteer.experiments.patch.experiment import Patch

FEWEST = 4


def run_circuit(run: Patch) -> None:
    """Search or take a circuit of heads, and keep it with how well it does the task."""
    settings = run.config.circuit
    if settings is None or run.folder.has(CIRCUIT):
        return
    started = time.perf_counter()
    circuit, pairs = _given(settings), range(len(run.batch))
    record: dict[str, Any] = {"target": settings.faithfulness, "origin": "given"}
    if circuit is None:
        run.progress.say("Searching a circuit of heads on one half of the pairs")
        order = np.random.default_rng(run.config.seed).permutation(pairs)
        middle = (len(order) + 1) // 2
        search, pairs = _ablation(run, sorted(order[:middle])), sorted(order[middle:])
        circuit = find_circuit(
            search, settings.faithfulness, roles=settings.roles, progress=run.progress
        )
        record["origin"] = "found"
        record["candidates"] = search.shape[0] * search.shape[1] * len(settings.roles or [None])
        record["searched"] = faithfulness(search, circuit)
    run.progress.say(f"Testing a circuit of {len(circuit)} heads")
    test = _ablation(run, pairs)
    complete = completeness(test, circuit, random_sets=settings.random_sets, seed=run.config.seed)
    record |= {
        "size": len(circuit),
        "heads": circuit.record(),
        "pairs": len(test.batch),
        "held_out": faithfulness(test, circuit),
        "completeness": complete,
        "minimality": minimality(test, circuit),
        "seconds": round(time.perf_counter() - started, 1),
    }
    run.folder.write_json(CIRCUIT, finite(record))


def check_circuit(run: Patch) -> None:
    """Check what the settings say of a circuit against model and prompts, before any patching."""
    settings = run.config.circuit
    if settings is None:
        return
    circuit, roles = _given(settings), set(settings.roles or ())
    if circuit is not None:
        check_heads(run.model, [(node.layer, node.head) for node in circuit.nodes])
        roles = {node.role for node in circuit.nodes if node.role is not None}
    elif len(run.batch) < FEWEST:
        raise DataError(
            f"a circuit is searched on one half of the pairs and tested on the other, and there "
            f"are {len(run.batch)}; give at least {FEWEST}."
        )
    for role in sorted(roles):
        for pair in range(len(run.batch)):
            run.batch.role_column(pair, role)


def _given(settings: CircuitSettings) -> Circuit | None:
    """Return the circuit that the settings name; None where one is to be found."""
    if settings.heads is None:
        return None
    if settings.heads == "published":
        return published_ioi_circuit()
    return Circuit.of(map(Node.parse, settings.heads))


def _ablation(run: Patch, chosen: Sequence[int]) -> Ablation:
    bos = run.config.pairs.prepend_bos
    pairs = [run.batch.pairs[i] for i in chosen]
    batch = encode_pairs(run.model, pairs, prepend_bos=bos)
    if run.ioi is None:
        return Ablation(run.model, batch, Counterfactuals.of_corrupted(batch), metric=run.metric)
    # Used the other way round, a pair's corrupted prompt is the clean one.
    made = zip(run.ioi.pairs, run.ioi.frames, strict=True)
    frame_of = {text: frame for pair, frame in made for text in (pair.clean, pair.corrupted)}
    # All of the set's counterfactuals, for either half: they say nothing of any pair's answer.
    others = Counterfactuals.of_ioi(run.model, run.ioi, prepend_bos=bos)
    groups = [frame_of[pair.clean] for pair in pairs]
    return Ablation(run.model, batch, others, groups, metric=run.metric)
