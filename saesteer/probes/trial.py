"""`saesteer probe intervene`: base and intervened text side by side, measured from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float

from saesteer.probes.independent import TextClassifier
from saesteer.probes.measure import ContinuationMeter, Doing
from saesteer.steering import SteeringVector, generate
from saesteer.steering.divergence import StrengthMatch, match_strength
from saesteer.utils.errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Measure = Callable[[Sequence[str]], Float[np.ndarray, " text"]]


@dataclass(frozen=True)
class TrialSettings:
    """How texts are generated.

    Attributes:
        max_new_tokens: The most tokens of a completion.
        chat: Whether prompts go through the chat template.
        temperature: 0 for the likeliest token.
        samples: Completions per prompt; their readings are averaged.
        seed: Seeds the sampling; base and intervened text meet the same noise.
    """

    max_new_tokens: int = 32
    chat: bool = False
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Texts:
    """Completions, prompt by prompt and then sample by sample, with their readings.

    Attributes:
        texts: The completions.
        readings: For each measure one number per completion; NaN for an empty one.
        loss: Mean loss under the untouched model, nats per token; exp of it is the perplexity.
        kl: KL(intervened || untouched) over the base completions, nats per token; 0 for the base.
    """

    texts: tuple[str, ...]
    readings: dict[str, Float[np.ndarray, " text"]]
    loss: Float[np.ndarray, " text"]
    kl: float

    @property
    def perplexity(self) -> float:
        """Perplexity over all completions."""
        return (
            float(np.exp(np.nanmean(self.loss))) if np.isfinite(self.loss).any() else float("nan")
        )


class Trial:
    """Base completions of some prompts, and what interventions make of them.

    Args:
        model: A model from `load_model`.
        prompts: The prompts.
        measures: Named measures of a completion; see `independent_measures` and `probe_measure`.
        settings: How texts are generated.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompts: Sequence[str],
        measures: dict[str, Measure],
        settings: TrialSettings | None = None,
    ) -> None:
        self.model = model
        self.prompts = tuple(prompts)
        self.settings = settings or TrialSettings()
        self._measures = measures
        texts = self._generate(None)
        self._meter = self._meter_of(texts)
        self.base = self._read(texts, self._meter, 0.0)

    def run(self, doing: Doing) -> Texts:
        """Generate under interventions and measure."""
        texts = self._generate(doing)
        return self._read(texts, self._meter_of(texts), self.divergence(doing))

    def divergence(self, doing: Doing) -> float:
        """Return KL(intervened || untouched) over the base completions, nats per token."""
        return self._meter.mean_divergence(doing)

    def per_prompt(self, values: Float[np.ndarray, " text"]) -> Float[np.ndarray, " prompt"]:
        """Average completions' values over each prompt's samples, empty ones left out."""
        table = values.reshape(len(self.prompts), self.settings.samples)
        kept = np.isfinite(table)
        total = np.where(kept, table, 0.0).sum(axis=1)
        return np.where(kept.any(axis=1), total / np.maximum(kept.sum(axis=1), 1), np.nan)

    def _generate(self, doing: Doing | None) -> tuple[str, ...]:
        settings = self.settings
        with nullcontext() if doing is None else doing.context(self.model):
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

    def _meter_of(self, texts: Sequence[str]) -> ContinuationMeter:
        prompts = [prompt for prompt in self.prompts for _ in range(self.settings.samples)]
        return ContinuationMeter(self.model, prompts, texts, chat=self.settings.chat)

    def _read(self, texts: tuple[str, ...], meter: ContinuationMeter, kl: float) -> Texts:
        readings = {name: measure(texts) for name, measure in self._measures.items()}
        return Texts(texts, readings, meter.loss(), kl)


def independent_measures(
    classifier: TextClassifier | None, towards: str, away: str
) -> dict[str, Measure]:
    """Return the measures that know nothing of the probe and are there to be used.

    VADER where the classes are sentiments and its package is installed, and the classifier.
    """
    found: dict[str, Measure] = {}
    if {towards, away} == {"positive", "negative"}:
        from saesteer.evaluation.sentiment import vader_compound

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


@dataclass(frozen=True)
class Movement:
    """How a measure moved over prompts.

    Attributes:
        measure: Its name.
        n: Prompts with a reading of both texts.
        base: Mean reading of the base texts, towards their prompt's own side.
        after: The same of the intervened texts.
        moved: Share of the prompts whose reading moved the way that was intended.
        low: Lower end of the share's 95% interval (Wilson 1927).
        high: Upper end.
    """

    measure: str
    n: int
    base: float | None
    after: float | None
    moved: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def movement(
    measure: str,
    base: Float[np.ndarray, " prompt"],
    after: Float[np.ndarray, " prompt"],
    intended: Float[np.ndarray, " prompt"],
) -> Movement:
    """Say how far readings moved the way they were meant to.

    A reading that stays exactly where it was has not moved.

    Args:
        measure: Its name.
        base: Reading of each prompt's base text.
        after: Reading of its intervened text.
        intended: 1 where it should rise, -1 where it should fall.
    """
    kept = np.isfinite(base) & np.isfinite(after)
    n = int(kept.sum())
    if n == 0:
        return Movement(measure, 0, None, None, None, None, None)
    change = (after - base)[kept] * intended[kept]
    count = int((change > 0).sum())
    low, high = wilson(count, n)
    # Towards the prompt's own side: what a flip is meant to turn round.
    own = -intended[kept]
    return Movement(
        measure,
        n,
        float((base[kept] * own).mean()),
        float((after[kept] * own).mean()),
        count / n,
        low,
        high,
    )


def wilson(count: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def random_doing(doing: Doing, draw: int) -> Doing:
    """Return the same interventions along random directions, one for each site.

    What cannot be scaled to another cost (ablate, set) becomes a flip.

    Args:
        doing: What is done along the real directions.
        draw: Which draw.
    """
    generator = torch.Generator().manual_seed(draw)
    made: dict[Any, SteeringVector] = {}
    items = []
    for item in doing.interventions:
        vector = item.vector
        if vector.site not in made:
            raw = torch.randn(vector.d_model, generator=generator)
            made[vector.site] = replace(
                vector,
                direction=raw / raw.norm(),
                name=f"random {draw}",
                method="random_direction",
                features=(),
                provenance={},
            )
        # A random direction has no classes to be centred between.
        item = replace(item, vector=made[vector.site], centre=0.0)
        if item.mode in ("ablate", "set"):
            item = replace(item, mode="flip", amount=1.0)
        items.append(item)
    return replace(doing, interventions=tuple(items))


def scaled_doing(doing: Doing, factor: float) -> Doing:
    """Return interventions with every amount times a factor."""
    items = tuple(replace(i, amount=i.amount * factor) for i in doing.interventions)
    return replace(doing, interventions=items)


def match_divergence(trial: Trial, doing: Doing, budget: float) -> tuple[Doing, StrengthMatch]:
    """Scale interventions until they cost a given KL over the base completions.

    Args:
        trial: Measures the divergence.
        doing: What to scale.
        budget: Nats per token.

    Returns:
        The scaled interventions and how the search went.
    """

    def meter(_vector: object, factor: float, _unit: object) -> float:
        return trial.divergence(scaled_doing(doing, factor))

    match = match_strength(
        cast(Any, meter),
        doing.interventions[0].vector,
        budget,
        unit="raw",
        start=1.0,
        largest=200.0,
        tolerance=0.05,
        max_evaluations=10,
    )
    return scaled_doing(doing, match.strength), match
