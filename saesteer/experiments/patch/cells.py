"""The patching itself: every component by every method, each kept in the run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.settings import AttributionSettings, PatchConfig
from saesteer.patching.result import Mode, PatchResult
from saesteer.patching.result_file import load_result, save_result
from saesteer.patching.sae_patching import check_features
from saesteer.utils.errors import ConfigError, HookError, MismatchError, ModelError, SiteError
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae

TO = "-to-"
CELLS, SAE, CLUSTERS = "cells", "sae.json", "sae_clusters"


@dataclass(frozen=True)
class Job:
    """One result to be made.

    Attributes:
        method: "activation", "attribution", "integrated_gradients" or "path".
        component: What is patched; of a path sender and receivers, such as "z-to-9.9.q".
        mode: Denoising or noising.
        by_position: Whether heads are patched by position too.
    """

    method: str
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


def load_job(folder: RunFolder, job: Job) -> PatchResult | None:
    """Return a result from the run's folder; None where it is not there."""
    return load_result(folder.path / job.file) if folder.has(job.file) else None


def run_attribution(bench: PatchContext) -> None:
    """Attribute every component, all that share a method, mode and grain in one go."""
    config = bench.plan.config
    if config.attribution is None:
        return
    for mode in config.modes:
        for method in config.attribution.methods:
            for names, by_position in ((config.components, False), (config.by_position, True)):
                missing = [
                    name
                    for name in names
                    if not bench.folder.has(Job(method, name, mode, by_position).file)
                ]
                if missing:
                    _attribute(bench, method, missing, mode, by_position)


def _attribute(
    bench: PatchContext, method: str, components: list[str], mode: Mode, by_position: bool
) -> None:
    try:
        found = _attributed(bench, method, components, mode, by_position)
    except (HookError, SiteError):
        # One of them is not to be had in this architecture: the others do without it.
        for one in components:
            with bench.leaving_out(f"{method.replace('_', ' ')} of {one}"):
                alone = _attributed(bench, method, [one], mode, by_position)
                keep(bench.folder, Job(method, one, mode, by_position), alone[one])
        return
    for name in components:
        keep(bench.folder, Job(method, name, mode, by_position), found[name])


def _attributed(
    bench: PatchContext,
    method: str,
    components: list[str],
    mode: Mode,
    by_position: bool,
    sae: LensSae | None = None,
) -> dict[str, PatchResult]:
    from saesteer.patching.attribution.first_order import attribution_patching_all
    from saesteer.patching.attribution.integrated import integrated_gradients_all
    from saesteer.patching.attribution.parts import AttributionOptions

    config = bench.plan.config
    settings = config.attribution or AttributionSettings()
    bench.progress.say(f"{method.replace('_', ' ').capitalize()} ({mode}): {', '.join(components)}")
    options = AttributionOptions(
        mode=mode,
        by_position=by_position,
        sae=sae,
        memory_gb=config.memory_gb,
        progress=bench.progress,
    )
    given = (bench.model, bench.batch, components, bench.metric)
    if method == "integrated_gradients":
        return integrated_gradients_all(*given, steps=settings.steps, line=settings.line, **options)
    return attribution_patching_all(*given, **options)


def run_activation(bench: PatchContext) -> None:
    """Patch every component's activations."""
    for job in jobs(bench.plan.config):
        if job.method != "activation" or bench.folder.has(job.file):
            continue
        grain = ", by position too" if job.by_position else ""
        bench.progress.say(f"Activation patching ({job.mode}): {job.component}{grain}")
        with bench.leaving_out(f"activation patching of {job.component}"):
            _patch(bench, job, job.component, by_position=job.by_position)


def _patch(bench: PatchContext, job: Job, component: str, **which: Any) -> None:
    from saesteer.patching.activation import activation_patching

    # Chunks of what is being made, so that a run that is cut off goes on inside a component.
    parts = bench.folder.path / CELLS / "parts"
    found = activation_patching(
        bench.model,
        bench.batch,
        component,
        bench.metric,
        mode=job.mode,
        memory_gb=bench.plan.config.memory_gb,
        progress=bench.progress,
        store=parts,
        **which,
    )
    keep(bench.folder, job, found)
    shutil.rmtree(parts, ignore_errors=True)


def run_paths(bench: PatchContext) -> None:
    """Patch the paths from every sender to the chosen receivers."""
    from saesteer.patching.paths.patching import path_patching

    settings = bench.plan.config.path
    for job in jobs(bench.plan.config):
        if settings is None or job.method != "path" or bench.folder.has(job.file):
            continue
        sender, receivers = job.component.split(TO)
        said = "head" if sender == "z" else "MLP"
        bench.progress.say(f"Path patching ({job.mode}): from every {said} to {receivers}")
        with bench.leaving_out(f"path patching from every {said}", ModelError):
            found = path_patching(
                bench.model,
                bench.batch,
                sender,  # type: ignore[arg-type]
                receivers.split("+"),
                bench.metric,
                mode=job.mode,
                mlps=settings.mlps,
                memory_gb=bench.plan.config.memory_gb,
                progress=bench.progress,
            )
            keep(bench.folder, job, found)


def run_features(bench: PatchContext) -> None:
    """Attribute every feature of the SAE, then patch the strongest, or a vector's own."""
    config = bench.plan.config
    if config.sae is None:
        return
    clusters = vector_clusters(config)
    shown: set[int] = set()
    for mode in config.modes:
        rough = Job("attribution", "sae", mode)
        if not bench.folder.has(rough.file):
            found = _attributed(bench, "attribution", ["sae"], mode, False, bench.sae)
            keep(bench.folder, rough, found["sae"])
        if clusters is None:
            chosen = strongest_features(
                load_result(bench.folder.path / rough.file), config.features.n_features
            )
        else:
            chosen = sorted({feature for own in clusters.values() for feature in own})
            _patch_features(bench, Job("activation", CLUSTERS, mode), clusters=clusters)
        _patch_features(bench, Job("activation", "sae", mode), features=chosen)
        shown.update(chosen)
    if not bench.folder.has(SAE):
        bench.folder.write_json(SAE, bench.sae_record(sorted(shown)))


def _patch_features(bench: PatchContext, job: Job, **which: Any) -> None:
    if bench.folder.has(job.file):
        return
    (what, cells), *_ = which.items()
    bench.progress.say(
        f"Activation patching ({job.mode}): {len(cells)} {what} of {bench.plan.config.sae}"
    )
    _patch(bench, job, "sae", sae=bench.sae, **which)


def check_vector(bench: PatchContext) -> None:
    """Check the steering vector that the settings name against the SAE, before any patching.

    Raises:
        ConfigError: The vector has no features, or features that the SAE has not.
        MismatchError: Its features are another SAE's.
    """
    from saesteer.steering import SteeringVector

    config = bench.plan.config
    clusters = vector_clusters(config)
    if clusters is None or config.features.vector is None or bench.sae is None:
        return
    vector = SteeringVector.load(Path(config.features.vector))
    if vector.sae_fingerprint not in (None, bench.sae.fingerprint):
        raise MismatchError(
            f"features.vector {config.features.vector} is made of features of SAE {vector.sae}, "
            f"and sae is {config.sae}; name the vector's own SAE."
        )
    for features in clusters.values():
        check_features(bench.sae, features, "features.vector")


def vector_clusters(config: PatchConfig) -> dict[int | str, list[int]] | None:
    """Return the clusters of the steering vector that the settings name; None without one.

    Raises:
        ConfigError: The vector has no features.
    """
    from saesteer.steering import SteeringVector

    if config.features.vector is None:
        return None
    vector = SteeringVector.load(Path(config.features.vector))
    clusters: dict[int | str, list[int]] = {}
    for feature in vector.sae_features:
        if feature.weight:
            name = "alone" if feature.cluster is None else feature.cluster
            clusters.setdefault(name, []).append(feature.index)
    if not clusters:
        raise ConfigError(
            f"features.vector {config.features.vector} is made of no SAE features; give one that "
            "saesteer run or compare made from an SAE."
        )
    return clusters


def strongest_features(result: PatchResult, most: int) -> list[int]:
    """Return the features of the largest mean |change|, by index."""
    origin = result.corrupted if result.mode == "denoising" else result.clean
    size = np.nan_to_num(np.abs((result.values - origin[:, None]).mean(axis=0)))
    order = np.argsort(-size, kind="stable")[:most]
    return sorted(int(result.coords["feature"][place]) for place in order)


def keep(folder: RunFolder, job: Job, result: PatchResult) -> None:
    """Write a result and its labelled table."""
    frame: Any = result.frame()
    for name in frame.columns:
        # Axes such as "feature" may hold numbers and words; Parquet takes one kind.
        if frame[name].map(type).nunique() > 1:
            frame[name] = frame[name].astype(str)
    folder.write(f"tables/{job.name}.parquet", lambda draft: frame.to_parquet(draft, index=False))
    folder.write(job.file, lambda draft: save_result(result, draft))
