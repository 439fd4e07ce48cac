"""What a run's folder holds, read back without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.results import CONFIG, Results
from saesteer.models.sites import Site
from saesteer.patching.batch import Mode
from saesteer.patching.result import PatchResult
from saesteer.patching.suggest import RESIDUAL, Suggestion, suggest_site
from saesteer.patching.summary import Scale, by_place, has_gap
from saesteer.utils.errors import OutputError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import parse_config

if TYPE_CHECKING:
    import pandas as pd

# Files and tables of a run's folder.
PAIRS, TASK, SAE, CIRCUIT, LEFT_OUT = (
    "pairs.json",
    "task.json",
    "sae.json",
    "circuit.json",
    "left_out.json",
)
ATTENTION, CELLS = "attention.html", "cells"
ANSWERS, LENS, DIRECT = "answers", "lens", "direct"
CLUSTERS, TO = "sae_clusters", "-to-"


@dataclass(frozen=True)
class Job:
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

    def load(self, folder: RunFolder) -> PatchResult | None:
        """Return the result from the run's folder; None where it is not there."""
        return PatchResult.load(folder.path / self.file) if folder.has(self.file) else None


def jobs(config: PatchConfig) -> Iterator[Job]:
    """Return every result of a run but those of an SAE's features, in the order to make them."""
    wanted = [(name, False) for name in config.components]
    wanted += [(name, True) for name in config.by_position]
    methods = [] if config.attribution is None else config.attribution.methods
    for mode in config.modes:
        for method in (*methods, "activation"):
            for component, by_position in wanted:
                if method != "activation" or not by_position or config.patch_by_position:
                    yield Job(method, component, mode, by_position)
        for sender, receivers in paths(config):
            yield Job("path", f"{sender}{TO}{'+'.join(receivers)}", mode)


def paths(config: PatchConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Return every kind of sender with every group of receivers."""
    if config.path is None:
        return []
    return [(sender, group) for group in config.path.groups for sender in config.path.senders]


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
    def task(self) -> dict[str, Any]:
        """How the model does on the task."""
        return self.folder.read_json(TASK)

    @cached_property
    def results(self) -> dict[Job, PatchResult]:
        """Every result that is there, in the order of making."""
        found = {job: job.load(self.folder) for job in (*jobs(self.config), *self._features())}
        return {job: result for job, result in found.items() if result is not None}

    def _features(self) -> list[Job]:
        if self.config.sae is None:
            return []
        return [
            job
            for mode in self.config.modes
            for job in (
                Job("attribution", "sae", mode),
                Job("activation", "sae", mode),
                Job("activation", CLUSTERS, mode),
            )
        ]

    @cached_property
    def ends(self) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """The metric on every clean and on every corrupted prompt, unpatched."""
        for result in self.results.values():
            return result.clean, result.corrupted
        raise OutputError(
            f"{self.folder.path} holds no patch result yet; run the same command again to go on."
        )

    @cached_property
    def scale(self) -> Scale:
        """Shares of the gap where there is one beyond chance; else the metric's own units."""
        clean, corrupted = self.ends
        # A divergence from the clean run is least on the clean run.
        sign = -1 if self.config.metric == "kl" else 1
        names = next(iter(self.results.values())).pairs
        gap = has_gap(sign * clean, sign * corrupted, names, seed=self.config.seed)
        return "share" if gap else "change"

    def places(self, mode: Mode) -> list[list[str]]:
        """Return for each pair what every column of its destination prompt is."""
        return [row["places"][mode] for row in self.pairs]

    def placed(self, job: Job) -> PatchResult | None:
        """Return a result by layer and place; None where it is not there or has no positions."""
        result = self.results.get(job)
        if result is None or "position" not in result.dims:
            return None
        return by_place(result, self.places(job.mode))

    @cached_property
    def sae_record(self) -> dict[str, Any]:
        """The SAE's site and its patched features' descriptions; empty without one."""
        return self.folder.read_json(SAE) if self.folder.has(SAE) else {}

    @property
    def sae_site(self) -> Site | None:
        """Where the run's SAE lives; None without one."""
        return Site.parse(self.sae_record["site"]) if self.sae_record else None

    def suggestion(self, sae_site: Site | None = None) -> Suggestion:
        """Name the site to steer, from what is there."""
        chosen = [
            job for job in self.results if job.method == "activation" and job.component in RESIDUAL
        ]
        if not chosen:
            raise OutputError(
                f"{self.folder.path} did not patch the residual stream, from which a site is "
                "suggested; run it with --set components=[resid_pre]."
            )
        job = chosen[0]
        if self.scale != "share":
            said = (
                "No site is named: the model does not tell clean and corrupted prompts apart "
                "beyond chance, so there is nothing to restore; give prompts that it solves, or "
                "another model.",
            )
            return Suggestion(None, None, (), None, None, None, said)
        there = self.placed(job)
        assert there is not None
        rough = [
            self.placed(other)
            for other in self.results
            if other.method in ("integrated_gradients", "attribution")
            and (other.component, other.mode) == (job.component, job.mode)
        ]
        attribution = rough[-1] if rough else None
        return suggest_site(
            there, attribution, sae_site=sae_site or self.sae_site, seed=self.config.seed
        )

    def table(self, name: str) -> pd.DataFrame | None:
        """Return one of the run's tables; None where it is not there."""
        import pandas as pd

        path = self.folder.path / "tables" / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None
