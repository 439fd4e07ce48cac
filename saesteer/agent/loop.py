"""The agent: asks the planner, checks and acts on its answer, and writes everything down."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from saesteer.agent.experiments import Experiments, OutOfTime, deadline
from saesteer.agent.planners import Answer, LlmPlanner, Planner
from saesteer.agent.report import REPORT, agent_metrics, agent_report, write_agent_report
from saesteer.agent.results import aggregate, headline, look_up, metrics_of
from saesteer.agent.seeded import SeededPlanner, tried_alone
from saesteer.agent.settings import AgentConfig
from saesteer.agent.state import JOURNAL, Budget, Journal, State
from saesteer.agent.tools import (
    Aggregate,
    Finish,
    ReadResults,
    Refused,
    RunExperiment,
    WriteNote,
    read_arguments,
)
from saesteer.experiments.results import CONFIG, METRICS, RECORD
from saesteer.report import Report
from saesteer.tracking import RecordedRun, recorded_run
from saesteer.tracking.liveness import present_status
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    OutputError,
    SaesteerError,
    UnwritableError,
)
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder, finite
from saesteer.utils.text import one_line

LONGEST_RESULT = 4000
# All control characters but tab and newline, and surrogates that stand alone.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_TIME = "it was stopped because the budget of seconds is spent"


@dataclass(frozen=True)
class AgentResult:
    """What an agent found; all of it is in its folder too."""

    folder: RunFolder
    state: State
    ended_by: str
    # `metrics.json`: the answer, the checked claims, what was spent.
    metrics: dict[str, Any]
    report: Report


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
    experiments = check_agent(config, progress)
    folder = RunFolder(config.path).create()
    lost = _lost_seconds(folder)
    session = _Session(experiments, Journal(folder.path / JOURNAL), progress)
    planner = planner or _planner(session, folder)
    settings = config.model_dump(mode="json")
    folder.write_json(CONFIG, settings)
    with recorded_run(
        folder,
        kind="agent",
        name=config.name,
        config=settings,
        # Its experiments carry the same group.
        group=folder.path.name,
        wandb=config.tracking,
        progress=progress,
    ) as record:
        ended_by = session.run(planner, record, lost)
        metrics = finite(agent_metrics(config, session.state, ended_by))
        report = agent_report(folder.path, config, session.state, metrics)
        write_agent_report(folder, report)
        folder.write_json(METRICS, metrics)
        record.summary({key: metrics[key] for key in ("answer", "ended_by", "verdicts", "spent")})
        record.artifact("report", folder.path / REPORT, "report")
    return AgentResult(folder, session.state, ended_by, metrics, report)


def check_agent(config: AgentConfig, progress: Progress) -> Experiments:
    """Check all that can be checked before anything is loaded or written."""
    experiments = Experiments(config, progress)
    if config.planner.chosen == "llm":
        config.planner.endpoint()
    elif config.search is not None:
        for settings in tried_alone(config.search):
            experiments.check(config.search.kind, settings)
    return experiments


def _lost_seconds(folder: RunFolder) -> float:
    """Return how long an agent that was killed had been at work since its last event."""
    journal, record = folder.path / JOURNAL, folder.path / RECORD
    if not (journal.is_file() and record.is_file()):
        return 0.0
    earlier, beat = folder.read_json(RECORD), record.stat().st_mtime
    if earlier.get("pid") != os.getpid() and present_status(earlier, beat) == "running":
        raise OutputError(
            f"{folder.path} has an agent at work (process {earlier.get('pid')} on "
            f"{earlier.get('host')}); wait for it, or stop it first."
        )
    # What ended in order has written its last event itself.
    return max(0.0, beat - journal.stat().st_mtime) if earlier.get("ended") is None else 0.0


def _planner(session: _Session, folder: RunFolder) -> Planner:
    experiments, config = session.experiments, session.experiments.config
    search = config.search
    if config.planner.chosen == "llm":
        return LlmPlanner(experiments, session.budget, session.tell)
    assert search is not None
    if not search.by_layer:
        return SeededPlanner(config)
    settings = next(tried_alone(search))
    space = folder.once(
        "space.json", lambda: {"n_layers": experiments.n_layers(search.kind, settings)}
    )
    return SeededPlanner(config, space["n_layers"])


class _Session:
    """One stretch of an agent's work."""

    def __init__(self, experiments: Experiments, journal: Journal, progress: Progress) -> None:
        self.experiments, self.journal, self.progress = experiments, journal, progress
        self.budget = Budget(experiments.config)
        self.record: RecordedRun | None = None
        self.state = journal.read()
        self._since = time.monotonic()

    def run(self, planner: Planner, record: RecordedRun, lost: float) -> str:
        """Go on until something ends it; return what.

        Notes go to the record too; `lost` are seconds that a kill has kept from being written down.
        """
        self.record, self._since = record, time.monotonic() - lost
        # Whoever starts it again gives an endpoint that was away another chance.
        self.state.refused = 0
        if lost or any(self.state.asking):
            self.tell("lost")
        while True:
            if self.state.pending is not None:
                self._act(self.state.pending)
            reason = self.budget.ended_by(self.state)
            if reason is not None:
                return reason
            try:
                with deadline(self._seconds_left()):
                    answer = planner.next(self.state)
            except OutOfTime:
                self.tell("lost")
                continue
            if answer is None:
                return "one more answer could overrun its budget of tokens or money"
            self.tell("answer", **_record(answer))

    def _seconds_left(self) -> float:
        return self.budget.limits.seconds - self.state.seconds

    def _act(self, pending: dict[str, Any]) -> None:
        """Act on the answer that is pending, or refuse it."""
        actions: dict[type, Callable[[Any], None]] = {
            RunExperiment: self._experiment,
            ReadResults: self._read,
            Aggregate: self._aggregate,
            WriteNote: self._note,
            Finish: lambda wanted: self.tell("finish", finish=wanted.model_dump(mode="json")),
        }
        try:
            if pending.get("problem"):
                raise Refused(f"{pending['problem']}; answer with one tool call.")
            arguments = read_arguments(pending["tool"], pending["arguments"])
            actions[type(arguments)](arguments)
        except (Refused, ConfigError, DataError) as error:
            self.progress.say(f"  refused: {error}")
            self.tell("refused", tool=pending.get("tool"), reason=str(error)[:600])

    def _experiment(self, wanted: RunExperiment) -> None:
        settings = self.experiments.check(wanted.kind, wanted.settings)
        key = f"{wanted.kind} {settings.digest()}"
        earlier = self.state.same(key)
        if earlier is not None and earlier.status in ("finished", "failed"):
            self.tell("repeat", key=key)
            failed = f"it failed: {str(earlier.error).rstrip('.')}"
            what = "read its results" if earlier.status == "finished" else failed
            raise Refused(f"{earlier.name} was that experiment; {what}; run another.")
        if earlier is None and len(self.state.experiments) >= self.budget.limits.experiments:
            raise Refused("no experiment is left in the budget; note what you found and finish.")
        name = earlier.name if earlier is not None else f"E{len(self.state.experiments) + 1}"
        self.tell("experiment_started", name=name, key=key, **wanted.model_dump(mode="json"))
        shown = ", ".join(f"{name}={value}" for name, value in wanted.settings.items())
        of = self.budget.limits.experiments
        self.progress.say(f"{name} of {of}: {wanted.kind} {shown}".rstrip()[:220])
        found: dict[str, Any] = {"status": "failed"}
        try:
            folder = str(self.experiments.run(settings, self._seconds_left()))
            experiment = self.state.experiment(name)
            assert experiment is not None
            numbers = headline(metrics_of(replace(experiment, status="finished", folder=folder)))
            found = {"status": "finished", "folder": folder, "headline": finite(numbers)}
        except OutOfTime:
            found = {"status": "stopped", "error": _NO_TIME}
        except UnwritableError:
            # The next one would fare no better; once there is room it goes on with this one.
            raise
        except Exception as error:
            # Whatever else an experiment stumbles on, the agent goes on and is told.
            kind = "" if isinstance(error, SaesteerError) else f"{type(error).__name__}: "
            found["error"] = kind + one_line(error, 300)
        self.tell("experiment_ended", name=name, **found)

    def _read(self, wanted: ReadResults) -> None:
        experiment = self.state.experiment(wanted.experiment)
        if experiment is None:
            raise Refused(f"there is no experiment {wanted.experiment[:40]!r}.")
        found = finite(look_up(metrics_of(experiment), wanted.path))
        self.tell("results", experiment=experiment.name, path=wanted.path, found=_short(found))

    def _aggregate(self, wanted: Aggregate) -> None:
        rows = aggregate(self.state, wanted.path, by=wanted.by, kind=wanted.kind)
        self.tell("aggregated", path=wanted.path, by=wanted.by, found=_short(finite(rows)))

    def _note(self, wanted: WriteNote) -> None:
        unknown = [name for name in wanted.evidence if self.state.experiment(name) is None]
        if unknown:
            raise Refused(
                f"the evidence {unknown[0][:40]!r} is no experiment; name those there are."
            )
        self.progress.say(f"  note: {wanted.observation}")
        note = wanted.model_dump(mode="json")
        self.tell("note", note=note)
        if self.record is not None:
            self.record.note(note)

    def tell(self, event: str, **fields: Any) -> None:
        """Write an event into the journal, with the seconds since the one before."""
        now = time.monotonic()
        record = {"event": event, **fields, "seconds": round(now - self._since, 3)}
        self._since = now
        self.journal.write(self.state, record)


def _record(answer: Answer) -> dict[str, Any]:
    """Return an answer as the journal keeps it: JSON, without characters that steer a terminal."""
    arguments, problem = None, answer.problem
    try:
        arguments = _harmless(finite(answer.arguments))
    except RecursionError:
        problem = problem or "the arguments are nested too deep"
    tool = answer.tool if isinstance(answer.tool, str) else None
    told = {"tool": _harmless(tool), "arguments": arguments, "problem": _harmless(problem)}
    return {**answer._asdict(), **told}


def _harmless(value: Any) -> Any:
    """Return a JSON value without control characters and halves of characters in its texts."""
    if isinstance(value, str):
        return _UNWANTED.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_harmless(key): _harmless(inner) for key, inner in value.items()}
    return [_harmless(inner) for inner in value] if isinstance(value, list) else value


def _short(found: Any) -> Any:
    text = json.dumps(found, ensure_ascii=False)
    if len(text) <= LONGEST_RESULT:
        return found
    return {"first_part": text[:LONGEST_RESULT], "characters": len(text), "hint": "go deeper"}
