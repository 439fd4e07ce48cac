"""The agent: asks the planner, checks and acts on its answer, and writes everything down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saesteer.agent.budget import Budget
from saesteer.agent.experiments import OutOfTime, Workshop, explain
from saesteer.agent.planners import Answer, LlmPlanner, Planner
from saesteer.agent.report import REPORT, write_agent_report
from saesteer.agent.results import aggregate, headline, look_up, metrics_of
from saesteer.agent.seeded import SeededPlanner
from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import JOURNAL, Journal, State
from saesteer.agent.tools import (
    Aggregate,
    Finish,
    ReadResults,
    Refused,
    RunExperiment,
    WriteNote,
    read_arguments,
)
from saesteer.errors import ConfigError, DataError
from saesteer.progress import Progress
from saesteer.tracking import RunFolder, finite
from saesteer.tracking.recording import RecordedRun, recorded_run

LONGEST_RESULT = 4000


@dataclass(frozen=True)
class AgentResult:
    """What an agent found; all of it is in its folder too.

    Attributes:
        folder: The agent's folder.
        state: Everything that happened.
        ended_by: Why it ended.
        metrics: `metrics.json`: the answer, the checked claims, what was spent.
    """

    folder: RunFolder
    state: State
    ended_by: str
    metrics: dict[str, Any]


def agent_folder(config: AgentConfig) -> Path:
    """Return where an agent of these settings is kept."""
    return Path(config.folder) / f"{config.name}-{config.digest()}"


def run_agent(
    config: AgentConfig, progress: Progress | None = None, planner: Planner | None = None
) -> AgentResult:
    """Run experiments until the question is answered or the budget is spent.

    What an earlier session has done is taken from the journal and not done again; an experiment
    that a kill has cut off goes on where it stopped.

    Args:
        config: The settings.
        progress: Where to show progress.
        planner: Who plans; as the settings say if None.

    Raises:
        SaesteerError: The settings do not fit, or the planner's endpoint refuses to answer.
    """
    progress = progress or Progress()
    workshop = Workshop(config, progress)
    folder = RunFolder(agent_folder(config)).create()
    session = _Session(workshop, Journal(folder.path / JOURNAL), Budget(config), progress)
    planner = planner or _planner(session, folder)
    folder.write_json("config.json", config.model_dump(mode="json"))
    with recorded_run(
        folder,
        kind="agent",
        name=config.name,
        config=config.model_dump(mode="json"),
        wandb=config.tracking,
        progress=progress,
    ) as record:
        session.record = record
        ended_by = session.run(planner)
        found = write_agent_report(folder, config, session.state, session.budget, ended_by)
        metrics = finite(found)
        folder.write_json("metrics.json", metrics)
        record.summary({key: metrics[key] for key in ("answer", "ended_by", "verdicts", "spent")})
        record.artifact("report", folder.path / REPORT, "report")
    return AgentResult(folder, session.state, ended_by, metrics)


def _planner(session: _Session, folder: RunFolder) -> Planner:
    workshop = session.workshop
    config = workshop.config
    if config.planner.chosen == "llm":
        return LlmPlanner(workshop, session.budget)
    assert config.search is not None
    if not config.search.by_layer:
        return SeededPlanner(config)
    kind = config.search.kind
    space = folder.once("space.json", lambda: {"n_layers": workshop.n_layers(kind)})
    return SeededPlanner(config, space["n_layers"])


class _Session:
    """One stretch of an agent's work.

    Args:
        workshop: Checks and runs experiments.
        journal: Where everything is written down.
        budget: What may be spent.
        progress: Where to say what happens.
    """

    def __init__(
        self, workshop: Workshop, journal: Journal, budget: Budget, progress: Progress
    ) -> None:
        self.workshop, self.journal, self.budget = workshop, journal, budget
        self.progress = progress
        self.record: RecordedRun | None = None
        self.state = journal.read()
        self._actions: dict[type, Callable[[Any], None]] = {
            RunExperiment: self._experiment,
            ReadResults: self._read,
            Aggregate: self._aggregate,
            WriteNote: self._note,
            Finish: self._finish,
        }
        self._since = time.monotonic()

    def run(self, planner: Planner) -> str:
        """Go on until something ends it; return what."""
        while True:
            reason = self.budget.ended_by(self.state)
            if reason is not None:
                return reason
            if self.state.pending is None:
                self._since = time.monotonic()
                answer = planner.next(self.state)
                if answer is None:
                    return "one more answer could overrun its budget of tokens or money"
                self._write("answer", **_record(answer))
            self._act()

    def _act(self) -> None:
        """Act on the answer that is pending, or refuse it."""
        pending = self.state.pending
        assert pending is not None
        try:
            if pending.get("problem"):
                raise Refused(f"{pending['problem']}; answer with one tool call.")
            arguments = read_arguments(pending["tool"], pending["arguments"])
            self._actions[type(arguments)](arguments)
        except (Refused, ConfigError, DataError) as error:
            self.progress.say(f"  refused: {error}")
            self._write("refused", tool=pending.get("tool"), reason=str(error)[:600])

    def _experiment(self, wanted: RunExperiment) -> None:
        settings = self.workshop.check(wanted.kind, wanted.settings)
        earlier = self.state.same(wanted.kind, wanted.settings)
        if earlier is not None and earlier.status == "finished":
            self._write("repeat", kind=wanted.kind, settings=wanted.settings)
            raise Refused(f"{earlier.name} was that experiment; read its results, or run another.")
        if earlier is None and self.budget.left(self.state)["experiments"] == 0:
            raise Refused("no experiment is left in the budget; note what you found and finish.")
        name = earlier.name if earlier is not None else f"E{len(self.state.experiments) + 1}"
        self._write(
            "experiment_started",
            name=name,
            kind=wanted.kind,
            settings=wanted.settings,
            reason=wanted.reason,
        )
        self.progress.say(f"{name} of {self.budget.limits.experiments}: {_said(wanted)}")
        left = self.budget.limits.seconds - self.state.seconds
        found: dict[str, Any] = {"status": "failed"}
        try:
            folder, metrics = self.workshop.run(wanted.kind, settings, left)
        except OutOfTime:
            found["error"] = "it was stopped because the budget of seconds is spent"
        except Exception as error:
            # Whatever an experiment stumbles on, the agent goes on and is told.
            found["error"] = explain(error)
        else:
            numbers = finite(headline(metrics))
            found = {"status": "finished", "folder": str(folder), "headline": numbers}
        self._write("experiment_ended", name=name, **found)

    def _read(self, wanted: ReadResults) -> None:
        experiment = self.state.experiment(wanted.experiment)
        if experiment is None:
            raise Refused(f"there is no experiment {wanted.experiment[:40]!r}.")
        found = finite(look_up(metrics_of(experiment), wanted.path))
        self._write("results", experiment=experiment.name, path=wanted.path, found=_short(found))

    def _aggregate(self, wanted: Aggregate) -> None:
        rows = aggregate(self.state, wanted.path, by=wanted.by, kind=wanted.kind)
        self._write("aggregated", path=wanted.path, by=wanted.by, found=_short(finite(rows)))

    def _note(self, wanted: WriteNote) -> None:
        unknown = [name for name in wanted.evidence if self.state.experiment(name) is None]
        if unknown:
            raise Refused(
                f"the evidence {unknown[0][:40]!r} is no experiment; name those there are."
            )
        self.progress.say(f"  note: {wanted.observation}")
        note = wanted.model_dump(mode="json")
        self._write("note", note=note)
        if self.record is not None:
            self.record.note(note)

    def _finish(self, wanted: Finish) -> None:
        self._write("finish", finish=wanted.model_dump(mode="json"))

    def _write(self, event: str, **fields: Any) -> None:
        now = time.monotonic()
        record = {"event": event, **fields, "seconds": round(now - self._since, 3)}
        self._since = now
        self.journal.write(self.state, record)


def _record(answer: Answer) -> dict[str, Any]:
    """Return an answer as the journal keeps it; what is no JSON becomes words."""
    return {
        "tool": answer.tool if isinstance(answer.tool, str) else None,
        "arguments": finite(answer.arguments),
        "problem": answer.problem,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
    }


def _said(wanted: RunExperiment) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in wanted.settings.items())
    words = f"{wanted.kind} {settings}".strip()
    return words if len(words) <= 200 else words[:199] + "…"


def _short(found: Any) -> Any:
    import json

    text = json.dumps(found, ensure_ascii=False)
    if len(text) <= LONGEST_RESULT:
        return found
    return {"first_part": text[:LONGEST_RESULT], "characters": len(text), "hint": "go deeper"}
