"""What an agent knows, rebuilt from its journal after a kill, and what of its budget is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesteer.agent.settings import AgentConfig
from saesteer.utils.errors import OutputError
from saesteer.utils.files import append_json

JOURNAL = "journal.jsonl"


@dataclass
class Experiment:
    """One experiment, "E1" or "E2" by name."""

    name: str
    kind: str
    # What the planner set, by dotted name, and why, in its words.
    settings: dict[str, Any]
    reason: str = ""
    # The same for experiments that differ in no setting, however they were written.
    key: str = ""
    # running, finished, failed, or stopped where the time was up.
    status: str = "running"
    folder: str | None = None
    error: str | None = None
    # A few of its numbers; the rest is in its folder.
    headline: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class State:
    """Everything that has happened."""

    experiments: list[Experiment] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    # Answers of the planner, and how many of the latest were refused in a row.
    turns: int = 0
    refused: int = 0
    # How often each experiment has been proposed again, by its key.
    repeats: dict[str, int] = field(default_factory=dict)
    # Spent on prompts and answers; a question under way counts with the most it can take, `asking`.
    tokens_in: int = 0
    tokens_out: int = 0
    asking: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    # Tool calls in the last answer that were not acted on.
    dropped: int = 0
    # What came of the last answer, and an answer whose outcome a kill has swallowed.
    last: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None
    finish: dict[str, Any] | None = None

    def experiment(self, name: object) -> Experiment | None:
        """Return the experiment of that name, if there is one."""
        return next((e for e in self.experiments if e.name == name), None)

    def same(self, key: str) -> Experiment | None:
        """Return the earlier experiment of that key, if there is one."""
        return next((e for e in self.experiments if e.key == key), None)

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of the journal in."""
        self.seconds += float(event.get("seconds", 0.0))
        what = event["event"]
        if what == "asking":
            self.asking = (int(event["tokens_in"]), int(event["tokens_out"]))
            self._spend(*self.asking)
        elif what == "answer":
            self._asked()
            self.turns += 1
            self._spend(int(event.get("tokens_in", 0)), int(event.get("tokens_out", 0)))
            self.pending, self.dropped = event, int(event.get("dropped", 0))
        elif what == "unasked":
            self._asked()
        elif what == "lost":
            # The tokens of a question whose answer was lost stay spent.
            self.asking = (0, 0)
        elif what == "experiment_started":
            # A resumed agent starts the experiment that was cut off a second time.
            if self.experiment(event["name"]) is None:
                names = ("name", "kind", "settings", "reason", "key")
                self.experiments.append(Experiment(*(event[name] for name in names)))
        elif what == "repeat":
            self.repeats[event["key"]] = self.repeats.get(event["key"], 0) + 1
        else:
            self._outcome(what, event)

    def _spend(self, tokens_in: int, tokens_out: int) -> None:
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def _asked(self) -> None:
        self._spend(-self.asking[0], -self.asking[1])
        self.asking = (0, 0)

    def _outcome(self, what: str, event: dict[str, Any]) -> None:
        self.pending, self.last = None, event
        self.refused = self.refused + 1 if what == "refused" else 0
        if what == "note":
            self.notes.append(event["note"])
        elif what == "finish":
            self.finish = event["finish"]
        elif what == "experiment_ended":
            experiment = self.experiment(event["name"])
            if experiment is None:
                raise ValueError("an experiment ended that was never started")
            experiment.status = event["status"]
            experiment.folder, experiment.error = event.get("folder"), event.get("error")
            experiment.headline = event.get("headline") or {}
            experiment.seconds = float(event.get("seconds", 0.0))


class Journal:
    """The agent's events, one JSON line each, on the disk before anything goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> State:
        """Return the state after all events; a last line that was cut off is dropped."""
        state = State()
        for number, line in enumerate(self._lines(), start=1):
            try:
                state.apply(json.loads(line.decode("utf-8", "replace")))
            except (KeyError, TypeError, ValueError, AttributeError):
                raise OutputError(
                    f"{self.path}:{number} is no event of an agent; delete the folder to begin "
                    "anew, or mend the line."
                ) from None
        return state

    def write(self, state: State, event: dict[str, Any]) -> None:
        """Append an event and take it in."""
        append_json(self.path, event)
        state.apply(event)

    def _lines(self) -> Iterator[bytes]:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # What follows must begin on a line of its own.
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        yield from whole.split(b"\n")[:-1]


class Budget:
    """What is spent and what is left; the program keeps it whatever the planner says."""

    def __init__(self, config: AgentConfig) -> None:
        self.limits = config.budget
        self.planner = config.planner

    def money(self, tokens_in: int, tokens_out: int) -> float:
        """Return what tokens cost."""
        cost_in = (self.planner.price_in or 0.0) * tokens_in
        return (cost_in + (self.planner.price_out or 0.0) * tokens_out) / 1e6

    def spent(self, state: State) -> dict[str, float | int]:
        """Return what was spent."""
        return {
            "experiments": len(state.experiments),
            "turns": state.turns,
            "tokens": state.tokens_in + state.tokens_out,
            "money": round(self.money(state.tokens_in, state.tokens_out), 6),
            "seconds": round(state.seconds, 1),
        }

    def left(self, state: State) -> dict[str, float | int | None]:
        """Return what is left of everything, for the planner and for people."""
        limits = {**self.limits.model_dump(), "turns": self.limits.most_turns}
        return {
            name: None if limits[name] is None else round(limits[name] - spent, 6)
            for name, spent in self.spent(state).items()
        }

    def ended_by(self, state: State) -> str | None:
        """Return why the agent must stop, or None where it may go on."""
        if state.finish is not None:
            return "it has concluded"
        left = self.left(state)
        for name in ("turns", "tokens", "seconds", "money"):
            value = left[name]
            if value is not None and value <= 0:
                return f"its budget of {name} is spent"
        if state.refused >= self.limits.refusals:
            return f"{state.refused} answers in a row were refused"
        if any(count >= self.limits.repeats for count in state.repeats.values()):
            return "it repeats itself"
        return None

    def affords(self, state: State, prompt_tokens: int) -> int:
        """Return how many attempts at one more answer fit what is left, at their longest."""
        limits, longest = self.limits, self.planner.max_tokens
        fits = (limits.tokens - state.tokens_in - state.tokens_out) // (prompt_tokens + longest)
        price = self.money(prompt_tokens, longest)
        if limits.money is not None and price > 0:
            spent = self.money(state.tokens_in, state.tokens_out)
            fits = min(fits, int((limits.money - spent) / price))
        return max(0, fits)
