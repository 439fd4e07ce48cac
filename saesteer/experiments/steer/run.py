"""The main line: from contrastive pairs to a steered model with its evidence in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from saesteer.evaluation import EffectMeter, PropensityMeter
from saesteer.experiments.recorded import recorded_experiment, tell_run
from saesteer.experiments.shelf import Shelf
from saesteer.experiments.steer.plan import plan_run, too_few
from saesteer.experiments.steer.run_files import (
    STAGES,
    VECTOR,
    RunResult,
    curve_names,
    load_result,
    pending_stages,
    read_result,
    read_vector,
    result_names,
    write_figure,
    write_inputs,
    write_metrics,
)
from saesteer.experiments.steer.run_sharing import (
    measured,
    measured_curve,
    measured_with,
    weights_key,
)
from saesteer.experiments.workbench import Workbench, on_its_threads
from saesteer.methods import ClusteredSaeFit, DifferenceInMeans, RandomDirection
from saesteer.methods.features import feature_table, vector_features
from saesteer.methods.fit_context import FitContext, vector_of
from saesteer.methods.registry import method_entry
from saesteer.models import model_info
from saesteer.models.activation_files import load_pair_activations, save_pair_activations
from saesteer.models.pair_activations import read_pair_activations
from saesteer.saes.labels import PLACE_KEY, feature_url
from saesteer.steering import SteeringVector, generate
from saesteer.steering.divergence import DivergenceMeter
from saesteer.utils.errors import MismatchError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder, finite, write_record
from saesteer.utils.settings import RunConfig

FEATURE_COLUMNS = [
    "feature",
    "weight",
    "score",
    "cluster",
    "firing_positive",
    "firing_negative",
    "description",
]
Watch = Callable[[dict[str, Any]], None]


@on_its_threads
def run(
    config: RunConfig,
    progress: Progress | None = None,
    shelf: Shelf | None = None,
    *,
    watch: Watch | None = None,
    **record: Any,
) -> RunResult:
    """Run every stage that the run's folder does not hold yet, and record the run.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs have loaded, read and measured already; a run finds there, or puts
            there, what does not depend on its own settings alone.
        watch: Called with the vector's result as soon as it is measured; what it raises ends the
            run before the rest is.
        record: What else the record says: `tags`, `group` and `parent` of `recorded_run`.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.
    """
    progress = progress or Progress()
    plan = plan_run(config)
    too_few(plan.split)
    folder = RunFolder(plan.folder)
    bench = Workbench(plan, progress, shelf)
    pending = pending_stages(folder)
    start = time.perf_counter()
    # What does not fit the model is said before anything is written.
    if STAGES[0] in pending:
        bench.check()
    with recorded_experiment("run", config, plan.folder, progress, **record) as recorded:
        result = _stages(bench, folder, pending, start, watch)
        tell_run(recorded, config, result)
    return result


def _stages(
    bench: Workbench, folder: RunFolder, pending: list[str], start: float, watch: Watch | None
) -> RunResult:
    plan = bench.plan
    if pending:
        write_inputs(folder.create(), plan)
    works = (
        _activations_stage,
        _features_stage,
        partial(_evaluation_stage, watch=watch),
        _completions_stage,
    )
    for stage, work in zip(STAGES, works, strict=True):
        if stage in pending:
            files = work(bench, folder)
            seconds = round(time.perf_counter() - start, 2)
            folder.write_json(f"stages/{stage}.json", {"seconds": seconds, "files": files})
        start = time.perf_counter()
    if pending or not folder.has("metrics.json"):
        write_metrics(folder, plan)
    if pending or not folder.has("figure.html"):
        write_figure(folder, plan)
    return load_result(folder)


def _activations_stage(bench: Workbench, folder: RunFolder) -> list[str]:
    config = bench.plan.config.reading
    sae, model = bench.sae, bench.model
    write_record(
        folder,
        {
            "model_fingerprint": model_info(model).fingerprint,
            "sae_fingerprint": sae.fingerprint,
            PLACE_KEY: sae.neuronpedia_id,
            "dtype": str(model.cfg.dtype),
        },
    )
    sites = list(dict.fromkeys((sae.site, sae.write_site)))
    bench.progress.say("Reading activations at " + ", ".join(map(str, sites)))
    files = []
    for name in ("train", "validation"):
        pairs = getattr(bench.plan.split, name)
        read = bench.shelf.pair_activations(
            sites,
            *weights_key(bench),
            *(pairs.digest, sae.prepend_bos, config.model_dump_json()),
            compute=lambda pairs=pairs: read_pair_activations(
                model,
                pairs,
                sites,
                request=config.request,
                chat=config.chat,
                system=config.system,
                prepend_bos=sae.prepend_bos,
                pooling=config.positions,
            ),
        )
        for site, activations in read.items():
            files.append(f"activations/{name}.{site}.safetensors")
            folder.write(
                files[-1], lambda draft, kept=activations: save_pair_activations(kept, draft)
            )
    return files


def _features_stage(bench: Workbench, folder: RunFolder) -> list[str]:
    import pandas as pd

    config = bench.plan.config
    bench.progress.say(f"Fitting {method_entry(config.method.name).label}")
    context = _context(bench, folder)
    fit = context.fit(config.method.name, config.method_settings)
    vector = vector_of(fit)
    delta = context.dense.deltas.double().mean(dim=0)
    record = {
        "features": len(vector.features),
        "cosine_to_mean_delta": float(vector.direction.double() @ delta / delta.norm()),
    }
    if isinstance(fit, ClusteredSaeFit):
        table = feature_table(fit.selection, fit.clusters, fit.weights, context.inputs.descriptions)
        record |= _stages_of(fit)
    else:
        assert context.inputs.codes is not None
        rows = vector_features(vector, context.inputs.codes) if vector.features else []
        table = pd.DataFrame(rows, columns=FEATURE_COLUMNS)
    links = [feature_url(bench.sae.neuronpedia_id, feature) for feature in table["feature"]]
    if any(links):
        table["url"] = links
    folder.write("features.parquet", table.to_parquet)
    folder.write_json("features.json", json.loads(str(table.to_json(orient="records"))))
    folder.write_json("fit.json", finite(record))
    vector.save(folder.path / VECTOR)
    return ["features.parquet", "features.json", "fit.json", VECTOR]


def _stages_of(fit: ClusteredSaeFit) -> dict[str, Any]:
    return {
        "candidates": fit.selection.n_candidates,
        "selected": len(fit.selection),
        "clusters": int(fit.clusters.labels.max()) + 1,
        "clusters_kept": len(fit.clusters.kept),
        "cluster_note": fit.clusters.note,
        "silhouette": {str(k): float(v) for k, v in fit.clusters.silhouette.items()},
        "linkage": fit.clusters.linkage.tolist(),
        "regression": fit.weights.method,
        "r2": fit.weights.r2,
        "r2_mean": fit.weights.r2_mean,
        "cosine_to_mean_delta": fit.weights.cosine,
        "mean_residual_norm": float(fit.weights.residual_norms.mean()),
        "details": {key: float(value) for key, value in fit.weights.details.items()},
    }


def _evaluation_stage(
    bench: Workbench, folder: RunFolder, *, watch: Watch | None = None
) -> list[str]:
    settings = bench.plan.config.evaluation
    vector = read_vector(folder)
    inputs = _context(bench, folder).dense
    vectors = [vector, DifferenceInMeans()(inputs)]
    vectors += [RandomDirection(draw)(inputs) for draw in range(settings.random_directions)]
    bench.progress.say(
        f"Scoring {len(bench.plan.held_out)} held-out pairs at KL {settings.budget} per token"
    )
    meter = bench.shelf.keep("meter", measured_with(bench, vector), lambda: _meter(bench, vector))
    config = bench.plan.config
    names = result_names(config)
    start = 0.25
    with bench.progress.task("vectors", total=len(vectors), unit="vectors") as task:
        for name, candidate in zip(names, vectors, strict=True):
            folder.once(name, lambda v=candidate, s=start: measured(bench, meter, v, s))
            if watch is not None and name == names[0]:
                watch(folder.read_json(name))
            if candidate.method == "random_direction":
                # Random directions cost alike, so the last one's strength is a good first guess.
                start = abs(read_result(folder, name).plus.strength)
            task.advance(1, candidate.name)
    curves = curve_names(config)
    for curve, name, candidate in zip(curves, names[:2], vectors[:2], strict=True):
        result = read_result(folder, name)
        folder.once(curve, lambda v=candidate, r=result: measured_curve(bench, meter, v, r))
    margin = float((meter.unsteered[0] - meter.unsteered[1]).mean())
    folder.write_json("evaluation/unsteered.json", finite({"margin": margin}))
    return [*names, *curves, "evaluation/unsteered.json"]


def _meter(bench: Workbench, vector: SteeringVector) -> EffectMeter:
    return EffectMeter(
        DivergenceMeter(bench.model, bench.neutral_rows, site=vector.site),
        PropensityMeter(
            bench.model,
            bench.plan.held_out,
            request=bench.plan.config.evaluation.request,
            chat=bench.plan.config.reading.chat,
            site=vector.site,
        ),
    )


def _completions_stage(bench: Workbench, folder: RunFolder) -> list[str]:
    config = bench.plan.config
    vector = read_vector(folder)
    main = read_result(folder, result_names(config)[0])
    records: list[dict[str, Any]] = []
    if bench.plan.questions:
        bench.progress.say("Generating completions")
        records = generate(
            bench.model,
            bench.plan.questions,
            vector,
            (main.minus.strength, 0.0, main.plus.strength),
            max_new_tokens=config.completions.max_new_tokens,
            temperature=config.completions.temperature,
            chat=config.completions.chat,
            seed=config.seed,
        ).to_dicts()
    folder.write_json("completions.json", records)
    return ["completions.json"]


def _context(bench: Workbench, folder: RunFolder) -> FitContext:
    config = bench.plan.config
    _check_same_weights(bench, folder)
    return FitContext(
        bench,
        bench.plan.split.train,
        lambda part, site: load_pair_activations(
            folder.path / f"activations/{part}.{site}.safetensors"
        ),
        name=config.name,
        seed=config.seed,
        max_new_tokens=config.completions.max_new_tokens,
        folder=folder,
    )


def _check_same_weights(bench: Workbench, folder: RunFolder) -> None:
    begun = folder.read_json("run.json")
    weights = {"model": model_info(bench.model).fingerprint, "sae": bench.sae.fingerprint}
    for what, fingerprint in weights.items():
        if begun.get(f"{what}_fingerprint", fingerprint) != fingerprint:
            raise MismatchError(
                f"run folder {folder.path} was begun with other weights of the {what}; delete the "
                "folder to begin anew, or put those weights back."
            )
