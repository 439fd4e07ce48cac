"""What experiments that steer have in common: plan, SAE, neutral answers, reading, checks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from saesteer.data import PairSet, read_answers, read_questions
from saesteer.data.texts import ANSWERS_NAME, Answer
from saesteer.evaluation import PropensityMeter
from saesteer.evaluation.choices import answer_cue, choice_question
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.written import Completion, Writer, WritingSettings
from saesteer.experiments.base import Experiment, Found
from saesteer.experiments.config import ExperimentConfig, Plan, sources, weights_digest
from saesteer.methods.objective import TrainingCost
from saesteer.methods.registry import build_method, method_entry
from saesteer.methods.sites import names_site
from saesteer.models import Site, model_info
from saesteer.models.reading import PairActivations, read_pair_activations
from saesteer.models.resolve import check_shape, resolve_model
from saesteer.models.tokens import (
    TokenRow,
    chat_prompt,
    encode_statements,
    encode_texts,
    has_chat_template,
)
from saesteer.saes.adapter import LensSae
from saesteer.saes.doctor import check_fit
from saesteer.saes.labels import own_table
from saesteer.saes.loading import load_sae
from saesteer.saes.table import FeatureTable
from saesteer.steering.divergence import FEWEST_TOKENS, DivergenceMeter
from saesteer.utils.cache import Cache, content_digest, content_key
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    MismatchError,
    ModelError,
    SteeringError,
)
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.text import spoken_list

# Characters only roughly foretell tokens, so more than the one longest text is looked at.
LONGEST = 32


@dataclass(frozen=True, kw_only=True)
class SteeringPlan(Plan):
    """What every experiment that steers works from, checked."""

    answers: tuple[Answer, ...]  # neutral ones, which the cost is measured on
    training_answers: tuple[Answer, ...]  # other ones, for objective and Fisher metric
    questions: tuple[str, ...]  # which are answered
    training_questions: tuple[str, ...]  # other ones, which the model answers to be fitted on

    @property
    def cache(self) -> Path:
        """Where gradients, metrics and unsteered texts are kept, by content."""
        return Path(self.config.folder) / "compare-cache"


def shared_parts(config: Any, writing: str, methods: Iterable[str]) -> dict[str, Any]:
    """The fields that plans of all experiments with steering have, checked.

    `writing` is the group of settings that names the questions. Texts to train with are there for
    methods that need an objective alone.
    """
    cost, settings = config.evaluation, getattr(config, writing)
    site = None if config.site is None else Site.parse(config.site)
    answers = read_answers(cost.neutral)
    questions = [read_questions(source) for source in settings.questions]
    left, asked = (), ()
    if "objective" in _needs(methods):
        left = answers[cost.neutral_answers :][: config.objective.neutral_answers]
        asked = tuple(chain.from_iterable(own[settings.n_questions :] for own in questions))
        if not left:
            raise DataError(
                f"evaluation.neutral {cost.neutral}: all its {len(answers)} answers measure the "
                "cost, and none is left to train with; give more, or lower "
                "evaluation.neutral_answers."
            )
        if config.objective.prompted > 0 and not asked:
            raise DataError(
                f"{writing}.questions {spoken_list(settings.questions)}: all the questions are "
                "written to, and none is left to train with; give more, lower "
                f"{writing}.n_questions, or set objective.prompted to 0."
            )
    model, sae = sources(config, config.sae)
    if site is not None:
        check_shape(model, site, None, "site")
    return {
        "model": model,
        "sae": sae,
        "answers": answers[: cost.neutral_answers],
        "training_answers": left,
        "questions": tuple(chain.from_iterable(own[: settings.n_questions] for own in questions)),
        "training_questions": asked,
    }


def _needs(methods: Iterable[str]) -> set[str]:
    return {need for method in methods for need in method_entry(method).needs}


def check_has_strength(field: str, method: str) -> None:
    """Refuse a method that is no vector."""
    if method_entry(method).kind == "prompt":
        raise ConfigError(
            f"{field} {method!r} has no strength to match to a KL target; choose a vector's method."
        )


def check_also(
    config: ExperimentConfig, methods: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, str]:
    """Check, by name and settings, the SAEs and sites that methods take beside the run's.

    Returns:
        What tells those SAEs from others under the same name or path.
    """
    found = {}
    for method, settings in methods:
        for name in getattr(build_method(method, settings), "also", ()):
            if names_site(name):
                check_shape(resolve_model(config.model.name), Site.parse(name), None, "also")
            else:
                found[f"also {name}"] = weights_digest(*sources(config, name))["sae"]
    return found


class SteeringExperiment(Experiment[Found]):
    """Fits vectors to pairs and measures them on other pairs."""

    # The group of settings that says what is written.
    writing_group: ClassVar[str]

    @property
    def writing(self) -> Any:
        """How the steered model writes."""
        return getattr(self.config, self.writing_group)

    @cached_property
    def sae(self) -> LensSae:
        """The SAE, checked against the model."""
        config = self.config

        def load() -> LensSae:
            self.progress.say(f"Loading SAE {config.sae} ...")
            return load_sae(config.sae)

        def fits() -> bool:
            # Read as the SAE was trained; without its BOS, perhaps, is how the model is scored.
            remark = check_fit(self.model, sae, self._measuring_rows(sae.prepend_bos))
            if remark:
                self.progress.say(remark)
            return True

        sae = self.cache.keep("sae", self._sae_key, load)
        if config.site is not None and Site.parse(config.site) != sae.write_site:
            raise ConfigError(
                f"site {config.site} is not where SAE {config.sae} lives ({sae.write_site}); leave "
                "site out or choose an SAE of that site."
            )
        self.cache.keep("fit", (*self._model_key, *self._sae_key), fits)
        return sae

    @property
    def _sae_key(self) -> tuple[str, ...]:
        where = self.plan.sae
        digest = content_digest(where) if isinstance(where, Path) else ""
        return (self.config.sae, str(where), digest)

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's feature table, where its folder has one."""
        table = self.cache.keep("table", self._sae_key, lambda: own_table(self.plan.sae))
        if table is not None and len(table) != self.sae.d_sae:
            raise MismatchError(
                f"feature table {table.source} lists {len(table)} features and the SAE beside it "
                f"has {self.sae.d_sae}; remove the table or build it for this SAE."
            )
        return table

    @property
    def site(self) -> Site:
        """Where vectors are read and written."""
        return self.sae.write_site

    @cached_property
    def weights_key(self) -> tuple[str, ...]:
        """What tells these weights, in this precision and at this site, from others."""
        info = model_info(self.model)
        return (info.fingerprint, str(self.model.cfg.dtype), str(self.site), self.sae.fingerprint)

    @cached_property
    def embedder(self) -> SentenceEmbedder:
        """What embeds sentences for judges."""
        return SentenceEmbedder()

    @property
    @abstractmethod
    def sampling(self) -> WritingSettings:
        """How completions are sampled."""

    @cached_property
    def writer(self) -> Writer:
        """Writes; what the unsteered model writes is kept for whoever asks it the same."""
        questions, settings = self.plan.questions, self.sampling
        make = partial(Writer, self.model, questions, settings, embedder=self.embedder)
        key = content_key(*self.weights_key[:2], questions, settings.key, self.embedder.name)
        name, kept = f"unsteered-{key}.json", RunFolder(self.plan.cache)
        if kept.has(name):
            return make(unsteered=[Completion(**fields) for fields in kept.read_json(name)])
        self.progress.say(f"Unsteered answers to {len(questions)} questions")
        made = make()
        kept.write_json(name, [asdict(completion) for completion in made.unsteered])
        return made

    def answer_rows(
        self,
        answers: Sequence[Answer],
        *,
        system: str | None = None,
        prepend_bos: bool | None = None,
    ) -> list[TokenRow]:
        """Neutral answers as the assistant's words after their questions."""
        source = self.config.evaluation.neutral
        file = f"the bundled {ANSWERS_NAME}.jsonl" if source == ANSWERS_NAME else source
        return encode_statements(
            self.tokenizer,
            [answer.answer for answer in answers],
            [answer.question for answer in answers],
            chat=self.config.reading.chat,
            system=system,
            prepend_bos=prepend_bos,
            max_length=self.context,
            what=[f"a neutral answer of {file}"] * len(answers),
            remedy="give shorter ones with evaluation.neutral, or use a model of longer context",
        )

    @cached_property
    def neutral_rows(self) -> list[TokenRow]:
        """The neutral answers that the cost is measured on."""
        return self._measuring_rows()

    def _measuring_rows(self, prepend_bos: bool | None = None) -> list[TokenRow]:
        rows = self.answer_rows(self.plan.answers, prepend_bos=prepend_bos)
        n_tokens = sum(sum(row.kept) for row in rows)
        self._check_enough(n_tokens, f"its first {len(rows)} answers have", "evaluation")
        return rows

    @cached_property
    def training_rows(self) -> list[TokenRow]:
        """Neutral answers that no evaluation uses."""
        rows = self.answer_rows(self.plan.training_answers)
        n_tokens = sum(sum(row.kept[1:]) for row in rows)
        self._check_enough(n_tokens, f"the {len(rows)} answers that train have", "objective")
        return rows

    def _check_enough(self, n_tokens: int, said: str, group: str) -> None:
        if n_tokens < FEWEST_TOKENS:
            raise DataError(
                f"evaluation.neutral {self.config.evaluation.neutral}: {said} {n_tokens} tokens "
                f"and KL needs at least {FEWEST_TOKENS}; give more with {group}.neutral_answers, "
                "or longer ones."
            )

    @cached_property
    def training_cost(self) -> TrainingCost:
        """What steering costs on the training answers; its metric is kept on disk."""
        return TrainingCost(
            self.model,
            self.training_rows,
            self.site,
            fisher_samples=self.config.objective.fisher_samples,
            arrays=Cache(self.plan.cache),
            key=self.weights_key,
            progress=self.progress,
        )

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """The cost that is measured."""
        return DivergenceMeter(self.model, self.neutral_rows, site=self.site)

    def propensity(self, pairs: PairSet, *, system: str | None = None) -> PropensityMeter:
        """A meter of the margins of pairs."""
        return PropensityMeter(
            self.model,
            pairs,
            request=self.config.evaluation.request,
            chat=self.config.reading.chat,
            system=system,
            site=self.site,
        )

    def read_sides(self, pairs: PairSet) -> Mapping[Site, PairActivations]:
        """The activations of both sides at the SAE's sites."""
        reading, sae = self.config.reading, self.sae
        sites = list(dict.fromkeys((sae.site, sae.write_site)))
        settings = (pairs.digest, sae.prepend_bos, reading.model_dump_json())
        key = content_key(*self.weights_key[:2], *settings)
        return self.cache.files(
            {site: f"activations-{key}.{site}.safetensors" for site in sites},
            lambda: read_pair_activations(
                self.model,
                pairs,
                sites,
                request=reading.request,
                chat=reading.chat,
                system=reading.system,
                prepend_bos=sae.prepend_bos,
                pooling=reading.positions,
            ),
            load=PairActivations.load,
            save=PairActivations.save,
        )

    def check_shared(self, methods: Sequence[str], *, judged: bool) -> None:
        """Check that parts belong together and that what all pairs share fits."""
        needs = _needs(methods)
        if judged:
            # Before the model, which takes longer to load.
            self.embedder.embed(["A sentence."])
        assert self.sae is not None
        for method in methods:
            if method_entry(method).kind == "prompt":
                self._check_takes_system(method)
        if "objective" in needs:
            assert self.training_rows
        self.check_questions([None])

    def _check_takes_system(self, method: str) -> None:
        if not self._uses_chat:
            raise ModelError(
                f"methods: {method} needs a chat template and model {self.config.model.name} has "
                "none, or reading.chat is false; leave the method out."
            )
        try:
            chat_prompt(self.tokenizer, "Why?", "You are kind.")
        except ModelError as error:
            raise ModelError(f"methods: {method}: {error}") from error

    @property
    def _uses_chat(self) -> bool:
        chat = getattr(self.writing, "chat", self.config.reading.chat)
        return has_chat_template(self.tokenizer) if chat in (None, "auto") else chat

    def check_questions(self, systems: Iterable[str | None]) -> None:
        """Check that every question leaves room for what is written."""
        room = self.writing.max_new_tokens
        for system in systems:
            questions = (*self.plan.questions, *self.plan.training_questions)
            for number, question in enumerate(questions, start=1):
                asked = question
                if self._uses_chat:
                    asked = chat_prompt(self.tokenizer, question, system)
                length = len(encode_texts(self.tokenizer, [asked])[0])
                if length + room > self.context:
                    raise SteeringError(
                        f"question {number} ({question[:40]!r}) has {length} tokens, which with "
                        f"{self.writing_group}.max_new_tokens {room} is more than the model's "
                        f"context of {self.context}; lower that or shorten the question."
                    )

    def check_pairs(
        self, pairs: PairSet, systems: Iterable[str] = (), *, asked: bool = False
    ) -> None:
        """Check that every pair fits with the longest request before it, and its A/B question."""
        config = self.config
        requests = [config.evaluation.request, config.reading.request]
        if self.plan.training_answers:
            requests += config.objective.requests
        request = max(filter(None, requests), key=_size)
        prompts = [pair.prompt or request for pair in pairs] * 2
        texts = [*pairs.positives, *pairs.negatives]
        for system in (config.reading.system, *systems):
            self._check_fits(texts, prompts, pairs.side_names, system=system)
            self.answer_rows(self.plan.answers, system=system)
        if asked:
            cue = answer_cue(self.tokenizer, config.reading.chat)
            questions = [choice_question(p.positive, p.negative) + cue for p in pairs]
            names, said = pairs.question_names, ["(A"] * len(pairs)
            self._check_fits(said, questions, names, remedy="shorten its sides")

    def _check_fits(
        self, texts: Sequence[str], prompts: Sequence[str], names: Sequence[str], **rest: Any
    ) -> None:
        rows = sorted(
            zip(texts, prompts, names, strict=True),
            key=lambda row: _size(row[0]) + _size(row[1]),
            reverse=True,
        )
        said, asked, what = zip(*rows[:LONGEST], strict=True)
        chat, longest = self.config.reading.chat, self.context
        encode_statements(
            self.tokenizer, said, asked, chat=chat, max_length=longest, what=what, **rest
        )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
