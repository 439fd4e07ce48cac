"""The one frame of every experiment: planned once, each stage done once, everything recorded."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from saesteer.experiments.config import ExperimentConfig
from saesteer.experiments.context import Context, cpu_threads
from saesteer.experiments.results import CONFIG, METRICS, REPORT, Results
from saesteer.report import Report
from saesteer.tracking import RecordedRun, recorded_run
from saesteer.tracking.wandb import wandb_mode
from saesteer.utils.cache import Cache
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    import pandas as pd

Found = TypeVar("Found", bound=Results)


class Stage(NamedTuple):
    """A step of an experiment."""

    name: str
    # Does what is not there yet; with the files that it writes or finds it is done.
    run: Callable[[], object]
    # Whether it is done, where files do not tell.
    done: bool | None = None


class Experiment(Context, Generic[Found]):
    """One kind of experiment, on its settings.

    What a kind says of itself: how its settings become a plan, which stages it has, and what
    `metrics.json` and the report hold. The frame does the rest.

    Args:
        config: The settings.
        progress: Where to show progress.
        cache: What other experiments of this process have loaded already; nothing if None.

    Raises:
        SaesteerError: Something does not fit; nothing is loaded or written.
    """

    Config: ClassVar[type[ExperimentConfig]]
    Results: ClassVar[type[Results]] = Results
    about: ClassVar[str]
    # What every headline of the kind holds; none where that depends on the settings.
    numbers: ClassVar[Sequence[str]] = ()
    # The record of the run under way, for stages that have a curve to tell.
    recorded: RecordedRun
    # Has the parts made in other processes; stages make them here if None.
    elsewhere: Callable[[Experiment[Any]], None] | None = None

    def __init__(
        self, config: Any, progress: Progress | None = None, cache: Cache | None = None
    ) -> None:
        super().__init__(self.make_plan(config), progress or Progress(), cache)
        self.config: Any = config
        self.folder = RunFolder(self.plan.folder)
        # Called with the part of the metrics that the headline is read from as soon as it is known;
        # what it raises ends the run.
        self.watch: Callable[[Mapping[str, Any]], None] | None = None

    @staticmethod
    @abstractmethod
    def make_plan(config: Any) -> Any:
        """Read the data and check every name in the settings; nothing is loaded or written."""

    def begin(self) -> None:
        """Write what the numbers depend on besides the settings."""

    def check(self) -> None:
        """Check against the model, before anything is written, what stages would stumble on."""

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The steps, in order."""

    def parts(self) -> Mapping[str, Callable[[], object]]:
        """What is not there yet and any process can make by itself, by name: files all of them."""
        return {}

    def make(self, name: str) -> None:
        """Make one of the parts, unless it is there."""
        with cpu_threads(self.config.model.threads):
            part = self.parts().get(name)
            if part is not None:
                part()

    def share_out(self) -> None:
        """Have the parts made elsewhere, if anybody is to; stages make here what is left."""
        if self.elsewhere is not None and self.parts():
            self.elsewhere(self)

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Write what the report needs besides, and return `metrics.json`."""

    @abstractmethod
    def report(self, results: Any) -> Report:
        """What page, terminal and W&B show of the results."""

    def write_report(self) -> None:
        """Write the page from what the folder holds; last, as where it is all is there."""
        self.report(self.Results(self.folder)).write(self.folder.path / REPORT)

    @abstractmethod
    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The few numbers that a list of runs, a sweep and the agent see."""

    def tell(self, record: RecordedRun, results: Any) -> None:
        """Tell the record what is worth a curve or a table elsewhere; it has the figures."""

    @property
    def finished(self) -> bool:
        """Whether everything was computed."""
        # Folders of earlier versions hold no marks of stages.
        marked = (self.folder.path / "stages").is_dir()
        return self.Results(self.folder).finished and not (marked and self.pending())

    def pending(self) -> list[Stage]:
        """The stages that the folder does not hold, or not with all their files."""
        return [stage for stage in self.stages() if not self._is_done(stage)]

    def run(self, **record: Any) -> Found:
        """Run every stage that is not done yet, and record all of it; see `run_experiment`."""
        with cpu_threads(self.config.model.threads):
            results: Any = self.Results(self.folder)
            finished = self.finished
            if finished:
                results.check()
                try:
                    self.headline(results.metrics)
                    if not results.report.is_file():
                        self.write_report()
                except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
                    raise results.damaged(f"{type(error).__name__}: {one_line(error)}") from error
                asked = self.config.tracking
                mirrored = wandb_mode(asked, os.environ) is not None
                if not (mirrored or asked.tags or asked.group is not None):
                    return results
            pending = self.pending()
            if len(pending) == len(self.stages()) and not results.finished:
                self.check()
            with recorded_run(
                self.folder,
                kind=self.config.kind,
                name=self.config.name,
                config=self.config.model_dump(mode="json"),
                wandb=self.config.tracking,
                progress=self.progress,
                **record,
            ) as recorded:
                if not finished:
                    self._compute(pending, recorded)
                recorded.summary(self.headline(results.metrics))
                self.tell(recorded, results)
                if recorded.shown_elsewhere:
                    for name, figure in self.report(results).figures.items():
                        recorded.figure(name, figure)
                recorded.artifact("report", results.report, "report")
        return results

    def _compute(self, pending: Sequence[Stage], recorded: RecordedRun) -> None:
        self.recorded = recorded
        self.folder.create()
        self.folder.write_json(CONFIG, self.config.model_dump(mode="json"))
        self.begin()
        for stage in pending:
            self._do(stage, recorded)
        with recorded.stage("report"):
            self.folder.write_json(METRICS, self.finish())
            self.write_report()

    def _do(self, stage: Stage, recorded: RecordedRun) -> None:
        start = time.perf_counter()
        self.folder.touched.clear()
        with recorded.stage(stage.name):
            stage.run()
        seconds, files = round(time.perf_counter() - start, 2), sorted(self.folder.touched)
        self.folder.write_json(f"stages/{stage.name}.json", {"seconds": seconds, "files": files})

    def _is_done(self, stage: Stage) -> bool:
        if stage.done is not None:
            return stage.done
        marker = f"stages/{stage.name}.json"
        return self.folder.has(marker) and holds_listed(self.folder, marker)


def holds_listed(folder: RunFolder, name: str) -> bool:
    """Whether a folder holds all files that one of its records lists."""
    record = folder.read_json(name)
    files = record.get("files") if isinstance(record, dict) else None
    return files is not None and all(map(folder.has, files))


def write_table(folder: RunFolder, name: str, frame: pd.DataFrame) -> None:
    """Write a table without its index, as the ending of its name says: .csv or .parquet."""
    write = frame.to_csv if name.endswith(".csv") else frame.to_parquet
    folder.write(name, partial(write, index=False))


def write_png(folder: RunFolder, name: str, drawn: Sequence[Any]) -> None:
    """Write figures as one picture."""
    from saesteer.report.pictures import save_png

    folder.write(name, partial(save_png, drawn))
