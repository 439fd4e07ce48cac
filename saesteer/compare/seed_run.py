"""One persona under one seed: fit every method, choose on validation, measure on test once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from saesteer.activations import PairActivations, read_pair_activations
from saesteer.attribution import Contrast, SteeringObjective, own_words
from saesteer.compare.bench import CompareBench
from saesteer.compare.config import MethodSettings
from saesteer.compare.measure import PersonaMeter
from saesteer.compare.methods import build_method, method_entry
from saesteer.compare.plan import PersonaPlan
from saesteer.data import PairSet
from saesteer.errors import DataError, SteeringError
from saesteer.evaluation import DivergenceMeter, PropensityMeter, TeacherForced
from saesteer.evaluation.judge import train_judge
from saesteer.feature_words import known_descriptions
from saesteer.features import encode_pairs
from saesteer.methods import (
    DifferenceInMeans,
    Method,
    MethodInputs,
    SystemPrompt,
    answer_pairs,
)
from saesteer.models import model_info
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.steering import SteeringVector, match_strength
from saesteer.tracking import RunFolder, finite

SCORED_FEATURES = 64
# What a method says of pairs that give it nothing to fit.
NOT_FITTED = (DataError, SteeringError)


class SeedRun:
    """One persona under one seed; each result is a file, computed where it is not there yet.

    Args:
        bench: What all personas share.
        persona: The persona.
        seed: Decides the split and seeds random methods.
    """

    def __init__(self, bench: CompareBench, persona: PersonaPlan, seed: int) -> None:
        self.bench = bench
        self.persona = persona
        self.seed = seed
        self.split = persona.splits[seed]
        self.config = bench.plan.config
        self.folder = RunFolder(persona.folder / f"seed-{seed}")

    @cached_property
    def read(self) -> dict[str, dict[Any, PairActivations]]:
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
    def inputs(self) -> MethodInputs:
        """What every method is given."""
        bench, sae = self.bench, self.bench.sae
        table = bench.table
        return MethodInputs(
            activations=self.read["train"][sae.write_site],
            model=self.config.model.name,
            model_fingerprint=model_info(bench.model).fingerprint,
            name=self.persona.name,
            codes=encode_pairs(sae, self.read["train"][sae.site]),
            validation_codes=encode_pairs(sae, self.read["validation"][sae.site]),
            sae=sae,
            max_activation=None if table is None else table.max_activation,
            density=None if table is None else table.density,
            descriptions=known_descriptions(sae, table, bench.progress),
            seed=self.seed,
        )

    def inputs_for(self, method: str) -> MethodInputs:
        """Return the inputs with what a method needs besides."""
        needs = method_entry(method).needs
        inputs = self.inputs
        if "objective" in needs:
            inputs = replace(inputs, objective=self.objective)
        if "answers" in needs:
            inputs = replace(inputs, answers=self._answers)
        if "output_scores" in needs:
            inputs = replace(inputs, output_scores=self._output_scores)
        return inputs

    @cached_property
    def _answers(self) -> PairActivations:
        site = self.bench.site
        read = answer_pairs(
            self.bench.model,
            self.split.train,
            [site],
            chat=self.config.reading.chat,
            prepend_bos=self.bench.sae.prepend_bos,
            seed=self.seed,
        )
        return read[site]

    @cached_property
    def _output_scores(self) -> np.ndarray:
        from saesteer.features import select_features
        from saesteer.features.output_score import output_scores

        codes = self.inputs.codes
        assert codes is not None
        # Scored are all that `TopFeature` may choose from, however often they fire.
        best = select_features(
            codes, n_features=SCORED_FEATURES, min_firing=0.0, max_firing=1.0
        ).indices
        return output_scores(self.bench.model, self.bench.sae, best)

    @cached_property
    def objective(self) -> SteeringObjective:
        """What attribution raises: training statements, and the model's own words."""
        settings = self.config.objective
        parts = {"statements": (self._statement_rows(), 1.0)}
        own = self._own_word_rows() if settings.own_words > 0 else None
        if own is not None:
            parts["own words"] = (own, settings.own_words)
        contrasts = [
            Contrast(name, TeacherForced(self.bench.model, rows, site=self.bench.site), weight)
            for name, (rows, weight) in parts.items()
        ]
        texts = {name: [(row.ids, row.kept) for row in rows] for name, (rows, _) in parts.items()}
        return SteeringObjective(
            contrasts,
            self.bench.training_divergence,
            self.bench.metric,
            lambda raw: self.inputs.vector(raw, "linearised"),
            budget=settings.budget,
            keep=self.bench.keeper(
                settings.budget,
                # The unit of strength, which decides where the search for it ends.
                self.inputs.activations.residual_norm,
                [(row.ids, row.kept) for row in self.bench.training_rows],
                *texts.items(),
            ),
        )

    def _rows(
        self, high: list[str], low: list[str], prompts: list[str], what: str | Sequence[str]
    ) -> list[TokenRow]:
        tokenizer = self.bench.model.tokenizer
        assert tokenizer is not None
        return encode_statements(
            tokenizer,
            [*high, *low],
            [*prompts, *prompts],
            chat=self.config.reading.chat,
            max_length=self.bench.context,
            what=what,
        )

    def _statement_rows(self) -> list[TokenRow]:
        train, requests = self.split.train, self.config.objective.requests
        prompts = [p.prompt or requests[i % len(requests)] for i, p in enumerate(train)]
        sides = list(train.positives), list(train.negatives)
        return self._rows(*sides, prompts, train.side_names)

    def _own_word_rows(self) -> list[TokenRow] | None:
        found = self.folder.once("own-words.json", self._write_own_words)
        if not found["high"]:
            return None
        # Written within writing.max_new_tokens, for which `check_comparison` found room.
        return self._rows(found["high"], found["low"], found["questions"], "text by the model")

    def _write_own_words(self) -> dict[str, list[str]]:
        settings = self.config.objective
        vector = DifferenceInMeans()(self.inputs)
        strengths = [
            match_strength(
                self.bench.training_divergence, vector, settings.budget, sign=sign, tolerance=0.1
            ).strength
            for sign in (1, -1)
        ]
        # Trained on the pairs that the vectors are fitted on, never on the judge's own.
        try:
            judge = train_judge(self.persona.name, self.split.train, embedder=self.bench.embedder)
        except DataError:
            # Too few pairs to rate anything by: statements alone are raised.
            return {"questions": [], "high": [], "low": []}
        found = own_words(
            self.bench.model,
            self.bench.plan.training_questions,
            vector,
            strengths,
            judge.logit,
            n_samples=settings.own_samples,
            n_pairs=settings.own_pairs,
            max_new_tokens=self.config.writing.max_new_tokens,
            chat=self.config.reading.chat,
            seed=self.seed,
        )
        return found._asdict()

    def meter(self, pairs: PairSet, *, unsteered: Any = None) -> PersonaMeter:
        """Return a meter of effects on pairs."""
        propensity = PropensityMeter(
            self.bench.model,
            pairs,
            request=self.config.evaluation.request,
            chat=self.config.reading.chat,
            site=self.bench.site,
        )
        return PersonaMeter(self.bench.divergence, propensity, unsteered)

    @cached_property
    def test(self) -> PersonaMeter:
        """The meter on test pairs."""
        kept = self.folder.has("unsteered.json")
        unsteered = np.array(self.folder.read_json("unsteered.json")["sides"]) if kept else None
        meter = self.meter(self.split.test, unsteered=unsteered)
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
    def _validation(self) -> PersonaMeter:
        return self.meter(self.split.validation)

    def vector(self, method: MethodSettings) -> SteeringVector:
        """Return a method's vector, its settings chosen on validation pairs."""
        name = f"vectors/{method.name}.safetensors"
        if not self.folder.has(name):
            settings = self.folder.once(f"chosen/{method.name}.json", lambda: self._chosen(method))
            made = self._fit(method, settings["settings"])
            self.folder.write(name, made.save)
        return SteeringVector.load(self.folder.path / name)

    def _fit(self, method: MethodSettings, settings: dict[str, Any]) -> SteeringVector:
        build = build_method(method.name, settings)
        assert isinstance(build, Method)
        return build(self.inputs_for(method.name))

    def _chosen(self, method: MethodSettings) -> dict[str, Any]:
        options = [{**method.settings, **point} for point in method.grid] or [method.settings]
        if len(options) == 1:
            return {"settings": options[0], "tried": []}
        tried = []
        for option in options:
            try:
                vector = self._fit(method, option)
            except NOT_FITTED as error:
                tried.append({"settings": option, "effect": None, "error": str(error)})
                continue
            found = self._validation.at_budget(vector, self.config.evaluation.headline_budget)
            tried.append({"settings": option, "effect": found["effect"]})
        effects = [-np.inf if t["effect"] is None else t["effect"] for t in tried]
        return {"settings": options[int(np.argmax(effects))], "tried": finite(tried)}

    def effects(self, method: MethodSettings) -> dict[str, Any]:
        """Return a method's effects at every budget, with its curve at the headline budget."""
        return self.folder.once(f"effects/{method.name}.json", lambda: self._effects(method))

    def _effects(self, method: MethodSettings) -> dict[str, Any]:
        if method_entry(method.name).kind == "prompt":
            return finite(self._prompt_effects(method))
        settings = self.config.evaluation
        # Other budgets and the curve are for the first seed: further seeds repeat the headline.
        first = self.seed == self.config.seeds[0]
        budgets = settings.budgets if first else [settings.headline_budget]
        try:
            vector = self.vector(method)
        except NOT_FITTED as error:
            # These pairs give this method nothing to fit, which is a result: the others go on.
            self.bench.progress.say(f"{self.persona.name}, {method.name}: {error}")
            missing = [{**_not_fitted(budget), "error": str(error)} for budget in budgets]
            return {"budgets": missing, "curve": None, "error": str(error)}
        records, start = [], 0.15
        for budget in budgets:
            records.append(self.test.at_budget(vector, budget, start))
            # KL grows about as the square of the strength.
            start = abs(records[-1]["plus"]["strength"]) * 1.7
        headline = next(r for r in records if r["budget"] == settings.headline_budget)
        curve = None
        if first and headline["effect"] is not None:
            curve = self.test.curve(vector, headline, settings.multiples)
        return finite({"budgets": records, "curve": curve})

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
            meter = PropensityMeter(
                self.bench.model,
                self.split.test,
                request=self.config.evaluation.request,
                chat=self.config.reading.chat,
                system=system,
                site=self.bench.site,
            )
            sides.append(meter.log_likelihoods())
            prompted = self.bench.answer_rows(self.bench.plan.answers, system=system)
            costs.append(
                prompt_divergence(
                    self.bench.divergence, DivergenceMeter(self.bench.model, prompted)
                )
            )
        reached = {"strength": None, "reached": True}
        record = {
            "budget": None,
            "plus": {**reached, "kl": costs[0]},
            "minus": {**reached, "kl": costs[1]},
            **self.test.effect(*sides),
        }
        return {"budgets": [record], "curve": None}


def _not_fitted(budget: float) -> dict[str, Any]:
    side = {"strength": None, "kl": None, "reached": False}
    return {"budget": budget, "plus": side, "minus": side, "effect": None, "moved": None}


def prompt_divergence(base: DivergenceMeter, prompted: DivergenceMeter) -> float:
    """Return KL(prompted || base) per token on the same answers, nats per token."""
    before, after = base.unsteered(), prompted.unsteered()
    return float((after.exp() * (after - before)).sum()) / base.n_tokens
