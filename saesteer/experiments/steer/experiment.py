"""The main line: from contrastive pairs to a steered model with its evidence in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from saesteer.data import PairSet, Split, split_pairs
from saesteer.data.splits import split_record
from saesteer.evaluation import VectorResult, against_null, is_monotone
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.judge import FEWEST_PAIRS, AdmittedJudge, EmbeddingJudge
from saesteer.evaluation.statistics import item_interval
from saesteer.evaluation.written import (
    WritingSettings,
    WrittenEvaluation,
    by_question,
    summarise,
)
from saesteer.experiments.base import Stage
from saesteer.experiments.config import run_folder, weights_digest
from saesteer.experiments.pairs_run import PairsRun
from saesteer.experiments.results import Results, number_at
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steering import (
    SteeringExperiment,
    SteeringPlan,
    check_also,
    check_has_strength,
    shared_parts,
)
from saesteer.methods import ClusteredSAE, DifferenceInMeans, RandomDirection
from saesteer.methods.features import feature_table, vector_features
from saesteer.methods.fit_context import TRAINING_QUESTIONS
from saesteer.methods.registry import method_entry
from saesteer.models import model_info
from saesteer.report import Report
from saesteer.saes.labels import PLACE_KEY, feature_url
from saesteer.steering import SteeringVector, generate, to_raw
from saesteer.steering.strength import UNITS
from saesteer.tracking import RecordedRun
from saesteer.utils.errors import ConfigError, DataError, MismatchError, OutputError, SteeringError
from saesteer.utils.run_folder import finite, write_record

VECTOR = "vector.safetensors"
BASELINE = "difference_in_means"
STAGES = ("activations", "features", "evaluation", "completions")
JUDGES = "judges.json"
FEATURE_COLUMNS = ["feature", "weight", "score", "cluster"]
FEATURE_COLUMNS += ["firing_positive", "firing_negative", "description"]
# The numbers of the headline, and where they stand in `metrics.json`.
HEADLINE = {
    "effect": "vector.effect.effect",
    "effect_low": "vector.effect.low",
    "effect_high": "vector.effect.high",
    "moved_share": "vector.effect.moved_share",
    "common_shift": "vector.effect.common_shift",
    "strength_plus": "vector.plus.strength",
    "strength_minus": "vector.minus.strength",
    "effect_difference_in_means": "difference_in_means.effect.effect",
    "null_largest": "null.largest",
    "p_value": "null.p_value",
    "r2": "fit.r2_mean",
    "cosine": "fit.cosine_to_mean_delta",
    "features": "fit.features",
    "unsteered_margin": "unsteered_margin",
    "text_range": "texts.vector.judge_range",
    "text_auc": "texts.vector.auc",
    "text_range_difference_in_means": "texts.difference_in_means.judge_range",
}


@dataclass(frozen=True, kw_only=True)
class SteerPlan(SteeringPlan):
    """A checked run."""

    pairs: PairSet
    split: Split
    held_out: PairSet  # the test pairs that are scored
    known: PairSet | None  # answers of known sides, by which a judge of texts is admitted

    @property
    def parts(self) -> dict[str, PairSet]:
        """What vectors are fitted on, chosen by and measured on."""
        split = self.split
        return {"train": split.train, "validation": split.validation, "test": self.held_out}


def plan_run(config: RunConfig) -> SteerPlan:
    """Read the data and check every name in the settings; nothing is loaded or written."""
    check_has_strength("method", config.method.name)
    also = check_also(config, [(config.method.name, config.method.settings)])
    settings = config.pairs
    if settings.validation + settings.test >= 1:
        raise ConfigError(
            "pairs.validation and pairs.test leave no pairs to train on; make them sum to less "
            "than 1."
        )
    pairs = settings.read(max_pairs=settings.max_pairs, seed=config.seed)
    split = split_pairs(
        pairs,
        validation=settings.validation,
        test=settings.test,
        seed=config.seed,
        threshold=settings.near_duplicate,
    )
    if len(split.train) < 2 or len(split.test) < 2:
        raise DataError(
            f"the split leaves {len(split.train)} training and {len(split.test)} test pairs; give "
            "more pairs or change pairs.test and pairs.validation."
        )
    parts = shared_parts(config, "completions", [config.method.name])
    known = settings.read_answers() if parts["questions"] else None
    if known is None or len(split.test) < FEWEST_PAIRS:
        # Nothing reads more than is shown.
        known, parts["questions"] = None, parts["questions"][: config.completions.shown]
    inputs = {
        "pairs": pairs.digest,
        **{name: str(parts[name]) for name in ("answers", "questions")},
        **({} if known is None else {"known": known.digest}),
        **also,
    }
    if parts["training_answers"]:
        # As many as the defaults leave, so that the vector is the same where less is written.
        parts["training_questions"] = parts["training_questions"][-TRAINING_QUESTIONS:]
        inputs["training"] = str((parts["training_answers"], parts["training_questions"]))
    return SteerPlan(
        config=config,
        pairs=pairs,
        split=split,
        held_out=split.test.subset(range(len(split.test))[: config.evaluation.max_pairs]),
        known=known,
        folder=run_folder(config, **inputs, **weights_digest(parts["model"], parts["sae"])),
        **parts,
    )


def judge_of(
    statements: PairSet, known: PairSet, embedder: SentenceEmbedder | None = None
) -> AdmittedJudge:
    """What reads texts: trained on answers of known sides and on pairs that train no vector."""
    return AdmittedJudge(EmbeddingJudge(statements, known, embedder=embedder), known)


class SteerResults(Results):
    """What a run found."""

    def check(self) -> None:
        """Read what a caller may ask for, so that a damaged file is told at once."""
        super().check()
        _ = self.vector, self.features, self.completions

    @cached_property
    def vector(self) -> SteeringVector:
        """The steering vector."""
        try:
            return SteeringVector.load(self.folder.path / VECTOR)
        except SteeringError as error:
            raise OutputError(
                f"the run's vector is damaged or missing ({str(error).rstrip('.')}); delete it if "
                "it is there, and run the same command again."
            ) from error

    @cached_property
    def features(self) -> list[dict[str, Any]]:
        """The rows of `features.parquet`, strongest weight first."""
        return self.folder.read_json("features.json")

    @cached_property
    def completions(self) -> list[dict[str, Any]]:
        """Completions by question and strength."""
        return self.folder.read_json("completions.json")


class Steer(SteeringExperiment[SteerResults]):
    """Reads activations, fits a vector of SAE features and measures what it does."""

    Config = RunConfig
    Results = SteerResults
    about = "one steering vector and its effect on held-out pairs"
    numbers = (*HEADLINE, "kl_target", "kl")
    writing_group = "completions"
    plan: SteerPlan
    make_plan = staticmethod(plan_run)

    def check(self) -> None:
        self.check_shared([self.config.method.name], judged=self.plan.known is not None)
        for pairs in self.plan.parts.values():
            self.check_pairs(pairs)

    def stages(self) -> list[Stage]:
        steps = (self._activations, self._features, self._evaluation, self._completions)
        return [Stage(*named) for named in zip(STAGES, steps, strict=True)]

    def begin(self) -> None:
        plan = self.plan
        parts = {**plan.parts, "test": plan.split.test}
        self.folder.write_json("split.json", split_record(plan.pairs, parts))
        write_record(self.folder, {"pairs_sha256": plan.pairs.digest})

    @property
    def _fingerprints(self) -> dict[str, str]:
        return {"model": model_info(self.model).fingerprint, "sae": self.sae.fingerprint}

    def _activations(self) -> None:
        weights = {f"{what}_fingerprint": found for what, found in self._fingerprints.items()}
        dtype = str(self.model.cfg.dtype)
        write_record(self.folder, {**weights, PLACE_KEY: self.sae.neuronpedia_id, "dtype": dtype})
        self.progress.say(f"Reading activations at {self.sae.site}")
        parts = {name: self.plan.parts[name] for name in ("train", "validation")}
        n_pairs = sum(map(len, parts.values()))
        with self.progress.task("activations", total=n_pairs, unit="pairs") as task:
            for name, pairs in parts.items():
                for site, read in self.read_sides(pairs).items():
                    self.folder.write(f"activations/{name}.{site}.safetensors", read.save)
                task.advance(len(pairs), name)

    @cached_property
    def _pairs_run(self) -> PairsRun:
        begun = self.folder.read_json("run.json")
        for what, fingerprint in self._fingerprints.items():
            if begun.get(f"{what}_fingerprint", fingerprint) != fingerprint:
                raise MismatchError(
                    f"run folder {self.folder.path} was begun with other weights of the {what}; "
                    "delete the folder to begin anew, or put those weights back."
                )
        name, seed = self.config.name, self.config.seed
        return PairsRun(self, **self.plan.parts, name=name, seed=seed, folder=self.folder)

    def _features(self) -> None:
        import pandas as pd

        config, context = self.config, self._pairs_run.context
        self.progress.say(f"Fitting {method_entry(config.method.name).label}")
        fit = context.fit(config.method.name, config.method_settings)
        vector, delta = fit.vector_, context.deltas.double().mean(dim=0)
        record = {
            "features": sum(len(piece.sae_features) for piece in vector.pieces),
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

    @property
    def _result_names(self) -> list[str]:
        """The files of the vectors' results: the run's own, its baseline, the random ones."""
        null = ["random_direction"] * self.config.evaluation.random_directions
        methods = [self.config.method.name, BASELINE, *null]
        return [f"evaluation/{number:02d}-{method}.json" for number, method in enumerate(methods)]

    @property
    def _curve_names(self) -> list[str]:
        return [f"evaluation/curve-{method}.json" for method in (self.config.method.name, BASELINE)]

    def _evaluation(self) -> None:
        run, kl_target = self._pairs_run, self.config.evaluation.kl_target
        main, baseline, *null = self._result_names
        pairs = f"{len(self.plan.held_out)} held-out pairs"
        self.progress.say(f"Scoring {pairs} at KL {kl_target} per token")
        vectors = dict(zip((main, baseline), self._vectors, strict=True))
        with self.progress.task("vectors", total=2 + len(null), unit="vectors") as task:
            for name, vector in vectors.items():
                found = self.folder.once(name, partial(run.measure, vector, kl_target))
                if self.watch is not None and name == main:
                    self.watch({"vector": found})
                task.advance(1, vector.name)
            for _ in run.draws(RandomDirection, null, kl_target):
                task.advance(1, "random direction")
        for (name, vector), curve in zip(vectors.items(), self._curve_names, strict=True):
            compute = partial(run.curve, vector, self.folder.read_json(name))
            self.folder.once(curve, lambda c=compute: c()["points"])
        positive, negative = run.test.unsteered
        margin = float((positive - negative).mean())
        self.folder.write_json("evaluation/unsteered.json", finite({"margin": margin}))

    @cached_property
    def _vectors(self) -> tuple[SteeringVector, SteeringVector]:
        """The run's own vector and its baseline."""
        baseline = DifferenceInMeans().fit_in(self._pairs_run.context).vector_
        return SteerResults(self.folder).vector, baseline

    @property
    def sampling(self) -> WritingSettings:
        """How completions are sampled."""
        config = self.config.completions
        return WritingSettings(
            n_samples=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=self.config.seed,
            chat=None if config.chat == "auto" else config.chat,
        )

    def _completions(self) -> None:
        records: list[dict[str, Any]] = []
        if self.plan.known is not None:
            records = self._judged()
        elif self.plan.questions:
            self.progress.say("Generating completions")
            main, settings = self._result(self._result_names[0]), self.sampling
            records = generate(
                self.model,
                self.plan.questions,
                SteerResults(self.folder).vector,
                (main.minus.strength, 0.0, main.plus.strength),
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                chat=self.config.completions.chat,
                seed=settings.seed,
                max_batch_rows=settings.max_batch_rows,
            ).to_dicts()
        self.folder.write_json("completions.json", records)

    def _judged(self) -> list[dict[str, Any]]:
        """Write with the run's own vector and its baseline and read it; return what is shown."""
        questions, names = self.plan.questions, self._written_names
        self.progress.say(f"Generating completions of {len(questions)} questions, for a judge")
        with self.progress.task("texts", total=2 + len(names), unit="steps") as task:
            self.folder.once(JUDGES, lambda: [finite(self._judge.summary())])
            task.advance(1, "judge")
            judges = [self._judge.name] if self._judge.verdict != "not admitted" else []
            writing = WrittenEvaluation(self.writer, [self._judge], judges)
            task.advance(1, "unsteered")
            for file, result, vector in zip(names, self._result_names, self._vectors, strict=False):
                self.folder.once(file, partial(self._written, writing, vector, result))
                task.advance(1, vector.method)
        main, own = self._result(self._result_names[0]), self.folder.read_json(names[0])
        strengths = {-1: main.minus.strength, 0: 0.0, 1: main.plus.strength}
        return [
            {
                "prompt": questions[record["question"]],
                "strength": strengths[record["sign"]],
                "unit": "norm",
                "sample": record["sample"],
                "text": record["text"],
                "judge": record["judge"],
            }
            for record in sorted(own["records"], key=lambda r: (r["question"], r["sign"]))
            if record["question"] < self.config.completions.shown
        ]

    @cached_property
    def _judge(self) -> AdmittedJudge:
        """What reads texts."""
        assert self.plan.known is not None
        return judge_of(self.plan.split.test, self.plan.known, self.embedder)

    @property
    def _written_names(self) -> list[str]:
        methods = dict.fromkeys((self.config.method.name, BASELINE))
        return [f"written/{method}.json" for method in methods]

    def _written(
        self, writing: WrittenEvaluation, vector: SteeringVector, result: str
    ) -> dict[str, Any]:
        match = self._result(result)
        plus, minus = (m.strength if m.reached else None for m in (match.plus, match.minus))
        records = writing.steered(vector, plus, minus)
        found = {"summary": summarise(records), "records": [asdict(record) for record in records]}
        return finite(found)

    def _result(self, name: str) -> VectorResult:
        record = self.folder.read_json(name)
        try:
            return VectorResult.from_dict(record)
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"{self.folder.path / name} holds no result of a vector ({error!r}); delete it and "
                "run the same command again."
            ) from error

    def finish(self) -> dict[str, Any]:
        main, means, *null = map(self._result, self._result_names)
        read = self.folder.read_json
        curve, baseline = map(read, self._curve_names)
        against = against_null(main, null)
        return {
            "fit": read("fit.json"),
            "unsteered_margin": read("evaluation/unsteered.json")["margin"],
            "vector": main.as_dict(),
            "difference_in_means": means.as_dict(),
            "random_directions": [result.as_dict() for result in null],
            "null": None if against is None else asdict(against),
            "curve": curve,
            "curve_difference_in_means": baseline,
            "strengths": self._strengths(main),
            "texts": self._texts(),
            "monotone": all(row["margin"] is not None for row in curve) and is_monotone(curve),
            "seconds": {stage: read(f"stages/{stage}.json")["seconds"] for stage in STAGES},
        }

    def _strengths(self, main: VectorResult) -> list[dict[str, Any]]:
        """The matched strengths in every unit that the vector has a measure for."""
        vector = SteerResults(self.folder).vector
        measures = {"norm": vector.residual_norm, "raw": 1.0, "max_act": vector.max_act}
        rows = []
        for way, match in (("towards", main.plus), ("away", main.minus)):
            raw = to_raw(match.strength, "norm", vector)
            units = {unit: raw / size if (size := measures[unit]) else None for unit in UNITS}
            rows.append({"way": way, **units, "kl": match.kl, "reached": match.reached})
        return finite(rows)

    def _texts(self) -> dict[str, Any] | None:
        """How far the judge reads both signs apart, next to the baseline; None without a judge."""
        if self.plan.known is None:
            return None
        own, *others = (self.folder.read_json(name) for name in self._written_names)
        means = others[0] if others else own
        # The same questions with the same noise, one by one.
        more = (by_question(own["records"]) - by_question(means["records"])).dropna().to_numpy()
        gain = item_interval(more)._asdict() if len(more) else None
        return {
            "n_questions": len(self.plan.questions),
            "judges": self.folder.read_json(JUDGES),
            "vector": own["summary"],
            "difference_in_means": means["summary"],
            "gain": gain,
        }

    def report(self, results: SteerResults) -> Report:
        from saesteer.report.steer import steer_report

        return steer_report(
            results.metrics,
            self.config.model_dump(mode="json"),
            results.features,
            results.completions,
            n_pairs=len(self.plan.held_out),
            site=results.vector.place,
        )

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        sides = [number_at(metrics, f"vector.{side}.kl") for side in ("plus", "minus")]
        known = [side for side in sides if side is not None]
        return {
            **{name: number_at(metrics, path) for name, path in HEADLINE.items()},
            "kl_target": self.config.evaluation.kl_target,
            "kl": sum(known) / len(known) if known else None,
        }

    def tell(self, record: RecordedRun, results: SteerResults) -> None:
        record.curve("margin", results.metrics["curve"], x="strength")
        record.table("features", results.features)
        record.table("completions", results.completions)
        record.artifact("vector", self.folder.path / VECTOR, "vector")


def _stages_of(fit: ClusteredSAE) -> dict[str, Any]:
    selection, clusters, weights = fit.selection_, fit.clusters_, fit.weights_
    return {
        "candidates": selection.n_candidates,
        "selected": len(selection),
        "clusters": int(clusters.labels.max()) + 1,
        "clusters_kept": len(clusters.kept),
        "cluster_note": clusters.note,
        "silhouette": {str(k): float(v) for k, v in clusters.silhouette.items()},
        "linkage": clusters.linkage.tolist(),
        "regression": weights.method,
        "r2": weights.r2,
        "r2_mean": weights.r2_mean,
        "cosine_to_mean_delta": weights.cosine,
        "mean_residual_norm": float(weights.residual_norms.mean()),
        "details": {key: float(value) for key, value in weights.details.items()},
    }
