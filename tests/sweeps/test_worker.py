"""Workers that share a study: nothing twice, nothing lost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from saesteer.sweeps.storage import JOURNAL
from saesteer.sweeps.study import MOST_LOSSES, PROCESS, create_study, open_study
from saesteer.sweeps.sweep import Sweep
from saesteer.sweeps.worker import Worker
from saesteer.tracking.liveness import process_record
from saesteer.utils.errors import DataError, OutputError, UnwritableError
from saesteer.utils.files import unwritable
from tests.sweeps.conftest import TWO


@pytest.fixture(params=["folder", "database"])
def place(request, tmp_path) -> str | None:
    """Where the study lives: its own folder, or SQLite as a stand-in for any database."""
    return None if request.param == "folder" else f"sqlite:///{tmp_path / 'study.db'}"


def started(sweep, place=None):
    study = create_study(sweep, place)
    study.enqueue(sweep.trials())
    return study


def leave_behind(study, process: dict[str, Any]):
    """Take a trial as a process that then dies."""
    attempt = study.take()
    assert attempt is not None
    beat_as(study, attempt, process)
    return attempt


def beat_as(study, attempt, process: dict[str, Any]) -> None:
    study._set(attempt.id, PROCESS, {**process_record(), **process})


# A process number that no process has, and a machine that nobody hears of any more.
DEAD = {"pid": 2**22 + 1, "process_started": None}
FAR = {"host": "elsewhere"}


def test_a_grid_is_run_once_by_workers_at_once_and_never_again(sweep_of, made_up, place):
    study = started(sweep_of(), place)
    crew = [Worker(study), Worker(open_study(study.where, study.sweep.study))]
    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(Worker.work, crew))
    assert (sum(report.done for report in reports), reports[0].failed) == (6, 0)
    trials = [trial.values for trial in study.sweep.trials()]
    assert len(made_up) == 6 and all(values in trials for values in made_up)
    rows = study.rows()
    assert [(row.state, row.values) for row in rows] == [("done", values) for values in trials]
    assert rows[4].value == 1.0
    assert rows[4].numbers == {"effect": 1.0, "kl": 0.1, "kl_target": 0.1}
    # Started anew, by anybody.
    again = started(sweep_of(), place)
    assert again.enqueue(again.sweep.trials()) == 0
    assert Worker(again).work().done == 0
    assert len(made_up) == 6


def test_another_machines_silence_is_waited_out_by_ones_own_clock(sweep_of, made_up):
    study = started(sweep_of({"lease": 100}))
    attempt = leave_behind(study, FAR)

    def is_gone(now: float) -> bool:
        (running,) = [a for a in study.attempts() if a._trial_id == attempt.id]
        return study._is_gone(running, now)

    assert [is_gone(now) for now in (0, 99)] == [False, False]
    # A beat, whatever the other machine's clock says.
    beat_as(study, attempt, {**FAR, "time": 7})
    assert [is_gone(now) for now in (150, 249, 251)] == [False, False, True]
    # One that died before its first beat is waited out too.
    silent = leave_behind(study, {})
    study._set(silent.id, PROCESS, {})
    attempt = silent
    assert [is_gone(now) for now in (0, 99, 101)] == [False, False, True]


def test_the_trial_of_a_dead_process_is_taken_over_and_its_late_answer_changes_nothing(
    sweep_of, made_up, place
):
    study = started(sweep_of(), place)
    lost = leave_behind(study, DEAD)
    report = Worker(open_study(study.where, study.sweep.study)).work()
    assert (report.done, report.reclaimed) == (6, 1)
    row = study.rows()[lost.trial.number]
    assert (row.state, row.attempts) == ("done", 2)
    assert len(made_up) == 6
    assert study.finish(lost, -99.0, {"numbers": {}}) is False
    assert study.fail(lost, "x", {}) is False
    assert study.rows()[lost.trial.number].value == row.value != -99.0


def test_a_trial_that_kills_its_workers_is_given_up(sweep_of, made_up):
    study = started(sweep_of(parameters={"seed": {"values": [1]}}))
    for _ in range(MOST_LOSSES):
        leave_behind(study, DEAD)
        assert study.take_back() == 1
    (row,) = study.rows()
    assert row.state == "failed"
    assert "its worker was gone 3 times" in str(row.error)
    assert Worker(study).work().done == 0
    assert study.retry_failed() == 1
    assert Worker(study).work().done == 1


def test_failures_keep_their_sentence_and_are_retried_on_request(sweep_of, made_up, monkeypatch):
    study = started(sweep_of())
    measure = Sweep.measure

    def stumble(self, values, **rest):
        if values["selection.n_features"] == 12:
            raise DataError("pairs.csv line 3 has no text; correct it.")
        if values["selection.n_features"] == 16:
            raise ZeroDivisionError("a\nb")
        return measure(self, values, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "measure", stumble)
        report = Worker(study).work()
        assert (report.done, report.failed) == (2, 4)
        errors = [row.error for row in study.rows()]
        assert errors[1] == "pairs.csv line 3 has no text; correct it."
        assert errors[2] == "ZeroDivisionError: a b"
        # Not by themselves.
        assert study.enqueue(study.sweep.trials()) == 0
        assert Worker(study).work().done == 0
    assert study.retry_failed() == 4
    assert Worker(study).work().done == 4
    assert [(row.state, row.error, row.attempts) for row in study.rows()][1] == ("done", None, 2)


def test_why_a_trial_failed_is_kept_without_secrets(sweep_of, made_up, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine-1234")

    def stumble(self, values, **rest):
        if values["selection.n_features"] == 8:
            return Path("x"), {"effect": None, "kl_target": 0.3}
        raise RuntimeError("key-of-mine-1234 was refused")

    monkeypatch.setattr(Sweep, "measure", stumble)
    study = started(sweep_of())
    assert Worker(study).work().failed == 6
    assert [row.error for row in study.rows()][:2] == [
        "effect could not be measured, as when the KL target 0.3 is not reached.",
        "RuntimeError: *** was refused",
    ]
    logged = "".join(capsys.readouterr())
    assert "Traceback" in logged and "of-mine" not in logged


def test_a_queue_cut_off_or_filled_twice_at_once_runs_everything_once(sweep_of, made_up):
    sweep = sweep_of()
    study = create_study(sweep)
    study.enqueue(sweep.trials()[:2])
    assert study.enqueue(sweep.trials()) == 4
    for trial in sweep.trials():
        study._add(trial)
    assert Worker(study).work().done == 6
    assert len(made_up) == 6
    assert [row.number for row in study.rows()] == list(range(6))
    metric = {"name": "effect", "goal": "maximize", "target": 0.0}
    reached = started(sweep_of(metric=metric))
    assert Worker(reached).work().done == 2
    assert [row.state for row in reached.rows()][:3] == ["done", "done", "waiting"]


def test_bayes_finds_the_best_and_stops_at_its_count(sweep_of, made_up):
    space = {"selection.n_features": {"min": 1, "max": 60}, "seed": {"value": 4}}
    sweep = sweep_of(method="bayes", run_cap=18, parameters=space)
    study = create_study(sweep)
    assert Worker(study).work().done == 18
    rows = study.rows()
    assert len({row.key for row in rows}) == len(rows) == 18
    assert [row.number for row in rows] == list(range(18))
    assert all(values["seed"] == 4 for values in made_up)
    best = max(row.value for row in rows if row.value is not None)
    # 18 blind draws of 60 miss the optimum by more than 2 in half of all sweeps.
    assert best >= -4
    first = [values["selection.n_features"] for values in made_up]
    made_up.clear()
    again = sweep_of({"overrides": ["name=other"]}, method="bayes", run_cap=18, parameters=space)
    Worker(create_study(again)).work()
    assert [values["selection.n_features"] for values in made_up] == first
    # It ends where there is nothing new to suggest.
    space = {"selection.n_features": {"values": [8, 12]}}
    small = create_study(sweep_of(method="bayes", run_cap=50, parameters=space))
    assert Worker(small).work().done == 2


def test_hyperband_leaves_the_worse_ones_and_keeps_their_values(sweep_of, made_up):
    early = {"type": "hyperband", "min_iter": 1, "eta": 3}
    sweep = sweep_of(early_terminate=early)
    assert sweep.prunes
    study = started(sweep)
    Worker(study).work()
    rows = study.rows()
    # -16, 0, -16, -15, 1, -15: each one that is not the best so far is left.
    assert [row.state for row in rows] == [
        *("done", "done", "stopped early"),
        *("stopped early", "done", "stopped early"),
    ]
    assert rows[2].value == -16
    assert study.enqueue(sweep.trials()) == 0


def test_a_trial_that_runs_longer_than_its_lease_keeps_it(sweep_of, made_up, monkeypatch):
    sweep = sweep_of({"lease": 1.0}, parameters={"seed": {"value": 1}})
    study = started(sweep)
    beats = []
    measure = Sweep.measure

    def slow(self, values, **rest):
        for _ in range(6):
            (attempt,) = [a for a in study.attempts() if a.state.name == "RUNNING"]
            beats.append(attempt.user_attrs[PROCESS]["time"])
            time.sleep(0.1)
        return measure(self, values, **rest)

    monkeypatch.setattr(Sweep, "measure", slow)
    assert Worker(study).work().done == 1
    assert len(set(beats)) >= 2


def test_half_a_line_left_by_a_crash_is_taken_away_and_damage_inside_is_one_sentence(sweep_of):
    journal = started(sweep_of()).sweep.folder / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    assert len(open_study(str(journal.parent)).rows()) == 6
    assert journal.read_bytes() == whole
    first, *rest = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join([first, b"\x00\xff no JSON\n", *rest]))
    with pytest.raises(OutputError, match=rf"{JOURNAL} is damaged .*delete the line"):
        open_study(str(journal.parent))


def test_a_full_disk_ends_the_worker_and_fails_no_trial(sweep_of, made_up, monkeypatch, full_disk):
    study = started(sweep_of(parameters=TWO))
    journal = study.sweep.folder / JOURNAL
    run, room = Sweep.measure, {"left": 1}

    def measure(self: Sweep, values: dict[str, Any], **rest: Any) -> Any:
        room["left"] -= 1
        if room["left"] < 0:
            raise unwritable(Path("metrics.json"), OSError(28, "No space left on device"))
        return run(self, values, **rest)

    monkeypatch.setattr(Sweep, "measure", measure)
    with pytest.raises(UnwritableError, match="No space left"):
        Worker(study).work()
    assert sorted(row.state for row in study.rows()) == ["done", "waiting"]
    # The study itself has no room.
    for size in (0, 20):
        with full_disk(journal, size), pytest.raises(UnwritableError, match=r"journal\.log cannot"):
            Worker(study).work()
    room["left"] = 9
    assert Worker(started(sweep_of(parameters=TWO))).work().done == 1
    assert [row.state for row in study.rows()] == ["done", "done"]


def test_ctrl_c_puts_the_running_trial_back(sweep_of, made_up, monkeypatch):
    study = started(sweep_of())

    def interrupt(self, values, **rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Worker(study).work()
    assert {row.state for row in study.rows()} == {"waiting"}
    assert Worker(study).work().done == 6
    # What somebody stopped on purpose counts as no attempt.
    assert {row.attempts for row in study.rows()} == {1}
