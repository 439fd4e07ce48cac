"""A worker: takes trials of a study one after another until none is left."""

from __future__ import annotations

import os
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from saesteer.sweeps.overrides import yaml_text
from saesteer.sweeps.storage import is_url
from saesteer.sweeps.study import Attempt, SweepStudy, open_study
from saesteer.sweeps.sweep import Numbers
from saesteer.tracking.liveness import Heartbeat
from saesteer.utils.cache import Cache
from saesteer.utils.errors import SaesteerError, UnwritableError
from saesteer.utils.progress import Progress, terminal_progress
from saesteer.utils.redaction import redact_text
from saesteer.utils.terminal import say
from saesteer.utils.text import one_line

POLL_SECONDS = 0.5
LONGEST_POLL = 5.0
# Suggestions in a row that were there already, after which bayes has nothing left to try.
MOST_REPEATS = 30
# Beats in the time after which a silent worker counts as gone.
BEATS = 6


class StoppedEarly(BaseException):
    """Ends a trial whose metric is known and not good enough; no error, so no `Exception`."""


class TrialProgress(Progress):
    """A trial's progress inside a sweep: its bars, and of its words what is not said every time."""

    def __init__(self, shown: Progress) -> None:
        super().__init__(shown._console)

    def say(self, text: str) -> None:
        """Print a line that tells of loading or of a warning."""
        if text.startswith(("Loading", "warning")):
            super().say(text)


class Worker:
    """Runs a study's trials in this process, at most so many.

    With `wait` it stays while others run trials, to take over those of workers that die.
    """

    def __init__(
        self,
        study: SweepStudy,
        progress: Progress | None = None,
        *,
        parent: str | None = None,
        wait: bool = True,
        most: int | None = None,
    ) -> None:
        self.study, self.progress = study, progress or Progress()
        self.parent, self.wait, self.most = parent, wait, most
        # Trials that it finished, saw fail, and put back for workers that were gone.
        self.done = self.failed = self.reclaimed = 0
        self._cache = Cache(study.sweep.folder / "cache")
        self._repeats = 0

    def work(self) -> Worker:
        """Run trials until the study has none left, or as many as asked for; return itself."""
        pause = POLL_SECONDS
        while self.most is None or self.done + self.failed < self.most:
            taken = self.study.take_back()
            if taken:
                self.reclaimed += taken
                self.progress.say(f"{taken} trials of workers that are gone are free again")
            if self._is_enough():
                break
            attempt = self._next()
            if attempt is not None:
                self._run(attempt)
                pause = POLL_SECONDS
            elif self._may_ask():
                continue
            elif self.wait and self.study.is_open():
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_POLL)
            else:
                break
        return self

    def _next(self) -> Attempt | None:
        attempt = self.study.take()
        if attempt is None and self._may_ask():
            attempt = self.study.ask()
            self._repeats = self._repeats + 1 if attempt is None else 0
        return attempt

    def _may_ask(self) -> bool:
        return self._repeats < MOST_REPEATS and self.study.may_ask()

    def _is_enough(self) -> bool:
        """Return whether a trial has reached the metric's target."""
        sweep = self.study.sweep
        if sweep.target is None:
            return False
        values = [row.value for row in self.study.rows() if row.value is not None]
        return any(sweep.sign * value >= sweep.sign * sweep.target for value in values)

    def _run(self, attempt: Attempt) -> None:
        sweep, trial = self.study.sweep, attempt.trial
        shown = ", ".join(f"{name}={yaml_text(value)}" for name, value in trial.values.items())
        self.progress.say(f"trial {trial.number}: {shown[:300]}")
        start = time.perf_counter()
        known: dict[str, float] = {}

        def watch(value: float | None) -> None:
            if sweep.prunes and value is not None:
                known[sweep.metric] = value
                if self.study.report(attempt, value):
                    raise StoppedEarly

        def outcome(**found: Any) -> dict[str, Any]:
            return {"seconds": round(time.perf_counter() - start, 2), **found}

        try:
            with Heartbeat(lambda: self.study.beat(attempt), sweep.lease / BEATS):
                folder, numbers = sweep.measure(
                    trial.values,
                    cache=self._cache,
                    progress=TrialProgress(self.progress),
                    watch=watch,
                    parent=self.parent,
                )
        except StoppedEarly:
            self.study.finish(attempt, known[sweep.metric], outcome(numbers=known), early=True)
            self.done += 1
        except UnwritableError:
            # The next one would fare no better; where not even this can be written, a worker that
            # is gone has its trial taken back.
            with suppress(UnwritableError):
                self.study.give_back(attempt)
            raise
        except SaesteerError as error:
            self._failed(attempt, str(error), outcome())
        except Exception as error:
            say(traceback.format_exc(), err=True)
            # Whatever was half loaded, or filled the memory, is not taken to the next trial.
            self._cache.clear()
            self._failed(attempt, f"{type(error).__name__}: {one_line(error, 500)}", outcome())
        except BaseException:
            self.study.give_back(attempt)
            raise
        else:
            self._ended(attempt, numbers, outcome(folder=str(folder), numbers=numbers))

    def _ended(self, attempt: Attempt, numbers: Numbers, outcome: dict[str, Any]) -> None:
        metric = self.study.sweep.metric
        value, kl_target = numbers.get(metric), numbers.get("kl_target")
        if value is None:
            missed = f", as when the KL target {kl_target} is not reached"
            why = "" if kl_target is None else missed
            self._failed(attempt, f"{metric} could not be measured{why}.", outcome)
        elif self.study.finish(attempt, value, outcome):
            self.done += 1
            self.progress.say(f"trial {attempt.trial.number}: {metric} {value:.4g}")

    def _failed(self, attempt: Attempt, error: str, outcome: dict[str, Any]) -> None:
        if self.study.fail(attempt, redact_text(error), outcome):
            self.failed += 1
            self.progress.say(f"trial {attempt.trial.number} failed: {redact_text(error)}")


def run_worker(
    where: str,
    *,
    name: str | None = None,
    trials: int | None = None,
    wait: bool = True,
    parent: str | None = None,
) -> Worker:
    """Work on a study in this process, from where the sweep was started; see `Worker`."""
    progress = terminal_progress()
    study = open_study(where if is_url(where) else str(Path(where).absolute()), name)
    if Path(study.sweep.cwd).is_dir():
        # Where relative paths of the sweep's settings start.
        os.chdir(study.sweep.cwd)
    else:
        progress.say(f"{study.sweep.cwd} is not here; relative paths start at {Path.cwd()}")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        import torch

        # Where torch was imported before the variable was set.
        torch.set_num_threads(int(threads))
    return Worker(study, progress, parent=parent, wait=wait, most=trials).work()
