"""steering-bench: do answer letters follow the strength, in distribution and out of it?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from saesteer.data import PairSet, read_answers
from saesteer.data.benches import read_persona_prompts, read_steering_bench
from saesteer.data.texts import ANSWERS_NAME
from saesteer.evaluation.choices import AnswerMeter, answer_cue
from saesteer.evaluation.steerability import column, steerability, with_slopes
from saesteer.experiments.base import Stage, write_table
from saesteer.experiments.config import (
    Plan,
    PreciseModelSettings,
    run_folder,
    sources,
    weights_digest,
)
from saesteer.experiments.measure.fits import Measure, MeasureConfig, fitted
from saesteer.experiments.results import Results
from saesteer.experiments.steer.config import MethodChoice
from saesteer.methods.settings import ReadingSettings
from saesteer.models.resolve import check_shape
from saesteer.models.sites import Site
from saesteer.models.tokens import takes_system
from saesteer.report import Report
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import NEUTRAL_ANSWERS, DivergenceMeter, neutral_rows
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.files import portable_name
from saesteer.utils.settings import Source
from saesteer.utils.text import nearest

# One of each kind. At the letter difference_in_means is CAA, whose entry here asks questions anew.
METHODS = (
    *("attributed_sae", "clustered_sae", "mean_decoded_delta", "target_atoms"),
    *("top_feature_standardised_difference", "difference_in_means", "natural_gradient"),
    *("bipo", "pca", "logistic_probe"),
)
IN, OUT = "in", "out"
FEWEST = {"train": 4, "test": 2}


class SteeringBenchConfig(MeasureConfig):
    """Everything that a measurement on steering-bench depends on."""

    kind: ClassVar[str] = "steering_bench"

    model: PreciseModelSettings = PreciseModelSettings()
    methods: list[MethodChoice] = Field(
        default=[MethodChoice(name=name) for name in METHODS], min_length=1
    )
    # Names of datasets; all that the source holds if null.
    datasets: list[str] | None = Field(default=None, min_length=1)
    # Their prompts that ask for a persona: persona_prompts.py or a folder that holds it; looked
    # for in the source if null.
    personas: Source | None = None
    # Shares of a shuffled dataset, its beginning and its end; and the most samples of each.
    train: float = Field(default=0.4, gt=0, lt=1)
    test: float = Field(default=0.5, gt=0, lt=1)
    n_train: int = Field(default=100, ge=4)
    n_test: int = Field(default=100, ge=2)
    # Of the vector's length, which is that of the difference in means for every method.
    multipliers: list[float] = Field(default=[-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], min_length=2)
    # Answers that KL is measured on at multipliers -1 and 1: a file, or the bundled set.
    neutral: Source = ANSWERS_NAME
    neutral_answers: int = Field(default=NEUTRAL_ANSWERS, ge=1)

    @field_validator("multipliers")
    @classmethod
    def _different(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} names a multiplier twice; name each once")
        return sorted(values)


class BenchSet(NamedTuple):
    """A dataset, divided."""

    train: PairSet
    test: PairSet
    prompts: tuple[str, str] | None  # that ask for the persona and for its opposite

    @property
    def name(self) -> str:
        """The dataset's name, as a part of files' names."""
        return portable_name(self.train.name)


@dataclass(frozen=True, kw_only=True)
class SteeringBenchPlan(Plan):
    """A checked measurement."""

    sets: tuple[BenchSet, ...]
    left_out: Mapping[str, str]  # files that are no such datasets, and why


def plan_steering_bench(config: SteeringBenchConfig) -> SteeringBenchPlan:
    """Read and divide the datasets and check every name in the settings; nothing is loaded."""
    also = config.check_methods()
    found = read_steering_bench(config.source)
    known = {one.name: one for one in found.sets}
    chosen = list(known) if config.datasets is None else list(dict.fromkeys(config.datasets))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"datasets {name!r} is not in {config.source}{nearest(name, known)}.")
    prompts = read_persona_prompts(config.personas or config.source)
    sets = tuple(_divided(known[name], config, prompts.get(name)) for name in chosen)
    read_answers(config.neutral)
    model, sae = sources(config, config.sae)
    if config.site is not None:
        check_shape(model, Site.parse(config.site), None, "site")
    data = [(one.train.digest, one.test.digest, str(one.prompts)) for one in sets]
    folder = run_folder(config, data=str(data), **also, **weights_digest(model, sae))
    return SteeringBenchPlan(
        config=config, model=model, sae=sae, folder=folder, sets=sets, left_out=found.left_out
    )


def _divided(
    pairs: PairSet, config: SteeringBenchConfig, prompts: tuple[str, str] | None
) -> BenchSet:
    # The order that steering-bench shuffles to.
    order = list(range(len(pairs)))
    random.Random(config.seed).shuffle(order)
    n = len(order)
    first, last = int(config.train * n), n - int(config.test * n)
    if first > last:
        raise ConfigError(
            f"train {config.train:g} and test {config.test:g} are more than 1 together."
        )
    parts = {"train": order[:first][: config.n_train], "test": order[last:][: config.n_test]}
    for name, part in parts.items():
        if len(part) < FEWEST[name]:
            raise DataError(
                f"{pairs.source}: its {n} samples leave {len(part)} for {name}, fewer than "
                f"{FEWEST[name]}; give a larger share with --set {name}=..."
            )
    return BenchSet(pairs.subset(parts["train"]), pairs.subset(parts["test"]), prompts)


class SteeringBench(Measure):
    """Fits every method to each dataset's answer letters, and steers other samples of it."""

    Config = SteeringBenchConfig
    about = "steering-bench: how answer letters follow the strength, sample by sample"
    numbers = ("slope", "slope_out", "anti_steerable")
    plan: SteeringBenchPlan
    make_plan = staticmethod(plan_steering_bench)

    def stages(self) -> list[Stage]:
        return [Stage(one.name, partial(self._measure, one)) for one in self.plan.sets]

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """What strengths cost, on neutral answers."""
        config = self.config
        rows = neutral_rows(self.model, config.neutral, config.neutral_answers)
        return DivergenceMeter(self.model, rows, site=self.site)

    def _measure(self, one: BenchSet) -> None:
        names = [choice.name for choice in self.config.methods]
        self.progress.say(f"{one.name}: {len(one.train)} samples to fit, {len(one.test)} to steer")
        cue = answer_cue(self.tokenizer, None)
        asked = [replace(pair, prompt=f"{pair.prompt}{cue}") for pair in one.train]
        # The letter is the last token of both sides.
        given = self.context(
            replace(one.train, pairs=tuple(asked)), ReadingSettings(positions="last")
        )
        meters: dict[str, AnswerMeter] = {}
        with self.progress.task(one.name, total=len(names), unit="methods") as task:
            for choice in self.config.methods:
                self.folder.once(
                    f"samples/{one.name}/{choice.name}.json",
                    partial(self._steered, one, choice, given, meters),
                )
                task.advance(1, choice.name)

    def _steered(
        self, one: BenchSet, choice: MethodChoice, given: Any, meters: dict[str, AnswerMeter]
    ) -> dict[str, Any]:
        import pandas as pd

        vector = fitted(choice, given)
        if isinstance(vector, str):
            return {"not_fitted": vector}
        length = float((given.mean_delta**2).sum() ** 0.5)
        tables = []
        for condition, make in self._conditions(one):
            meter = meters.get(condition) or meters.setdefault(condition, make())
            at = {
                column(m): meter.differences(vector, m * length, "raw")
                for m in self.config.multipliers
            }
            ids = [pair.id for pair in one.test]
            tables.append(pd.DataFrame({"condition": condition, "sample": ids, **at}))
        table = with_slopes(pd.concat(tables), self.config.multipliers)
        write_table(self.folder, f"samples/{one.name}/{choice.name}.csv", table)
        return {"length": length, "kl": self._cost(vector, length)}

    def _cost(self, vector: SteeringVector, length: float) -> float:
        return sum(self.divergence(vector, sign * length, "raw") for sign in (-1, 1)) / 2

    def _conditions(self, one: BenchSet) -> Iterator[tuple[str, Callable[[], AnswerMeter]]]:
        """Yield the prompts that samples are asked with: their own, and those for a persona."""

        def make(before: str = "", system: str | None = None) -> AnswerMeter:
            return AnswerMeter(
                self.model,
                [f"{before}{pair.prompt}" for pair in one.test],
                one.test.positives,
                one.test.negatives,
                system=system,
                site=self.site,
                what=one.test.question_names,
            )

        yield IN, make
        for side, prompt in zip(("persona", "opposite"), one.prompts or (), strict=False):
            yield f"user: {side}", partial(make, f"{prompt} ")
            if takes_system(self.tokenizer):
                yield f"system: {side}", partial(make, system=prompt)

    def finish(self) -> dict[str, Any]:
        import pandas as pd

        config, found = self.config, dict[tuple[str, str], pd.DataFrame]()
        not_fitted: list[dict[str, str]] = []
        costs: dict[str, list[float]] = {}
        for one in self.plan.sets:
            for method in (choice.name for choice in config.methods):
                file = f"samples/{one.name}/{method}"
                record = self.folder.read_json(f"{file}.json")
                if "not_fitted" in record:
                    not_fitted.append({"dataset": one.name, "method": method, **record})
                    continue
                costs.setdefault(method, []).append(record["kl"])
                found[one.name, method] = pd.read_csv(self.folder.path / f"{file}.csv")
        summary, by_dataset = [], []
        for method in (choice.name for choice in config.methods):
            for distribution in (IN, OUT):
                own = {
                    name: part
                    for (name, of), table in found.items()
                    if of == method
                    and len(part := table[(table["condition"] == IN) == (distribution == IN)])
                }
                at = {"method": method, "distribution": distribution}
                cost = fmean(costs[method]) if method in costs else None
                summary.append({**at, **steerability(own), "kl": cost})
                by_dataset += [
                    {"dataset": name, **at, **steerability({name: part})}
                    for name, part in own.items()
                ]
        return self.metrics_of(
            {"summary": summary, "by_dataset": by_dataset},
            multipliers=config.multipliers,
            datasets=[
                {"name": s.name, "n_train": len(s.train), "n_test": len(s.test)}
                | {"prompts": list(s.prompts or ())}
                for s in self.plan.sets
            ],
            not_fitted=not_fitted,
            left_out=dict(self.plan.left_out),
        )

    def report(self, results: Results) -> Report:
        from saesteer.report.measures import steering_bench_report

        return steering_bench_report(results.metrics)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        by_place = {(row["method"], row["distribution"]): row for row in metrics["summary"]}
        first = metrics["methods"][0]["name"]
        own = by_place[first, IN]
        return {
            "slope": own["slope"],
            "slope_out": by_place[first, OUT]["slope"],
            "anti_steerable": own["anti_steerable"],
            "slopes": {m["name"]: by_place[m["name"], IN]["slope"] for m in metrics["methods"]},
        }
