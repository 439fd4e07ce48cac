"""A sweep's trials, shared by all its workers: taken once, finished once, never lost for good."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saesteer.sweeps.storage import JOURNAL, is_url, open_storage, plain_url, quiet_optuna
from saesteer.sweeps.sweep import Sweep, Trial
from saesteer.tracking.liveness import is_alive, process_record
from saesteer.utils.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# What an attempt at a trial carries: the trial, the process that has it, what came of it, and, of
# one that was let go, how: its worker was lost, or another attempt counts.
TRIAL, PROCESS, OUTCOME, LET_GO = "trial", "process", "outcome", "let_go"
LOST, DOUBLE = "lost", "double"
SWEEP = "sweep"
# Lost this often, a trial is what kills its workers.
MOST_LOSSES = 3
# The step at which an experiment reports its metric.
ONLY_STEP = 1
_STATES = {
    "COMPLETE": "done",
    "PRUNED": "stopped early",
    "RUNNING": "running",
    "WAITING": "waiting",
    "FAIL": "failed",
}


class Attempt(NamedTuple):
    """An attempt at a trial that a worker has begun, by the storage's id."""

    id: int
    trial: Trial


@dataclass(frozen=True)
class TrialRow:
    """A trial as it stands, over all its attempts."""

    number: int
    key: str
    # done, stopped early, running, waiting or failed.
    state: str
    values: dict[str, Any]
    value: float | None
    numbers: dict[str, float | None]
    # Why it failed.
    error: str | None
    folder: str | None
    seconds: float | None
    # Machine and process of the last attempt, and how many there were.
    worker: str | None
    attempts: int


class SweepStudy:
    """The trials of one sweep, kept by Optuna in a folder or a database, `where`."""

    def __init__(self, sweep: Sweep, where: str, study: Study) -> None:
        from optuna.pruners import NopPruner, SuccessiveHalvingPruner

        self.sweep, self.where = sweep, where
        self._study, self._storage = study, study._storage
        self._beats: dict[int, tuple[Any, float]] = {}
        study.pruner = NopPruner()
        if sweep.prunes and sweep.early is not None:
            study.pruner = SuccessiveHalvingPruner(
                min_resource=ONLY_STEP,
                reduction_factor=max(2, round(sweep.early.eta)),
                min_early_stopping_rate=0,
            )

    def attempts(self) -> list[FrozenTrial]:
        """Return every attempt, oldest first."""
        with quiet_optuna():
            return self._study.get_trials(deepcopy=False)

    def is_open(self) -> bool:
        """Return whether any trial runs or waits to be run."""
        return any(not attempt.state.is_finished() for attempt in self.attempts())

    def may_ask(self) -> bool:
        """Return whether bayes may be asked for one more trial."""
        return self.sweep.method == "bayes" and len(self.rows()) < (self.sweep.count or 0)

    def enqueue(self, trials: Sequence[Trial]) -> int:
        """Put the trials that were never tried, or only lost, into the queue; return how many."""
        attempts = self.attempts()
        there = {_key(attempt) for attempt in attempts if _let_go(attempt) is None}
        known = {trial.key: trial for trial in trials}
        for attempt in attempts:
            # A worker may have been killed between letting a trial go and putting it back.
            if TRIAL in attempt.user_attrs:
                known.setdefault(attempt.user_attrs[TRIAL]["key"], _trial(attempt))
        missing = [trial for key, trial in known.items() if key not in there]
        for trial in missing:
            self._add(trial)
        return len(missing)

    def retry_failed(self) -> int:
        """Put failed trials into the queue again; return how many."""
        failed = [row for row in self.rows() if row.state == "failed"]
        for row in failed:
            self._add(Trial(row.number, row.key, row.values))
        return len(failed)

    def take(self) -> Attempt | None:
        """Take the first trial of the queue; None where there is none."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for waiting in self.attempts():
            if waiting.state != TrialState.WAITING:
                continue
            try:
                if not self._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            attempt = Attempt(waiting._trial_id, _trial(waiting))
            self.beat(attempt)
            if not self._is_double(attempt):
                return attempt
        return None

    def ask(self) -> Attempt | None:
        """Have Optuna suggest a trial, for bayes; None where it suggests what is there already."""
        import optuna

        seed = (self.sweep.seed * 1_000_003 + len(self.attempts())) % 2**32
        begin = min(10, max(3, (self.sweep.count or 20) // 3))
        with quiet_optuna():
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=begin, constant_liar=True
            )
            asked = self._study.ask({p.name: p.space() for p in self.sweep.searched})
        values = self.sweep.constants
        values |= {p.name: p.decoded(asked.params[p.name]) for p in self.sweep.searched}
        attempt = Attempt(asked._trial_id, Trial(asked.number, self.sweep.key(values), values))
        self.beat(attempt)
        self._set(attempt.id, TRIAL, attempt.trial._asdict())
        return None if self._is_double(attempt) else attempt

    def beat(self, attempt: Attempt) -> None:
        """Say that an attempt's worker is alive."""
        self._set(attempt.id, PROCESS, {**process_record(), "time": time.time()})

    def report(self, attempt: Attempt, value: float) -> bool:
        """Tell a trial's metric before its end; return whether to stop it there."""
        import optuna

        with quiet_optuna():
            trial = optuna.trial.Trial(self._study, attempt.id)
            trial.report(value, ONLY_STEP)
            return trial.should_prune()

    def finish(
        self, attempt: Attempt, value: float, outcome: Mapping[str, Any], *, early: bool = False
    ) -> bool:
        """Record a finished trial; False where another worker has taken it away meanwhile."""
        state = "PRUNED" if early else "COMPLETE"
        return self._end(attempt.id, state, {OUTCOME: dict(outcome)}, [value])

    def fail(self, attempt: Attempt, error: str, outcome: Mapping[str, Any]) -> bool:
        """Record a failed trial with its error; False as in `finish`."""
        return self._end(attempt.id, "FAIL", {OUTCOME: {**outcome, "error": error}})

    def give_back(self, attempt: Attempt) -> None:
        """Put a trial that its worker leaves on purpose into the queue again, unharmed."""
        if self._end(attempt.id, "FAIL", {LET_GO: DOUBLE}):
            self._add(attempt.trial)

    def take_back(self) -> int:
        """Put trials whose workers are gone into the queue again; return how many."""
        running = [attempt for attempt in self.attempts() if attempt.state.name == "RUNNING"]
        return sum(self._lose(attempt) for attempt in running if self._is_gone(attempt))

    def at_work(self) -> list[str]:
        """Return the processes that run trials now, such as "4711 on node-3"."""
        running = [attempt for attempt in self.attempts() if attempt.state.name == "RUNNING"]
        beats = [a.user_attrs.get(PROCESS) or {} for a in running if not self._is_gone(a)]
        return sorted({f"{beat.get('pid')} on {beat.get('host')}" for beat in beats})

    def _is_gone(self, attempt: FrozenTrial, now: float | None = None) -> bool:
        """Return whether an attempt's worker is gone.

        A worker on this machine is gone when its process is. Another machine's is gone when it has
        not beaten for the sweep's lease, by this machine's own clock: clocks of machines differ.
        """
        beat = attempt.user_attrs.get(PROCESS) or {}
        alive = is_alive(beat)
        if alive is not None:
            return not alive
        now = time.monotonic() if now is None else now
        known, since = self._beats.get(attempt.number, (None, now))
        if known != beat:
            self._beats[attempt.number] = (beat, now)
            return False
        return now - since > self.sweep.lease

    def _lose(self, attempt: FrozenTrial) -> bool:
        key = _key(attempt)
        losses = 1 + sum(_key(a) == key and _let_go(a) == LOST for a in self.attempts())
        if losses >= MOST_LOSSES:
            error = (
                f"its worker was gone {MOST_LOSSES} times before it ended, as when memory runs "
                "out; try fewer workers, then --retry-failed."
            )
            return self._end(attempt._trial_id, "FAIL", {OUTCOME: {"error": error}})
        lost = self._end(attempt._trial_id, "FAIL", {LET_GO: LOST})
        if lost and key is not None:
            self._add(_trial(attempt))
        return lost

    def rows(self) -> list[TrialRow]:
        """Return every trial as it stands, in the sweep's order."""
        attempts: dict[str, list[FrozenTrial]] = {}
        for attempt in self.attempts():
            key = _key(attempt)
            if key is not None:
                attempts.setdefault(key, []).append(attempt)
        rows = [row for own in attempts.values() if (row := _row(own)) is not None]
        if self.sweep.method == "bayes":
            # Their numbers were not known beforehand.
            return [replace(row, number=number) for number, row in enumerate(rows)]
        return sorted(rows, key=lambda row: row.number)

    def _add(self, trial: Trial) -> None:
        from optuna.trial import TrialState, create_trial

        searched = self.sweep.searched
        with quiet_optuna():
            self._study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params={p.name: p.code(trial.values[p.name]) for p in searched},
                    distributions={p.name: p.space() for p in searched},
                    user_attrs={TRIAL: trial._asdict()},
                )
            )

    def _is_double(self, attempt: Attempt) -> bool:
        """Let go of a trial that is done, that another worker has under way, or that is too many.

        So two commands may fill one queue at once, and two workers ask bayes at once.
        """
        attempts = self.attempts()
        own = next(a.number for a in attempts if a._trial_id == attempt.id)
        key, count = attempt.trial.key, self.sweep.count
        ahead = [a for a in attempts if a.number < own and _let_go(a) is None]
        double = any(_key(a) == key and a.state.name == "RUNNING" for a in ahead)
        double = double or any(
            _key(a) == key and a.state.name in ("COMPLETE", "PRUNED") for a in attempts
        )
        if self.sweep.method == "bayes" and count is not None:
            double = double or len({_key(a) for a in ahead} - {key, None}) >= count
        return double and self._end(attempt.id, "FAIL", {LET_GO: DOUBLE})

    def _end(
        self,
        attempt_id: int,
        state: str,
        attributes: Mapping[str, Any],
        values: list[float] | None = None,
    ) -> bool:
        """End an attempt; False where somebody else has ended it."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            for name, value in attributes.items():
                self._set(attempt_id, name, value)
            self._storage.set_trial_state_values(attempt_id, TrialState[state], values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _set(self, attempt_id: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(attempt_id, name, value)


def _trial(attempt: FrozenTrial) -> Trial:
    return Trial(**attempt.user_attrs[TRIAL])


def _key(attempt: FrozenTrial) -> str | None:
    """Return the hash of an attempt's settings; None where its worker died before it could say."""
    return attempt.user_attrs[TRIAL]["key"] if TRIAL in attempt.user_attrs else None


def _let_go(attempt: FrozenTrial) -> str | None:
    # Another worker may have tried to take away what its owner then finished.
    return attempt.user_attrs.get(LET_GO) if attempt.state.name == "FAIL" else None


def _row(attempts: Sequence[FrozenTrial]) -> TrialRow | None:
    """Sum up the attempts at one trial; None where all of them were let go as doubles."""
    counted = [attempt for attempt in attempts if _let_go(attempt) != DOUBLE]
    if not counted:
        return None
    # The best state counts; of several failures the last.
    order = list(_STATES)
    best = min(counted, key=lambda attempt: (order.index(attempt.state.name), -attempt.number))
    trial, outcome = _trial(best), best.user_attrs.get(OUTCOME) or {}
    process = best.user_attrs.get(PROCESS)
    return TrialRow(
        number=trial.number,
        key=trial.key,
        state="waiting" if _let_go(best) == LOST else _STATES[best.state.name],
        values=dict(trial.values),
        value=best.value if best.state.name in ("COMPLETE", "PRUNED") else None,
        numbers=dict(outcome.get("numbers") or {}),
        error=outcome.get("error"),
        folder=outcome.get("folder"),
        seconds=outcome.get("seconds"),
        worker=f"{process['host']}:{process['pid']}" if process else None,
        attempts=sum(attempt.state.name != "WAITING" for attempt in counted),
    )


def create_study(sweep: Sweep, where: str | None = None) -> SweepStudy:
    """Open a sweep's study in a database, or its own folder, making it where it is not there."""
    import optuna

    place = where or str(sweep.folder)
    storage = open_storage(place)
    with quiet_optuna():
        study = optuna.create_study(
            storage=storage, study_name=sweep.study, direction=sweep.goal, load_if_exists=True
        )
        earlier = study.user_attrs.get(SWEEP)
        if earlier is not None:
            # Later calls may raise the count, or come from another place; what trials have run
            # with stays.
            sweep = sweep.model_copy(update={"pinned": earlier["pinned"]})
        study.set_user_attr(SWEEP, sweep.record())
    return SweepStudy(sweep, place, study)


def open_study(where: str, name: str | None = None) -> SweepStudy:
    """Open a study that is there, in a folder or a database: the one named, or the only one."""
    import optuna

    shown = plain_url(where)
    if not is_url(where) and not (Path(where) / JOURNAL).is_file():
        raise ConfigError(
            f"{shown} holds no study; give the folder that saesteer sweep prints, or the URL of a "
            "database."
        )
    storage = open_storage(where)
    with quiet_optuna():
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        if name is None and len(names) != 1:
            listed = ", ".join(names[:10]) or "none"
            raise ConfigError(f"{shown} holds {len(names)} studies ({listed}); choose with --name.")
        chosen = name or names[0]
        if chosen not in names:
            raise ConfigError(f"{shown} holds no study {chosen!r}; it has {', '.join(names)}.")
        study = optuna.load_study(study_name=chosen, storage=storage)
    record = study.user_attrs.get(SWEEP)
    if not isinstance(record, dict):
        raise OutputError(f"study {chosen!r} of {shown} was not made by saesteer sweep.")
    return SweepStudy(Sweep.from_record(record), where, study)
