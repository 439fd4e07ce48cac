"""Workers that share a study: nothing twice, nothing lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from saesteer.sweeps.lease import Lease, Watchman
from saesteer.sweeps.spec import MOST_LOSSES
from saesteer.sweeps.study import create_study, open_study
from saesteer.sweeps.trials import TrialKind
from saesteer.sweeps.worker import Worker
from saesteer.utils.errors import DataError


@pytest.fixture(params=["folder", "database"])
def place(request, tmp_path) -> str | None:
    """Where the study lives: its own folder, or SQLite as a stand-in for any database."""
    return None if request.param == "folder" else f"sqlite:///{tmp_path / 'study.db'}"


def started(spec, place=None):
    study = create_study(spec, place)
    study.enqueue(spec.cells())
    return study


def leave_behind(study, lease: dict[str, Any]):
    """Take a trial as a worker that then dies."""
    claim = study.claim(Lease().record() | lease)
    assert claim is not None
    return claim


# A process number that no process has, and a machine that nobody hears of any more.
DEAD = {"pid": 2**22 + 1, "process_started": None}
FAR = {"host": "elsewhere", "worker": "elsewhere:1"}


def test_a_grid_is_run_once_and_never_again(spec_of, made_up, place):
    study = started(spec_of(), place)
    report = Worker(study).work()
    assert (report.done, report.failed) == (6, 0)
    assert [tuple(v.values()) for v in made_up] == [
        tuple(c.values.values()) for c in study.spec.cells()
    ]
    rows = study.rows()
    assert [row.state for row in rows] == ["done"] * 6
    assert rows[4].value == 1.0
    assert rows[4].numbers == {"effect": 1.0, "kl": 0.1, "kl_target": 0.1}
    # Started anew, by anybody.
    again = started(spec_of(), place)
    assert again.enqueue(again.spec.cells()) == 0
    assert Worker(again).work().done == 0
    assert len(made_up) == 6


def test_workers_at_once_share_the_trials(spec_of, made_up, place):
    study = started(spec_of(), place)
    other = open_study(study.where, study.spec.study)
    crew = [Worker(study), Worker(other)]
    threads = [threading.Thread(target=worker.work) for worker in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made_up) == 6
    assert {json.dumps(values) for values in made_up} == {
        json.dumps(cell.values) for cell in study.spec.cells()
    }


def test_the_trial_of_a_dead_process_is_taken_over(spec_of, made_up, place):
    study = started(spec_of(), place)
    lost = leave_behind(study, DEAD)
    report = Worker(open_study(study.where, study.spec.study)).work()
    assert (report.done, report.reclaimed) == (6, 1)
    row = study.rows()[lost.cell.number]
    assert (row.state, row.attempts) == ("done", 2)
    assert len(made_up) == 6


def test_another_machines_silence_is_waited_out_by_ones_own_clock(spec_of, made_up):
    study = started(spec_of())
    claim = leave_behind(study, FAR)
    watchman = Watchman(lease=100)

    def trial():
        return next(t for t in study.trials() if t._trial_id == claim.id)

    assert not watchman.is_gone(trial(), now=0)
    assert not watchman.is_gone(trial(), now=99)
    # A beat, whatever the other machine's clock says.
    study.beat(claim.id, {**Lease().record(), **FAR, "beat": 7})
    assert not watchman.is_gone(trial(), now=150)
    assert not watchman.is_gone(trial(), now=249)
    assert watchman.is_gone(trial(), now=251)


def test_a_worker_that_comes_back_too_late_changes_nothing(spec_of, made_up, place):
    study = started(spec_of(), place)
    late = leave_behind(study, DEAD)
    Worker(study).work()
    assert study.finish(late, -99.0, {"numbers": {}}) is False
    assert study.rows()[late.cell.number].value != -99.0
    assert study.fail(late, "x", {}) is False


def test_a_trial_that_kills_its_workers_is_given_up(spec_of, made_up):
    study = started(spec_of())
    for _ in range(MOST_LOSSES):
        (claim,) = [leave_behind(study, DEAD)]
        # The others wait behind it in the queue's order.
        while claim.cell.number != 0:
            study.give_back(claim)
            claim = leave_behind(study, DEAD)
        (trial,) = [t for t in study.trials() if t._trial_id == claim.id]
        assert study.lose(trial)
    row = study.rows()[0]
    assert row.state == "failed"
    assert "its worker was gone 3 times" in str(row.error)
    assert Worker(study).work().done == 5


def test_failures_keep_their_sentence_and_are_retried_on_request(spec_of, made_up, monkeypatch):
    study = started(spec_of())
    measure = TrialKind.measure

    def stumble(self, values, **rest):
        if values["selection.n_features"] == 12:
            raise DataError("pairs.csv line 3 has no text; correct it.")
        if values["selection.n_features"] == 16:
            raise ZeroDivisionError("a\nb")
        return measure(self, values, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrialKind, "measure", stumble)
        report = Worker(study).work()
        assert (report.done, report.failed) == (2, 4)
        errors = [row.error for row in study.rows()]
        assert errors[1] == "pairs.csv line 3 has no text; correct it."
        assert errors[2] == "ZeroDivisionError: a b"
        # Not by themselves.
        assert study.enqueue(study.spec.cells()) == 0
        assert Worker(study).work().done == 0
    assert study.retry_failed() == 4
    assert Worker(study).work().done == 4
    assert [(row.state, row.error, row.attempts) for row in study.rows()][1] == ("done", None, 2)


def test_a_secret_in_an_error_is_neither_in_the_workers_log_nor_in_the_study(
    spec_of, made_up, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine-1234")

    def stumble(self, values, **rest):
        raise RuntimeError("key-of-mine-1234 was refused")

    monkeypatch.setattr(TrialKind, "measure", stumble)
    study = started(spec_of())
    Worker(study).work()
    assert study.rows()[0].error == "RuntimeError: *** was refused"
    logged = "".join(capsys.readouterr())
    assert "Traceback" in logged and "of-mine" not in logged


def test_a_metric_that_was_not_measured_is_a_failure_with_its_reason(spec_of, monkeypatch):
    from saesteer.sweeps.trials import Measured

    numbers = {"effect": None, "kl_target": 0.3}
    monkeypatch.setattr(TrialKind, "measure", lambda self, v, **k: Measured(Path("x"), numbers))
    study = started(spec_of())
    assert Worker(study).work().failed == 6
    assert study.rows()[0].error == (
        "effect could not be measured, as when the KL target 0.3 is not reached."
    )


def test_ctrl_c_puts_the_running_trial_back(spec_of, made_up, monkeypatch):
    study = started(spec_of())

    def interrupt(self, values, **rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialKind, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Worker(study).work()
    assert {row.state for row in study.rows()} == {"waiting"}
    assert Worker(study).work().done == 6
    # What somebody stopped on purpose counts as no attempt.
    assert {row.attempts for row in study.rows()} == {1}


def test_a_sweep_cut_off_while_it_filled_the_queue_is_filled_up(spec_of, made_up):
    spec = spec_of()
    study = create_study(spec)
    study.enqueue(spec.cells()[:2])
    assert study.enqueue(spec.cells()) == 4
    assert Worker(study).work().done == 6


def test_two_sweeps_that_fill_one_queue_at_once_run_nothing_twice(spec_of, made_up):
    spec = spec_of()
    study = create_study(spec)
    for cell in [*spec.cells(), *spec.cells()]:
        study._add(cell)
    assert Worker(study).work().done == 6
    assert len(made_up) == 6
    assert [row.number for row in study.rows()] == list(range(6))


def test_the_target_ends_the_sweep(spec_of, made_up):
    metric = {"name": "effect", "goal": "maximize", "target": 0.0}
    study = started(spec_of(metric=metric))
    assert Worker(study).work().done == 2
    assert [row.state for row in study.rows()][:3] == ["done", "done", "waiting"]


def test_bayes_finds_the_best_and_stops_at_its_count(spec_of, made_up):
    space = {"selection.n_features": {"min": 1, "max": 60}, "seed": {"value": 4}}
    spec = spec_of(method="bayes", run_cap=18, parameters=space)
    study = create_study(spec)
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
    again = spec_of({"overrides": ["name=other"]}, method="bayes", run_cap=18, parameters=space)
    Worker(create_study(again)).work()
    assert [values["selection.n_features"] for values in made_up] == first


def test_bayes_ends_when_there_is_nothing_new_to_suggest(spec_of, made_up):
    space = {"selection.n_features": {"values": [8, 12]}}
    study = create_study(spec_of(method="bayes", run_cap=50, parameters=space))
    assert Worker(study).work().done == 2


def test_hyperband_leaves_the_worse_ones_and_keeps_their_values(spec_of, made_up):
    early = {"type": "hyperband", "min_iter": 1, "eta": 3}
    spec = spec_of(early_terminate=early)
    assert spec.prunes
    study = started(spec)
    Worker(study).work()
    rows = study.rows()
    # -16, 0, -16, -15, 1, -15: each one that is not the best so far is left.
    assert [row.state for row in rows] == [
        *("done", "done", "stopped early"),
        *("stopped early", "done", "stopped early"),
    ]
    assert rows[2].value == -16
    assert study.enqueue(spec.cells()) == 0


@pytest.mark.parametrize(
    ("early", "prunes"),
    [
        ({"type": "hyperband", "min_iter": 3}, False),
        ({"type": "hyperband", "max_iter": 9, "s": 2}, True),
        ({"type": "hyperband", "max_iter": 27, "s": 2}, False),
        ({"type": "hyperband"}, False),
    ],
)
def test_hyperband_brackets_count_where_a_run_reports(early, prunes, spec_of):
    from saesteer.sweeps.early import early_note

    spec = spec_of(early_terminate=early)
    assert spec.prunes is prunes
    note = early_note(spec.hyperband, "run")
    assert note is not None and ("left out" in note) is not prunes


def test_a_trial_that_runs_longer_than_its_lease_keeps_it(spec_of, made_up, monkeypatch):
    import time

    spec = spec_of({"lease": 1.0}, parameters={"seed": {"value": 1}})
    study = started(spec)
    beats = []
    measure = TrialKind.measure

    def slow(self, values, **rest):
        for _ in range(6):
            (trial,) = [t for t in study.trials() if t.state.name == "RUNNING"]
            beats.append(trial.user_attrs["lease"]["beat"])
            time.sleep(0.1)
        return measure(self, values, **rest)

    monkeypatch.setattr(TrialKind, "measure", slow)
    assert Worker(study).work().done == 1
    assert len(set(beats)) >= 2
