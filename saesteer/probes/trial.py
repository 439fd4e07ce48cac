"""Interventions on prompts: base and intervened text side by side, measured from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from saesteer.evaluation.effect import statement_log_likelihoods
from saesteer.models.tokens import TokenRow, chat_prompt, encode_texts
from saesteer.probes.independent import TextClassifier
from saesteer.probes.interventions import Intervention
from saesteer.steering import StrengthMatch, TeacherForced, generate
from saesteer.steering.divergence import divergence, match_kl
from saesteer.utils.errors import DataError, ModelError, SteeringError
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Measure = Callable[[Sequence[str]], Float[np.ndarray, " text"]]


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are generated; base and intervened text meet the same noise."""

    max_new_tokens: int = 32
    chat: bool = False
    temperature: float = 0.0
    # Completions per prompt; their readings are averaged.
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Texts:
    """Completions, prompt by prompt and then sample by sample, with their readings."""

    texts: tuple[str, ...]
    # For each measure one number per completion; NaN for an empty one.
    readings: dict[str, Float[np.ndarray, " text"]]
    # Mean loss under the untouched model, nats per token; NaN for an empty one.
    loss: Float[np.ndarray, " text"]
    # KL(intervened || untouched) over the base completions, nats per token; 0 for the base.
    kl: float

    @property
    def perplexity(self) -> float:
        """Perplexity over all completions."""
        return float(np.exp(pd.Series(self.loss).mean()))


class InterventionTrial:
    """Base completions of some prompts, and what interventions make of them, by named measures."""

    def __init__(
        self,
        model: TransformerBridge,
        prompts: Sequence[str],
        measures: Mapping[str, Measure],
        settings: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.prompts = tuple(prompts)
        self.settings = settings or GenerationSettings()
        self._measures = measures
        texts = self._generate(None)
        self._rows, places = self._prepared(texts)
        self._states = self._rows.last_states()
        self.base = self._read(texts, self._rows, places, 0.0)

    def run(self, intervention: Intervention) -> Texts:
        """Generate under an intervention and measure."""
        texts = self._generate(intervention)
        return self._read(texts, *self._prepared(texts), self.divergence(intervention))

    def divergence(self, intervention: Intervention) -> float:
        """Return KL(intervened || untouched) over the base completions, nats per token."""
        editing = partial(intervention.made_on, self.model)
        return divergence(self._rows, self._states, editing=editing)

    def matched(self, intervention: Intervention, kl: float) -> tuple[Intervention, StrengthMatch]:
        """Scale an intervention until it costs a given KL over the base completions."""
        match = match_kl(
            lambda factor: self.divergence(intervention.scaled(factor)),
            kl,
            start=1.0,
            largest=200.0,
            tolerance=0.05,
            max_evaluations=10,
        )
        return intervention.scaled(match.strength), match

    def per_prompt(self, values: Float[np.ndarray, " text"]) -> Float[np.ndarray, " prompt"]:
        """Average completions' values over each prompt's samples, empty ones left out."""
        return pd.DataFrame(values.reshape(len(self.prompts), -1)).mean(axis=1).to_numpy()

    def record(
        self,
        intervention: Intervention,
        labels: Sequence[str | None],
        *,
        towards: str,
        away: str,
        random_draws: int = 0,
    ) -> dict[str, Any]:
        """Return, as JSON has it, what an intervention did.

        Beside it stand so many random directions, each scaled to the same KL. Readings rise to one
        class and fall to another; labels are each prompt's own class, where known.
        """
        if len(labels) != len(self.prompts):
            raise DataError(
                f"there are {len(labels)} labels for {len(self.prompts)} prompts; give one for "
                "each."
            )
        after = self.run(intervention)
        intended = intervention.intended(labels, towards, away)
        edits, random = intervention.edits, []
        for draw in range(random_draws):
            matched, match = self.matched(intervention.randomised(draw), after.kl)
            drawn = self.run(matched)
            random.append(
                {
                    "draw": draw,
                    "factor": match.strength,
                    "reached": match.reached,
                    "kl": drawn.kl,
                    "perplexity": drawn.perplexity,
                    "movement": self._movements(drawn, intended),
                }
            )
        record = {
            "interventions": [edit.described() for edit in edits],
            "policy": intervention.policy,
            "positions": intervention.positions or edits[0].vector.positions,
            "vectors": [edit.vector.name for edit in edits],
            "towards": towards,
            "away": away,
            "kl": after.kl,
            "perplexity": {"base": self.base.perplexity, "intervened": after.perplexity},
            "movement": self._movements(after, intended),
            "rows": [
                self._row(after, labels[place // self.settings.samples], place)
                for place in range(len(after.texts))
            ],
            "random": random,
        }
        return finite(record)

    def _generate(self, intervention: Intervention | None) -> tuple[str, ...]:
        settings = self.settings
        with nullcontext() if intervention is None else intervention.made_on(self.model):
            made = generate(
                self.model,
                self.prompts,
                max_new_tokens=settings.max_new_tokens,
                chat=settings.chat,
                temperature=settings.temperature,
                n_samples=settings.samples,
                seed=settings.seed,
            )
        return tuple(record.text for record in made.records)

    def _prepared(self, texts: Sequence[str]) -> tuple[TeacherForced, list[int]]:
        """Return the completions behind their prompts, and the places of those with a token."""
        tokenizer: Any = self.model.tokenizer
        chat = self.settings.chat
        asked = [chat_prompt(tokenizer, p) if chat else p for p in self.prompts]
        prompts = encode_texts(tokenizer, asked)
        rows: dict[int, TokenRow] = {}
        for place, text in enumerate(texts):
            prompt = prompts[place // self.settings.samples]
            words = tokenizer(text, add_special_tokens=False)["input_ids"]
            if words:
                kept = (False,) * len(prompt) + (True,) * len(words)
                rows[place] = TokenRow((*prompt.ids, *words), kept)
        if not rows:
            raise SteeringError(
                "no continuation has a token, so there is nothing to measure on; generate longer "
                "ones."
            )
        forced = TeacherForced(self.model, list(rows.values()), max_tokens=1024, share_prefix=False)
        return forced, list(rows)

    def _read(
        self, texts: tuple[str, ...], rows: TeacherForced, places: list[int], kl: float
    ) -> Texts:
        loss = np.full(len(texts), np.nan)
        loss[places] = -statement_log_likelihoods(rows)
        readings = {name: measure(texts) for name, measure in self._measures.items()}
        return Texts(texts, readings, loss, kl)

    def _movements(self, after: Texts, intended: np.ndarray) -> dict[str, Any]:
        sided = intended != 0
        if not sided.any():
            return {}
        found = {}
        for name, values in after.readings.items():
            base = self.per_prompt(self.base.readings[name])[sided]
            found[name] = movement(name, base, self.per_prompt(values)[sided], intended[sided])
        return found

    def _row(self, after: Texts, label: str | None, place: int) -> dict[str, Any]:
        prompt, sample = divmod(place, self.settings.samples)
        both = (self.base, after)
        return {
            "prompt": self.prompts[prompt],
            "label": label,
            "sample": sample,
            "base": self.base.texts[place],
            "intervened": after.texts[place],
            "readings": {
                name: [float(texts.readings[name][place]) for texts in both]
                for name in after.readings
            },
            "perplexity": [float(np.exp(texts.loss[place])) for texts in both],
        }


def independent_measures(
    classifier: TextClassifier | None, towards: str, away: str
) -> dict[str, Measure]:
    """Return the measures that know nothing of the probe and are there to be used.

    VADER where the classes are sentiments and its package is installed, and the classifier.
    """
    found: dict[str, Measure] = {}
    if {towards, away} == {"positive", "negative"}:
        from saesteer.evaluation.text_quality import vader_compound

        sign = 1.0 if towards == "positive" else -1.0
        try:
            vader_compound(["good"])
        except ModelError:
            pass
        else:
            found["vader"] = lambda texts: sign * vader_compound(texts)
    if classifier is not None:
        found["classifier"] = lambda texts: classifier.lean(texts, towards, away)
    return found


def movement(
    measure: str,
    base: Float[np.ndarray, " prompt"],
    after: Float[np.ndarray, " prompt"],
    intended: Float[np.ndarray, " prompt"],
) -> dict[str, Any]:
    """Say how far readings moved the way they were meant to: up (1) or down (-1).

    A reading that stays exactly where it was has not moved. Returned are the `n` prompts with a
    reading of both texts, their mean readings `base` and `after` towards each prompt's own side,
    and the share that `moved` as intended with its 95% interval `low` to `high` (Wilson 1927);
    None where there is no prompt.
    """
    from scipy.stats import binomtest

    kept = np.isfinite(base) & np.isfinite(after)
    n = int(kept.sum())
    if n == 0:
        nothing = dict.fromkeys(("base", "after", "moved", "low", "high"))
        return {"measure": measure, "n": 0, **nothing}
    base, after, intended = base[kept], after[kept], intended[kept]
    count = int(((after - base) * intended > 0).sum())
    interval = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "measure": measure,
        "n": n,
        # Towards the prompt's own side: what a flip is meant to turn round.
        "base": float((base * -intended).mean()),
        "after": float((after * -intended).mean()),
        "moved": count / n,
        "low": float(interval.low),
        "high": float(interval.high),
    }
