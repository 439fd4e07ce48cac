"""Trials as they stand: one row each, over all attempts at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saesteer.sweeps.cells import Cell
from saesteer.sweeps.parameters import coded

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# What a trial carries: what it is of, who has it, what came of it, and why it was let go.
CELL, LEASE, OUTCOME, RELEASE = "cell", "lease", "outcome", "release"
LOST, DOUBLE = "lost", "double"


@dataclass(frozen=True)
class TrialRow:
    """A trial as it stands, over all its attempts.

    Attributes:
        number: Its place in the sweep.
        key: The hash of its settings.
        state: done, stopped early, running, waiting or failed.
        values: Its parameters.
        codes: The same in Optuna's terms.
        value: Its metric.
        numbers: All its numbers.
        error: Why it failed, or why it was stopped.
        folder: Its run's folder.
        seconds: How long the last attempt took.
        worker: Who made it.
        attempts: How often it was begun.
    """

    number: int
    key: str
    state: str
    values: dict[str, Any]
    codes: dict[str, Any]
    value: float | None
    numbers: dict[str, float | None]
    error: str | None
    folder: str | None
    seconds: float | None
    worker: str | None
    attempts: int


def trial_rows(trials: Sequence[FrozenTrial], *, renumber: bool = False) -> list[TrialRow]:
    """Return every trial as it stands, in the sweep's order.

    Args:
        trials: All attempts, oldest first.
        renumber: Number them by their first attempt, where numbers were not known beforehand.
    """
    attempts: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        key = key_of(trial)
        if key is not None:
            attempts.setdefault(key, []).append(trial)
    found = [row for own in attempts.values() if (row := _row(own)) is not None]
    if renumber:
        return [replace(row, number=number) for number, row in enumerate(found)]
    return sorted(found, key=lambda row: row.number)


def cell_of(trial: FrozenTrial) -> Cell | None:
    """Return what an attempt is of; None where its worker was gone before it could say."""
    record = trial.user_attrs.get(CELL)
    return None if record is None else Cell(**record)


def cell_record(cell: Cell) -> dict[str, Any]:
    """Return what `cell_of` reads back."""
    codes = {name: coded(code) for name, code in cell.codes.items()}
    return {"number": cell.number, "codes": codes, "values": dict(cell.values), "key": cell.key}


def key_of(trial: FrozenTrial) -> str | None:
    """Return the hash of an attempt's settings; None as for `cell_of`."""
    record = trial.user_attrs.get(CELL)
    return None if record is None else record["key"]


def release_of(trial: FrozenTrial) -> str | None:
    """Return why an attempt was let go without a result; None where it has one."""
    # Another worker may have tried to take away what its owner then finished.
    return trial.user_attrs.get(RELEASE) if trial.state.name == "FAIL" else None


def started(trial: FrozenTrial) -> tuple[float, int]:
    """Return what orders attempts by their start."""
    start = trial.datetime_start
    return (start.timestamp() if start else 0.0, trial.number)


def _row(trials: Sequence[FrozenTrial]) -> TrialRow | None:
    from optuna.trial import TrialState

    names = {
        TrialState.COMPLETE: "done",
        TrialState.PRUNED: "stopped early",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.FAIL: "failed",
    }
    order = list(names)
    # Of several, the best state counts; of failures the last that has something to say.
    best = min(trials, key=lambda t: (order.index(t.state), release_of(t) == DOUBLE, -t.number))
    cell = cell_of(best)
    if cell is None or (best.state == TrialState.FAIL and release_of(best) == DOUBLE):
        return None
    outcome, lease = best.user_attrs.get(OUTCOME) or {}, best.user_attrs.get(LEASE) or {}
    ended = best.state in (TrialState.COMPLETE, TrialState.PRUNED)
    state = "waiting" if release_of(best) == LOST else names[best.state]
    begun = [t for t in trials if t.state != TrialState.WAITING and release_of(t) != DOUBLE]
    return TrialRow(
        number=cell.number,
        key=cell.key,
        state=state,
        values=dict(cell.values),
        codes=dict(cell.codes),
        value=best.value if ended else None,
        numbers=dict(outcome.get("numbers") or {}),
        error=outcome.get("error"),
        folder=outcome.get("folder"),
        seconds=outcome.get("seconds"),
        worker=lease.get("worker"),
        attempts=len(begun),
    )
