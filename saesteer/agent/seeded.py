"""The planner that needs no language model: successive halving, and notes from templates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from saesteer.agent.planners import Answer
from saesteer.agent.results import metrics_of, number_at
from saesteer.agent.settings import AgentConfig, SearchSettings
from saesteer.agent.state import State
from saesteer.utils.errors import SaesteerError

Candidate = dict[str, Any]
_CUT_OFF = ("running", "stopped")


@dataclass(frozen=True)
class Trial:
    """One experiment that a rung needs.

    Attributes:
        settings: What it sets, by dotted name.
        candidates: The candidates it measures.
    """

    settings: dict[str, Any]
    candidates: tuple[Candidate, ...]


class SeededPlanner:
    """Searches the declared space; the same seed and results give the same answers.

    It holds no state of its own: every answer follows from what has happened, so that a killed
    agent goes on as if it had not been.

    Args:
        config: The agent's settings.
        n_layers: How many layers the model has; only spaces over layers need it.
    """

    def __init__(self, config: AgentConfig, n_layers: int = 0) -> None:
        assert config.search is not None
        self.search: SearchSettings = config.search
        self.space = self.search.spelt_out(n_layers)
        self.rungs = list(self.search.rungs) or [None]
        self.most = config.budget.experiments
        self.first = first_candidates(
            self.space,
            together=self.search.batch is not None,
            keep=self.search.keep,
            experiments=self.most,
            n_rungs=len(self.rungs),
            seed=config.seed,
        )

    def next(self, state: State) -> Answer | None:
        """Return the next experiment, note or the conclusion."""
        alive, scores = self.first, {}
        for number, rung in enumerate(self.rungs):
            trials = list(self._trials(alive, rung))
            for trial in trials:
                if _done(state, self.search.kind, trial.settings) is None:
                    if len(state.experiments) >= self.most and not _running(state):
                        return self._conclude(state, scores, number - 1)
                    reason = f"rung {number + 1} of {len(self.rungs)}, {len(alive)} candidates"
                    return Answer(
                        "run_experiment",
                        {"kind": self.search.kind, "settings": trial.settings, "reason": reason},
                    )
            measured = self._scores(state, trials)
            if not measured:
                return self._conclude(state, scores, number - 1)
            scores = measured
            if len(state.notes) <= number:
                return Answer("write_note", self._note(scores, number))
            alive = self._best(alive, scores, number)
            if len(alive) < 2:
                return self._conclude(state, scores, number)
        return self._conclude(state, scores, len(self.rungs) - 1)

    def _trials(self, candidates: list[Candidate], rung: Any) -> Iterator[Trial]:
        fixed = {} if self.search.fidelity is None else {self.search.fidelity: rung}
        batch = self.search.batch
        if batch is None:
            for candidate in candidates:
                yield Trial({**candidate, **fixed}, (candidate,))
            return
        groups: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            rest = {key: value for key, value in candidate.items() if key != batch}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(candidate)
        for rest, members in groups.items():
            values = [member[batch] for member in members]
            yield Trial({**json.loads(rest), batch: values, **fixed}, tuple(members))

    def _scores(self, state: State, trials: list[Trial]) -> dict[str, tuple[float, str]]:
        """Return every measured candidate's number and experiment."""
        found = {}
        for trial in trials:
            experiment = _done(state, self.search.kind, trial.settings)
            if experiment is None or experiment.status != "finished":
                continue
            for candidate in trial.candidates:
                try:
                    value = number_at(metrics_of(experiment), self._path(candidate))
                except SaesteerError:
                    continue
                found[_label(candidate)] = (value, experiment.name)
        return found

    def _best(
        self, alive: list[Candidate], scores: dict[str, tuple[float, str]], number: int
    ) -> list[Candidate]:
        measured = [candidate for candidate in alive if _label(candidate) in scores]
        keep = max(1, math.ceil(len(measured) * self.search.keep))
        return sorted(measured, key=lambda c: self._rank(scores[_label(c)][0]))[:keep]

    def _rank(self, value: float) -> float:
        return -value if self.search.goal == "maximize" else value

    def _path(self, candidate: Candidate) -> list[str]:
        value = candidate.get(self.search.batch) if self.search.batch else _label(candidate)
        return [part.replace("{candidate}", str(value)) for part in self.search.metric]

    def _order(self, scores: dict[str, tuple[float, str]]) -> list[str]:
        return sorted(scores, key=lambda label: self._rank(scores[label][0]))

    def _note(self, scores: dict[str, tuple[float, str]], number: int) -> dict[str, Any]:
        order = self._order(scores)
        best, evidence = order[0], sorted({name for _, name in scores.values()}, key=_natural)
        seen = f"{_words(best)} gives {scores[best][0]:.4g}"
        if len(order) > 1:
            last = order[-1]
            seen += f", next is {_words(order[1])} with {scores[order[1]][0]:.4g}"
            seen += f", last of {len(order)} is {_words(last)} with {scores[last][0]:.4g}"
        dearest = number + 1 == len(self.rungs)
        then = "this is the dearest measure." if dearest else "it stays first when measured dearer."
        return {
            "observation": f"Rung {number + 1}: {seen}.",
            "hypothesis": f"{self.search.question} is {_words(best)}; {then}",
            "evidence": evidence,
        }

    def _conclude(
        self, state: State, scores: dict[str, tuple[float, str]], number: int
    ) -> Answer | None:
        question = self.search.question
        if not scores:
            failed = next((e.error for e in reversed(state.experiments) if e.error), None)
            arguments = {
                "answer": f"Nothing was measured, so {question} is not known"
                + (f" (last error: {failed})." if failed else "."),
                "claims": [],
                "would_refute": "Any experiment of the space that finishes.",
            }
            return Answer("finish", arguments)
        order = self._order(scores)
        best, (value, name) = order[0], scores[order[0]]
        claims = [
            {
                "claim": f"{question} is {_words(best)}: {value:.4g}",
                "experiments": [name],
                "path": self._path(_candidate(best)),
                "value": value,
            }
        ]
        if len(order) > 1:
            second = order[1]
            claims.append(
                {
                    "claim": f"the runner-up is {_words(second)}: {scores[second][0]:.4g}",
                    "experiments": [scores[second][1]],
                    "path": self._path(_candidate(second)),
                    "value": scores[second][0],
                }
            )
        space = math.prod(len(values) for values in self.space.values())
        return Answer(
            "finish",
            {
                "answer": f"Of {len(self.first)} of {space} settings measured, {question} is "
                f"{_words(best)} ({'.'.join(self._path(_candidate(best)))} {value:.4g} at rung "
                f"{number + 1} of {len(self.rungs)}).",
                "claims": claims,
                "would_refute": "Another setting that comes out ahead of it when both are measured "
                "at the last rung with another seed or other data.",
            },
        )


def tried_alone(search: SearchSettings) -> Iterator[dict[str, Any]]:
    """Yield settings with which every value of a search is tried once, to see whether it fits."""
    space = search.spelt_out(1)
    for name, values in space.items():
        for value in values:
            first = {other: others[0] for other, others in space.items()}
            settings = {**first, name: value}
            if search.batch is not None:
                settings[search.batch] = [settings[search.batch]]
            yield settings
    for rung in search.rungs:
        assert search.fidelity is not None
        yield {search.fidelity: rung}


def first_candidates(
    space: dict[str, list[Any]],
    *,
    together: bool,
    keep: float,
    experiments: int,
    n_rungs: int,
    seed: int,
) -> list[Candidate]:
    """Return the candidates of the first rung: all, or as many drawn as the budget can halve.

    Args:
        space: Values by setting.
        together: Whether all candidates share one experiment.
        keep: The share that goes on to the next rung.
        experiments: The budget.
        n_rungs: How many rungs there are.
        seed: Seeds the draw.
    """
    names = list(space)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())]
    if together:
        return grid
    wanted = len(grid)
    while wanted > 1 and _cost(wanted, n_rungs, keep) > experiments:
        wanted -= 1
    if wanted == len(grid):
        return grid
    drawn = np.random.default_rng(seed).permutation(len(grid))[:wanted]
    return [grid[place] for place in sorted(drawn)]


def _cost(candidates: int, n_rungs: int, keep: float) -> int:
    total = 0
    for _ in range(n_rungs):
        total += candidates
        candidates = max(1, math.ceil(candidates * keep))
        if candidates < 2:
            break
    return total


def _done(state: State, kind: str, settings: dict[str, Any]) -> Any:
    wanted = json.dumps([kind, settings], sort_keys=True)
    for experiment in state.experiments:
        same = json.dumps([experiment.kind, experiment.settings], sort_keys=True) == wanted
        if same and experiment.status not in _CUT_OFF:
            return experiment
    return None


def _running(state: State) -> bool:
    """Return whether a kill or the clock has cut an experiment off, which is then gone on with."""
    return any(experiment.status in _CUT_OFF for experiment in state.experiments)


def _words(label: str) -> str:
    candidate = _candidate(label)
    if len(candidate) == 1:
        return str(next(iter(candidate.values())))
    return ", ".join(f"{name} = {value}" for name, value in candidate.items())


def _label(candidate: Candidate) -> str:
    return json.dumps(candidate, sort_keys=True, ensure_ascii=False)


def _candidate(label: str) -> Candidate:
    return json.loads(label)


def _natural(name: str) -> tuple[int, str]:
    digits = name.lstrip("E")
    return (int(digits) if digits.isdigit() else 0, name)
