"""One persona under one seed: fit every method, choose on validation, measure on test once."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from saesteer.data import PairSet
from saesteer.evaluation import Effect, EffectMeter, PropensityMeter, VectorResult, effect_of
from saesteer.experiments.compare.config import MethodSettings
from saesteer.experiments.compare.context import CompareContext
from saesteer.experiments.compare.plan import PersonaPlan
from saesteer.methods import SystemPrompt
from saesteer.methods.fit_context import FitContext, vector_of
from saesteer.methods.registry import build_method, method_entry
from saesteer.models.pair_activations import PairActivations, read_pair_activations
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.run_folder import RunFolder, finite

# What a method says of pairs that give it nothing to fit.
NOT_FITTED = (DataError, SteeringError)


class SeedRun:
    """One persona under one seed; each result is a file, computed where it is not there yet.

    Args:
        bench: What all personas share.
        persona: The persona.
        seed: Decides the split and seeds random methods.
    """

    def __init__(self, bench: CompareContext, persona: PersonaPlan, seed: int) -> None:
        self.bench = bench
        self.persona = persona
        self.seed = seed
        self.split = persona.splits[seed]
        self.config = bench.plan.config
        self.folder = RunFolder(persona.folder / f"seed-{seed}")

    @cached_property
    def _read(self) -> dict[str, dict[Any, PairActivations]]:
        """Activations of both sides at the SAE's sites, by part."""
        reading, sae = self.config.reading, self.bench.sae
        sites = list(dict.fromkeys((sae.site, sae.write_site)))
        return {
            name: read_pair_activations(
                self.bench.model,
                getattr(self.split, name),
                sites,
                request=reading.request,
                chat=reading.chat,
                system=reading.system,
                prepend_bos=sae.prepend_bos,
                pooling=reading.positions,
            )
            for name in ("train", "validation")
        }

    @cached_property
    def context(self) -> FitContext:
        """What methods are fitted on."""
        return FitContext(
            self.bench,
            self.split.train,
            lambda part, site: self._read[part][site],
            name=self.persona.name,
            seed=self.seed,
            max_new_tokens=self.config.writing.max_new_tokens,
            folder=self.folder,
        )

    def propensity(self, pairs: PairSet, *, system: str | None = None) -> PropensityMeter:
        """Return a meter of margins of pairs."""
        return PropensityMeter(
            self.bench.model,
            pairs,
            request=self.config.evaluation.request,
            chat=self.config.reading.chat,
            system=system,
            site=self.bench.site,
        )

    def _meter(self, pairs: PairSet, unsteered: Any = None) -> EffectMeter:
        return EffectMeter(self.bench.divergence, self.propensity(pairs), unsteered)

    @cached_property
    def test(self) -> EffectMeter:
        """The meter on test pairs."""
        kept = self.folder.has("unsteered.json")
        unsteered = np.array(self.folder.read_json("unsteered.json")["sides"]) if kept else None
        meter = self._meter(self.split.test, unsteered)
        if not kept:
            self.folder.write_json("unsteered.json", {"sides": meter.unsteered.tolist()})
        return meter

    def unsteered(self) -> list[list[float]]:
        """Return the test pairs' log-likelihoods without steering, positive and negative sides."""
        if not self.folder.has("unsteered.json"):
            # The meter writes them.
            assert self.test is not None
        return self.folder.read_json("unsteered.json")["sides"]

    @cached_property
    def _validation(self) -> EffectMeter:
        return self._meter(self.split.validation)

    def vector(self, method: MethodSettings) -> SteeringVector:
        """Return a method's vector, its settings chosen on validation pairs."""
        name = f"vectors/{method.name}.safetensors"
        if not self.folder.has(name):
            settings = self.folder.once(f"chosen/{method.name}.json", lambda: self._chosen(method))
            made = self._fit(method, settings["settings"])
            self.folder.write(name, made.save)
        return SteeringVector.load(self.folder.path / name)

    def _fit(self, method: MethodSettings, settings: dict[str, Any]) -> SteeringVector:
        return vector_of(self.context.fit(method.name, settings))

    def _chosen(self, method: MethodSettings) -> dict[str, Any]:
        options = [{**method.settings, **point} for point in method.grid] or [method.settings]
        if len(options) == 1:
            return {"settings": options[0], "tried": []}
        tried, headline = [], self.config.evaluation.headline_kl_target
        for option in options:
            try:
                vector = self._fit(method, option)
            except NOT_FITTED as error:
                tried.append({"settings": option, "effect": None, "error": str(error)})
                continue
            effect = self._validation.measure(vector, headline).effect
            tried.append({"settings": option, "effect": effect and effect.effect})
        effects = [-np.inf if t["effect"] is None else t["effect"] for t in tried]
        return {"settings": options[int(np.argmax(effects))], "tried": finite(tried)}

    def effects(self, method: MethodSettings) -> dict[str, Any]:
        """Return a method's effects at every KL target, with its curve at the headline one."""
        return self.folder.once(f"effects/{method.name}.json", lambda: self._effects(method))

    def _effects(self, method: MethodSettings) -> dict[str, Any]:
        if method_entry(method.name).kind == "prompt":
            return finite(self._prompt_effects(method))
        settings = self.config.evaluation
        # Other KL targets and the curve are for the first seed: further seeds repeat the headline.
        first = self.seed == self.config.seeds[0]
        kl_targets = settings.kl_targets if first else [settings.headline_kl_target]
        try:
            vector = self.vector(method)
        except NOT_FITTED as error:
            # These pairs give this method nothing to fit, which is a result: the others go on.
            self.bench.progress.say(f"{self.persona.name}, {method.name}: {error}")
            missing = [{**_not_fitted(kl_target), "error": str(error)} for kl_target in kl_targets]
            return {"kl_targets": missing, "curve": None, "error": str(error)}
        results, start = {}, 0.15
        for kl_target in kl_targets:
            results[kl_target] = self.test.measure(vector, kl_target, start=start)
            # KL grows about as the square of the strength.
            start = results[kl_target].plus.strength * 1.7
        headline, curve = results[settings.headline_kl_target], None
        if first and headline.effect is not None:
            curve = self.test.curve(vector, headline, settings.multiples)
        records = [target_record(kl_target, result) for kl_target, result in results.items()]
        return finite({"kl_targets": records, "curve": curve})

    def prompts(self, method: MethodSettings) -> Any:
        """Return the two system prompts of a prompt method."""
        described = {
            "description": self.persona.settings.description,
            "opposite": self.persona.settings.opposite,
            "seed": self.seed,
        }
        settings = {**{k: v for k, v in described.items() if v is not None}, **method.settings}
        build = build_method(method.name, settings)
        assert isinstance(build, SystemPrompt)
        return build(self.split.train)

    def _prompt_effects(self, method: MethodSettings) -> dict[str, Any]:
        """Measure system prompts by the same yardsticks, at the cost that they happen to have."""
        prompts = self.prompts(method)
        sides, costs = [], []
        for system in (prompts.positive, prompts.negative):
            sides.append(self.propensity(self.split.test, system=system).log_likelihoods())
            prompted = self.bench.answer_rows(self.bench.plan.answers, system=system)
            costs.append(self.bench.divergence.of_prompted(prompted))
        reached = {"strength": None, "reached": True}
        record = {
            "kl_target": None,
            "plus": {**reached, "kl": costs[0]},
            "minus": {**reached, "kl": costs[1]},
            **_effect_record(effect_of(self.test.unsteered, *sides)),
        }
        return {"kl_targets": [record], "curve": None}


def target_record(kl_target: float, result: VectorResult) -> dict[str, Any]:
    """Return what is stored of a vector at a KL target, `moved` with one value a pair."""
    sides = {"plus": result.plus, "minus": result.minus}
    kept = ("strength", "kl", "reached")
    return {
        "kl_target": kl_target,
        **{side: {key: getattr(match, key) for key in kept} for side, match in sides.items()},
        **_effect_record(result.effect),
    }


def _effect_record(effect: Effect | None) -> dict[str, Any]:
    if effect is None:
        return {"effect": None, "moved": None}
    return {**asdict(effect), "moved": effect.moved.tolist()}


def _not_fitted(kl_target: float) -> dict[str, Any]:
    side = {"strength": None, "kl": None, "reached": False}
    return {"kl_target": kl_target, "plus": side, "minus": side, "effect": None, "moved": None}
