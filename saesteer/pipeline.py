"""The main line: from contrastive pairs to a steered model with its evidence in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from saesteer.activations import PairActivations, read_pair_activations
from saesteer.activations.storage import load_pair_activations, save_pair_activations
from saesteer.config import RunConfig
from saesteer.errors import MismatchError, OutputError, SteeringError
from saesteer.evaluation import (
    DivergenceMeter,
    EqualCostComparison,
    PropensityMeter,
    VectorResult,
    against_null,
    is_monotone,
)
from saesteer.features import PairCodes, encode_pairs, feature_table
from saesteer.methods import ClusteredSae, DifferenceInMeans, MethodInputs, RandomDirection
from saesteer.models import model_info
from saesteer.plan import Plan, plan_run, too_few
from saesteer.progress import Progress
from saesteer.report import propensity_data, propensity_figure
from saesteer.run_sharing import (
    activations_key,
    measured,
    measured_curve,
    measured_with,
    weights_key,
)
from saesteer.shelf import Shelf
from saesteer.steering import SteeringVector, generate
from saesteer.tracking import RunFolder, environment_record, finite, write_record
from saesteer.workbench import Workbench

VECTOR = "vector.safetensors"
Watch = Callable[[dict[str, Any]], None]
STAGES = ("activations", "features", "evaluation", "completions")


@dataclass(frozen=True)
class RunResult:
    """What a run found; all of it is in its folder too.

    Attributes:
        folder: The run's folder.
        vector: The steering vector.
        metrics: `metrics.json`.
        features: The rows of `features.parquet`, strongest weight first.
        completions: Completions by question and strength.
    """

    folder: RunFolder
    vector: SteeringVector
    metrics: dict[str, Any]
    features: list[dict[str, Any]]
    completions: list[dict[str, Any]]


def run(
    config: RunConfig,
    progress: Progress | None = None,
    *,
    shelf: Shelf | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Run every stage that the run's folder does not hold yet.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs have loaded, read and measured already; a run finds there, or puts
            there, what does not depend on its own settings alone.
        watch: Called with the vector's result as soon as it is measured; what it raises ends the
            run before the rest is.

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
    if STAGES[0] in pending:
        bench.check()
    if pending:
        _write_inputs(folder.create(), plan)
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
        _write_metrics(folder, plan)
    if pending or not folder.has("figure.html"):
        _write_figure(folder, plan)
    return load_result(folder)


def pending_stages(folder: RunFolder) -> list[str]:
    """Return the stages that a run's folder does not hold yet, or not with all their files."""
    return [stage for stage in STAGES if not _is_done(folder, stage)]


def _is_done(folder: RunFolder, stage: str) -> bool:
    marker = f"stages/{stage}.json"
    record = folder.read_json(marker) if folder.has(marker) else None
    files = record.get("files") if isinstance(record, dict) else None
    return files is not None and all(map(folder.has, files))


def load_result(folder: RunFolder) -> RunResult:
    """Read a finished run back from its folder."""
    return RunResult(
        folder=folder,
        vector=_read_vector(folder),
        metrics=folder.read_json("metrics.json"),
        features=folder.read_json("features.json"),
        completions=folder.read_json("completions.json"),
    )


def _read_vector(folder: RunFolder) -> SteeringVector:
    try:
        return SteeringVector.load(folder.path / VECTOR)
    except SteeringError as error:
        raise OutputError(
            f"the run's vector is damaged or missing ({str(error).rstrip('.')}); delete it if it "
            "is there, and run the same command again."
        ) from error


def _write_inputs(folder: RunFolder, plan: Plan) -> None:
    folder.write_json("config.json", plan.config.model_dump(mode="json"))
    folder.write_json(
        "split.json",
        {
            name: [pair.id for pair in getattr(plan.split, name)]
            for name in ("train", "validation", "test")
        },
    )
    write_record(folder, {**environment_record(), "pairs_sha256": plan.pairs.digest})


def _activations_stage(bench: Workbench, folder: RunFolder) -> list[str]:
    config = bench.plan.config.reading
    sae, model = bench.sae, bench.model
    write_record(
        folder,
        {
            "model_fingerprint": model_info(model).fingerprint,
            "sae_fingerprint": sae.fingerprint,
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
    config = bench.plan.config
    bench.progress.say("Encoding, selecting, clustering and fitting features")
    inputs = _method_inputs(bench, folder, with_codes=True)
    method = ClusteredSae(
        config.selection.model_dump(),
        config.clustering.model_dump(),
        config.regression.model_dump(),
    )
    fit = method.fit(inputs)
    table = feature_table(fit.selection, fit.clusters, fit.weights, inputs.descriptions)
    folder.write("features.parquet", table.to_parquet)
    folder.write_json("features.json", json.loads(str(table.to_json(orient="records"))))
    record = finite(
        {
            "candidates": fit.selection.n_candidates,
            "selected": len(fit.selection),
            "clusters": int(fit.clusters.labels.max()) + 1,
            "clusters_kept": len(fit.clusters.kept),
            "cluster_note": fit.clusters.note,
            "silhouette": {str(k): float(v) for k, v in fit.clusters.silhouette.items()},
            "linkage": fit.clusters.linkage.tolist(),
            "features": len(fit.vector.features),
            "regression": fit.weights.method,
            "r2": fit.weights.r2,
            "r2_mean": fit.weights.r2_mean,
            "cosine_to_mean_delta": fit.weights.cosine,
            "mean_residual_norm": float(fit.weights.residual_norms.mean()),
            "details": {key: float(value) for key, value in fit.weights.details.items()},
        },
    )
    folder.write_json("fit.json", record)
    fit.vector.save(folder.path / VECTOR)
    return ["features.parquet", "features.json", "fit.json", VECTOR]


def _evaluation_stage(
    bench: Workbench, folder: RunFolder, *, watch: Watch | None = None
) -> list[str]:
    settings = bench.plan.config.evaluation
    vector = _read_vector(folder)
    inputs = _method_inputs(bench, folder, with_codes=False)
    vectors = [vector, DifferenceInMeans()(inputs)]
    vectors += [RandomDirection(draw)(inputs) for draw in range(settings.random_directions)]
    bench.progress.say(
        f"Scoring {len(bench.plan.held_out)} held-out pairs at KL {settings.budget} per token"
    )
    comparison = bench.shelf.keep(
        "comparison", measured_with(bench, vector), lambda: _comparison(bench, vector)
    )
    names = _result_names(settings.random_directions)
    start = 0.25
    with bench.progress.task("vectors", total=len(vectors), unit="vectors") as task:
        for name, candidate in zip(names, vectors, strict=True):
            folder.once(name, lambda v=candidate, s=start: measured(bench, comparison, v, s))
            if watch is not None and name == names[0]:
                watch(folder.read_json(name))
            if candidate.method == "random_direction":
                # Random directions cost alike, so the last one's strength is a good first guess.
                start = abs(_read_result(folder, name).plus.strength)
            task.advance(1, candidate.name)
    curves = [f"evaluation/curve-{candidate.method}.json" for candidate in vectors[:2]]
    for curve, name, candidate in zip(curves, names[:2], vectors[:2], strict=True):
        result = _read_result(folder, name)
        folder.once(curve, lambda v=candidate, r=result: measured_curve(bench, comparison, v, r))
    margin = float((comparison.unsteered[0] - comparison.unsteered[1]).mean())
    folder.write_json("evaluation/unsteered.json", finite({"margin": margin}))
    return [*names, *curves, "evaluation/unsteered.json"]


def _comparison(bench: Workbench, vector: SteeringVector) -> EqualCostComparison:
    settings = bench.plan.config.evaluation
    return EqualCostComparison(
        DivergenceMeter(bench.model, bench.neutral_rows, site=vector.site),
        PropensityMeter(
            bench.model,
            bench.plan.held_out,
            request=settings.request,
            chat=bench.plan.config.reading.chat,
            site=vector.site,
        ),
        budget=settings.budget,
        seed=bench.plan.config.seed,
    )


def _result_names(random_directions: int) -> list[str]:
    methods = ["clustered_sae", "difference_in_means", *["random_direction"] * random_directions]
    return [f"evaluation/{number:02d}-{method}.json" for number, method in enumerate(methods)]


def _read_result(folder: RunFolder, name: str) -> VectorResult:
    record = folder.read_json(name)
    try:
        return VectorResult.from_dict(record)
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.path / name} holds no result of a vector ({error!r}); delete it and run the "
            "same command again."
        ) from error


def _completions_stage(bench: Workbench, folder: RunFolder) -> list[str]:
    config = bench.plan.config
    vector = _read_vector(folder)
    main = _read_result(folder, _result_names(0)[0])
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


def _method_inputs(bench: Workbench, folder: RunFolder, *, with_codes: bool) -> MethodInputs:
    sae = bench.sae
    table = bench.table
    _check_same_weights(bench, folder)

    def stored(name: str, site: object) -> PairActivations:
        return load_pair_activations(folder.path / f"activations/{name}.{site}.safetensors")

    def encoded(name: str) -> PairCodes:
        read = stored(name, sae.site)
        key = (sae.fingerprint, activations_key(read))
        return bench.shelf.keep(f"{name} codes", key, lambda: encode_pairs(sae, read))

    codes = encoded("train") if with_codes else None
    held = encoded("validation") if with_codes else None
    return MethodInputs(
        activations=stored("train", sae.write_site),
        model=bench.plan.config.model.name,
        model_fingerprint=model_info(bench.model).fingerprint,
        name=bench.plan.config.name,
        codes=codes,
        validation_codes=held,
        sae=sae,
        max_activation=None if table is None else table.max_activation,
        density=None if table is None else table.density,
        descriptions=_descriptions(bench),
        seed=bench.plan.config.seed,
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


def _descriptions(bench: Workbench) -> dict[int, str]:
    table = bench.table
    return {} if table is None else {i: table.describe(i) for i in range(bench.sae.d_sae)}


def _write_figure(folder: RunFolder, plan: Plan) -> None:
    budget = plan.config.evaluation.budget
    title = f"{plan.config.name}: {len(plan.held_out)} held-out pairs, KL {budget} per token"
    figure = propensity_figure(propensity_data(folder.read_json("metrics.json")), title)
    # The script is embedded, so the page opens offline.
    folder.write(
        "figure.html",
        lambda draft: figure.write_html(
            draft, include_plotlyjs=True, config={"displaylogo": False}
        ),
    )


def _write_metrics(folder: RunFolder, plan: Plan) -> None:
    names = _result_names(plan.config.evaluation.random_directions)
    main, means, *null = [_read_result(folder, name) for name in names]
    curve = folder.read_json("evaluation/curve-clustered_sae.json")
    against = against_null(main, null)
    folder.write_json(
        "metrics.json",
        {
            "fit": folder.read_json("fit.json"),
            "unsteered_margin": folder.read_json("evaluation/unsteered.json")["margin"],
            "vector": main.as_dict(),
            "difference_in_means": means.as_dict(),
            "random_directions": [result.as_dict() for result in null],
            "null": None if against is None else asdict(against),
            "curve": curve,
            "curve_difference_in_means": folder.read_json(
                "evaluation/curve-difference_in_means.json"
            ),
            "monotone": all(row["margin"] is not None for row in curve) and is_monotone(curve),
            "seconds": {
                stage: folder.read_json(f"stages/{stage}.json")["seconds"] for stage in STAGES
            },
        },
    )
