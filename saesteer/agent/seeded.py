"""The planner that needs no language model: successive halving, and notes from templates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from saesteer.agent.planners import Answer
from saesteer.agent.results import metrics_of, number_at
from saesteer.agent.settings import AgentConfig, SearchSettings
from saesteer.agent.state import Experiment, State
from saesteer.utils.errors import DataError

Candidate = dict[str, Any]
# A candidate's number and the experiment that measured it, by the candidate as JSON.
Scores = dict[str, tuple[float, str]]
_CUT_OFF = ("running", "stopped")


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
        self.rungs = list(self.search.rungs) or [None]
        self.most = config.budget.experiments
        space = self.search.spelt_out(n_layers)
        grid = [
            dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
        ]
        self.size = len(grid)
        self.first = grid
        if self.search.batch is None:
            # All of them, or as many drawn as the budget can halve.
            wanted, keep = self.size, self.search.keep
            while wanted > 1 and halving_cost(wanted, len(self.rungs), keep) > self.most:
                wanted -= 1
            drawn = np.random.default_rng(config.seed).permutation(self.size)[:wanted]
            self.first = [grid[place] for place in sorted(drawn)]

    def next(self, state: State) -> Answer | None:
        """Return the next experiment, note or the conclusion."""
        alive, scores = self.first, {}
        for number, rung in enumerate(self.rungs):
            needed = list(self._experiments(alive, rung))
            for settings, _ in needed:
                if self._done(state, settings) is None:
                    # One that a kill or the clock has cut off is gone on with.
                    cut_off = any(e.status in _CUT_OFF for e in state.experiments)
                    if len(state.experiments) >= self.most and not cut_off:
                        return self._conclude(state, scores, number - 1)
                    reason = f"rung {number + 1} of {len(self.rungs)}, {len(alive)} candidates"
                    wanted = {"kind": self.search.kind, "settings": settings, "reason": reason}
                    return Answer("run_experiment", wanted)
            measured = self._scores(state, needed)
            if not measured:
                return self._conclude(state, scores, number - 1)
            scores = measured
            if len(state.notes) <= number:
                return Answer("write_note", self._note(scores, number))
            order = self._order(scores)
            kept = order[: max(1, math.ceil(len(order) * self.search.keep))]
            by_label = {_label(candidate): candidate for candidate in alive}
            alive = [by_label[label] for label in kept]
            if len(alive) < 2:
                return self._conclude(state, scores, number)
        return self._conclude(state, scores, len(self.rungs) - 1)

    def _experiments(
        self, candidates: list[Candidate], rung: Any
    ) -> Iterator[tuple[Candidate, list[Candidate]]]:
        """Give the settings of every experiment that a rung needs, with whom each measures."""
        fixed = {} if self.search.fidelity is None else {self.search.fidelity: rung}
        batch = self.search.batch
        if batch is None:
            yield from (({**candidate, **fixed}, [candidate]) for candidate in candidates)
            return
        groups: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            rest = {key: value for key, value in candidate.items() if key != batch}
            groups.setdefault(_label(rest), []).append(candidate)
        for rest, members in groups.items():
            values = [member[batch] for member in members]
            yield {**json.loads(rest), batch: values, **fixed}, members

    def _done(self, state: State, settings: Candidate) -> Experiment | None:
        wanted = _label([self.search.kind, settings])
        for experiment in state.experiments:
            same = _label([experiment.kind, experiment.settings]) == wanted
            if same and experiment.status not in _CUT_OFF:
                return experiment
        return None

    def _scores(self, state: State, needed: list[tuple[Candidate, list[Candidate]]]) -> Scores:
        found: Scores = {}
        for settings, candidates in needed:
            experiment = self._done(state, settings)
            if experiment is None or experiment.status != "finished":
                continue
            for candidate in candidates:
                try:
                    value = number_at(metrics_of(experiment), self._path(candidate))
                except DataError:
                    continue
                found[_label(candidate)] = (value, experiment.name)
        return found

    def _path(self, candidate: Candidate) -> list[str]:
        value = candidate.get(self.search.batch) if self.search.batch else _label(candidate)
        return [part.replace("{candidate}", str(value)) for part in self.search.metric]

    def _order(self, scores: Scores) -> list[str]:
        sign = -1 if self.search.goal == "maximize" else 1
        return sorted(scores, key=lambda label: sign * scores[label][0])

    def _note(self, scores: Scores, number: int) -> dict[str, Any]:
        order = self._order(scores)
        shown = [f"{_words(label)} with {scores[label][0]:.4g}" for label in order]
        best = _words(order[0])
        seen = f"{best} gives {scores[order[0]][0]:.4g}"
        if len(order) > 1:
            seen += f", next is {shown[1]}, last of {len(order)} is {shown[-1]}"
        dearest = number + 1 == len(self.rungs)
        then = "this is the dearest measure." if dearest else "it stays first when measured dearer."
        return {
            "observation": f"Rung {number + 1}: {seen}.",
            "hypothesis": f"{self.search.question} is {best}; {then}",
            "evidence": sorted({name for _, name in scores.values()}, key=lambda n: (len(n), n)),
        }

    def _conclude(self, state: State, scores: Scores, number: int) -> Answer:
        question = self.search.question
        if not scores:
            failed = next((e.error for e in reversed(state.experiments) if e.error), None)
            why = f" (last error: {failed})." if failed else "."
            arguments = {
                "answer": f"Nothing was measured, so {question} is not known{why}",
                "claims": [],
                "would_refute": "Any experiment of the space that finishes.",
            }
            return Answer("finish", arguments)
        claims = []
        for label, said in zip(self._order(scores), (question, "the runner-up"), strict=False):
            value, name = scores[label]
            claims.append(
                {
                    "claim": f"{said} is {_words(label)}: {value:.4g}",
                    "experiments": [name],
                    "path": self._path(json.loads(label)),
                    "value": value,
                }
            )
        best = claims[0]
        where = f"{'.'.join(best['path'])} {best['value']:.4g}"
        arguments = {
            "answer": f"Of {len(self.first)} of {self.size} settings measured, {question} is "
            f"{_words(self._order(scores)[0])} ({where} at rung {number + 1} of "
            f"{len(self.rungs)}).",
            "claims": claims,
            "would_refute": "Another setting that comes out ahead of it when both are measured at "
            "the last rung with another seed or other data.",
        }
        return Answer("finish", arguments)


def tried_alone(search: SearchSettings) -> Iterator[dict[str, Any]]:
    """Yield settings with which every value of a search is tried once, to see whether it fits."""
    space = search.spelt_out(1)
    first = {name: values[0] for name, values in space.items()}
    for name, values in space.items():
        for value in values:
            settings = {**first, name: value}
            if search.batch is not None:
                settings[search.batch] = [settings[search.batch]]
            yield settings
    for rung in search.rungs:
        assert search.fidelity is not None
        yield {search.fidelity: rung}


def halving_cost(candidates: int, n_rungs: int, keep: float) -> int:
    """Return how many experiments it takes to halve so many candidates over so many rungs."""
    total = 0
    for _ in range(n_rungs):
        total += candidates
        candidates = max(1, math.ceil(candidates * keep))
        if candidates < 2:
            break
    return total


def _label(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _words(label: str) -> str:
    candidate = json.loads(label)
    if len(candidate) == 1:
        return str(next(iter(candidate.values())))
    return ", ".join(f"{name} = {value}" for name, value in candidate.items())
