"""Claims held against the experiments they name; the program judges, not the planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from saesteer.agent.results import metrics_of, number_at
from saesteer.agent.state import State
from saesteer.utils.errors import SaesteerError

Verdict = Literal["supported", "named", "contradicted", "unsupported"]

# Numbers are quoted to three or four digits.
TOLERANCE = 5e-3


@dataclass(frozen=True)
class CheckedClaim:
    """A claim and what the program found.

    Attributes:
        claim: The planner's words.
        experiments: The finished experiments it names, and no other.
        verdict: "supported": its number stands in every experiment it names; "named": it names
            finished experiments and no number, so that a person has to read them;
            "contradicted": the experiments hold another number; "unsupported": it names no
            experiment, or one that did not finish.
        remark: Why.
    """

    claim: str
    experiments: tuple[str, ...]
    verdict: Verdict
    remark: str


def check_claims(state: State, claims: list[dict[str, Any]]) -> list[CheckedClaim]:
    """Hold every claim against the experiments it names."""
    return [_check(state, claim) for claim in claims]


def _check(state: State, claim: dict[str, Any]) -> CheckedClaim:
    words = str(claim.get("claim", ""))
    finished, unknown = [], []
    for name in dict.fromkeys(claim.get("experiments") or []):
        experiment = state.experiment(name)
        if experiment is not None and experiment.status == "finished":
            finished.append(experiment)
        else:
            unknown.append(str(name))
    names = tuple(experiment.name for experiment in finished)
    if unknown or not finished:
        said = f"{', '.join(unknown)} did not finish" if unknown else "it names no experiment"
        return CheckedClaim(words, names, "unsupported", said)
    path, value = claim.get("path") or [], claim.get("value")
    if not path or value is None:
        return CheckedClaim(words, names, "named", "no number to check; read the experiments")
    there = []
    for experiment in finished:
        try:
            there.append(number_at(metrics_of(experiment), path))
        except SaesteerError as error:
            return CheckedClaim(words, names, "contradicted", f"{experiment.name}: {error}")
    near = [math.isclose(found, value, rel_tol=TOLERANCE, abs_tol=1e-6) for found in there]
    shown = ", ".join(f"{e.name}: {found:.4g}" for e, found in zip(finished, there, strict=True))
    where = ".".join(map(str, path))
    if all(near):
        return CheckedClaim(words, names, "supported", f"{where} is {shown}")
    return CheckedClaim(words, names, "contradicted", f"{where} is {shown}, not {value:.4g}")
