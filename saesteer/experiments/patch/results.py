"""What a patching run makes, and what its folder says, read back without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.results import CONFIG, Results
from saesteer.models.sites import Site
from saesteer.patching.batch import Mode
from saesteer.patching.result import PatchResult
from saesteer.patching.suggest import SUGGESTED, Suggestion, suggest_site
from saesteer.patching.summary import (
    Agreement,
    Scale,
    agreement,
    by_place,
    has_gap,
    sample_means,
    strongest_cells,
)
from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.settings import parse_config

if TYPE_CHECKING:
    import pandas as pd

# Files and tables of a run's folder.
PAIRS, TASK, SAE, CIRCUIT = "pairs.json", "task.json", "sae.json", "circuit.json"
LEFT_OUT, ATTENTION, CELLS = "left_out.json", "attention.html", "cells"
ANSWERS, LENS, DIRECT = "answers", "lens", "direct"
SAE_FEATURES, CLUSTERS, TO = "sae", "sae_clusters", "-to-"
MOST, RESAMPLES = 10, 2000
HARDLY, MOSTLY = 0.5, 0.8


def table_file(name: str) -> str:
    """A table's file in a run's folder."""
    return f"tables/{name}.parquet"


class Job(NamedTuple):
    """One result to be made."""

    # "activation", "attribution", "integrated_gradients" or "path".
    method: str
    # Of a path sender and receivers, such as "z-to-9.9.q".
    component: str
    mode: Mode
    by_position: bool = False

    @property
    def name(self) -> str:
        """The name of its files."""
        more = "-by-position" if self.by_position else ""
        return f"{self.method}-{self.component}{more}-{self.mode}"

    @property
    def file(self) -> str:
        """Its file in the run's folder."""
        return f"{CELLS}/{self.name}.safetensors"

    @property
    def exact(self) -> Job:
        """Activation patching of the same cells."""
        return self._replace(method="activation")


def jobs(config: PatchConfig) -> Iterator[Job]:
    """Every result of a run, in the order in which they are shown."""
    wanted = [(name, False) for name in config.components]
    wanted += [(name, True) for name in config.by_position]
    methods = [] if config.attribution is None else config.attribution.methods
    for mode in config.modes:
        for method in (*methods, "activation"):
            for component, by_position in wanted:
                if method != "activation" or not by_position or config.patch_by_position:
                    yield Job(method, component, mode, by_position)
        if config.path is not None:
            for group in config.path.groups:
                for sender in config.path.senders:
                    yield Job("path", f"{sender}{TO}{'+'.join(group)}", mode)
    for mode in config.modes if config.sae is not None else ():
        yield Job("attribution", SAE_FEATURES, mode)
        yield Job("activation", SAE_FEATURES, mode)
        if config.features.vector is not None:
            yield Job("activation", CLUSTERS, mode)


class PatchResults(Results):
    """What a patching run found, each part read once and when it is asked for."""

    @cached_property
    def config(self) -> PatchConfig:
        """The run's settings."""
        record = self.folder.read_json(CONFIG)
        return parse_config(record, kind=PatchConfig, place=str(self.folder.path / CONFIG))

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The prompts with their tokens."""
        return self.folder.read_json(PAIRS)

    @cached_property
    def results(self) -> dict[Job, PatchResult]:
        """Every result that is there."""
        there = [job for job in jobs(self.config) if self.folder.has(job.file)]
        return {job: PatchResult.load(self.folder.path / job.file) for job in there}

    @cached_property
    def first(self) -> PatchResult:
        """Any result: all have the same metric on the unpatched prompts."""
        if not self.results:
            raise OutputError(
                f"{self.folder.path} holds no patch result yet; run the same command again to go "
                "on."
            )
        return next(iter(self.results.values()))

    @cached_property
    def scale(self) -> Scale:
        """Shares of the gap where there is one beyond chance; else the metric's own units."""
        # A divergence from the clean run is least on the clean run.
        sign = -1 if self.config.metric == "kl" else 1
        one = self.first
        gap = has_gap(sign * one.clean, sign * one.corrupted, one.pairs, seed=self.config.seed)
        return "share" if gap else "change"

    def placed(self, job: Job) -> PatchResult:
        """A result with positions by place."""
        return by_place(self.results[job], [row["places"][job.mode] for row in self.pairs])

    @cached_property
    def agreements(self) -> dict[Job, Agreement]:
        """Every approximation compared with activation patching of the same cells."""
        found = {}
        for job, result in self.results.items():
            if job.method not in ("activation", "path") and job.exact in self.results:
                try:
                    # In the metric's units: a mean of shares hangs on the smallest gaps.
                    found[job] = agreement(result, self.results[job.exact], normalised=False)
                except ConfigError:
                    continue  # They share no cell.
        return found

    @cached_property
    def sae_record(self) -> dict[str, Any]:
        """The SAE's site and its patched features' descriptions; empty without one."""
        return self.folder.read_json(SAE) if self.folder.has(SAE) else {}

    @property
    def circuit(self) -> dict[str, Any] | None:
        """The circuit and how good it is; None where none was asked for."""
        return self.folder.read_json(CIRCUIT) if self.folder.has(CIRCUIT) else None

    @property
    def residual(self) -> Job | None:
        """The result that a site is suggested from."""
        exact = (job for job in self.results if job.method == "activation")
        return next((job for job in exact if job.component in SUGGESTED), None)

    def suggestion(self, sae_site: Site | None = None) -> Suggestion:
        """Name the site to steer, from what is there."""
        job = self.residual
        if job is None:
            raise OutputError(
                f"{self.folder.path} did not patch the residual stream, from which a site is "
                "suggested; run it with --set components=[resid_pre]."
            )
        if self.scale != "share":
            said = (
                "No site is named: the model does not tell clean and corrupted prompts apart "
                "beyond chance, so there is nothing to restore; give prompts that it solves, or "
                "another model."
            )
            return Suggestion(None, None, (), None, None, None, (said,))
        rough = [
            self.placed(other)
            for other in self.results
            if other.exact == job and other.method != "activation"
        ]
        if sae_site is None and self.sae_record:
            sae_site = Site.parse(self.sae_record["site"])
        best, seed = rough[-1] if rough else None, self.config.seed
        return suggest_site(self.placed(job), best, sae_site=sae_site, seed=seed)

    def table(self, name: str) -> pd.DataFrame | None:
        """One of the run's tables; None where it is not there."""
        import pandas as pd

        path = self.folder.path / table_file(name)
        return pd.read_parquet(path) if path.is_file() else None


def metrics_of(run: PatchResults) -> dict[str, Any]:
    """Everything a report says in numbers: `metrics.json`."""
    config, seed = run.config, run.config.seed
    names = [row["name"] for row in run.pairs]
    task = run.folder.read_json(TASK)
    record: dict[str, Any] = {
        "name": config.name,
        "model": config.model.name,
        "sae": config.sae,
        "sae_site": run.sae_record.get("site"),
        "source": config.pairs.source or "ioi",
        "pairs": len(run.pairs),
        "metric": config.metric,
        "modes": list(config.modes),
        "task": task,
        "verdict": verdict(task),
        "scale": run.scale,
        "strongest": _strongest(run),
        "left_out": run.folder.read_json(LEFT_OUT) if run.folder.has(LEFT_OUT) else [],
        "agreement": {job.name: one.numbers() for job, one in run.agreements.items()},
    }
    for side, values in (("clean", run.first.clean), ("corrupted", run.first.corrupted)):
        record[side] = interval(values, names, seed)
    direct = run.table(DIRECT)
    if direct is not None:
        record["direct_heads"] = strongest_rows(direct, MOST)
    if run.residual is not None:
        record["suggestion"] = run.suggestion().record()
    if run.circuit is not None:
        record["circuit"] = run.circuit
    return record


def verdict(task: dict[str, Any]) -> str:
    """Whether the model solves the task: "solved", "partly", "unclear" or "not".

    It is unclear where the interval of its accuracy holds one half: two answers, chosen by a coin.
    """
    if task["accuracy"] <= HARDLY:
        return "not"
    if task["accuracy_interval"][0] <= HARDLY:
        return "unclear"
    return "solved" if task["accuracy"] >= MOSTLY else "partly"


def interval(values: np.ndarray, names: Sequence[str], seed: int) -> dict[str, float | None]:
    """The "value" of a mean over pairs with its 95% interval, "low" and "high"."""
    samples = sample_means(values.astype(float), names)
    samples = samples[np.isfinite(samples)]
    if len(samples) < 2:
        return {"value": float(samples[0]) if len(samples) else None, "low": None, "high": None}
    found = item_interval(samples, resamples=RESAMPLES, seed=seed)
    return {"value": found.mean, "low": found.low, "high": found.high}


def strongest_rows(table: pd.DataFrame, most: int) -> list[dict[str, Any]]:
    """The heads that write most into the logit difference: layer, head, share."""
    rows: Any = table[table["component"] == "head"]
    heads = rows.groupby(["layer", "head"])["share"].mean()
    order = np.argsort(-np.abs(heads.to_numpy()), kind="stable")[:most]
    return [
        {"layer": int(layer), "head": int(head), "share": float(share)}
        for (layer, head), share in heads.iloc[order].items()
    ]


def _strongest(run: PatchResults) -> dict[str, Any]:
    config, kept = run.config, {}
    for job, result in run.results.items():
        if job.method in ("activation", "path"):
            shown = run.placed(job) if "position" in result.dims else result
            kept[job.name] = strongest_cells(
                shown, run.scale, MOST, resamples=config.resamples, seed=config.seed
            )
    return kept
