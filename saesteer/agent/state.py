"""What an agent knows, rebuilt from its journal after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesteer.errors import OutputError

JOURNAL = "journal.jsonl"


@dataclass
class Experiment:
    """One experiment.

    Attributes:
        name: "E1", "E2", ...
        kind: What kind of experiment.
        settings: What the planner set, by dotted name.
        reason: Why, in the planner's words.
        status: "running", "finished" or "failed".
        folder: Where its results are.
        error: What went wrong, in one sentence.
        headline: A few of its numbers; the rest is in its folder.
        seconds: How long it took.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    reason: str = ""
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
        repeats: The most often one experiment has been proposed again.
        tokens_in: Prompt tokens spent.
        tokens_out: Answer tokens spent.
        seconds: Time spent.
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
    seconds: float = 0.0
    last: dict[str, Any] | None = None
    pending: dict[str, Any] | None = None
    finish: dict[str, Any] | None = None

    def experiment(self, name: object) -> Experiment | None:
        """Return the experiment of that name, if there is one."""
        return next((e for e in self.experiments if e.name == name), None)

    def same(self, kind: str, settings: dict[str, Any]) -> Experiment | None:
        """Return an earlier experiment with the same settings that did not fail."""
        wanted = _key(kind, settings)
        return next(
            (
                e
                for e in self.experiments
                if e.status != "failed" and _key(e.kind, e.settings) == wanted
            ),
            None,
        )

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of the journal in."""
        self.seconds += float(event.get("seconds", 0.0))
        what = event["event"]
        if what == "answer":
            self.turns += 1
            self.tokens_in += int(event.get("tokens_in", 0))
            self.tokens_out += int(event.get("tokens_out", 0))
            self.pending = event
            return
        if what == "experiment_started":
            self._started(event)
            return
        if what == "repeat":
            key = _key(event["kind"], event["settings"])
            self.repeats[key] = self.repeats.get(key, 0) + 1
            return
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
            self.experiments.append(
                Experiment(event["name"], event["kind"], event["settings"], event["reason"])
            )

    def _ended(self, event: dict[str, Any]) -> None:
        experiment = self.experiment(event["name"])
        assert experiment is not None
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
        for event in self._events():
            state.apply(event)
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
                raise OutputError(
                    f"{self.path}:{number} is no event of an agent; delete the folder to begin "
                    "anew, or mend the line."
                )
            yield event


def _key(kind: str, settings: dict[str, Any]) -> str:
    return json.dumps([kind, settings], sort_keys=True)
