"""The steps of a patching run: the task's answers, reading, every component by every method.

Each result is kept in the run's folder; a step makes what is not there yet.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.base import write_table
from saesteer.experiments.patch import results as names
from saesteer.experiments.patch.results import Job, PatchResults, interval, jobs, strongest_rows
from saesteer.patching.ablation import Ablation, Counterfactuals
from saesteer.patching.answers import task_answers
from saesteer.patching.attention import attention_page, attention_views
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.batch import encode_pairs
from saesteer.patching.circuits import completeness, faithfulness, find_circuit, minimality
from saesteer.patching.direct import direct_attribution
from saesteer.patching.lens import logit_lens
from saesteer.patching.patcher import activation_patching
from saesteer.patching.paths import path_patching
from saesteer.patching.result import PatchResult
from saesteer.patching.summary import draws_of, token_groups
from saesteer.utils.errors import HookError, ModelError, SiteError
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from saesteer.experiments.patch.experiment import Patch


def run_pairs(run: Patch) -> None:
    """Write the prompts with their tokens, so that nothing else is needed to read results."""
    batch = run.batch
    places = {mode: token_groups(batch, mode) for mode in ("denoising", "noising")}
    rows = [
        {
            "name": pair.name,
            "clean": pair.clean,
            "corrupted": pair.corrupted,
            "answer": batch.answers[row][0],
            "wrong": batch.answers[row][1],
            "roles": pair.roles,
            "clean_tokens": batch.clean_words[row],
            "corrupted_tokens": batch.corrupted_words[row],
            "places": {mode: named[row] for mode, named in places.items()},
        }
        for row, pair in enumerate(batch.pairs)
    ]
    run.folder.write_json(names.PAIRS, rows)


def run_answers(run: Patch) -> None:
    """Ask the model every prompt, and keep what it answers and how often that is right."""
    run.progress.say(f"Asking the model {2 * len(run.batch)} prompts")
    found = task_answers(run.model, run.batch)
    write_table(run.folder, names.table_file(names.ANSWERS), found.frame())
    of_pairs = [pair.name for pair in run.batch.pairs]
    record: dict[str, Any] = {
        **found.summary(),
        "pairs": len(run.batch),
        "solved": int(found.solved.sum()),
        "accuracy_interval": wilson(found.accuracy, len(set(draws_of(of_pairs).tolist()))),
    }
    for side, answers, sign in (("clean", found.clean, 1), ("corrupted", found.corrupted, -1)):
        one = interval(sign * answers.logit_difference, of_pairs, run.config.seed)
        record[f"{side}_interval"] = one["low"] if one["low"] is None else [one["low"], one["high"]]
    run.folder.write_json(names.TASK, record)


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """The 95% score interval of a share (Wilson 1927), which holds at 0 and at 1 too.

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
    run.progress.say("Logit lens")
    with run.leaving_out("logit lens"):
        how: dict[str, Any] = {"every_position": settings.every_position, "top_k": settings.top}
        found = logit_lens(run.model, run.batch, side=settings.side, **how)
        write_table(run.folder, names.table_file(names.LENS), found.frame())
    run.progress.say("Direct logit attribution")
    with run.leaving_out("direct logit attribution"):
        shares = direct_attribution(run.model, run.batch, side=settings.side)
        write_table(run.folder, names.table_file(names.DIRECT), shares.frame())


def _missing(run: Patch, *methods: str, sae: bool = False) -> list[Job]:
    """The results by some methods that are not there yet, of the SAE or of components."""
    return [
        job
        for job in jobs(run.config)
        if job.method in methods
        and (job.component in (names.SAE_FEATURES, names.CLUSTERS)) == sae
        and not run.folder.has(job.file)
    ]


def parts(run: Patch) -> dict[str, Callable[[], None]]:
    """What is not there yet and needs nothing else of the run, by name."""
    found: dict[str, Callable[[], None]] = {}
    for wanted in _attributed(run):
        found[wanted[0]._replace(component="all").name] = partial(_attribute, run, wanted)
    for job in _missing(run, "activation"):
        found[job.name] = partial(_activate, run, job)
    for job in _missing(run, "path"):
        found[job.name] = partial(_patch_paths, run, job)
    return found


def _attributed(run: Patch) -> Iterator[list[Job]]:
    """Yield the attributions that are missing; those of one method, mode and grain go together."""
    missing = _missing(run, "attribution", "integrated_gradients")
    for _, alike in groupby(missing, lambda job: (job.mode, job.method, job.by_position)):
        yield list(alike)


def run_attribution(run: Patch) -> None:
    """Attribute every component, all that share a method, mode and grain in one go."""
    for wanted in _attributed(run):
        try:
            _attribute(run, wanted)
        except (HookError, SiteError):
            # One of them is not to be had in this architecture: the others do without it.
            for job in wanted:
                with run.leaving_out(f"{job.method.replace('_', ' ')} of {job.component}"):
                    _attribute(run, [job])


def _attribute(run: Patch, wanted: Sequence[Job], **which: Any) -> None:
    """Make results that differ in the component alone."""
    one, components = wanted[0], [job.component for job in wanted]
    settings = run.config.attribution
    said = one.method.replace("_", " ").capitalize()
    run.progress.say(f"{said} ({one.mode}): {', '.join(components)}")
    if settings is not None:
        which |= {"steps": settings.steps, "line": settings.line}
    found = attribution_patching(
        run.model,
        run.batch,
        components,
        run.metric,
        method=one.method,  # type: ignore[arg-type]
        mode=one.mode,
        by_position=one.by_position,
        memory_gb=run.config.memory_gb,
        progress=run.progress,
        **which,
    )
    for job in wanted:
        _keep(run, job, found[job.component])


def run_activation(run: Patch) -> None:
    """Patch every component's activations."""
    for job in _missing(run, "activation"):
        with run.leaving_out(f"activation patching of {job.component}"):
            _activate(run, job)


def _activate(run: Patch, job: Job) -> None:
    grain = ", by position too" if job.by_position else ""
    _patch(run, job, f"{job.component}{grain}", by_position=job.by_position)


def _patch(run: Patch, job: Job, what: str, component: str = "", **which: Any) -> None:
    if run.folder.has(job.file):
        return
    run.progress.say(f"Activation patching ({job.mode}): {what}")
    # Chunks of what is being made, so that a run that is cut off goes on inside a component.
    store = run.folder.path / names.CELLS / "parts" / job.name
    found = activation_patching(
        run.model,
        run.batch,
        component or job.component,
        run.metric,
        mode=job.mode,
        memory_gb=run.config.memory_gb,
        progress=run.progress,
        store=store,
        **which,
    )
    _keep(run, job, found)
    shutil.rmtree(store, ignore_errors=True)


def run_features(run: Patch) -> None:
    """Attribute every feature of the SAE, then patch the strongest, or a vector's own."""
    config, sae, clusters = run.config, run.patched_sae, run.vector_clusters
    if sae is None:
        return
    for job in _missing(run, "attribution", sae=True):
        _attribute(run, [job], sae=sae)
    shown: set[int] = set()
    for mode in config.modes:
        rough = Job("attribution", names.SAE_FEATURES, mode)
        if clusters is None:
            change = PatchResult.load(run.folder.path / rough.file)
            chosen = _strongest_features(change, config.features.n_features)
        else:
            chosen = sorted({feature for own in clusters.values() for feature in own})
            said = f"{len(clusters)} clusters of {config.sae}"
            whole = Job("activation", names.CLUSTERS, mode)
            _patch(run, whole, said, names.SAE_FEATURES, sae=sae, clusters=clusters)
        _patch(
            run, rough.exact, f"{len(chosen)} features of {config.sae}", sae=sae, features=chosen
        )
        shown.update(chosen)
    run.folder.write_json(names.SAE, run.sae_record(sorted(shown)))


def _strongest_features(result: PatchResult, most: int) -> list[int]:
    """The features of the largest mean |change|, by index."""
    size = np.nan_to_num(np.abs(result.change.mean(axis=0)))
    order = np.argsort(-size, kind="stable")[:most]
    return sorted(int(result.coords["feature"][place]) for place in order)


def run_paths(run: Patch) -> None:
    """Patch the paths from every sender to the chosen receivers."""
    for job in _missing(run, "path"):
        sender, _ = _ends(job)
        with run.leaving_out(f"path patching from every {sender}", ModelError):
            _patch_paths(run, job)


def _ends(job: Job) -> tuple[str, str]:
    sender, receivers = job.component.split(names.TO)
    return "head" if sender == "z" else "MLP", receivers


def _patch_paths(run: Patch, job: Job) -> None:
    said, receivers = _ends(job)
    run.progress.say(f"Path patching ({job.mode}): from every {said} to {receivers}")
    found = path_patching(
        run.model,
        run.batch,
        job.component.split(names.TO)[0],
        receivers.split("+"),
        run.metric,
        mode=job.mode,
        mlps=run.config.path.mlps,
        memory_gb=run.config.memory_gb,
        progress=run.progress,
    )
    _keep(run, job, found)


def run_attention(run: Patch) -> None:
    """Write the page of the chosen or strongest heads' attention patterns."""
    settings = run.config.attention
    if settings is None:
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
        run.folder.write(names.ATTENTION, lambda draft: draft.write_bytes(data))


def _strongest_heads(run: Patch, most: int) -> list[tuple[int, int]]:
    """The heads of the largest effect by what was patched, or by direct attribution."""
    results = PatchResults(run.folder)
    for method in ("activation", "integrated_gradients", "attribution"):
        result = results.results.get(Job(method, "z", run.config.modes[0]))
        if result is not None:
            size = np.abs(np.nanmean(result.change, axis=0))
            order = np.argsort(-size, axis=None, kind="stable")[:most]
            places = [divmod(int(place), size.shape[1]) for place in order]
            return [(int(result.coords["layer"][layer]), head) for layer, head in places]
    table = results.table(names.DIRECT)
    rows = [] if table is None else strongest_rows(table, most)
    return [(row["layer"], row["head"]) for row in rows]


def run_circuit(run: Patch) -> None:
    """Search or take a circuit of heads, and keep it with how well it does the task."""
    settings, circuit, pairs = run.config.circuit, run.given_circuit, range(len(run.batch))
    if settings is None:
        return
    started = time.perf_counter()
    record: dict[str, Any] = {"target": settings.faithfulness, "origin": "given"}
    if circuit is None:
        run.progress.say("Searching a circuit of heads on one half of the pairs")
        order = np.random.default_rng(run.config.seed).permutation(pairs)
        middle = (len(order) + 1) // 2
        search, pairs = _ablation(run, sorted(order[:middle])), sorted(order[middle:])
        circuit = find_circuit(
            search, settings.faithfulness, roles=settings.roles, progress=run.progress
        )
        record["origin"] = "found"
        record["candidates"] = search.shape[0] * search.shape[1] * len(settings.roles or [None])
        record["searched"] = faithfulness(search, circuit)
    run.progress.say(f"Testing a circuit of {len(circuit)} heads")
    test = _ablation(run, pairs)
    complete = completeness(test, circuit, random_sets=settings.random_sets, seed=run.config.seed)
    record |= {
        "size": len(circuit),
        "heads": circuit.record(),
        "pairs": len(test.batch),
        "held_out": faithfulness(test, circuit),
        "completeness": complete,
        "minimality": minimality(test, circuit),
        "seconds": round(time.perf_counter() - started, 1),
    }
    run.folder.write_json(names.CIRCUIT, finite(record))


def _ablation(run: Patch, chosen: Sequence[int]) -> Ablation:
    bos = run.config.pairs.prepend_bos
    pairs = [run.batch.pairs[i] for i in chosen]
    batch = encode_pairs(run.model, pairs, prepend_bos=bos)
    if run.ioi is None:
        return Ablation(run.model, batch, Counterfactuals.of_corrupted(batch), metric=run.metric)
    # Used the other way round, a pair's corrupted prompt is the clean one.
    both = zip(run.ioi.pairs, run.ioi.frames, strict=True)
    frame_of = {text: frame for pair, frame in both for text in (pair.clean, pair.corrupted)}
    # All of the set's counterfactuals, for either half: they say nothing of any pair's answer.
    others = Counterfactuals.of_ioi(run.model, run.ioi, prepend_bos=bos)
    groups = [frame_of[pair.clean] for pair in pairs]
    return Ablation(run.model, batch, others, groups, metric=run.metric)


def _keep(run: Patch, job: Job, result: PatchResult) -> None:
    """Write a result and its labelled table."""
    frame: Any = result.frame()
    for name in frame.columns:
        # Axes such as "feature" may hold numbers and words; Parquet takes one kind.
        if frame[name].map(type).nunique() > 1:
            frame[name] = frame[name].astype(str)
    write_table(run.folder, names.table_file(job.name), frame)
    run.folder.write(job.file, result.save)
