"""One persona under one seed: every method fitted, chosen on validation, measured on test once."""

from __future__ import annotations

from functools import cached_property
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.evaluation import EffectMeter, PropensityMeter, VectorResult, effect_of
from saesteer.experiments.compare.config import MethodSettings
from saesteer.experiments.compare.plan import PersonaPlan
from saesteer.experiments.pairs_run import PairsRun, kept
from saesteer.methods.registry import build_method, method_entry
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import StrengthMatch
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from saesteer.experiments.compare.experiment import Compare

Record = dict[str, Any]
# What a method says of pairs that give it nothing to fit.
NOT_FITTED = (DataError, SteeringError)


class SeedRun(PairsRun):
    """One persona under one seed: fit every method, choose on validation, measure on test once."""

    def __init__(self, experiment: Compare, persona: PersonaPlan, seed: int) -> None:
        self.split = persona.splits[seed]
        super().__init__(
            experiment,
            self.split.train,
            self.split.validation,
            self.split.test,
            name=persona.name,
            seed=seed,
            folder=RunFolder(persona.folder / f"seed-{seed}"),
        )
        self.persona = persona
        self.config = experiment.config

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
        results, start = {}, 0.15
        for kl_target in kl_targets:
            results[kl_target] = self.measure(vector, kl_target, start)
            # KL grows about as the square of the strength.
            start = results[kl_target]["plus"]["strength"] * 1.7
        headline, curve = results[settings.headline_kl_target], None
        if first and headline["effect"] is not None:
            curve = self.curve(vector, headline)
        records = [{"kl_target": kl_target, **found} for kl_target, found in results.items()]
        return {"kl_targets": records, "curve": curve}

    def prompts(self, method: MethodSettings) -> Any:
        """The two system prompts of a prompt method, fitted."""
        described = self.persona.settings.model_dump(
            include={"description", "opposite"}, exclude_none=True
        )
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
