"""What a method is fitted on, made from one set of pairs as far as the method declares it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.evaluation.judge import train_judge
from saesteer.methods.attribution import Contrast, SteeringObjective, own_words
from saesteer.methods.base import Method, MethodInputs
from saesteer.methods.caa_answers import answer_pairs
from saesteer.methods.difference_in_means import DifferenceInMeans
from saesteer.methods.features import encode_pairs, select_features
from saesteer.methods.registry import build_method, method_entry
from saesteer.models import model_info
from saesteer.models.memory import trim_memory
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.saes.labels import known_descriptions
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import match_strength
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.array_cache import content_key
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from saesteer.data import PairSet
    from saesteer.methods.features import PairCodes
    from saesteer.models import Site
    from saesteer.models.pair_activations import PairActivations
    from saesteer.utils.run_folder import RunFolder

SCORED_FEATURES = 64
GRADIENT_TOKENS = 512


def vector_of(fit: Any) -> SteeringVector:
    """Return the vector of what `FitContext.fit` gives."""
    return fit if isinstance(fit, SteeringVector) else fit.vector


class FitContext:
    """Makes each thing that a method is given once, when a method first needs it.

    Args:
        source: What fits of all pairs share: model, SAE, and neutral texts with their cost.
        train: The pairs that vectors are fitted on.
        read: Returns the activations of "train" or "validation" pairs at one of the SAE's sites.
        name: What to call vectors.
        seed: Seeds methods that draw at random.
        max_new_tokens: Length of the model's own words.
        folder: Where these are kept.
    """

    def __init__(
        self,
        source: Any,
        train: PairSet,
        read: Callable[[str, Site], PairActivations],
        *,
        name: str,
        seed: int,
        max_new_tokens: int,
        folder: RunFolder,
    ) -> None:
        self._source = source
        self._config = source.plan.config
        self._train = train
        self._read = read
        self._name = name
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._folder = folder

    def fit(self, name: str, settings: dict[str, Any]) -> Any:
        """Return a method's fit: its vector, with the stages that led to it where it has some."""
        method = build_method(name, settings)
        assert isinstance(method, Method)
        return getattr(method, "fit", method)(self.inputs_for(name))

    @cached_property
    def dense(self) -> MethodInputs:
        """What methods are given that know of no features."""
        table = self._source.table
        return MethodInputs(
            activations=self._read("train", self._source.sae.write_site),
            model=self._config.model.name,
            model_fingerprint=model_info(self._source.model).fingerprint,
            name=self._name,
            sae=self._source.sae,
            max_activation=None if table is None else table.max_activation,
            density=None if table is None else table.density,
            seed=self._seed,
        )

    @cached_property
    def inputs(self) -> MethodInputs:
        """What every method is given."""
        source = self._source
        return replace(
            self.dense,
            codes=self._codes("train"),
            validation_codes=self._codes("validation"),
            descriptions=known_descriptions(source.sae, source.table, source.progress),
        )

    def inputs_for(self, method: str) -> MethodInputs:
        """Return the inputs with what a method needs besides."""
        made = {
            "objective": lambda: self.objective,
            "answers": lambda: self._answers,
            "output_scores": lambda: self._output_scores,
        }
        return replace(self.inputs, **{need: made[need]() for need in method_entry(method).needs})

    def _codes(self, part: str) -> PairCodes:
        sae = self._source.sae
        read = self._read(part, sae.site)
        sides = (read.positive, read.negative)
        arrays = [kept.float().numpy() for side in sides for kept in (side.values, side.offsets)]
        key = (sae.fingerprint, content_key(read.pooling, arrays))
        return self._source.cache.keep(f"{part} codes", key, lambda: encode_pairs(sae, read))

    @cached_property
    def _answers(self) -> PairActivations:
        site = self._source.sae.write_site
        read = answer_pairs(
            self._source.model,
            self._train,
            [site],
            chat=self._config.reading.chat,
            prepend_bos=self._source.sae.prepend_bos,
            seed=self._seed,
        )
        return read[site]

    @cached_property
    def _output_scores(self) -> np.ndarray:
        from saesteer.methods.features.output_score import output_scores

        codes = self.inputs.codes
        assert codes is not None
        # Scored are all that `TopFeature` may choose from, however often they fire.
        best = select_features(
            codes, n_features=SCORED_FEATURES, min_firing=0.0, max_firing=1.0
        ).indices
        return output_scores(self._source.model, self._source.sae, best)

    @cached_property
    def objective(self) -> SteeringObjective:
        """What attribution raises: training statements, and the model's own words."""
        settings, source = self._config.objective, self._source
        parts = {"statements": (self._statement_rows(), 1.0)}
        own = self._own_word_rows() if settings.own_words > 0 else None
        if own is not None:
            parts["own words"] = (own, settings.own_words)
        contrasts = [
            Contrast(name, self._prepared(rows), weight) for name, (rows, weight) in parts.items()
        ]
        texts = {name: [(row.ids, row.kept) for row in rows] for name, (rows, _) in parts.items()}
        return SteeringObjective(
            contrasts,
            source.training_divergence,
            source.metric,
            lambda raw: self.dense.vector(raw, "linearised"),
            kl_target=settings.kl_target,
            keep=source.keeper(
                settings.kl_target,
                # The unit of strength, which decides where the search for it ends.
                self.dense.activations.residual_norm,
                [(row.ids, row.kept) for row in source.training_rows],
                *texts.items(),
            ),
        )

    def _prepared(self, rows: Sequence[TokenRow]) -> TeacherForced:
        # Gradients keep what every block above the site computed of a batch.
        site = self._source.sae.write_site
        return TeacherForced(self._source.model, rows, site=site, max_tokens=GRADIENT_TOKENS)

    def _rows(
        self,
        high: Sequence[str],
        low: Sequence[str],
        prompts: list[str],
        what: str | Sequence[str],
    ) -> list[TokenRow]:
        tokenizer = self._source.model.tokenizer
        assert tokenizer is not None
        return encode_statements(
            tokenizer,
            [*high, *low],
            [*prompts, *prompts],
            chat=self._config.reading.chat,
            max_length=int(self._source.model.cfg.n_ctx),
            what=what,
        )

    def _statement_rows(self) -> list[TokenRow]:
        requests = self._config.objective.requests
        prompts = [p.prompt or requests[i % len(requests)] for i, p in enumerate(self._train)]
        return self._rows(
            self._train.positives, self._train.negatives, prompts, self._train.side_names
        )

    def _own_word_rows(self) -> list[TokenRow] | None:
        found = self._folder.once("own-words.json", self._write_own_words)
        if not found["high"]:
            return None
        return self._rows(found["high"], found["low"], found["questions"], "text by the model")

    def _write_own_words(self) -> dict[str, list[str]]:
        settings, source = self._config.objective, self._source
        vector = DifferenceInMeans()(self.dense)
        strengths = [
            match_strength(
                source.training_divergence, vector, settings.kl_target, sign=sign, tolerance=0.1
            ).strength
            for sign in (1, -1)
        ]
        # Trained on the pairs that the vectors are fitted on, never on the judge's own.
        try:
            judge = train_judge(self._name, self._train, embedder=source.embedder)
        except DataError:
            # Too few pairs to rate anything by: statements alone are raised.
            return {"questions": [], "high": [], "low": []}
        found = own_words(
            source.model,
            source.plan.training_questions,
            vector,
            strengths,
            judge.logit,
            n_samples=settings.own_samples,
            n_pairs=settings.own_pairs,
            max_new_tokens=self._max_new_tokens,
            chat=self._config.reading.chat,
            seed=self._seed,
        )
        trim_memory()
        return found._asdict()
