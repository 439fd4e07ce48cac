"""One persona from pairs to every record: each a file, made where it is not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.data import PairSet
from saesteer.evaluation import (
    EffectMeter,
    PropensityMeter,
    VectorResult,
    effect_of,
    statement_log_likelihoods,
)
from saesteer.evaluation.asked_judge import AskedJudge
from saesteer.evaluation.choices import ChoiceMeter
from saesteer.evaluation.described_judge import DescribedJudge
from saesteer.evaluation.judge import AdmittedJudge, EmbeddingJudge, Judge
from saesteer.evaluation.masking import masking, persona_words
from saesteer.evaluation.written import Completion, WrittenEvaluation, summarise
from saesteer.experiments.compare.config import MethodSettings
from saesteer.experiments.compare.plan import PersonaPlan
from saesteer.experiments.pairs_run import PairsRun, kept
from saesteer.methods import AttributedSAE, ClusteredSAE, RandomDirection, RandomFeatures
from saesteer.methods.features import FeatureClusters, vector_features
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.placement import trim_memory
from saesteer.saes.labels import feature_url
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import StrengthMatch, match_strength
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.progress import Task
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from saesteer.experiments.compare.experiment import Compare

Record = dict[str, Any]
SIDES = ((1, "plus"), (-1, "minus"))
NULLS = {"random_direction": RandomDirection, "random_features": RandomFeatures}
# Texts that are shown of each feature.
CONTEXTS = 5
# What a method says of pairs that give it nothing to fit.
NOT_FITTED = (DataError, SteeringError)


class SeedRun(PairsRun):
    """One persona under one seed: fit every method, choose on validation, measure on test once."""

    def __init__(self, experiment: Compare, persona: PersonaPlan, seed: int) -> None:
        self.persona, self.split = persona, persona.splits[seed]
        parts = (self.split.train, self.split.validation, self.split.test)
        folder = RunFolder(persona.folder / f"seed-{seed}")
        super().__init__(experiment, *parts, name=persona.name, seed=seed, folder=folder)
        self.described = persona.described

    @cached_property
    def _propensity(self) -> PropensityMeter:
        return self.experiment.propensity(self.held_out)

    def unsteered(self) -> np.ndarray:
        """The test pairs' log-likelihoods without steering, positive and negative sides."""
        found = self.folder.once(
            "unsteered.json", lambda: {"sides": self._propensity.log_likelihoods().tolist()}
        )
        return np.array(found["sides"])

    @cached_property
    def test(self) -> EffectMeter:
        """The meter on test pairs."""
        return EffectMeter(self.experiment.divergence, self._propensity, self.unsteered())

    @cached_property
    def _validation_meter(self) -> EffectMeter:
        meter = self.experiment.propensity(self.validation)
        return EffectMeter(self.experiment.divergence, meter)

    def vector(self, method: MethodSettings) -> SteeringVector:
        """A method's vector, its settings chosen on validation pairs."""
        name = f"vectors/{method.name}.safetensors"
        if not self.folder.has(name):
            made = self.context.fit(method.name, self.chosen(method)["settings"])
            if isinstance(made, AttributedSAE | ClusteredSAE):
                self.folder.write_json(_tree_file(method.name), _tree_of(made.clusters_))
            self.folder.write(name, made.vector_.save)
        return SteeringVector.load(self.folder.path / name)

    @kept(lambda method: f"chosen/{method.name}.json")
    def chosen(self, method: MethodSettings) -> Record:
        """A method's settings; of several in its grid those that move validation pairs most."""
        options = [{**method.settings, **point} for point in method.grid] or [method.settings]
        if len(options) == 1:
            return {"settings": options[0], "tried": []}
        tried, headline = [], self.config.evaluation.headline_kl_target
        for option in options:
            try:
                vector = self.context.fit(method.name, option).vector_
            except NOT_FITTED as error:
                tried.append({"settings": option, "effect": None, "error": str(error)})
                continue
            effect = self._validation_meter.measure(vector, headline).effect
            tried.append({"settings": option, "effect": effect and effect.effect})
        effects = [-np.inf if t["effect"] is None else t["effect"] for t in tried]
        return {"settings": options[int(np.argmax(effects))], "tried": tried}

    @kept(lambda method: f"effects/{method.name}.json")
    def effects(self, method: MethodSettings) -> Record:
        """A method's results at every KL target, with its curve at the headline one."""
        if method_entry(method.name).kind == "prompt":
            return {"kl_targets": [self._prompted(method)], "curve": None}
        settings = self.config.evaluation
        # Other KL targets and the curve are for the first seed: further seeds repeat the headline.
        first = self.seed == self.config.seeds[0]
        kl_targets = settings.kl_targets if first else [settings.headline_kl_target]
        try:
            vector = self.vector(method)
        except NOT_FITTED as error:
            # These pairs give this method nothing to fit, which is a result: the others go on.
            self.experiment.progress.say(f"{self.persona.name}, {method.name}: {error}")
            missing = [_not_fitted(method.name, kl_target, error) for kl_target in kl_targets]
            return {"kl_targets": missing, "curve": None, "error": str(error)}
        records, start, curve = [], 0.15, None
        for kl_target in kl_targets:
            result = self.measure(vector, kl_target, start)
            records.append({"kl_target": kl_target, **result})
            # KL grows about as the square of the strength.
            start = result["plus"]["strength"] * 1.7
            if first and kl_target == settings.headline_kl_target and result["effect"] is not None:
                curve = self.curve(vector, result)
        return {"kl_targets": records, "curve": curve}

    def matched(
        self, method: MethodSettings, kl_target: float | None = None
    ) -> tuple[SteeringVector | None, Record]:
        """A method's vector, None where it could not be fitted, with its result at a KL target.

        The headline one if None; prompts have a KL of their own.
        """
        kl_target = kl_target or self.config.evaluation.headline_kl_target
        found = self.effects(method)
        result = next(r for r in found["kl_targets"] if r["kl_target"] in (kl_target, None))
        return (None if "error" in found else self.vector(method)), result

    def prompts(self, method: MethodSettings) -> Any:
        """The two system prompts of a prompt method, fitted."""
        settings, words = self.persona.settings, self.persona.described
        described: dict[str, Any] = {}
        if words is not None:
            described = {"description": words.positive, "opposite": words.negative}
        elif settings.description:
            described = {"description": settings.description}
        build: Any = build_method(method.name, {"seed": self.seed, **described, **method.settings})
        return build.fit(None, self.train)

    def _prompted(self, method: MethodSettings) -> Record:
        """Measure system prompts by the same yardsticks, at the cost that they happen to have."""
        prompts, experiment = self.prompts(method), self.experiment
        sides: list[np.ndarray] = []
        costs: list[StrengthMatch] = []
        for system in (prompts.positive_, prompts.negative_):
            meter = experiment.propensity(self.held_out, system=system)
            sides.append(meter.log_likelihoods())
            answers = experiment.answer_rows(experiment.plan.answers, system=system)
            cost = experiment.divergence.of_prompted(answers)
            costs.append(StrengthMatch(nan, cost, nan, reached=True, evaluations=1))
        effect, (plus, minus) = effect_of(self.unsteered(), *sides), costs
        result = VectorResult(self.persona.name, method.name, plus, minus, effect)
        return {"kl_target": None, **result.as_dict()}


def _not_fitted(method: str, kl_target: float, error: Exception) -> Record:
    missed = StrengthMatch(nan, nan, kl_target, reached=False, evaluations=0)
    result = VectorResult("", method, missed, missed, None)
    return {"kl_target": kl_target, **result.as_dict(), "error": str(error)}


def _file(name: str, kl_target: float | None) -> str:
    return f"{name}{'' if kl_target is None else f'-{kl_target:g}'}.json"


class PersonaRun:
    """All that a comparison measures on one persona; a result that is there is not made again."""

    def __init__(self, experiment: Compare, persona: PersonaPlan) -> None:
        self.experiment = experiment
        self.persona = persona
        self.config = experiment.config
        self.folder = RunFolder(persona.folder)
        self.seconds: dict[str, float] = {}
        self.seeds = {seed: SeedRun(experiment, persona, seed) for seed in self.config.seeds}
        # Under the first seed everything is measured.
        self.first = self.seeds[self.config.seeds[0]]

    def systems(self) -> list[str]:
        """The system prompts of prompt methods."""
        prompted = [m for m in self.config.methods if method_entry(m.name).kind == "prompt"]
        made = [self.first.prompts(method) for method in prompted]
        return [system for prompts in made for system in (prompts.positive_, prompts.negative_)]

    def steps(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        """Yield every record's stage, its name, and what makes it where it is not there yet."""
        for seed, run in self.seeds.items():
            for method in self.config.methods_under(seed):
                yield f"methods, seed {seed}", method.name, partial(run.effects, method)
        # While the pairs' activations are at hand.
        yield "features", "features", partial(self.features, self.config.headline)
        for kind in NULLS:
            draws = self.null(kind)
            for _ in self._null_files(kind):
                yield "null", "null", partial(next, draws)
        for name, kl_target in self.to_write():
            yield "texts", "texts", partial(self.written, name, kl_target)
        for name in self.config.at_prompt if self.experiment.plan.questions else ():
            yield "texts", "texts at the prompt's KL", partial(self.at_prompt, name)
        for name, kl_target in self.to_mask():
            yield "masked texts", "masked texts", partial(self.masked, name, kl_target)
        yield "side effects", "answers", self.choices
        yield "side effects", "prose", self.prose

    def run(self, task: Task) -> None:
        """Make every record that is not there yet."""
        for stage, label, make in self.steps():
            start = time.perf_counter()
            try:
                make()
            finally:
                spent = time.perf_counter() - start
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
                trim_memory()
            task.advance(1, f"{self.persona.name} {label}")

    def matched(self, name: str) -> tuple[SteeringVector | None, Record]:
        """A method's vector under the first seed, with its result at the headline KL target."""
        return self.first.matched(self.config.method(name))

    def null(self, kind: str) -> Iterator[Record]:
        """Yield what random draws of a kind do at the headline KL target."""
        kl_target = self.config.evaluation.headline_kl_target
        return self.first.draws(NULLS[kind], self._null_files(kind), kl_target, self.folder)

    def _null_files(self, kind: str) -> list[str]:
        settings = self.config.random
        counts = {"random_direction": settings.directions, "random_features": settings.features}
        return [f"null/{kind}-{draw:02d}.json" for draw in range(counts[kind])]

    @cached_property
    def _judges(self) -> list[AdmittedJudge]:
        """The persona's judges, with how well they read answers of known sides.

        They are trained on pairs that no other step sees, and on such answers.
        """
        statements, answers = self.first.split.judge, self.persona.answers
        known = statements if answers is None else answers
        made: list[Judge] = [
            EmbeddingJudge(statements, answers, embedder=embedder)
            for embedder in self.experiment.embedders
        ]
        described, asked = self.persona.described, self.config.writing.judge_endpoint
        if described is not None and self.config.writing.judge_model:
            made.append(DescribedJudge(self.experiment.judge_model, described))
        if described is not None and asked is not None:
            cache = self.experiment.plan.cache / "llm-sides.jsonl"
            made.append(AskedJudge(asked.endpoint, described, cache=cache, workers=asked.workers))
        return [AdmittedJudge(judge, known, proven=answers is not None) for judge in made]

    @cached_property
    def _writing(self) -> WrittenEvaluation:
        """Writes, and reads with every judge; claims rest on the admitted ones.

        A judge of the kind that the headline method learned from is left out of the claim if
        another one is admitted: what is optimised finds the flaws of what measures it.
        """
        admitted = [judge for judge in self._judges if judge.verdict != "not admitted"]
        learned = method_entry(self.config.headline).learns_from
        others = [judge for judge in admitted if judge.judge.kind != learned]
        names = [judge.name for judge in others or admitted]
        return WrittenEvaluation(self.experiment.writer, self._judges, names)

    def to_write(self) -> list[tuple[str, float | None]]:
        """The methods whose texts are written, with the KL target; a prompt has none.

        A prompt whose KL others are given is written under too.
        """
        settings = self.config.writing
        if not self.experiment.plan.questions:
            return []
        names, prompt = list(settings.methods or self.config.pair), self.config.prompt
        if prompt is not None and self.config.at_prompt and prompt not in names:
            names.append(prompt)
        return [
            (name, kl_target)
            for name in names
            for kl_target in (
                [None] if method_entry(name).kind == "prompt" else settings.kl_targets
            )
        ]

    @kept(lambda: "judges.json")
    def judges(self) -> list[Record]:
        """How well each judge reads answers that it has not seen, and whether claims rest on it."""
        persona, headline = self.persona.name, self._writing.headline
        return [
            {"persona": persona, **judge.summary(), "headline": judge.name in headline}
            for judge in self._judges
        ]

    def to_mask(self) -> list[tuple[str, float | None]]:
        """Of what is written, what is read again with slogans and the persona's words masked."""
        headline = self.config.evaluation.headline_kl_target
        return [(name, kl) for name, kl in self.to_write() if kl in (headline, None)]

    @kept(lambda name, kl: f"written/{_file(name, kl)}")
    def written(self, name: str, kl_target: float | None) -> Record:
        """What is written with a method's vectors, or under its system prompts.

        Every seed under which the method is measured adds samples of its own.
        """
        if kl_target is None:
            prompts = self.first.prompts(self.config.method(name))
            records = self._writing.prompted(prompts.positive_, prompts.negative_)
            return self._record(name, None, {}, records)

        def reached(run: SeedRun) -> tuple[SteeringVector | None, dict[int, Record]]:
            vector, found = run.matched(self.config.method(name), kl_target)
            return vector, {sign: found[side] for sign, side in SIDES if found[side]["reached"]}

        return self._steered(name, kl_target, self.config.seeds_at(name, kl_target), reached)

    @kept(lambda name: f"at-prompt/{_file(name, None)}")
    def at_prompt(self, name: str) -> Record:
        """What is written with a method's vectors at the KL that the prompt costs, side by side.

        Under those seeds that the prompt is measured under.
        """
        assert self.config.prompt is not None
        (prompt,) = self.first.effects(self.config.method(self.config.prompt))["kl_targets"]

        def reached(run: SeedRun) -> tuple[SteeringVector | None, dict[int, Record]]:
            vector, near = run.matched(self.config.method(name))
            found: dict[int, Record] = {}
            if vector is None:
                return None, found
            for sign, side in SIDES:
                start, kl = abs(near[side]["strength"]), prompt[side]["kl"]
                how = {"sign": sign, "start": start}
                match = match_strength(self.experiment.divergence, vector, kl, **how)
                found |= {sign: asdict(match)} if match.reached else {}
            return vector, found

        return self._steered(name, None, self.config.seeds_of(self.config.prompt), reached)

    def _steered(
        self,
        name: str,
        kl_target: float | None,
        seeds: Sequence[int],
        reached: Callable[[SeedRun], tuple[SteeringVector | None, dict[int, Record]]],
    ) -> Record:
        records, strengths = list(self._writing.unsteered), dict[int, float]()
        for repeat, seed in enumerate(seeds):
            vector, matches = reached(self.seeds[seed])
            at = {sign: match["strength"] for sign, match in matches.items()}
            strengths = strengths or at
            if vector is not None:
                found = self._writing.steered(vector, at.get(1), at.get(-1), repeat=repeat)
                records += [record for record in found if record.sign]
        return self._record(name, kl_target, strengths, records)

    def _record(
        self,
        name: str,
        kl_target: float | None,
        strengths: Mapping[int, float],
        records: Sequence[Completion],
    ) -> Record:
        self.judges()
        return {
            "method": name,
            "kl_target": kl_target,
            "strengths": {str(sign): strengths.get(sign) for sign, _ in SIDES},
            "summary": summarise(records),
            "records": [asdict(record) for record in records],
        }

    @kept(lambda name, kl: f"masked/{_file(name, kl)}")
    def masked(self, name: str, kl_target: float | None) -> Record:
        """What judges read of the same texts without slogans and the persona's own words."""
        written = [Completion(**fields) for fields in self.written(name, kl_target)["records"]]
        words = persona_words(self.first.split.train, self.persona.described)
        records = self._writing.masked(written, masking(words))
        return {"words": words, **self._record(name, kl_target, {}, records)}

    def looked_at(self) -> list[str]:
        """The methods whose side effects are measured."""
        chosen = self.config.side_effects.methods or list(self.config.pair)
        return [name for name in chosen if method_entry(name).kind != "prompt"]

    @kept(lambda: "choices.json")
    def choices(self) -> list[Record]:
        """The margins of Yes/No and A/B questions about the first test pairs."""
        limit = self.config.side_effects.choices
        pairs = self._first_pairs(limit)
        rows, experiment = [], self.experiment
        for kind in ("yes_no", "a_b") if limit else ():
            how = {"chat": self.config.reading.chat, "site": experiment.site}
            meter = ChoiceMeter(experiment.model, pairs, kind=kind, **how)
            base = {
                "kind": kind,
                "persona": self.persona.name,
                "base": float(meter.unsteered.mean()),
                "accuracy": meter.accuracy.accuracy,
                "at_chance": meter.accuracy.at_chance,
                "n_pairs": len(pairs),
            }

            def margin(vector: Any, strength: float, meter: ChoiceMeter = meter) -> float:
                return float(meter.margins(vector, strength).mean())

            rows += [
                {**base, "method": name, **self._either_way(name, margin)}
                for name in self.looked_at()
            ]
        return rows

    @kept(lambda: "prose.json")
    def prose(self) -> list[Record]:
        """The loss on plain texts."""
        experiment = self.experiment
        if not experiment.prose_rows:
            return []
        rows = TeacherForced(experiment.model, experiment.prose_rows, site=experiment.site)

        def loss(vector: Any = None, strength: float = 0.0) -> float:
            return -float(statement_log_likelihoods(rows, vector, strength).mean())

        base, found = loss(), []
        for name in self.looked_at():
            losses = self._either_way(name, loss)
            for sign, side in SIDES:
                if losses[side] is not None:
                    row = {"persona": self.persona.name, "method": name, "sign": sign}
                    found.append({**row, "loss": losses[side], "change": losses[side] - base})
        return found

    def _either_way(self, name: str, measure: Callable[[Any, float], float]) -> dict[str, Any]:
        """A measure of a method's vector at both strengths; None where the KL target was missed."""
        vector, found = self.matched(name)
        # At another cost the change would not compare with the other methods'.
        return {
            side: measure(vector, found[side]["strength"]) if found[side]["reached"] else None
            for _, side in SIDES
        }

    def shift_on(self, other: PersonaRun, name: str) -> float | None:
        """E of a method's vector for this persona on another one's first test pairs.

        In nats per token; None where the KL target was not reached.
        """
        if other is self:
            effect = self.matched(name)[1]["effect"]
            return effect and effect["effect"]
        return self._shift_on(other, name)["effect"]

    @kept(lambda other, name: f"shifts/{name}-{other.persona.folder.name}.json")
    def _shift_on(self, other: PersonaRun, name: str) -> Record:
        vector, result = self.matched(name)
        if result["effect"] is None:
            return {"effect": None}
        up, down = (other.few.margins(vector, result[side]["strength"]) for _, side in SIDES)
        return {"effect": float((up - down).mean() / 2)}

    @cached_property
    def few(self) -> PropensityMeter:
        """A meter of the first test pairs, for other personas' vectors."""
        return self.experiment.propensity(self._first_pairs(self.config.side_effects.pairs))

    def _first_pairs(self, limit: int) -> PairSet:
        test = self.first.held_out
        return test.subset(range(len(test))[:limit])

    @kept(lambda name: f"features/{name}.json")
    def features(self, name: str) -> Record:
        """The features of a method's vector with what is known of them, and the cluster tree."""
        vector, _ = self.matched(name)
        if vector is None:
            return {"features": [], "tree": {}}
        experiment, context = self.experiment, self.first.context
        rows = vector_features(vector, context.codes)
        for row in rows:
            known = None if experiment.table is None else experiment.table.row(row["feature"])
            row["contexts"] = [asdict(c) for c in (known.contexts[:CONTEXTS] if known else ())]
            row["url"] = feature_url(experiment.sae.neuronpedia_id, row["feature"])
            if vector.parts:
                row["place"] = vector.place
        kept, file = self.first.folder, _tree_file(name)
        return {"features": rows, "tree": kept.read_json(file) if kept.has(file) else {}}


def _tree_file(method: str) -> str:
    return f"trees/{method}.json"


def _tree_of(clusters: FeatureClusters) -> Record:
    return {
        "linkage": clusters.linkage.tolist(),
        "labels": clusters.indices.tolist(),
        "clusters": clusters.labels.tolist(),
    }
