"""The main line: from contrastive pairs to a steered model with its evidence in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from saesteer.data.splits import split_record
from saesteer.evaluation import EffectMeter, PropensityMeter
from saesteer.experiments.base import Experiment, Stage
from saesteer.experiments.numbers import run_numbers
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.plan import Plan, plan_run, too_few
from saesteer.experiments.steer.results import (
    STAGES,
    VECTOR,
    SteerResults,
    curve_names,
    metrics_of,
    read_result,
    read_vector,
    result_names,
)
from saesteer.experiments.steer.sharing import (
    measured,
    measured_curve,
    measured_with,
    weights_key,
)
from saesteer.methods import ClusteredSaeFit, DifferenceInMeans, RandomDirection
from saesteer.methods.features import feature_table, vector_features
from saesteer.methods.fit_context import FitContext, vector_of
from saesteer.methods.registry import method_entry
from saesteer.models import model_info
from saesteer.models.activation_files import load_pair_activations, save_pair_activations
from saesteer.models.pair_activations import read_pair_activations
from saesteer.models.tokens import chat_prompt, encode_statements, encode_texts, has_chat_template
from saesteer.saes.labels import PLACE_KEY, feature_url
from saesteer.steering import SteeringVector, generate
from saesteer.steering.divergence import DivergenceMeter
from saesteer.tracking.recording import RecordedRun
from saesteer.utils.array_cache import content_key
from saesteer.utils.errors import MismatchError, SteeringError
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


class Steer(Experiment[SteerResults]):
    """Reads activations, fits a vector of SAE features and measures what it does."""

    Config = RunConfig
    Results = SteerResults
    about = "one steering vector and its effect on held-out pairs"
    plan: Plan

    @staticmethod
    def make_plan(config: RunConfig) -> Plan:
        """Read the data and check every name in the settings."""
        plan = plan_run(config)
        too_few(plan.split)
        return plan

    def check(self) -> None:
        """Check, before anything is computed or written, all that later stages would stumble on.

        Raises:
            SaesteerError: Model and SAE do not belong together, or a text does not fit the model's
                context.
        """
        config = self.config
        needs = method_entry(config.method.name).needs
        if "objective" in needs and config.objective.own_words > 0:
            # Before the model, which takes longer to load.
            self.embedder.embed(["A sentence."])
        assert self.sae is not None
        assert self.model.tokenizer is not None
        if "objective" in needs:
            assert self.training_rows
        held_out, context = self.plan.held_out, int(self.model.cfg.n_ctx)
        prompts = [pair.prompt or config.evaluation.request for pair in held_out]
        encode_statements(
            self.model.tokenizer,
            [*held_out.positives, *held_out.negatives],
            [*prompts, *prompts],
            chat=config.reading.chat,
            max_length=context,
            what=held_out.side_names,
        )
        longest = config.completions.max_new_tokens
        questions = (*self.plan.questions, *self.plan.training_questions)
        for number, question in enumerate(questions, start=1):
            length = self._prompt_length(question)
            if length + longest > context:
                raise SteeringError(
                    f"question {number} ({question[:40]!r}) has {length} tokens, which with "
                    f"completions.max_new_tokens {longest} is more than the model's context of "
                    f"{context}; lower that or shorten the question."
                )

    def _prompt_length(self, question: str) -> int:
        tokenizer = self.model.tokenizer
        chat = self.config.completions.chat
        assert tokenizer is not None
        if has_chat_template(tokenizer) if chat == "auto" else chat:
            question = chat_prompt(tokenizer, question)
        return len(encode_texts(tokenizer, [question])[0])

    def stages(self) -> list[Stage]:
        """Return the steps: read, fit, measure, write."""
        steps = (self._activations, self._features, self._evaluation, self._completions)
        return [Stage(*named) for named in zip(STAGES, steps, strict=True)]

    def begin(self) -> None:
        """Write the split and what the numbers depend on besides."""
        parts = {name: getattr(self.plan.split, name) for name in ("train", "validation", "test")}
        self.folder.write_json("split.json", split_record(self.plan.pairs, parts))
        record = {**environment_record(), "pairs_sha256": self.plan.pairs.digest}
        write_record(self.folder, record)

    def _activations(self) -> None:
        config = self.config.reading
        sae, model = self.sae, self.model
        write_record(
            self.folder,
            {
                "model_fingerprint": model_info(model).fingerprint,
                "sae_fingerprint": sae.fingerprint,
                PLACE_KEY: sae.neuronpedia_id,
                "dtype": str(model.cfg.dtype),
            },
        )
        sites = list(dict.fromkeys((sae.site, sae.write_site)))
        self.progress.say("Reading activations at " + ", ".join(map(str, sites)))
        for name in ("train", "validation"):
            pairs = getattr(self.plan.split, name)
            settings = (pairs.digest, sae.prepend_bos, config.model_dump_json())
            key = content_key(*weights_key(self), *settings)
            read = self.cache.files(
                {site: f"activations-{key}.{site}.safetensors" for site in sites},
                lambda pairs=pairs: read_pair_activations(
                    model,
                    pairs,
                    sites,
                    request=config.request,
                    chat=config.chat,
                    system=config.system,
                    prepend_bos=sae.prepend_bos,
                    pooling=config.positions,
                ),
                load=load_pair_activations,
                save=save_pair_activations,
            )
            for site, activations in read.items():
                self.folder.write(
                    f"activations/{name}.{site}.safetensors",
                    lambda draft, kept=activations: save_pair_activations(kept, draft),
                )

    def _features(self) -> None:
        import pandas as pd

        config = self.config
        self.progress.say(f"Fitting {method_entry(config.method.name).label}")
        context = self._fit_context()
        fit = context.fit(config.method.name, config.method_settings)
        vector = vector_of(fit)
        delta = context.dense.deltas.double().mean(dim=0)
        record = {
            "features": len(vector.features),
            "cosine_to_mean_delta": float(vector.direction.double() @ delta / delta.norm()),
        }
        if isinstance(fit, ClusteredSaeFit):
            table = feature_table(
                fit.selection, fit.clusters, fit.weights, context.inputs.descriptions
            )
            record |= _stages_of(fit)
        else:
            assert context.inputs.codes is not None
            rows = vector_features(vector, context.inputs.codes) if vector.features else []
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
        vector = read_vector(self.folder)
        inputs = self._fit_context().dense
        vectors = [vector, DifferenceInMeans()(inputs)]
        vectors += [RandomDirection(draw)(inputs) for draw in range(settings.random_directions)]
        self.progress.say(
            f"Scoring {len(self.plan.held_out)} held-out pairs at KL {settings.kl_target} per token"
        )
        meter = self.cache.keep("meter", measured_with(self, vector), lambda: self._meter(vector))
        config = self.config
        names = result_names(config)
        start = 0.25
        with self.progress.task("vectors", total=len(vectors), unit="vectors") as task:
            for name, candidate in zip(names, vectors, strict=True):
                self.folder.once(name, lambda v=candidate, s=start: measured(self, meter, v, s))
                if self.watch is not None and name == names[0]:
                    self.watch(
                        run_numbers({"vector": self.folder.read_json(name)}, settings.kl_target)
                    )
                if candidate.method == "random_direction":
                    # Random directions cost alike: the last one's strength is a good guess.
                    start = abs(read_result(self.folder, name).plus.strength)
                task.advance(1, candidate.name)
        curves = curve_names(config)
        for curve, name, candidate in zip(curves, names[:2], vectors[:2], strict=True):
            result = read_result(self.folder, name)
            self.folder.once(curve, lambda v=candidate, r=result: measured_curve(self, meter, v, r))
        margin = float((meter.unsteered[0] - meter.unsteered[1]).mean())
        self.folder.write_json("evaluation/unsteered.json", finite({"margin": margin}))

    def _meter(self, vector: SteeringVector) -> EffectMeter:
        return EffectMeter(
            DivergenceMeter(self.model, self.neutral_rows, site=vector.site),
            PropensityMeter(
                self.model,
                self.plan.held_out,
                request=self.config.evaluation.request,
                chat=self.config.reading.chat,
                site=vector.site,
            ),
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

    def _fit_context(self) -> FitContext:
        config = self.config
        self._check_same_weights()
        return FitContext(
            self,
            self.plan.split.train,
            lambda part, site: load_pair_activations(
                self.folder.path / f"activations/{part}.{site}.safetensors"
            ),
            name=config.name,
            seed=config.seed,
            max_new_tokens=config.completions.max_new_tokens,
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

    def write_report(self) -> None:
        """Write the figure, which opens offline."""
        from saesteer.report import propensity_data, propensity_figure

        kl_target = self.config.evaluation.kl_target
        n = len(self.plan.held_out)
        title = f"{self.config.name}: {n} held-out pairs, KL {kl_target} per token"
        figure = propensity_figure(propensity_data(self.folder.read_json("metrics.json")), title)
        # The script is embedded.
        options = {"include_plotlyjs": True, "config": {"displaylogo": False}}
        self.folder.write("figure.html", lambda draft: figure.write_html(draft, **options))

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the effect with its interval, what it cost, and the null."""
        return run_numbers(metrics, self.config.evaluation.kl_target)

    def tell(self, record: RecordedRun, results: SteerResults) -> None:
        """Show the margin by strength, features and completions elsewhere too."""
        from saesteer.report import propensity_data, propensity_figure

        record.curve("margin", results.metrics["curve"], x="strength")
        record.table("features", results.features)
        record.table("completions", results.completions)
        if record.shown_elsewhere:
            title = f"{self.config.name}: propensity by strength"
            record.figure("margin", propensity_figure(propensity_data(results.metrics), title))
        record.artifact("vector", self.folder.path / VECTOR, "vector")


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
