"""The steps of a patching run: the task's answers, reading, every component by every method.

Each result is kept in the run's folder; a step makes what is not there yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    interval,
    jobs,
    strongest_rows,
)
from saesteer.experiments.patch.settings import AttributionSettings, PatchConfig
from saesteer.patching.answers import task_answers
from saesteer.patching.attention import attention_page, attention_views
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.direct import direct_attribution
from saesteer.patching.lens import logit_lens
from saesteer.patching.patcher import activation_patching
from saesteer.patching.paths import path_patching
from saesteer.patching.result import PatchResult
from saesteer.patching.summary import draws_of
from saesteer.patching.target import check_features
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, HookError, MismatchError, ModelError, SiteError
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from saesteer.experiments.patch.experiment import Patch


def run_answers(run: Patch) -> None:
    """Ask the model every prompt, and keep what it answers and how often that is right."""
    if run.folder.has(TASK):
        return
    run.progress.say(f"Asking the model {2 * len(run.batch)} prompts")
    found = task_answers(run.model, run.batch)
    _write_table(run.folder, ANSWERS, found.frame())
    names = [pair.name for pair in run.batch.pairs]
    record: dict[str, Any] = {
        **found.summary(),
        "pairs": len(run.batch),
        "solved": int(found.solved.sum()),
        "accuracy_interval": wilson(found.accuracy, len(set(draws_of(names).tolist()))),
    }
    for side, answers, sign in (("clean", found.clean, 1), ("corrupted", found.corrupted, -1)):
        one = interval(sign * answers.logit_difference, names, run.config.seed)
        record[f"{side}_interval"] = one["low"] if one["low"] is None else [one["low"], one["high"]]
    run.folder.write_json(TASK, record)


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """Return the 95% score interval of a share (Wilson 1927), which holds at 0 and at 1 too.

    The sample is of pairs, for their two prompts are answered alike.
    """
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def run_reading(run: Patch) -> None:
    """Read every layer by the logit lens, and what every component writes into the answer."""
    settings = run.config.lens
    if settings is None:
        return
    if not run.folder.has(f"tables/{LENS}.parquet"):
        run.progress.say("Logit lens")
        with run.leaving_out("logit lens"):
            every, top = settings.every_position, settings.top
            found = logit_lens(
                run.model, run.batch, side=settings.side, every_position=every, top_k=top
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
        if job.method == "activation" and job.component in run.config.components:
            grain = ", by position too" if job.by_position else ""
            with run.leaving_out(f"activation patching of {job.component}"):
                _patch(run, job, f"{job.component}{grain}", by_position=job.by_position)


def _patch(run: Patch, job: Job, what: str, component: str = "", **which: Any) -> None:
    if run.folder.has(job.file):
        return
    run.progress.say(f"Activation patching ({job.mode}): {what}")
    # Chunks of what is being made, so that a run that is cut off goes on inside a component.
    parts = run.folder.path / CELLS / "parts"
    found = activation_patching(
        run.model,
        run.batch,
        component or job.component,
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
            chosen = _strongest_features(result, config.features.n_features)
        else:
            chosen = sorted({feature for own in clusters.values() for feature in own})
            said = f"{len(clusters)} clusters of {config.sae}"
            job = Job("activation", CLUSTERS, mode)
            _patch(run, job, said, "sae", sae=run.patched_sae, clusters=clusters)
        said = f"{len(chosen)} features of {config.sae}"
        _patch(run, rough.exact, said, sae=run.patched_sae, features=chosen)
        shown.update(chosen)
    if not run.folder.has(SAE):
        run.folder.write_json(SAE, run.sae_record(sorted(shown)))


def check_vector(run: Patch) -> None:
    """Check the steering vector that the settings name against the SAE, before any patching."""
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


def _strongest_features(result: PatchResult, most: int) -> list[int]:
    """Return the features of the largest mean |change|, by index."""
    size = np.nan_to_num(np.abs(result.change.mean(axis=0)))
    order = np.argsort(-size, kind="stable")[:most]
    return sorted(int(result.coords["feature"][place]) for place in order)


def run_attention(run: Patch) -> None:
    """Write the page of the chosen or strongest heads' attention patterns."""
    settings = run.config.attention
    if settings is None or run.folder.has(ATTENTION):
        return
    heads = settings.chosen or _strongest_heads(run, settings.n_heads)
    if not heads:
        run.progress.say("  attention patterns left out: no head was patched; name attention.heads")
        return
    pairs = range(min(settings.prompts, len(run.batch)))
    # Some attention never forms its patterns; everything else of the run stands without them.
    with run.leaving_out("attention patterns"):
        views = attention_views(run.model, run.batch, heads, pairs=pairs)
        page = attention_page(views, title=f"{run.config.name}: attention patterns")
        # A token can be half of a character, which has no UTF-8.
        data = page.encode("utf-8", "replace")
        run.folder.write(ATTENTION, lambda draft: draft.write_bytes(data))


def _strongest_heads(run: Patch, most: int) -> list[tuple[int, int]]:
    """Return the heads of the largest effect by what was patched, or by direct attribution."""
    results = PatchResults(run.folder)
    for method in ("activation", "integrated_gradients", "attribution"):
        result = results.results.get(Job(method, "z", run.config.modes[0]))
        if result is not None:
            size = np.abs(np.nanmean(result.change, axis=0))
            order = np.argsort(-size, axis=None, kind="stable")[:most]
            places = [divmod(int(place), size.shape[1]) for place in order]
            return [(int(result.coords["layer"][layer]), head) for layer, head in places]
    table = results.table(DIRECT)
    rows = [] if table is None else strongest_rows(table, most)
    return [(row["layer"], row["head"]) for row in rows]


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
