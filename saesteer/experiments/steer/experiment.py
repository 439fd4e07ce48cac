"""The main line: from contrastive pairs to a steered model with its evidence in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from saesteer.data import PairSet
from saesteer.data.splits import split_record
from saesteer.evaluation import EffectMeter, VectorResult
from saesteer.experiments.base import Stage
from saesteer.experiments.context import ExperimentFit
from saesteer.experiments.numbers import run_numbers
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.plan import SteerPlan, plan_run
from saesteer.experiments.steer.results import (
    BASELINE,
    STAGES,
    VECTOR,
    SteerResults,
    curve_name,
    metrics_of,
    read_result,
    read_vector,
    result_names,
)
from saesteer.experiments.steering import SteeringExperiment
from saesteer.methods import ClusteredSAE, DifferenceInMeans, RandomDirection
from saesteer.methods.features import feature_table, vector_features
from saesteer.methods.registry import method_entry
from saesteer.models import model_info
from saesteer.models.reading import PairActivations
from saesteer.report import Report
from saesteer.saes.labels import PLACE_KEY, feature_url
from saesteer.steering import SteeringVector, generate
from saesteer.tracking import RecordedRun
from saesteer.utils.cache import ON_A_MODEL
from saesteer.utils.errors import MismatchError
from saesteer.utils.run_folder import environment_record, finite, write_record

FEATURE_COLUMNS = [
    "feature",
    "weight",
    "score",
    "cluster",
    "firing_positive",
    "firing_negative",
    "description",
]


class Steer(SteeringExperiment[SteerResults]):
    """Reads activations, fits a vector of SAE features and measures what it does."""

    Config = RunConfig
    Results = SteerResults
    about = "one steering vector and its effect on held-out pairs"
    writing_group = "completions"
    plan: SteerPlan
    make_plan = staticmethod(plan_run)

    def check(self) -> None:
        """Check, before anything is computed or written, all that later stages would stumble on.

        Raises:
            SaesteerError: Model and SAE do not belong together, or a text does not fit the model's
                context.
        """
        self.check_shared([self.config.method.name], judged=False)
        for pairs in self._parts.values():
            self.check_pairs(pairs)

    @property
    def _parts(self) -> dict[str, PairSet]:
        split = self.plan.split
        return {"train": split.train, "validation": split.validation, "test": self.plan.held_out}

    def stages(self) -> list[Stage]:
        """Return the steps: read, fit, measure, write."""
        steps = (self._activations, self._features, self._evaluation, self._completions)
        return [Stage(*named) for named in zip(STAGES, steps, strict=True)]

    def begin(self) -> None:
        """Write the split and what the numbers depend on besides."""
        parts = {**self._parts, "test": self.plan.split.test}
        self.folder.write_json("split.json", split_record(self.plan.pairs, parts))
        record = {**environment_record(), "pairs_sha256": self.plan.pairs.digest}
        write_record(self.folder, record)

    def _activations(self) -> None:
        sae = self.sae
        write_record(
            self.folder,
            {
                "model_fingerprint": model_info(self.model).fingerprint,
                "sae_fingerprint": sae.fingerprint,
                PLACE_KEY: sae.neuronpedia_id,
                "dtype": str(self.model.cfg.dtype),
            },
        )
        self.progress.say(f"Reading activations at {sae.site}")
        for name in ("train", "validation"):
            for site, activations in self.read_sides(self._parts[name]).items():
                self.folder.write(
                    f"activations/{name}.{site}.safetensors",
                    lambda draft, kept=activations: kept.save(draft),
                )

    def _features(self) -> None:
        import pandas as pd

        config = self.config
        self.progress.say(f"Fitting {method_entry(config.method.name).label}")
        context = self._fit_context()
        fit = context.fit(config.method.name, config.method_settings)
        vector, delta = fit.vector_, context.deltas.double().mean(dim=0)
        record = {
            "features": len(vector.features),
            "cosine_to_mean_delta": float(vector.direction.double() @ delta / delta.norm()),
        }
        if isinstance(fit, ClusteredSAE):
            table = feature_table(fit.selection_, fit.clusters_, fit.weights_, context.descriptions)
            record |= _stages_of(fit)
        else:
            rows = vector_features(vector, context.codes) if vector.sae_features else []
            table = pd.DataFrame(rows, columns=FEATURE_COLUMNS)
        links = [feature_url(self.sae.neuronpedia_id, feature) for feature in table["feature"]]
        if any(links):
            table["url"] = links
        self.folder.write("features.parquet", table.to_parquet)
        self.folder.write_json("features.json", json.loads(str(table.to_json(orient="records"))))
        self.folder.write_json("fit.json", finite(record))
        self.folder.write(VECTOR, vector.save)

    def _evaluation(self) -> None:
        settings = self.config.evaluation
        context = self._fit_context()
        others = [DifferenceInMeans(), *map(RandomDirection, range(settings.random_directions))]
        vectors = [
            read_vector(self.folder),
            *(method.fit_in(context).vector_ for method in others),
        ]
        self.progress.say(
            f"Scoring {len(self.plan.held_out)} held-out pairs at KL {settings.kl_target} per token"
        )
        meter = self._meter()
        names = result_names(self.config)
        start = 0.25
        with self.progress.task("vectors", total=len(vectors), unit="vectors") as task:
            for name, vector in zip(names, vectors, strict=True):
                self.folder.once(name, partial(self._measured, meter, vector, start))
                if self.watch is not None and name == names[0]:
                    self.watch(
                        run_numbers({"vector": self.folder.read_json(name)}, settings.kl_target)
                    )
                if vector.method == "random_direction":
                    # Random directions cost alike: the last one's strength is a good guess.
                    start = abs(read_result(self.folder, name).plus.strength)
                task.advance(1, vector.name)
        methods = (self.config.method.name, BASELINE)
        for method, name, vector in zip(methods, names[:2], vectors[:2], strict=True):
            result = read_result(self.folder, name)
            compute = partial(self._curve, meter, vector, result)
            self.folder.once(curve_name(method), compute)
        margin = float((meter.unsteered[0] - meter.unsteered[1]).mean())
        self.folder.write_json("evaluation/unsteered.json", finite({"margin": margin}))

    @property
    def _measured_with(self) -> tuple[Any, ...]:
        """All that a vector's result depends on besides the vector and the KL target."""
        rows = tuple((tuple(row.ids), tuple(row.kept)) for row in self.neutral_rows)
        settings = (self.config.evaluation.request, self.config.reading.chat)
        # Not on the SAE: baselines and random directions are the same for all settings of features.
        return (*self.weights_key[:3], rows, self.plan.held_out.digest, *settings)

    def _meter(self) -> EffectMeter:
        def make() -> EffectMeter:
            return EffectMeter(self.divergence, self.propensity(self.plan.held_out))

        return self.cache.keep(ON_A_MODEL, self._measured_with, make)

    def _measured(self, meter: EffectMeter, vector: SteeringVector, start: float) -> dict[str, Any]:
        kl_target = self.config.evaluation.kl_target
        return self.cache.record(
            "result",
            *(self._measured_with, *_identity(vector), kl_target, start),
            compute=lambda: finite(meter.measure(vector, kl_target, start=start).as_dict()),
        )

    def _curve(
        self, meter: EffectMeter, vector: SteeringVector, result: VectorResult
    ) -> list[dict[str, Any]]:
        multiples = self.config.evaluation.multiples
        strengths = (result.plus.strength, result.minus.strength)
        return self.cache.record(
            "curve",
            *(self._measured_with, *_identity(vector), strengths, multiples),
            compute=lambda: finite(meter.curve(vector, result, multiples)["points"]),
        )

    def _completions(self) -> None:
        config = self.config
        vector = read_vector(self.folder)
        main = read_result(self.folder, result_names(config)[0])
        records: list[dict[str, Any]] = []
        if self.plan.questions:
            self.progress.say("Generating completions")
            records = generate(
                self.model,
                self.plan.questions,
                vector,
                (main.minus.strength, 0.0, main.plus.strength),
                max_new_tokens=config.completions.max_new_tokens,
                temperature=config.completions.temperature,
                chat=config.completions.chat,
                seed=config.seed,
            ).to_dicts()
        self.folder.write_json("completions.json", records)

    def _fit_context(self) -> ExperimentFit:
        self._check_same_weights()
        return self.fits(
            self.plan.split.train,
            lambda part, site: PairActivations.load(
                self.folder.path / f"activations/{part}.{site}.safetensors"
            ),
            name=self.config.name,
            seed=self.config.seed,
            folder=self.folder,
        )

    def _check_same_weights(self) -> None:
        begun = self.folder.read_json("run.json")
        weights = {"model": model_info(self.model).fingerprint, "sae": self.sae.fingerprint}
        for what, fingerprint in weights.items():
            if begun.get(f"{what}_fingerprint", fingerprint) != fingerprint:
                raise MismatchError(
                    f"run folder {self.folder.path} was begun with other weights of the {what}; "
                    "delete the folder to begin anew, or put those weights back."
                )

    def finish(self) -> dict[str, Any]:
        """Return the metrics, from the files of the stages."""
        return metrics_of(self.folder, self.config)

    def report(self, results: SteerResults) -> Report:
        """Return the report."""
        from saesteer.report.steer import steer_report

        return steer_report(
            results.metrics,
            self.config.model_dump(mode="json"),
            results.features,
            results.completions,
            n_pairs=len(self.plan.held_out),
            site=str(results.vector.site),
        )

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the effect with its interval, what it cost, and the null."""
        return run_numbers(metrics, self.config.evaluation.kl_target)

    def tell(self, record: RecordedRun, results: SteerResults) -> None:
        """Show the margin by strength, features and completions elsewhere too."""
        record.curve("margin", results.metrics["curve"], x="strength")
        record.table("features", results.features)
        record.table("completions", results.completions)
        record.artifact("vector", self.folder.path / VECTOR, "vector")


def _stages_of(fit: ClusteredSAE) -> dict[str, Any]:
    return {
        "candidates": fit.selection_.n_candidates,
        "selected": len(fit.selection_),
        "clusters": int(fit.clusters_.labels.max()) + 1,
        "clusters_kept": len(fit.clusters_.kept),
        "cluster_note": fit.clusters_.note,
        "silhouette": {str(k): float(v) for k, v in fit.clusters_.silhouette.items()},
        "linkage": fit.clusters_.linkage.tolist(),
        "regression": fit.weights_.method,
        "r2": fit.weights_.r2,
        "r2_mean": fit.weights_.r2_mean,
        "cosine_to_mean_delta": fit.weights_.cosine,
        "mean_residual_norm": float(fit.weights_.residual_norms.mean()),
        "details": {key: float(value) for key, value in fit.weights_.details.items()},
    }


def _identity(vector: SteeringVector) -> tuple[Any, ...]:
    norm = vector.residual_norm
    return (vector.name, vector.method, vector.positions, norm, vector.raw.float().cpu().numpy())
