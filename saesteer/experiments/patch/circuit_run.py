"""The circuit of a run's own model and prompts: found on one half of them, tested on the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.settings import CircuitSettings
from saesteer.patching.circuits import (
    Ablation,
    Circuit,
    Node,
    completeness,
    corrupted_counterfactuals,
    faithfulness,
    find_circuit,
    ioi_counterfactuals,
    mean_heads,
    minimality,
    published_ioi_circuit,
)
from saesteer.patching.circuits.ablation import role_column
from saesteer.patching.circuits.evaluation import Faithfulness
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.reading.attention_view import check_heads
from saesteer.utils.errors import DataError
from saesteer.utils.run_folder import finite

CIRCUIT = "circuit.json"
FEWEST = 4


def run_circuit(bench: PatchContext) -> None:
    """Search or take a circuit of heads, and keep it with how well it does the task."""
    settings = bench.plan.config.circuit
    if settings is None or bench.folder.has(CIRCUIT):
        return
    started = time.perf_counter()
    known = given_circuit(settings)
    record: dict[str, Any] = {"target": settings.faithfulness}
    if known is None:
        bench.progress.say("Searching a circuit of heads on one half of the pairs")
        search, test = _halves(bench)
        found = find_circuit(
            search,
            target=settings.faithfulness,
            roles=settings.roles,
            held_out=test,
            progress=bench.progress,
        )
        known = found.circuit
        record |= {
            "origin": "found",
            "candidates": found.candidates,
            "searched": _faithful(found.searched),
        }
    else:
        test = _ablation(bench, range(len(bench.batch)))
        record |= {"origin": "given"}
    bench.progress.say(f"Testing a circuit of {len(known)} heads")
    record |= _tested(test, known, settings, bench.plan.config.seed)
    record["seconds"] = round(time.perf_counter() - started, 1)
    bench.folder.write_json(CIRCUIT, finite(record))


def check_circuit(bench: PatchContext) -> None:
    """Check what the settings say of a circuit against model and prompts, before any patching.

    Raises:
        ConfigError: The model has no such head.
        DataError: A pair lacks a role, or there are too few pairs to search on one half and to
            test on the other.
    """
    settings = bench.plan.config.circuit
    if settings is None:
        return
    known = given_circuit(settings)
    if known is None and len(bench.batch) < FEWEST:
        raise DataError(
            f"a circuit is searched on one half of the pairs and tested on the other, and there "
            f"are {len(bench.batch)}; give at least {FEWEST}."
        )
    roles = set(settings.roles or ())
    if known is not None:
        check_heads(bench.model, [(node.layer, node.head) for node in known.nodes])
        roles = {node.role for node in known.nodes if node.role is not None}
    for role in sorted(roles):
        for pair in range(len(bench.batch)):
            role_column(bench.batch, pair, role)


def given_circuit(settings: CircuitSettings) -> Circuit | None:
    """Return the circuit that the settings name; None where one is to be found.

    Raises:
        ConfigError: A head is not written as layer.head or layer.head@role.
    """
    if settings.heads is None:
        return None
    if settings.heads == "published":
        return published_ioi_circuit()
    return Circuit.of(map(Node.parse, settings.heads))


def _halves(bench: PatchContext) -> tuple[Ablation, Ablation]:
    pairs = np.random.default_rng(bench.plan.config.seed).permutation(len(bench.batch))
    middle = (len(pairs) + 1) // 2
    return (
        _ablation(bench, sorted(pairs[:middle].tolist())),
        _ablation(bench, sorted(pairs[middle:].tolist())),
    )


def _ablation(bench: PatchContext, chosen: Sequence[int]) -> Ablation:
    settings = bench.plan.config.pairs
    pairs = [bench.batch.pairs[i] for i in chosen]
    batch = encode_pairs(bench.model, pairs, prepend_bos=settings.prepend_bos)
    frames = _frames(bench)
    if bench.ioi is None or frames is None:
        means = mean_heads(bench.model, batch, corrupted_counterfactuals(batch))
        return Ablation(bench.model, batch, means, metric=bench.metric)
    # All of the set's counterfactuals, for either half: they say nothing of any pair's answer.
    means = mean_heads(
        bench.model,
        batch,
        ioi_counterfactuals(bench.model, bench.ioi, prepend_bos=settings.prepend_bos),
        groups=[frames[i] for i in chosen],
    )
    return Ablation(bench.model, batch, means, metric=bench.metric)


def _frames(bench: PatchContext) -> list[int] | None:
    """Return the frame of every pair of the batch; None where the set has none."""
    if bench.ioi is None:
        return None
    made = zip(bench.ioi.pairs, bench.ioi.frames, strict=True)
    # Used the other way round, a pair's corrupted prompt is the clean one.
    frame_of = {text: frame for pair, frame in made for text in (pair.clean, pair.corrupted)}
    return [frame_of[pair.clean] for pair in bench.batch.pairs]


def _tested(
    ablation: Ablation, circuit: Circuit, settings: CircuitSettings, seed: int
) -> dict[str, Any]:
    needed = minimality(ablation, circuit)
    complete = completeness(ablation, circuit, random_sets=settings.random_sets, seed=seed)
    return {
        "size": len(circuit),
        "heads": circuit.record(),
        "pairs": len(ablation.batch),
        "held_out": _faithful(faithfulness(ablation, circuit)),
        "completeness": [
            {
                "name": one.name,
                "removed": [str(node) for node in one.removed],
                "circuit": one.circuit,
                "whole": one.whole,
                "gap": one.gap,
            }
            for one in complete
        ],
        "minimality": [
            {
                "head": str(one.node),
                "layer": one.node.layer,
                "number": one.node.head,
                "change": one.change,
                "share": one.share,
            }
            for one in needed
        ],
    }


def _faithful(found: Faithfulness) -> dict[str, float]:
    return {name: float(value) for name, value in found.summary().items()}
