"""What the page opens with: a run's vector or a bundled one, what to hold it against, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saesteer.app.evidence import Evidence
from saesteer.app.workbench import Workbench, like
from saesteer.data import load_pairs
from saesteer.experiments.steer.config import AnsweredSource
from saesteer.methods import ClusteredSAE, DifferenceInMeans, FitContext
from saesteer.models.reading import PairActivations
from saesteer.saes import load_sae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import SaesteerError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import LensSae
    from saesteer.utils.progress import Progress

# What the page opens with where it is given no vector, and how many of its pairs that is fitted to.
PAIRS, N_PAIRS = "agreeableness", 60
MEANS, RANDOM = "difference in means", "random direction"


def open_vectors(
    model: TransformerBridge,
    sae: LensSae | None,
    vectors: Sequence[SteeringVector],
    run: Path | None,
    *,
    probes: Any = None,
) -> Workbench:
    """Return a workbench of a run's or of given vectors, held against the first's alternatives."""
    first, others = vectors[0], {}
    for one in vectors[1:]:
        others[_free(one.name, others)] = one
    if run is not None:
        file = run / f"activations/train.{first.site}.safetensors"
        if file.is_file():
            raw = PairActivations.load(file).deltas.double().mean(dim=0)
            means = like(first, raw, name=MEANS, method="difference_in_means")
            others[_free(MEANS, others)] = means
    evidence = Evidence() if run is None else Evidence.of_run(run)
    others[_free(RANDOM, others)] = _random(first)
    return Workbench(model, first, sae, others=others, probes=probes, evidence=evidence)


def open_bundled(
    model: TransformerBridge, sae: LensSae | None, progress: Progress, *, probes: Any = None
) -> Workbench:
    """Return a workbench of a vector that is fitted to bundled pairs."""
    progress.say(f"Fitting a vector to {N_PAIRS} bundled pairs on {PAIRS} ...")
    pairs = load_pairs(PAIRS)
    taken = min(N_PAIRS, len(pairs) // 2)
    site = f"blocks.{int(model.cfg.n_layers) // 2}.hook_resid_post" if sae is None else None
    given = FitContext(model, pairs.subset(range(taken)), sae=sae, site=site, name=PAIRS)
    means = DifferenceInMeans().fit_in(given).vector_
    others, first = {}, means
    if sae is not None:
        first, others = ClusteredSAE().fit_in(given).vector_, {MEANS: replace(means, name=MEANS)}
    left = pairs.subset(range(taken, len(pairs)))
    answers = AnsweredSource(source=PAIRS).read_answers()
    evidence = Evidence() if answers is None else Evidence(sides=lambda: (left, answers))
    others[RANDOM] = _random(first)
    return Workbench(model, first, sae, others=others, probes=probes, evidence=evidence)


def _random(vector: SteeringVector) -> SteeringVector:
    drawn = torch.randn(vector.d_model, generator=torch.Generator().manual_seed(0))
    raw = drawn * (vector.norm / drawn.norm())
    return like(vector, raw, name=RANDOM, method="random_direction")


def _free(name: str, taken: dict[str, SteeringVector]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def open_sae(
    named: str | None, vector: SteeringVector | None, model: str, progress: Progress
) -> LensSae | None:
    """Return the SAE that is asked for, else the vector's or the bundled model's, if there."""
    of_vector = vector.sae if vector is not None else ("smollm2" if model == "smollm2" else None)
    if named is None and of_vector is None:
        return None
    try:
        return load_sae(named or of_vector or "")
    except SaesteerError as error:
        if named is not None:
            raise
        progress.say(f"warning: no features to mix or read: {error}")
        return None
