"""A worker: takes trials of a study one after another until none is left."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saesteer.sweeps.early import StoppedEarly
from saesteer.sweeps.lease import BEATS, Heartbeat, Lease, Watchman
from saesteer.sweeps.study import Claim, SweepStudy
from saesteer.sweeps.trials import Measured, metric_value
from saesteer.tracking.redaction import redact_text
from saesteer.utils.cache import Cache
from saesteer.utils.errors import SaesteerError
from saesteer.utils.progress import Progress

POLL_SECONDS = 0.5
LONGEST_POLL = 5.0
# Suggestions in a row that were there already, after which bayes has nothing left to try.
MOST_REPEATS = 30


class TrialProgress(Progress):
    """A trial's progress inside a sweep: its bars, and of its words what is not said every time.

    Args:
        shown: The worker's own.
    """

    def __init__(self, shown: Progress) -> None:
        super().__init__(shown._console)

    def say(self, text: str) -> None:
        """Print a line that tells of loading or of a warning."""
        if text.startswith(("Loading", "warning")):
            super().say(text)


@dataclass
class WorkerReport:
    """What a worker did.

    Attributes:
        done: Trials that it finished.
        failed: Trials that failed.
        reclaimed: Trials of other workers that it put back into the queue.
    """

    done: int = 0
    failed: int = 0
    reclaimed: int = 0


@dataclass
class Worker:
    """Runs a study's trials in this process.

    Attributes:
        study: The study.
        progress: Where to say what is going on.
        parent: The id of the sweep's own record, if it has one.
        wait: Whether to stay while others run trials, to take over those of workers that die.
        most: The most trials to run; all if None.
        tell: Called after every trial.
    """

    study: SweepStudy
    progress: Progress = field(default_factory=Progress)
    parent: str | None = None
    wait: bool = True
    most: int | None = None
    tell: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        spec = self.study.spec
        self._lease = Lease()
        self._watchman = Watchman(spec.lease)
        self._shelf = Cache(spec.folder / "cache")
        self._report = WorkerReport()
        self._repeats = 0

    def work(self) -> WorkerReport:
        """Run trials until the study has none left, or as many as asked for."""
        pause = POLL_SECONDS
        while self.most is None or self._report.done + self._report.failed < self.most:
            self._take_back()
            if self._is_enough():
                break
            claim = self._next()
            if claim is not None:
                self._run(claim)
                self.tell()
                pause = POLL_SECONDS
            elif self._may_ask():
                continue
            elif self.wait and self.study.is_open():
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_POLL)
            else:
                break
        return self._report

    def _next(self) -> Claim | None:
        claim = self.study.claim(self._lease.record())
        if claim is None and self._may_ask():
            claim = self.study.ask(self._lease.record())
            self._repeats = self._repeats + 1 if claim is None else 0
        return claim

    def _may_ask(self) -> bool:
        spec = self.study.spec
        if spec.method != "bayes" or self._repeats >= MOST_REPEATS:
            return False
        return spec.count is None or len(self.study.rows()) < spec.count

    def _is_enough(self) -> bool:
        """Return whether a trial has reached the metric's target."""
        spec = self.study.spec
        if spec.target is None:
            return False
        sign = 1 if spec.goal == "maximize" else -1
        values = [row.value for row in self.study.rows() if row.value is not None]
        return any(sign * value >= sign * spec.target for value in values)

    def _running(self) -> list[Any]:
        return [trial for trial in self.study.trials() if trial.state.name == "RUNNING"]

    def _take_back(self) -> None:
        for trial in self._running():
            if self._watchman.is_gone(trial) and self.study.lose(trial):
                self._report.reclaimed += 1
                self.progress.say(f"attempt {trial.number}: its worker is gone; it is free again")

    def _run(self, claim: Claim) -> None:
        spec = self.study.spec
        self.progress.say(f"trial {claim.cell.number}: {_shown(claim.cell.values)}")
        start = time.perf_counter()
        known: list[float] = []

        def watch(value: float | None) -> None:
            if spec.prunes and value is not None:
                known.append(value)
                if self.study.report(claim, value):
                    raise StoppedEarly

        def spent() -> dict[str, Any]:
            return {"seconds": round(time.perf_counter() - start, 2)}

        try:
            with self._leased(claim):
                measured = spec.pinned_trial.measure(
                    claim.cell.values,
                    cache=self._shelf,
                    progress=TrialProgress(self.progress),
                    watch=watch,
                    group=spec.study,
                    parent=self.parent,
                )
        except StoppedEarly:
            numbers = {spec.metric or "effect": known[-1]}
            self.study.stop_early(claim, known[-1], {**spent(), "numbers": numbers})
            self._report.done += 1
        except SaesteerError as error:
            self._failed(claim, str(error), spent())
        except Exception as error:
            print(redact_text(traceback.format_exc()), file=sys.stderr)
            # Whatever was half loaded, or filled the memory, is not taken to the next trial.
            self._shelf.clear()
            said = " ".join(str(error).split())[:500]
            self._failed(claim, f"{type(error).__name__}: {said}", spent())
        except BaseException:
            self.study.give_back(claim)
            raise
        else:
            self._ended(claim, measured, spent())

    def _ended(self, claim: Claim, measured: Measured, outcome: dict[str, Any]) -> None:
        spec = self.study.spec
        name = spec.metric or "effect"
        value = metric_value(measured.numbers, name)
        outcome |= {"folder": str(measured.folder), "numbers": measured.numbers}
        if value is None:
            kl_target = measured.numbers.get("kl_target")
            why = (
                f", as when the KL target {kl_target} is not reached"
                if kl_target is not None
                else ""
            )
            self._failed(claim, f"{name} could not be measured{why}.", outcome)
        elif self.study.finish(claim, value, outcome):
            self._report.done += 1
            self.progress.say(f"trial {claim.cell.number}: {name} {value:.4g}")

    def _failed(self, claim: Claim, error: str, outcome: dict[str, Any]) -> None:
        if self.study.fail(claim, redact_text(error), outcome):
            self._report.failed += 1
            self.progress.say(f"trial {claim.cell.number} failed: {redact_text(error)}")

    @contextmanager
    def _leased(self, claim: Claim) -> Iterator[None]:
        def beat() -> None:
            self.study.beat(claim.id, self._lease.record())

        with Heartbeat(beat, self.study.spec.lease / BEATS):
            yield


def _shown(values: Any) -> str:
    from saesteer.sweeps.overrides import yaml_text

    parts = [f"{name}={yaml_text(value)}" for name, value in values.items()]
    return ", ".join(parts)[:300]


def run_worker(
    where: str,
    *,
    name: str | None = None,
    trials: int | None = None,
    wait: bool = True,
    parent: str | None = None,
) -> WorkerReport:
    """Work on a study in this process, from where the sweep was started.

    Args:
        where: The study's folder or URL.
        name: Which one of a database's.
        trials: The most trials to run.
        wait: Whether to stay while others run trials.
        parent: The id of the sweep's own record.
    """
    from saesteer.sweeps.storage import is_url
    from saesteer.sweeps.study import open_study
    from saesteer.utils.progress import terminal_progress

    progress = terminal_progress()
    place = where if is_url(where) else str(Path(where).absolute())
    study = open_study(place, name)
    if Path(study.spec.cwd).is_dir():
        # Where relative paths of the sweep's settings start.
        os.chdir(study.spec.cwd)
    else:
        progress.say(f"{study.spec.cwd} is not here; relative paths start at {Path.cwd()}")
    _pin_threads()
    return Worker(study, progress, parent=parent, wait=wait, most=trials).work()


def _pin_threads() -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        import torch

        # Where torch was imported before the variable was set.
        torch.set_num_threads(int(threads))
