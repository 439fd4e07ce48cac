"""The circuit of a run's own model and prompts: found on one half of them, tested on the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.patch.results import CIRCUIT
from saesteer.experiments.patch.settings import CircuitSettings
from saesteer.patching.ablation import Ablation, role_column
from saesteer.patching.batch import encode_pairs
from saesteer.patching.circuit_search import find_circuit
from saesteer.patching.circuits import (
    Circuit,
    Faithfulness,
    Node,
    completeness,
    faithfulness,
    minimality,
    published_ioi_circuit,
)
from saesteer.patching.counterfactuals import (
    corrupted_counterfactuals,
    ioi_counterfactuals,
    mean_heads,
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
    known = given_circuit(settings)
    record: dict[str, Any] = {"target": settings.faithfulness}
    if known is None:
        run.progress.say("Searching a circuit of heads on one half of the pairs")
        search, test = _halves(run)
        found = find_circuit(
            search,
            target=settings.faithfulness,
            roles=settings.roles,
            held_out=test,
            progress=run.progress,
        )
        known = found.circuit
        record |= {
            "origin": "found",
            "candidates": found.candidates,
            "searched": _faithful(found.searched),
        }
    else:
        test = _ablation(run, range(len(run.batch)))
        record |= {"origin": "given"}
    run.progress.say(f"Testing a circuit of {len(known)} heads")
    record |= _tested(test, known, settings, run.config.seed)
    record["seconds"] = round(time.perf_counter() - started, 1)
    run.folder.write_json(CIRCUIT, finite(record))


def check_circuit(run: Patch) -> None:
    """Check what the settings say of a circuit against model and prompts, before any patching."""
    settings = run.config.circuit
    if settings is None:
        return
    known = given_circuit(settings)
    if known is None and len(run.batch) < FEWEST:
        raise DataError(
            f"a circuit is searched on one half of the pairs and tested on the other, and there "
            f"are {len(run.batch)}; give at least {FEWEST}."
        )
    roles = set(settings.roles or ())
    if known is not None:
        check_heads(run.model, [(node.layer, node.head) for node in known.nodes])
        roles = {node.role for node in known.nodes if node.role is not None}
    for role in sorted(roles):
        for pair in range(len(run.batch)):
            role_column(run.batch, pair, role)


def given_circuit(settings: CircuitSettings) -> Circuit | None:
    """Return the circuit that the settings name; None where one is to be found."""
    if settings.heads is None:
        return None
    if settings.heads == "published":
        return published_ioi_circuit()
    return Circuit.of(map(Node.parse, settings.heads))


def _halves(run: Patch) -> tuple[Ablation, Ablation]:
    pairs = np.random.default_rng(run.config.seed).permutation(len(run.batch))
    middle = (len(pairs) + 1) // 2
    return (
        _ablation(run, sorted(pairs[:middle].tolist())),
        _ablation(run, sorted(pairs[middle:].tolist())),
    )


def _ablation(run: Patch, chosen: Sequence[int]) -> Ablation:
    settings = run.config.pairs
    pairs = [run.batch.pairs[i] for i in chosen]
    batch = encode_pairs(run.model, pairs, prepend_bos=settings.prepend_bos)
    frames = _frames(run)
    if run.ioi is None or frames is None:
        means = mean_heads(run.model, batch, corrupted_counterfactuals(batch))
        return Ablation(run.model, batch, means, metric=run.metric)
    # All of the set's counterfactuals, for either half: they say nothing of any pair's answer.
    means = mean_heads(
        run.model,
        batch,
        ioi_counterfactuals(run.model, run.ioi, prepend_bos=settings.prepend_bos),
        groups=[frames[i] for i in chosen],
    )
    return Ablation(run.model, batch, means, metric=run.metric)


def _frames(run: Patch) -> list[int] | None:
    """Return the frame of every pair of the batch; None where the set has none."""
    if run.ioi is None:
        return None
    made = zip(run.ioi.pairs, run.ioi.frames, strict=True)
    # Used the other way round, a pair's corrupted prompt is the clean one.
    frame_of = {text: frame for pair, frame in made for text in (pair.clean, pair.corrupted)}
    return [frame_of[pair.clean] for pair in run.batch.pairs]


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
