"""A trial as one record: what was done, what came of it, and how random directions did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saesteer.probes.interventions import (
    Intervention,
    class_alpha,
    make_intervention,
    parse_schedule,
)
from saesteer.probes.measure import Doing
from saesteer.probes.probe_set import DirectionKind, ProbeSet
from saesteer.probes.trial import Texts, Trial, match_divergence, movement, random_doing
from saesteer.steering import SteeringVector, Unit
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.run_folder import finite

SPAN = 6


def default_layers(probes: ProbeSet) -> list[int]:
    """Return the best layer and the five before it, as far as they have probes."""
    have = [probe.site.layer for probe in probes.probes]
    return [layer for layer in have if probes.best - SPAN < layer <= probes.best]


def parse_layers(text: str | None, probes: ProbeSet) -> list[int]:
    """Read layers such as "14", "9-14" or "4,8,12"; see `default_layers` for None.

    Raises:
        SteeringError: It is not of that form.
        SiteError: A layer has no probe.
    """
    if text is None:
        return default_layers(probes)
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SteeringError(
                f"layers {text!r} are not of the form 14, 9-14 or 4,8,12; write them so."
            )
        layers += range(int(first), int(last or first) + 1)
    for layer in layers:
        probes.layer(layer)
    if not layers or len(set(layers)) < len(layers):
        raise SteeringError(f"layers {text!r} name none or one twice; name each once.")
    return sorted(layers)


def probe_vectors(
    probes: ProbeSet, layers: Sequence[int], towards: str, away: str, kind: DirectionKind
) -> list[SteeringVector]:
    """Return one vector per layer."""
    return [probes.vector(n, towards=towards, away=away, kind=kind) for n in layers]


def make_doing(
    vectors: Sequence[SteeringVector],
    *,
    mode: str = "flip",
    amount: str | None = None,
    unit: Unit = "norm",
    centre: str = "0",
    schedule: str | None = None,
    compound: bool = False,
    positions: str | None = "all",
) -> Doing:
    """Return what is done at all of some vectors' sites.

    Args:
        vectors: One per layer.
        mode: flip, ablate, add or set.
        amount: A number, or for set the name of a class.
        unit: The unit of an added strength.
        centre: What flip and ablate are about: a number, a class or "midpoint".
        schedule: Windows of generated tokens instead of one mode; see `parse_schedule`.
        compound: Whether later layers see what earlier ones did.
        positions: Where to write.

    Raises:
        SteeringError: A mode, amount or schedule cannot be used.
    """
    items: tuple[Intervention, ...]
    if schedule is not None:
        items = parse_schedule(schedule, vectors, unit=unit, centre=centre)
    else:
        items = tuple(make_intervention(v, mode, amount, unit=unit, centre=centre) for v in vectors)
    return Doing(items, "compound" if compound else "once", positions)


def intended_changes(
    doing: Doing, labels: Sequence[str | None], towards: str, away: str
) -> Float[np.ndarray, " prompt"]:
    """Return for each prompt 1 where its reading is meant to rise, -1 to fall, 0 for neither.

    A flip or ablation is meant to bring a prompt away from its own side; add and set mean the same
    for every prompt that has a side; a schedule has no one intention.
    """
    own = np.array([{towards: 1.0, away: -1.0}.get(label or "", 0.0) for label in labels])
    first = doing.interventions[0]
    if any(not item.whole for item in doing.interventions):
        return np.zeros(len(own))
    if first.mode in ("flip", "ablate"):
        return -own
    pull = first.amount
    if first.mode == "set" and "class_alphas" in first.vector.provenance:
        pull -= class_alpha(first.vector, "midpoint")
    return np.where(own != 0, np.sign(pull), 0.0)


def trial_record(
    trial: Trial,
    doing: Doing,
    labels: Sequence[str | None],
    *,
    towards: str,
    away: str,
    random_draws: int = 0,
) -> dict[str, Any]:
    """Carry out a trial and the random directions beside it.

    Args:
        trial: Prompts with their base texts.
        doing: The interventions.
        labels: Each prompt's class, where known.
        towards: The class that readings rise to.
        away: The class that they fall to.
        random_draws: Random directions, each scaled to the same KL.

    Raises:
        DataError: There are not as many labels as prompts.
    """
    if len(labels) != len(trial.prompts):
        raise DataError(
            f"there are {len(labels)} labels for {len(trial.prompts)} prompts; give one for each."
        )
    after = trial.run(doing)
    intended = intended_changes(doing, labels, towards, away)
    record = {
        "interventions": [item.described() for item in doing.interventions],
        "policy": doing.policy,
        "positions": doing.positions or doing.interventions[0].vector.positions,
        "vectors": [item.vector.name for item in doing.interventions],
        "towards": towards,
        "away": away,
        "kl": after.kl,
        "perplexity": {"base": trial.base.perplexity, "intervened": after.perplexity},
        "movement": _movements(trial, after, intended),
        "rows": _rows(trial, after, labels),
        "random": [_random(trial, doing, after.kl, intended, n) for n in range(random_draws)],
    }
    return finite(record)


def _random(
    trial: Trial, doing: Doing, budget: float, intended: np.ndarray, draw: int
) -> dict[str, Any]:
    matched, match = match_divergence(trial, random_doing(doing, draw), budget)
    after = trial.run(matched)
    return {
        "draw": draw,
        "factor": match.strength,
        "kl": after.kl,
        "reached": match.reached,
        "perplexity": after.perplexity,
        "movement": _movements(trial, after, intended),
    }


def _movements(trial: Trial, after: Texts, intended: np.ndarray) -> dict[str, Any]:
    sided = intended != 0
    if not sided.any():
        return {}
    found = {}
    for name, values in after.readings.items():
        base = trial.per_prompt(trial.base.readings[name])[sided]
        moved = movement(name, base, trial.per_prompt(values)[sided], intended[sided])
        found[name] = moved.as_dict()
    return found


def _rows(trial: Trial, after: Texts, labels: Sequence[str | None]) -> list[dict[str, Any]]:
    samples = trial.settings.samples
    rows = []
    for place, (base, text) in enumerate(zip(trial.base.texts, after.texts, strict=True)):
        prompt = place // samples
        rows.append(
            {
                "prompt": trial.prompts[prompt],
                "label": labels[prompt],
                "sample": place % samples,
                "base": base,
                "intervened": text,
                "readings": {
                    name: [float(trial.base.readings[name][place]), float(values[place])]
                    for name, values in after.readings.items()
                },
                "perplexity": [
                    float(np.exp(trial.base.loss[place])),
                    float(np.exp(after.loss[place])),
                ],
            }
        )
    return rows
