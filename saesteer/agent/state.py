"""What an agent knows, rebuilt from its journal after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesteer.utils.errors import OutputError

JOURNAL = "journal.jsonl"


@dataclass
class Experiment:
    """One experiment.

    Attributes:
        name: "E1", "E2", ...
        kind: What kind of experiment.
        settings: What the planner set, by dotted name.
        reason: Why, in the planner's words.
        key: The same for experiments that differ in no setting, however they were written.
        status: "running", "finished", "failed", or "stopped" where the time was up.
        folder: Where its results are.
        error: What went wrong, in one sentence.
        headline: A few of its numbers; the rest is in its folder.
        seconds: How long it took.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    reason: str = ""
    key: str = ""
    status: str = "running"
    folder: str | None = None
    error: str | None = None
    headline: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class State:
    """Everything that has happened.

    Attributes:
        experiments: In the order they were run.
        notes: What the planner wrote down.
        turns: Answers of the planner.
        refused: Refused answers in a row.
        repeats: How often each experiment has been proposed again, by its key.
        tokens_in: Prompt tokens spent, those of a question under way at their most included.
        tokens_out: Answer tokens spent, likewise.
        asking: Prompt and answer tokens that the question under way can take at most.
        seconds: Time spent.
        dropped: Tool calls in the planner's last answer that were not acted on.
        last: What came of the planner's last answer.
        pending: An answer whose outcome a kill has swallowed.
        finish: The planner's conclusion.
    """

    experiments: list[Experiment] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    refused: int = 0
    repeats: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    asking: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    dropped: int = 0
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
            return
        if what in ("answer", "unasked"):
            self._spend(-self.asking[0], -self.asking[1])
        if what in ("answer", "unasked", "lost"):
            self.asking = (0, 0)
        if what == "answer":
            self.turns += 1
            self._spend(int(event.get("tokens_in", 0)), int(event.get("tokens_out", 0)))
            self.pending, self.dropped = event, int(event.get("dropped", 0))
        elif what == "experiment_started":
            self._started(event)
        elif what == "repeat":
            self.repeats[event["key"]] = self.repeats.get(event["key"], 0) + 1
        elif what not in ("unasked", "lost"):
            self._outcome(what, event)

    def _spend(self, tokens_in: int, tokens_out: int) -> None:
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def _outcome(self, what: str, event: dict[str, Any]) -> None:
        self.pending, self.last = None, event
        self.refused = self.refused + 1 if what == "refused" else 0
        if what == "experiment_ended":
            self._ended(event)
        elif what == "note":
            self.notes.append(event["note"])
        elif what == "finish":
            self.finish = event["finish"]

    def _started(self, event: dict[str, Any]) -> None:
        # A resumed agent starts the experiment that was cut off a second time.
        if self.experiment(event["name"]) is None:
            fields = ("name", "kind", "settings", "reason", "key")
            self.experiments.append(Experiment(*(event[field] for field in fields)))

    def _ended(self, event: dict[str, Any]) -> None:
        experiment = self.experiment(event["name"])
        if experiment is None:
            raise ValueError("an experiment ended that was never started")
        experiment.status = event["status"]
        experiment.folder, experiment.error = event.get("folder"), event.get("error")
        experiment.headline = event.get("headline") or {}
        experiment.seconds = float(event.get("seconds", 0.0))


class Journal:
    """The agent's events, one JSON line each, on the disk before anything goes on.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> State:
        """Return the state after all events; a last line that was cut off is dropped.

        Raises:
            OutputError: A line in the middle is damaged.
        """
        state = State()
        for number, event in enumerate(self._events(), start=1):
            try:
                state.apply(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise self._damaged(number) from None
        return state

    def write(self, state: State, event: dict[str, Any]) -> None:
        """Append an event and take it in.

        Raises:
            OutputError: The file cannot be written.
        """
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror}); free some space, and run the "
                "same command again to go on."
            ) from error
        state.apply(event)

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # What follows must begin on a line of its own.
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                event = json.loads(line.decode("utf-8", "replace"))
                known = isinstance(event, dict) and isinstance(event.get("event"), str)
            except ValueError:
                known = False
            if not known:
                raise self._damaged(number)
            yield event

    def _damaged(self, number: int) -> OutputError:
        return OutputError(
            f"{self.path}:{number} is no event of an agent; delete the folder to begin anew, or "
            "mend the line."
        )
