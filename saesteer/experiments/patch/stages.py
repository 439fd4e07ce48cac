"""The steps of a patching run: the task's answers, reading, every component by every method.

Each result is kept in the run's folder; a step makes what is not there yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.patch.results import (
    ANSWERS,
    ATTENTION,
    CELLS,
    CLUSTERS,
    DIRECT,
    LENS,
    SAE,
    TASK,
    TO,
    Job,
    PatchResults,
    jobs,
)
from saesteer.experiments.patch.settings import AttributionSettings, PatchConfig
from saesteer.patching.result import PatchResult
from saesteer.patching.summary import draws_of, sample_means
from saesteer.patching.target import check_features
from saesteer.utils.errors import ConfigError, HookError, MismatchError, ModelError, SiteError
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.experiments.patch.experiment import Patch

RESAMPLES = 2000


def run_answers(run: Patch) -> None:
    """Ask the model every prompt, and keep what it answers and how often that is right."""
    from saesteer.patching.answers import task_answers

    if run.folder.has(TASK):
        return
    run.progress.say(f"Asking the model {2 * len(run.batch)} prompts")
    found = task_answers(run.model, run.batch)
    _write_table(run.folder, ANSWERS, found.frame())
    names, seed = [pair.name for pair in run.batch.pairs], run.config.seed
    record: dict[str, Any] = dict(found.summary())
    record |= {
        "pairs": len(run.batch),
        "solved": int(found.solved.sum()),
        "accuracy_interval": wilson(found.accuracy, len(set(draws_of(names).tolist()))),
        "clean_interval": _interval(found.clean.logit_difference, names, seed),
        "corrupted_interval": _interval(-found.corrupted.logit_difference, names, seed),
    }
    run.folder.write_json(TASK, record)


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """Return the 95% score interval of a share (Wilson 1927), which holds at 0 and at 1 too.

    The sample is of pairs, for their two prompts are answered alike.
    """
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def _interval(
    values: Float[np.ndarray, " pair"], names: Sequence[str], seed: int
) -> list[float] | None:
    samples = sample_means(values.astype(float), names)
    if len(samples) < 2:
        return None
    found = item_interval(samples, resamples=RESAMPLES, seed=seed)
    return [found.low, found.high]


def run_reading(run: Patch) -> None:
    """Read every layer by the logit lens, and what every component writes into the answer."""
    from saesteer.patching.direct import direct_attribution
    from saesteer.patching.lens import logit_lens

    settings = run.config.lens
    if settings is None:
        return
    if not run.folder.has(f"tables/{LENS}.parquet"):
        run.progress.say("Logit lens")
        with run.leaving_out("logit lens"):
            found = logit_lens(
                run.model,
                run.batch,
                side=settings.side,
                every_position=settings.every_position,
                top_k=settings.top,
            )
            _write_table(run.folder, LENS, found.frame())
    if not run.folder.has(f"tables/{DIRECT}.parquet"):
        run.progress.say("Direct logit attribution")
        with run.leaving_out("direct logit attribution"):
            shares = direct_attribution(run.model, run.batch, side=settings.side)
            _write_table(run.folder, DIRECT, shares.frame())


def run_attribution(run: Patch) -> None:
    """Attribute every component, all that share a method, mode and grain in one go."""
    config = run.config
    if config.attribution is None:
        return
    for mode in config.modes:
        for method in config.attribution.methods:
            for names, by_position in ((config.components, False), (config.by_position, True)):
                made = [Job(method, name, mode, by_position) for name in names]
                missing = [job for job in made if not run.folder.has(job.file)]
                try:
                    _attribute(run, missing)
                except (HookError, SiteError):
                    # One of them is not to be had in this architecture: the others do without it.
                    for job in missing:
                        said = f"{method.replace('_', ' ')} of {job.component}"
                        with run.leaving_out(said):
                            _attribute(run, [job])


def _attribute(run: Patch, wanted: Sequence[Job], **which: Any) -> None:
    """Make results that differ in the component alone."""
    from saesteer.patching.attribution import attribution_patching

    if not wanted:
        return
    one, components = wanted[0], [job.component for job in wanted]
    settings = run.config.attribution or AttributionSettings()
    said = one.method.replace("_", " ").capitalize()
    run.progress.say(f"{said} ({one.mode}): {', '.join(components)}")
    found = attribution_patching(
        run.model,
        run.batch,
        components,
        run.metric,
        method=one.method,  # type: ignore[arg-type]
        steps=settings.steps,
        line=settings.line,
        mode=one.mode,
        by_position=one.by_position,
        memory_gb=run.config.memory_gb,
        progress=run.progress,
        **which,
    )
    for job in wanted:
        _keep(run.folder, job, found[job.component])


def run_activation(run: Patch) -> None:
    """Patch every component's activations."""
    for job in jobs(run.config):
        if job.method != "activation" or run.folder.has(job.file):
            continue
        grain = ", by position too" if job.by_position else ""
        run.progress.say(f"Activation patching ({job.mode}): {job.component}{grain}")
        with run.leaving_out(f"activation patching of {job.component}"):
            _patch(run, job, job.component, by_position=job.by_position)


def _patch(run: Patch, job: Job, component: str, **which: Any) -> None:
    from saesteer.patching.patcher import activation_patching

    # Chunks of what is being made, so that a run that is cut off goes on inside a component.
    parts = run.folder.path / CELLS / "parts"
    found = activation_patching(
        run.model,
        run.batch,
        component,
        run.metric,
        mode=job.mode,
        memory_gb=run.config.memory_gb,
        progress=run.progress,
        store=parts,
        **which,
    )
    _keep(run.folder, job, found)
    shutil.rmtree(parts, ignore_errors=True)


def run_paths(run: Patch) -> None:
    """Patch the paths from every sender to the chosen receivers."""
    from saesteer.patching.paths import path_patching

    settings = run.config.path
    for job in jobs(run.config):
        if settings is None or job.method != "path" or run.folder.has(job.file):
            continue
        sender, receivers = job.component.split(TO)
        said = "head" if sender == "z" else "MLP"
        run.progress.say(f"Path patching ({job.mode}): from every {said} to {receivers}")
        with run.leaving_out(f"path patching from every {said}", ModelError):
            found = path_patching(
                run.model,
                run.batch,
                sender,
                receivers.split("+"),
                run.metric,
                mode=job.mode,
                mlps=settings.mlps,
                memory_gb=run.config.memory_gb,
                progress=run.progress,
            )
            _keep(run.folder, job, found)


def run_features(run: Patch) -> None:
    """Attribute every feature of the SAE, then patch the strongest, or a vector's own."""
    config = run.config
    if config.sae is None:
        return
    clusters = vector_clusters(config)
    shown: set[int] = set()
    for mode in config.modes:
        rough = Job("attribution", "sae", mode)
        if not run.folder.has(rough.file):
            _attribute(run, [rough], sae=run.patched_sae)
        if clusters is None:
            result = PatchResult.load(run.folder.path / rough.file)
            chosen = strongest_features(result, config.features.n_features)
        else:
            chosen = sorted({feature for own in clusters.values() for feature in own})
            _patch_features(run, Job("activation", CLUSTERS, mode), clusters=clusters)
        _patch_features(run, Job("activation", "sae", mode), features=chosen)
        shown.update(chosen)
    if not run.folder.has(SAE):
        run.folder.write_json(SAE, run.sae_record(sorted(shown)))


def _patch_features(run: Patch, job: Job, **which: Any) -> None:
    if run.folder.has(job.file):
        return
    [(what, cells)] = which.items()
    run.progress.say(f"Activation patching ({job.mode}): {len(cells)} {what} of {run.config.sae}")
    _patch(run, job, "sae", sae=run.patched_sae, **which)


def check_vector(run: Patch) -> None:
    """Check the steering vector that the settings name against the SAE, before any patching."""
    from saesteer.steering import SteeringVector

    config, sae = run.config, run.patched_sae
    clusters = vector_clusters(config)
    if clusters is None or config.features.vector is None or sae is None:
        return
    vector = SteeringVector.load(Path(config.features.vector))
    if vector.sae_fingerprint not in (None, sae.fingerprint):
        raise MismatchError(
            f"features.vector {config.features.vector} is made of features of SAE {vector.sae}, "
            f"and sae is {config.sae}; name the vector's own SAE."
        )
    for features in clusters.values():
        check_features(sae, features, "features.vector")


def vector_clusters(config: PatchConfig) -> dict[int | str, list[int]] | None:
    """Return the clusters of the steering vector that the settings name; None without one."""
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
    size = np.nan_to_num(np.abs((result.values - result.origin).mean(axis=0)))
    order = np.argsort(-size, kind="stable")[:most]
    return sorted(int(result.coords["feature"][place]) for place in order)


def run_attention(run: Patch) -> None:
    """Write the page of the chosen or strongest heads' attention patterns."""
    from saesteer.patching.attention import attention_views, write_attention_page

    settings = run.config.attention
    if settings is None or run.folder.has(ATTENTION):
        return
    heads = settings.chosen
    if settings.heads is None:
        heads = _strongest_heads(run, settings.n_heads)
    if not heads:
        run.progress.say("  attention patterns left out: no head was patched; name attention.heads")
        return
    pairs = range(min(settings.prompts, len(run.batch)))
    title = f"{run.config.name}: attention patterns"
    # Some attention never forms its patterns; everything else of the run stands without them.
    with run.leaving_out("attention patterns"):
        views = attention_views(run.model, run.batch, heads, pairs=pairs)
        run.folder.write(ATTENTION, lambda draft: write_attention_page(views, draft, title=title))


def _strongest_heads(run: Patch, most: int) -> list[tuple[int, int]]:
    """Return the heads of the largest effect by what was patched, or by direct attribution."""
    for method in ("activation", "integrated_gradients", "attribution"):
        result = Job(method, "z", run.config.modes[0]).load(run.folder)
        if result is not None:
            size = np.abs(np.nanmean(result.values - result.origin, axis=0))
            order = np.argsort(-size, axis=None, kind="stable")[:most]
            places = [divmod(int(place), size.shape[1]) for place in order]
            return [(int(result.coords["layer"][layer]), head) for layer, head in places]
    table = PatchResults(run.folder).table(DIRECT)
    if table is None:
        return []
    return [(row["layer"], row["head"]) for row in strongest_rows(table, most)]


def strongest_rows(table: pd.DataFrame, most: int) -> list[dict[str, Any]]:
    """Return the heads that write most into the logit difference: layer, head, share."""
    rows: Any = table[table["component"] == "head"]
    heads = rows.groupby(["layer", "head"])["share"].mean()
    order = np.argsort(-np.abs(heads.to_numpy()), kind="stable")[:most]
    return [
        {"layer": int(layer), "head": int(head), "share": float(share)}
        for (layer, head), share in heads.iloc[order].items()
    ]


def _write_table(folder: RunFolder, name: str, frame: pd.DataFrame) -> None:
    folder.write(f"tables/{name}.parquet", lambda draft: frame.to_parquet(draft, index=False))


def _keep(folder: RunFolder, job: Job, result: PatchResult) -> None:
    """Write a result and its labelled table."""
    frame: Any = result.frame()
    for name in frame.columns:
        # Axes such as "feature" may hold numbers and words; Parquet takes one kind.
        if frame[name].map(type).nunique() > 1:
            frame[name] = frame[name].astype(str)
    _write_table(folder, job.name, frame)
    folder.write(job.file, result.save)
