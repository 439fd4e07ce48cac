"""A sweep's trials, shared by all its workers: claimed once, finished once, never lost for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.sweeps.cells import Cell
from saesteer.sweeps.early import ONLY_STEP, make_pruner
from saesteer.sweeps.rows import (
    CELL,
    DOUBLE,
    LEASE,
    LOST,
    OUTCOME,
    RELEASE,
    TrialRow,
    cell_of,
    cell_record,
    key_of,
    release_of,
    started,
    trial_rows,
)
from saesteer.sweeps.spec import MOST_LOSSES, SweepSpec
from saesteer.sweeps.storage import JOURNAL, is_url, open_storage, plain_url, quiet_optuna
from saesteer.utils.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

SPEC = "sweep"


@dataclass(frozen=True)
class Claim:
    """A trial that a worker has taken.

    Attributes:
        id: The storage's id of the trial.
        attempt: Its number among all attempts.
        cell: What to run.
    """

    id: int
    attempt: int
    cell: Cell


class SweepStudy:
    """The trials of one sweep, kept by Optuna; made by `create_study` or `open_study`.

    Attributes:
        spec: The sweep.
        where: Its folder or URL.
    """

    def __init__(self, spec: SweepSpec, where: str, study: Study, storage: BaseStorage) -> None:
        self.spec, self.where = spec, where
        self._study, self._storage = study, storage
        study.pruner = make_pruner(spec.hyperband, prunes=spec.prunes)

    def trials(self) -> list[FrozenTrial]:
        """Return every attempt, oldest first."""
        with quiet_optuna():
            return self._study.get_trials(deepcopy=False)

    def is_open(self) -> bool:
        """Return whether any trial runs or waits to be run."""
        return any(not trial.state.is_finished() for trial in self.trials())

    def enqueue(self, cells: Sequence[Cell]) -> int:
        """Put the cells that were never tried, or only lost, into the queue.

        Returns:
            How many.
        """
        settled: set[str] = set()
        known: dict[str, Cell] = {cell.key: cell for cell in cells}
        for trial in self.trials():
            cell = cell_of(trial)
            if cell is None:
                continue
            known.setdefault(cell.key, cell)
            if release_of(trial) is None:
                settled.add(cell.key)
        missing = [cell for key, cell in known.items() if key not in settled]
        for cell in missing:
            self._add(cell)
        return len(missing)

    def retry_failed(self) -> int:
        """Put failed trials into the queue again; return how many."""
        failed = [row for row in self.rows() if row.state == "failed"]
        for row in failed:
            self._add(Cell(row.number, row.codes, row.values, row.key))
        return len(failed)

    def claim(self, lease: Mapping[str, Any]) -> Claim | None:
        """Take the first trial of the queue; None where there is none.

        Args:
            lease: Who takes it.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for trial in self.trials():
            cell = cell_of(trial)
            if trial.state != TrialState.WAITING or cell is None:
                continue
            try:
                if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            self.beat(trial._trial_id, lease)
            claim = Claim(trial._trial_id, trial.number, cell)
            if not self._is_double(claim):
                return claim
        return None

    def ask(self, lease: Mapping[str, Any]) -> Claim | None:
        """Have Optuna suggest a trial, for bayes; None where it suggests what is there already."""
        import optuna

        seed = (self.spec.seed * 1_000_003 + len(self.trials())) % 2**32
        begin = min(10, max(3, (self.spec.count or 20) // 3))
        with quiet_optuna():
            self._study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=begin, constant_liar=True
            )
            trial = self._study.ask({p.name: p.space() for p in self.spec.searched})
        self.beat(trial._trial_id, lease)
        values = self.spec.constants
        values |= {p.name: p.decoded(trial.params[p.name]) for p in self.spec.searched}
        cell = Cell(trial.number, dict(trial.params), values, self.spec.trial.key(values))
        self._attribute(trial._trial_id, CELL, cell_record(cell))
        claim = Claim(trial._trial_id, trial.number, cell)
        return None if self._is_double(claim) else claim

    def beat(self, trial_id: int, lease: Mapping[str, Any]) -> None:
        """Say that a trial's worker is alive.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: Another worker has taken the trial away.
        """
        self._attribute(trial_id, LEASE, dict(lease))

    def report(self, claim: Claim, value: float) -> bool:
        """Tell a trial's metric before its end; return whether to stop it there."""
        import optuna

        with quiet_optuna():
            trial = optuna.trial.Trial(self._study, claim.id)
            trial.report(value, ONLY_STEP)
            return trial.should_prune()

    def finish(self, claim: Claim, value: float, outcome: Mapping[str, Any]) -> bool:
        """Record a finished trial; False where another worker has taken it away meanwhile."""
        from optuna.trial import TrialState

        return self._end(claim.id, TrialState.COMPLETE, [value], outcome)

    def stop_early(self, claim: Claim, value: float, outcome: Mapping[str, Any]) -> bool:
        """Record a trial that was left because others are better."""
        from optuna.trial import TrialState

        return self._end(claim.id, TrialState.PRUNED, [value], outcome)

    def fail(self, claim: Claim, error: str, outcome: Mapping[str, Any]) -> bool:
        """Record a failed trial with its error."""
        from optuna.trial import TrialState

        return self._end(claim.id, TrialState.FAIL, None, {**outcome, "error": error})

    def lose(self, trial: FrozenTrial) -> bool:
        """Take a trial from a worker that is gone and put it into the queue again.

        Returns:
            Whether it was still there to be taken.
        """
        from optuna.trial import TrialState

        cell = cell_of(trial)
        earlier = [
            t for t in self.trials() if cell and key_of(t) == cell.key and release_of(t) == LOST
        ]
        last = len(earlier) + 1 >= MOST_LOSSES
        outcome: dict[str, Any] = {}
        if last:
            outcome["error"] = (
                f"its worker was gone {MOST_LOSSES} times before it ended, as when memory runs "
                "out; try fewer workers, then --retry-failed."
            )
        if not self._end(
            trial._trial_id, TrialState.FAIL, None, outcome, release=None if last else LOST
        ):
            return False
        if cell is not None and not last:
            self._add(cell)
        return True

    def give_back(self, claim: Claim) -> None:
        """Put a trial that its worker leaves on purpose into the queue again, unharmed."""
        from optuna.trial import TrialState

        if self._end(claim.id, TrialState.FAIL, None, {}, release=DOUBLE):
            self._add(claim.cell)

    def rows(self) -> list[TrialRow]:
        """Return every trial as it stands, in the sweep's order."""
        return trial_rows(self.trials(), renumber=self.spec.method == "bayes")

    def _add(self, cell: Cell) -> None:
        from optuna.trial import TrialState, create_trial

        spaces = {p.name: p.space() for p in self.spec.searched}
        with quiet_optuna():
            self._study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=dict(cell.codes),
                    distributions=spaces,
                    user_attrs={CELL: cell_record(cell)},
                )
            )

    def _is_double(self, claim: Claim) -> bool:
        """Let go of a trial that is done, or that another worker has under way."""
        from optuna.trial import TrialState

        key, trials = claim.cell.key, self.trials()
        own = next(t for t in trials if t._trial_id == claim.id)
        live = [t for t in trials if key_of(t) == key and t._trial_id != claim.id]
        done = any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in live)
        before = (t for t in live if t.state == TrialState.RUNNING and started(t) < started(own))
        if not done and not any(before) and not self._is_surplus(claim):
            return False
        self._end(claim.id, TrialState.FAIL, None, {}, release=DOUBLE)
        return True

    def _is_surplus(self, claim: Claim) -> bool:
        """Return whether two workers' asking at once has made one trial too many."""
        if self.spec.method != "bayes" or self.spec.count is None:
            return False
        keys = dict.fromkeys(
            key_of(t) for t in self.trials() if release_of(t) != DOUBLE and key_of(t)
        )
        return list(keys).index(claim.cell.key) >= self.spec.count

    def _end(
        self,
        trial_id: int,
        state: Any,
        values: list[float] | None,
        outcome: Mapping[str, Any],
        release: str | None = None,
    ) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            if release is not None:
                self._attribute(trial_id, RELEASE, release)
            if outcome:
                self._attribute(trial_id, OUTCOME, dict(outcome))
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _attribute(self, trial_id: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial_id, name, value)


def create_study(spec: SweepSpec, where: str | None = None) -> SweepStudy:
    """Open a sweep's study, making it first where it is not there.

    Args:
        spec: The sweep.
        where: A database's URL; the sweep's own folder if None.

    Raises:
        SaesteerError: The storage cannot be opened.
    """
    import optuna

    place = where or str(spec.folder)
    storage = open_storage(place)
    with quiet_optuna():
        study = optuna.create_study(
            storage=storage, study_name=spec.study, direction=spec.goal, load_if_exists=True
        )
        earlier = study.user_attrs.get(SPEC)
        if isinstance(earlier, dict):
            # Later calls may raise the count, or come from another place; what trials have run
            # with stays.
            spec = replace(spec, pinned=dict(earlier.get("pinned") or {}))
        study.set_user_attr(SPEC, spec.as_dict())
    return SweepStudy(spec, place, study, study._storage)


def open_study(where: str, name: str | None = None) -> SweepStudy:
    """Open a study that is there.

    Args:
        where: Its folder or its database's URL.
        name: Which one of a database's; the only one if None.

    Raises:
        ConfigError: There is none, or several and no name.
        SaesteerError: The storage cannot be opened.
    """
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
    record = study.user_attrs.get(SPEC)
    if not isinstance(record, dict):
        raise OutputError(f"study {chosen!r} of {shown} was not made by saesteer sweep.")
    return SweepStudy(SweepSpec.from_dict(record), where, study, study._storage)
