"""What methods are fitted on, made from one set of pairs as far as they ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Generator, Tensor

from saesteer.data import read_answers, read_questions
from saesteer.data.texts import QUESTIONS
from saesteer.methods.answer_letters import answer_pairs
from saesteer.methods.features import (
    encode_pairs,
    output_scores,
    select_features,
    vector_of_features,
)
from saesteer.methods.objective import (
    Contrast,
    MakeVector,
    Statements,
    SteeringObjective,
    TrainingCost,
)
from saesteer.methods.prompted import prompted
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.methods.system_prompt import SystemPrompt
from saesteer.models import Site, encode_statements, model_info
from saesteer.models.placement import trim_memory
from saesteer.models.reading import PairActivations, pool, read_pair_activations
from saesteer.saes.labels import known_descriptions, own_table
from saesteer.steering import SteeringVector
from saesteer.steering.divergence import NEUTRAL_ANSWERS
from saesteer.steering.generate import generate
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.utils.cache import Cache, content_key
from saesteer.utils.errors import ConfigError, DataError, MismatchError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data import PairSet
    from saesteer.data.pairs import Description
    from saesteer.methods.features import PairCodes
    from saesteer.models.tokens import TokenRow
    from saesteer.saes.adapter import Sae
    from saesteer.saes.table import FeatureTable
    from saesteer.steering.engines import Engine
    from saesteer.utils.run_folder import RunFolder

# How many features get an output score: all that `TopFeature` may choose from.
SCORED_FEATURES = 64
GRADIENT_TOKENS = 512
# Of the model's own answers, which are read behind every prompt and differentiated.
ANSWER_TOKENS = 32
# As many of the last open and neutral questions as a comparison's defaults leave to train with.
TRAINING_QUESTIONS = 30


class FitContext:
    """Makes each thing that a method asks for once, when one first asks.

    Whatever is known already (activations, codes, an objective) may be set before.

    Args:
        model: A model from `load_model`.
        pairs: The pairs that vectors are fitted on.
        sae: The SAE, for methods that work on features.
        site: Where to read and to steer; where the SAE writes if None.
        validation: Pairs that clusters of features are judged by.
        name: What to call vectors; the pairs' name if None.
        seed: Seeds methods that draw at random.
        reading: Where activations are read.
        objective: What attribution raises.
        max_new_tokens: Length of what the model writes itself to be fitted on.
        engine: What writes that; transformers, with this model, if None.
        cache: Where codes are kept that fits of several runs share.
        folder: Where the answers that the model itself writes are kept.
        progress: Where to show progress.

    Raises:
        ConfigError: There is neither a site nor an SAE.
        MismatchError: The site is not the SAE's.

    Example:
        >>> given = ss.FitContext(model, train, sae=sae)
        >>> ss.DifferenceInMeans().fit_in(given).vector_.norm > 0
        True
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: PairSet,
        *,
        sae: Sae | None = None,
        site: Site | str | None = None,
        validation: PairSet | None = None,
        name: str | None = None,
        seed: int = 0,
        reading: ReadingSettings | None = None,
        objective: ObjectiveSettings | None = None,
        max_new_tokens: int = 48,
        engine: Engine | None = None,
        cache: Cache | None = None,
        folder: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.pairs, self.validation = model, pairs, validation
        self.name = pairs.name if name is None else name
        self.seed = seed
        self.site = _chosen_site(sae, site)
        self.progress = progress or Progress()
        self._sae = sae
        self._reading = reading or ReadingSettings()
        self._settings = objective or ObjectiveSettings()
        self._max_new_tokens, self._engine = max_new_tokens, engine
        self._cache = cache or Cache()
        self._folder = folder
        # What fits at several sites were given, by what they name beside this one.
        self.joint: dict[tuple[Any, ...], Any] = {}

    @property
    def sae(self) -> Sae:
        """The SAE; an error where there is none."""
        if self._sae is None:
            raise ConfigError("the method works on SAE features; give it an SAE with sae=.")
        return self._sae

    def generator(self, draw: int) -> Generator:
        """Return what draws at random; different draws of a seed are independent."""
        return Generator().manual_seed(self.seed * 1_000_003 + draw)

    @cached_property
    def model_name(self) -> str:
        """The model's name."""
        return model_info(self.model).source.name

    @cached_property
    def model_fingerprint(self) -> str:
        """The model's fingerprint."""
        return model_info(self.model).fingerprint

    @cached_property
    def activations(self) -> PairActivations:
        """Both sides of the pairs at the site to steer."""
        return self.read("train", self.site)

    def read(self, part: str, site: Site) -> PairActivations:
        """Return the activations of "train" or "validation" pairs at one of the SAE's sites."""
        return self._read[part][site]

    @cached_property
    def _read(self) -> dict[str, dict[Site, PairActivations]]:
        parts = {"train": self.pairs, "validation": self.validation}
        sites = [self.site] if self._sae is None else [self._sae.site, self.site]
        return {
            part: read_pair_activations(
                self.model,
                pairs,
                list(dict.fromkeys(sites)),
                request=self._reading.request,
                chat=self._reading.chat,
                system=self._reading.system,
                prepend_bos=None if self._sae is None else self._sae.prepend_bos,
                pooling=self._reading.positions,
            )
            for part, pairs in parts.items()
            if pairs is not None
        }

    @cached_property
    def deltas(self) -> Float[Tensor, "pair d_model"]:
        """The pairs' activation differences."""
        return self.activations.deltas

    @property
    def mean_delta(self) -> Float[np.ndarray, " d_model"]:
        """Their mean, in float64."""
        return self.deltas.double().mean(dim=0).numpy()

    @property
    def sides(self) -> list[Float[np.ndarray, "pair d_model"]]:
        """The positive and the negative sides, each text pooled, in float64.

        Raises:
            DataError: An activation is not a finite number.
        """
        given, both = self.activations, []
        for side, name in ((given.positive, "positive"), (given.negative, "negative")):
            pooled = pool(side, given.pooling).numpy().astype(np.float64)
            bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
            if bad.size:
                raise DataError(
                    f"the activations of the {name} side of pair {bad[0] + 1} are not all finite "
                    "numbers; read them in float32 or leave that pair out."
                )
            both.append(pooled)
        return both

    @cached_property
    def codes(self) -> PairCodes:
        """The pairs' SAE features."""
        return self._codes("train")

    @cached_property
    def validation_codes(self) -> PairCodes | None:
        """Features of the pairs that chose nothing."""
        return None if self.validation is None else self._codes("validation")

    def _codes(self, part: str) -> PairCodes:
        sae = self.sae
        read = self.read(part, sae.site)
        sides = (read.positive, read.negative)
        arrays = [kept.float().numpy() for side in sides for kept in (side.values, side.offsets)]
        key = (sae.fingerprint, content_key(read.pooling, arrays))
        return self._cache.keep(f"{part} codes", key, lambda: encode_pairs(sae, read))

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's feature table, where its folder has one."""
        folder = getattr(self._sae, "folder", None)
        return None if folder is None else own_table(folder)

    @cached_property
    def max_activation(self) -> Float[np.ndarray, " d_sae"] | None:
        """Each feature's largest activation on text, if measured."""
        return None if self.table is None else self.table.max_activation

    @cached_property
    def density(self) -> Float[np.ndarray, " d_sae"] | None:
        """Share of text tokens on which each feature fires, if measured."""
        return None if self.table is None else self.table.density

    @cached_property
    def descriptions(self) -> Mapping[int, str]:
        """What features stand for, as far as is known offline."""
        return known_descriptions(self.sae, self.table, self.progress)

    @cached_property
    def answers(self) -> PairActivations:
        """The letters of A/B questions about the pairs, the matching one and the other."""
        read = answer_pairs(
            self.model,
            self.pairs,
            [self.site],
            chat=self._reading.chat,
            prepend_bos=None if self._sae is None else self._sae.prepend_bos,
            seed=self.seed,
        )
        return read[self.site]

    @cached_property
    def output_scores(self) -> Float[np.ndarray, " d_sae"]:
        """Output scores of the features that separate the sides best, NaN for all others."""
        # However often they fire.
        best = select_features(
            self.codes, n_features=SCORED_FEATURES, min_firing=0.0, max_firing=1.0
        )
        return output_scores(self.model, self.sae, best.indices)

    @cached_property
    def cost(self) -> TrainingCost:
        """What steering costs on neutral answers that train."""
        # The first ones measure what vectors cost.
        answers = read_answers("neutral_answers")[NEUTRAL_ANSWERS:]
        answers = answers[: self._settings.neutral_answers]
        texts, questions = [a.answer for a in answers], [a.question for a in answers]
        return TrainingCost(
            self.model,
            self._encoded(texts, questions, "a neutral answer"),
            self.site,
            fisher_samples=self._settings.fisher_samples,
            key=(self.model_fingerprint, str(self.model.cfg.dtype), str(self.site)),
            progress=self.progress,
        )

    @cached_property
    def questions(self) -> Sequence[str]:
        """Questions that the model answers to be asked how it would say it as either side."""
        bundled = map(read_questions, QUESTIONS)
        return [question for own in bundled for question in own[-TRAINING_QUESTIONS:]]

    @cached_property
    def described(self) -> Description | None:
        """Either side in words, where somebody has found some."""
        return self.pairs.describe

    @cached_property
    def prompts(self) -> list[tuple[str, str]]:
        """Pairs of system prompts that ask for either side: in words, and by training statements.

        What stands in one alone, such as the style of the statements quoted, counts half.
        """
        words, seeds = self.described, (self.seed, self.seed + 1)
        made = [SystemPrompt(seed=seed) for seed in seeds]
        if words is not None:
            made[1] = SystemPrompt(description=words.positive, opposite=words.negative)
        fitted = [one.fit(self.model, self.pairs) for one in made]
        return [(one.positive_, one.negative_) for one in fitted]

    @cached_property
    def objective(self) -> SteeringObjective:
        """What attribution raises: training statements, and what the prompted model would say."""
        return self.objective_at([self.site], lambda raw: self.vector(raw, "linearised"))

    def objective_at(self, sites: Sequence[Site], make_vector: MakeVector) -> SteeringObjective:
        """Return the objective of what is added at several sites at once, this one first."""
        settings, cost = self._settings, self.cost.beside(sites[1:])
        contrasts: list[Contrast] = []
        # What tells the contrasts from others, for what is kept of them.
        made_of: list[Any] = []
        if settings.statements > 0:
            rows = self.statements(range(len(self.pairs)), sites)
            contrasts.append(Statements(rows, settings.statements))
            made_of.append([(row.ids, row.kept) for row in self._statement_rows])
        if settings.prompted > 0 and (written := self._written):
            self.progress.say("What the model would rather say as either side")
            by_question = {
                "chat": self._reading.chat,
                "weight": settings.prompted,
                "site": sites,
            }
            contrasts.append(prompted(self.model, written, self.prompts, **by_question))
            made_of.append([sorted(written.items()), self.prompts, self._reading.chat])
        self.progress.say("Gradients of " + " and ".join(one.name for one in contrasts))
        return SteeringObjective(
            contrasts,
            cost.divergence,
            cost.metric,
            make_vector,
            progress=self.progress,
            kl_target=settings.kl_target,
            keep=cost.keep(
                settings.kl_target,
                # The unit of strength, which decides where the search for it ends.
                self.activations.residual_norm,
                [(row.ids, row.kept) for row in cost.rows],
                *made_of,
            ),
        )

    @cached_property
    def _written(self) -> dict[str, str]:
        """What the model itself answers to the questions."""
        kept = self._folder
        return self._write() if kept is None else kept.once("own-answers.json", self._write)

    def _write(self) -> dict[str, str]:
        self.progress.say(f"Answers to {len(self.questions)} questions")
        found = generate(
            self.model,
            self.questions,
            max_new_tokens=min(self._max_new_tokens, ANSWER_TOKENS),
            chat="auto" if self._reading.chat is None else self._reading.chat,
            temperature=0.7,
            top_p=0.9,
            seed=self.seed,
            max_batch_rows=64,
            engine=self._engine,
        )
        trim_memory()
        return {record.prompt: record.text for record in found.records if record.text.strip()}

    def _encoded(
        self, texts: Sequence[str], prompts: Sequence[str], what: str | Sequence[str]
    ) -> list[TokenRow]:
        assert self.model.tokenizer is not None
        return encode_statements(
            self.model.tokenizer,
            texts,
            prompts,
            chat=self._reading.chat,
            max_length=int(self.model.cfg.n_ctx),
            what=what,
        )

    def beside(self, sae: Sae | None = None, site: Site | None = None) -> FitContext:
        """Return what the same pairs are at another site, whose SAE may be given."""
        made = FitContext(
            self.model,
            self.pairs,
            sae=sae,
            site=site,
            validation=self.validation,
            name=self.name,
            seed=self.seed,
            reading=self._reading,
            progress=self.progress,
        )
        made.model_name = self.model_name
        return made

    def statements(
        self, pairs: Sequence[int], sites: Sequence[Site] | None = None
    ) -> TeacherForced:
        """Return training statements to take gradients of: the pairs' positive, then negative ones.

        They answer the objective's requests in turn. Gradients are at the site, or at several.
        """
        where = sites or self.site
        n = len(self.pairs)
        rows = [self._statement_rows[side * n + place] for side in (0, 1) for place in pairs]
        # Gradients keep what every block above the site computed of a batch.
        return TeacherForced(self.model, rows, site=where, max_tokens=GRADIENT_TOKENS)

    @cached_property
    def _statement_rows(self) -> list[TokenRow]:
        pairs, requests = self.pairs, self._settings.requests
        prompts = [p.prompt or requests[i % len(requests)] for i, p in enumerate(pairs)]
        return self._encoded(
            [*pairs.positives, *pairs.negatives], [*prompts, *prompts], pairs.side_names
        )

    def vector(
        self,
        raw: Tensor | np.ndarray,
        method: str,
        settings: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> SteeringVector:
        """Return a vector at the site, with how it came about."""
        return SteeringVector.from_raw(raw, **self._facts(method, settings, rest))

    def decoded(
        self,
        weights: Mapping[int, float],
        method: str,
        settings: Mapping[str, Any] | None = None,
        *,
        clusters: Mapping[int, int] | None = None,
        **rest: Any,
    ) -> SteeringVector:
        """Return the sum of weighted decoder rows, with how it came about."""
        return vector_of_features(
            self.sae,
            weights,
            max_activation=self.max_activation,
            descriptions=self.descriptions,
            clusters=clusters,
            **self._facts(method, settings, rest),
        )

    def _facts(
        self, method: str, settings: Mapping[str, Any] | None, rest: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "site": self.site,
            "model": self.model_name,
            "model_fingerprint": self.model_fingerprint,
            "residual_norm": self.activations.residual_norm,
            "method": method,
            "name": self.name,
            "read_positions": f"statement tokens, {self.activations.pooling}",
            "provenance": {} if settings is None else {"settings": dict(settings)},
            **rest,
        }


def _chosen_site(sae: Sae | None, site: Site | str | None) -> Site:
    chosen = None if site is None else Site.parse(site)
    if sae is None and chosen is None:
        raise ConfigError(
            "there is no site to read and to steer; give an SAE with sae=, or a site such as "
            "site='blocks.15.hook_resid_post'."
        )
    if sae is None or (chosen is not None and chosen == sae.write_site):
        assert chosen is not None
        return chosen
    if chosen is not None:
        raise MismatchError(
            f"site {chosen} is not where SAE {sae.name} writes ({sae.write_site}); leave site out "
            "or choose an SAE of that site."
        )
    return sae.write_site
