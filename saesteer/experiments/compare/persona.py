"""One persona from pairs to every record: each a file, made where it is not there yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
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
from saesteer.evaluation.choices import ChoiceMeter
from saesteer.evaluation.judge import BehaviourJudge, train_judge
from saesteer.evaluation.written import WrittenEvaluation, summarise
from saesteer.experiments.compare.config import MethodSettings
from saesteer.experiments.compare.plan import PersonaPlan
from saesteer.experiments.context import ExperimentFit
from saesteer.methods import RandomDirection, RandomFeatures, SystemPrompt
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.placement import trim_memory
from saesteer.models.reading import PairActivations
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import StrengthMatch
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.progress import Task
from saesteer.utils.run_folder import RunFolder, finite

if TYPE_CHECKING:
    from saesteer.experiments.compare.experiment import Compare

# What a method says of pairs that give it nothing to fit.
NOT_FITTED = (DataError, SteeringError)
SIDES = ((1, "plus"), (-1, "minus"))


class SeedRun:
    """One persona under one seed: fit every method, choose on validation, measure on test once."""

    def __init__(self, experiment: Compare, persona: PersonaPlan, seed: int) -> None:
        self.experiment = experiment
        self.persona = persona
        self.seed = seed
        self.split = persona.splits[seed]
        self.config = experiment.config
        self.folder = RunFolder(persona.folder / f"seed-{seed}")

    @cached_property
    def _read(self) -> dict[str, Any]:
        parts = {"train": self.split.train, "validation": self.split.validation}
        return {name: self.experiment.read_sides(pairs) for name, pairs in parts.items()}

    @cached_property
    def context(self) -> ExperimentFit:
        """What methods are fitted with."""

        def read(part: str, site: Any) -> PairActivations:
            return self._read[part][site]

        name, seed = self.persona.name, self.seed
        return self.experiment.fits(
            self.split.train, read, name=name, seed=seed, folder=self.folder
        )

    @cached_property
    def _propensity(self) -> PropensityMeter:
        return self.experiment.propensity(self.split.test)

    def unsteered(self) -> np.ndarray:
        """Return the test pairs' log-likelihoods without steering, positive and negative sides."""
        found = self.folder.once(
            "unsteered.json", lambda: {"sides": self._propensity.log_likelihoods().tolist()}
        )
        return np.array(found["sides"])

    @cached_property
    def test(self) -> EffectMeter:
        """The meter on test pairs."""
        return EffectMeter(self.experiment.divergence, self._propensity, self.unsteered())

    @cached_property
    def _validation(self) -> EffectMeter:
        meter = self.experiment.propensity(self.split.validation)
        return EffectMeter(self.experiment.divergence, meter)

    def vector(self, method: MethodSettings) -> SteeringVector:
        """Return a method's vector, its settings chosen on validation pairs."""
        name = f"vectors/{method.name}.safetensors"
        if not self.folder.has(name):
            chosen = self.folder.once(f"chosen/{method.name}.json", lambda: self._chosen(method))
            made = self.context.fit(method.name, chosen["settings"])
            self.folder.write(name, made.vector_.save)
        return SteeringVector.load(self.folder.path / name)

    def _chosen(self, method: MethodSettings) -> dict[str, Any]:
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
            effect = self._validation.measure(vector, headline).effect
            tried.append({"settings": option, "effect": effect and effect.effect})
        effects = [-np.inf if t["effect"] is None else t["effect"] for t in tried]
        return {"settings": options[int(np.argmax(effects))], "tried": finite(tried)}

    def effects(self, method: MethodSettings) -> dict[str, Any]:
        """Return a method's results at every KL target, with its curve at the headline one."""
        return self.folder.once(f"effects/{method.name}.json", lambda: self._effects(method))

    def _effects(self, method: MethodSettings) -> dict[str, Any]:
        if method_entry(method.name).kind == "prompt":
            return finite({"kl_targets": [self._prompted(method)], "curve": None})
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
            return finite({"kl_targets": missing, "curve": None, "error": str(error)})
        results, start = {}, 0.15
        for kl_target in kl_targets:
            results[kl_target] = self.test.measure(vector, kl_target, start=start)
            # KL grows about as the square of the strength.
            start = results[kl_target].plus.strength * 1.7
        headline, curve = results[settings.headline_kl_target], None
        if first and headline.effect is not None:
            curve = self.test.curve(vector, headline, settings.multiples)
        records = [{"kl_target": kl, **result.as_dict()} for kl, result in results.items()]
        return finite({"kl_targets": records, "curve": curve})

    def prompts(self, method: MethodSettings) -> Any:
        """Return the two system prompts of a prompt method."""
        described = self.persona.settings.model_dump(
            include={"description", "opposite"}, exclude_none=True
        )
        build = build_method(method.name, {"seed": self.seed, **described, **method.settings})
        assert isinstance(build, SystemPrompt)
        return build.fit(None, self.split.train)

    def _prompted(self, method: MethodSettings) -> dict[str, Any]:
        """Measure system prompts by the same yardsticks, at the cost that they happen to have."""
        prompts, experiment = self.prompts(method), self.experiment
        sides, costs = [], []
        for system in (prompts.positive_, prompts.negative_):
            meter = experiment.propensity(self.split.test, system=system)
            sides.append(meter.log_likelihoods())
            answers = experiment.answer_rows(experiment.plan.answers, system=system)
            cost = experiment.divergence.of_prompted(answers)
            costs.append(StrengthMatch(nan, cost, nan, reached=True, evaluations=1))
        effect = effect_of(self.unsteered(), *sides)
        result = VectorResult(self.persona.name, method.name, *costs, effect)
        return {"kl_target": None, **result.as_dict()}


def _not_fitted(method: str, kl_target: float, error: Exception) -> dict[str, Any]:
    missed = StrengthMatch(nan, nan, kl_target, reached=False, evaluations=0)
    result = VectorResult("", method, missed, missed, None)
    return {"kl_target": kl_target, **result.as_dict(), "error": str(error)}


class PersonaRun:
    """All that a comparison measures on one persona; a result that is there is not made again."""

    def __init__(self, experiment: Compare, persona: PersonaPlan) -> None:
        self.experiment = experiment
        self.persona = persona
        self.config = experiment.config
        self.folder = RunFolder(persona.folder)
        self.seconds: dict[str, float] = {}
        self.seeds = {seed: SeedRun(experiment, persona, seed) for seed in self.config.seeds}

    @property
    def first(self) -> SeedRun:
        """The first seed, under which everything is measured."""
        return self.seeds[self.config.seeds[0]]

    def systems(self) -> list[str]:
        """Return the system prompts of prompt methods."""
        prompted = [m for m in self.config.methods if method_entry(m.name).kind == "prompt"]
        made = [self.first.prompts(method) for method in prompted]
        return [system for prompts in made for system in (prompts.positive_, prompts.negative_)]

    def steps(self) -> int:
        """Return how many steps `run` takes, for the progress bar."""
        null = self.config.random
        methods = sum(len(self.config.methods_under(seed)) for seed in self.config.seeds)
        return methods + null.directions + null.features + len(self._written()) + 2

    def run(self, task: Task) -> None:
        """Make every record that is not there yet."""
        name = self.persona.name
        for seed, run in self.seeds.items():
            for method in self.config.methods_under(seed):
                with self._timed(f"methods, seed {seed}"):
                    run.effects(method)
                task.advance(1, f"{name} {method.name}")
        with self._timed("null"):
            self._null(task)
        for method, kl_target in self._written():
            with self._timed("texts"):
                self._write(method, kl_target)
            task.advance(1, f"{name} texts")
        with self._timed("side effects"):
            self.folder.once("choices.json", self._choices)
            task.advance(1, f"{name} answers")
            self.folder.once("prose.json", self._prose)
            task.advance(1, f"{name} prose")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            trim_memory()

    def matched(
        self, name: str, kl_target: float | None = None
    ) -> tuple[SteeringVector | None, dict[str, Any]]:
        """Return a method's vector, None where it could not be fitted, with its result.

        Args:
            name: The method.
            kl_target: The headline's if None.
        """
        kl_target = kl_target or self.config.evaluation.headline_kl_target
        method = self._method(name)
        found = self.first.effects(method)
        result = next(r for r in found["kl_targets"] if r["kl_target"] in (kl_target, None))
        return (None if "error" in found else self.first.vector(method)), result

    def _method(self, name: str) -> MethodSettings:
        return next(method for method in self.config.methods if method.name == name)

    def _null(self, task: Task) -> None:
        headline, null = self.config.evaluation.headline_kl_target, self.config.random
        for kind, count, make in (
            ("random_direction", null.directions, RandomDirection),
            ("random_features", null.features, RandomFeatures),
        ):
            start = 0.25
            for draw in range(count):

                def measured(make: Any = make, draw: int = draw, start: float = start) -> Any:
                    vector = make(draw).fit_in(self.first.context).vector_
                    return finite(self.first.test.measure(vector, headline, start=start).as_dict())

                found = self.folder.once(f"null/{kind}-{draw:02d}.json", measured)
                # Draws of one kind cost alike, so the last strength is a good first guess.
                start = abs(found["plus"]["strength"])
                task.advance(1, f"{self.persona.name} null")

    @cached_property
    def judge(self) -> BehaviourJudge:
        """The judge that scores, trained on pairs that no other step sees."""
        embedder = self.experiment.embedder
        return train_judge(self.persona.name, self.first.split.judge, embedder=embedder)

    @cached_property
    def writing(self) -> WrittenEvaluation:
        """Writes and judges."""
        return WrittenEvaluation(self.experiment.writer, self.judge)

    def _written(self) -> list[tuple[str, float | None]]:
        settings = self.config.writing
        if not self.experiment.plan.questions:
            return []
        wanted: list[tuple[str, float | None]] = []
        for name in settings.methods or self.config.pair:
            prompt = method_entry(name).kind == "prompt"
            wanted += [(name, kl) for kl in ([None] if prompt else settings.kl_targets)]
        return wanted

    def _write(self, name: str, kl_target: float | None) -> None:
        file = f"written/{name}{'' if kl_target is None else f'-{kl_target:g}'}.json"
        if self.folder.has(file):
            return
        strengths: dict[int, float | None] = {1: None, -1: None}
        if kl_target is None:
            prompts = self.first.prompts(self._method(name))
            records = self.writing.prompted(prompts.positive_, prompts.negative_)
        else:
            vector, found = self.matched(name, kl_target)
            records = self.writing.unsteered
            if vector is not None:
                reached = [(sign, found[side]) for sign, side in SIDES if found[side]["reached"]]
                strengths |= {sign: match["strength"] for sign, match in reached}
                records = self.writing.steered(vector, strengths[1], strengths[-1])
        self.folder.once("judge.json", self.judge.summary)
        written = {
            "method": name,
            "kl_target": kl_target,
            "strengths": {str(sign): strength for sign, strength in strengths.items()},
            "summary": summarise(records),
            "records": [asdict(record) for record in records],
        }
        self.folder.write_json(file, finite(written))

    def looked_at(self) -> list[str]:
        """Return the methods whose side effects are measured."""
        chosen = self.config.side_effects.methods or list(self.config.pair)
        return [name for name in chosen if method_entry(name).kind != "prompt"]

    def _choices(self) -> list[dict[str, Any]]:
        limit = self.config.side_effects.choices
        pairs = _first(self.first.split.test, limit)
        rows = []
        for kind in ("yes_no", "a_b") if limit else ():
            meter = ChoiceMeter(
                self.experiment.model,
                pairs,
                kind=kind,
                chat=self.config.reading.chat,
                site=self.experiment.site,
            )
            base = {
                "kind": kind,
                "persona": self.persona.name,
                "base": float(meter.unsteered.mean()),
                "accuracy": meter.accuracy.accuracy,
                "at_chance": meter.accuracy.at_chance,
                "n_pairs": len(pairs),
            }
            for name in self.looked_at():
                vector, found = self.matched(name)
                moved = {
                    side: float(meter.margins(vector, found[side]["strength"]).mean())
                    if found[side]["reached"]
                    else None
                    for _, side in SIDES
                }
                rows.append({**base, "method": name, **moved})
        return finite(rows)

    def _prose(self) -> list[dict[str, Any]]:
        if not self.experiment.prose_rows:
            return []
        rows = TeacherForced(
            self.experiment.model, self.experiment.prose_rows, site=self.experiment.site
        )
        base = -float(statement_log_likelihoods(rows).mean())
        found = []
        for name in self.looked_at():
            vector, result = self.matched(name)
            for sign, side in SIDES:
                # At another cost the change would not compare with the other methods'.
                if not result[side]["reached"]:
                    continue
                strength = result[side]["strength"]
                loss = -float(statement_log_likelihoods(rows, vector, strength).mean())
                row = {"persona": self.persona.name, "method": name, "sign": sign}
                found.append({**row, "loss": loss, "change": loss - base})
        return finite(found)

    def shift_on(self, other: PersonaRun, name: str) -> float | None:
        """Return what a method's vector for this persona does to another one's held-out pairs.

        Returns:
            E on the other persona's first test pairs, in nats per token; None where the KL target
            was not reached.
        """

        def compute() -> dict[str, Any]:
            vector, result = self.matched(name)
            if result["effect"] is None:
                return {"effect": None}
            up, down = (other.few.margins(vector, result[side]["strength"]) for _, side in SIDES)
            return {"effect": float((up - down).mean() / 2)}

        if other is self:
            result = self.matched(name)[1]
            return result["effect"] and result["effect"]["effect"]
        file = f"shifts/{name}-{other.persona.folder.name}.json"
        return self.folder.once(file, compute)["effect"]

    @cached_property
    def few(self) -> PropensityMeter:
        """A meter of the first test pairs, for other personas' vectors."""
        pairs = _first(self.first.split.test, self.config.side_effects.pairs)
        return self.experiment.propensity(pairs)


def _first(pairs: PairSet, limit: int) -> PairSet:
    return pairs.subset(range(min(limit, len(pairs))))
