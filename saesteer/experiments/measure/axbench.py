"""AxBench's concept detection: does a vector's largest reading in a text tell the concept?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from saesteer.data.benches import Concept, read_axbench
from saesteer.evaluation.detection import (
    HARD,
    NEGATIVE,
    codes_of,
    detection_auroc,
    largest_readings,
)
from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.base import Stage
from saesteer.experiments.config import Plan, run_folder, sources, weights_digest
from saesteer.experiments.measure.fits import Measure, MeasureConfig, fitted
from saesteer.experiments.results import Results
from saesteer.experiments.steer.config import MethodChoice
from saesteer.methods.settings import ReadingSettings
from saesteer.models.reading import read_rows
from saesteer.models.resolve import check_shape
from saesteer.models.sites import Site
from saesteer.models.tokens import encode_texts
from saesteer.report import Report
from saesteer.utils.errors import ConfigError

METHODS = (
    *("attributed_sae", "clustered_sae", "top_feature_auroc"),
    *("difference_in_means", "logistic_probe"),
)
# A feature's largest activation in a text tells what it fires for, not what it is silent for.
SETTINGS = {"top_feature_auroc": {"side": "positive"}}
AUROCS = {"auroc": NEGATIVE, "auroc_hard": HARD}


class AxBenchConfig(MeasureConfig):
    """Everything that a measurement on AxBench's concepts depends on."""

    kind: ClassVar[str] = "axbench"

    methods: list[MethodChoice] = Field(
        default=[MethodChoice(name=name, settings=SETTINGS.get(name, {})) for name in METHODS],
        min_length=1,
    )
    # The first of them; all if null.
    n_concepts: int | None = Field(default=None, ge=1)
    # The most pairs to fit on for each.
    n_train: int = Field(default=72, ge=4)


@dataclass(frozen=True, kw_only=True)
class AxBenchPlan(Plan):
    """A checked measurement."""

    concepts: tuple[Concept, ...]


def plan_axbench(config: AxBenchConfig) -> AxBenchPlan:
    """Read the concepts and check every name in the settings; nothing is loaded or written."""
    config.check_methods()
    for method in config.methods:
        if method.settings.get("also"):
            raise ConfigError(
                f"method {method.name}: also: texts are read at one site alone; leave it out."
            )
    concepts = read_axbench(config.source)[: config.n_concepts]
    model, sae = sources(config, config.sae)
    if config.site is not None:
        check_shape(model, Site.parse(config.site), None, "site")
    data = [(one.pairs.digest, one.texts, one.categories) for one in concepts]
    folder = run_folder(config, data=str(data), **weights_digest(model, sae))
    return AxBenchPlan(config=config, model=model, sae=sae, folder=folder, concepts=concepts)


class AxBench(Measure):
    """Fits every method to texts with and without a concept, and reads other texts with it."""

    Config = AxBenchConfig
    about = "AxBench: does a vector's largest reading in a text tell the concept?"
    numbers = ("auroc",)
    plan: AxBenchPlan
    make_plan = staticmethod(plan_axbench)

    def stages(self) -> list[Stage]:
        concepts = enumerate(self.plan.concepts)
        return [Stage(f"concept-{at}", partial(self._measure, at, one)) for at, one in concepts]

    def _measure(self, at: int, concept: Concept) -> None:
        config = self.config
        self.progress.say(f"concept {at + 1} of {len(self.plan.concepts)}: {concept.name}")
        pairs = concept.pairs.subset(range(len(concept.pairs))[: config.n_train])
        # Texts stand by themselves, without a request or a chat template.
        given = self.context(pairs, ReadingSettings(request=None))
        rows = encode_texts(
            self.tokenizer,
            concept.texts,
            prepend_bos=None if self.sae is None else self.sae.prepend_bos,
            max_length=int(self.model.cfg.n_ctx),
            what=f"a text on {concept.name}",
        )
        sites = [self.site] if self.sae is None else [self.site, self.sae.site]
        read = read_rows(self.model, rows, list(dict.fromkeys(sites)))
        # Without an SAE no vector asks for features.
        codes = cache(codes_of(self.sae, read[self.sae.site])) if self.sae else self._no_codes
        with self.progress.task("methods", total=len(config.methods), unit="methods") as task:
            for choice in config.methods:

                def measured(choice: MethodChoice = choice) -> dict[str, Any]:
                    vector = fitted(choice, given)
                    if isinstance(vector, str):
                        return {"not_fitted": vector}
                    found = largest_readings(vector, read[self.site], codes)
                    features = [one.index for one in vector.sae_features]
                    return {"readings": found.tolist(), "features": features}

                self.folder.once(f"concepts/{at}/{choice.name}.json", measured)
                task.advance(1, choice.name)

    @staticmethod
    def _no_codes(index: int) -> np.ndarray:
        raise AssertionError("a vector without features asked for them")

    def finish(self) -> dict[str, Any]:
        config, rows, not_fitted = self.config, [], []
        for at, concept in enumerate(self.plan.concepts):
            for method in (choice.name for choice in config.methods):
                found = self.folder.read_json(f"concepts/{at}/{method}.json")
                place = {"concept": concept.name, "method": method}
                if "not_fitted" in found:
                    not_fitted.append({**place, **found})
                    continue
                readings = np.array(found["readings"])
                aurocs = {
                    name: detection_auroc(readings, concept.categories, against)
                    for name, against in AUROCS.items()
                }
                rows.append({**place, **aurocs, "n_features": len(found["features"]) or None})
        summary = [_summary(method.name, rows) for method in config.methods]
        concepts = [
            {"name": one.name, "n_train": len(one.pairs)}
            | {kind: one.categories.count(kind) for kind in ("positive", NEGATIVE, HARD)}
            for one in self.plan.concepts
        ]
        tables = {"summary": summary, "by_concept": rows}
        return self.metrics_of(tables, concepts=concepts, not_fitted=not_fitted)

    def report(self, results: Results) -> Report:
        from saesteer.report.measures import axbench_report

        return axbench_report(results.metrics)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        aurocs = {row["method"]: row["auroc"] for row in metrics["summary"]}
        return {"auroc": aurocs[metrics["methods"][0]["name"]], "aurocs": aurocs}


def _summary(method: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's mean over concepts, with its 95% interval over them."""
    found: dict[str, Any] = {"method": method}
    for name in AUROCS:
        values = [row[name] for row in rows if row["method"] == method and row[name] is not None]
        mean, low, high = item_interval(np.array(values)) if values else (None, None, None)
        # One concept says nothing of others.
        several = len(values) > 1
        found |= {name: mean, f"{name}_low": low if several else None}
        found |= {f"{name}_high": high if several else None, f"{name}_concepts": len(values)}
    return found
