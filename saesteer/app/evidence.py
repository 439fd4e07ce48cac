"""What a run knows of what is written on the page: its report, and the judge of its persona."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.experiments.registry import load_experiment
from saesteer.experiments.results import CONFIG, Results
from saesteer.experiments.steer.experiment import JUDGES, SteerResults, judge_of, plan_run
from saesteer.utils.errors import DataError, OutputError
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from saesteer.data import PairSet
    from saesteer.evaluation.judge import AdmittedJudge


class Evidence:
    """A report and a judge, of which either may be missing.

    Args:
        report: The page of a finished run.
        sides: What a judge is trained on: pairs that train no vector, and answers of known sides.
            They are read, and the judge made, when it is first asked for, which takes seconds.
    """

    def __init__(
        self,
        report: Path | None = None,
        sides: Callable[[], tuple[PairSet, PairSet]] | None = None,
    ) -> None:
        self.report = report
        self._sides = sides

    @classmethod
    def of_run(cls, folder: Path) -> Evidence:
        """Return what a run's folder holds; nothing where it holds no finished run."""
        try:
            results = Results.open(folder)
        except OutputError:
            return cls()
        report = results.report if results.report.is_file() else None
        judged = isinstance(results, SteerResults) and results.folder.has(JUDGES)
        return cls(report, (lambda: _sides_of(results)) if judged else None)

    @property
    def judged(self) -> bool:
        """Whether there are answers of known sides."""
        return self._sides is not None

    @cached_property
    def _judge(self) -> AdmittedJudge:
        if self._sides is None:
            raise DataError(
                "nobody has written answers of known sides, so no judge can be admitted; open a "
                "run whose pairs have some (pairs.answers)."
            )
        return judge_of(*self._sides())

    def read(self, question: str, texts: Sequence[str]) -> dict[str, Any]:
        """Return the judge, and its reading of each answer; None of all where it is not admitted.

        Readings are in units of the distance between the answers of known sides; see
        `AdmittedJudge`.

        Raises:
            DataError: There are no answers of known sides, or what the run was made of has changed.
        """
        judge = self._judge
        readings = judge.read(texts, [question] * len(texts)).tolist()
        if judge.verdict == "not admitted":
            readings = [None] * len(texts)
        return finite({"judge": judge.summary(), "readings": readings})


def _sides_of(results: Results) -> tuple[PairSet, PairSet]:
    folder = results.folder
    plan = plan_run(load_experiment(folder.path / CONFIG))
    if plan.known is None or plan.pairs.digest != folder.read_json("run.json").get("pairs_sha256"):
        raise DataError(
            f"the pairs or answers of {folder.path} are not those that it was made of any more, so "
            "its judge cannot be made again; run it anew."
        )
    return plan.split.test, plan.known
