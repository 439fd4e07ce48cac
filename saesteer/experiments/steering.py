"""What experiments that steer have in common: reading, fitting, measuring, and the check before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from saesteer.data import PairSet
from saesteer.evaluation import PropensityMeter
from saesteer.evaluation.choices import answer_cue, choice_question
from saesteer.experiments.base import Experiment, Found
from saesteer.experiments.context import ExperimentFit
from saesteer.methods.registry import method_entry
from saesteer.models import Site
from saesteer.models.reading import PairActivations, read_pair_activations
from saesteer.models.tokens import chat_prompt, encode_statements, encode_texts, has_chat_template
from saesteer.steering.divergence import DivergenceMeter
from saesteer.utils.cache import content_key
from saesteer.utils.errors import ModelError, SteeringError
from saesteer.utils.run_folder import RunFolder

# Characters only roughly foretell tokens, so more than the one longest text is looked at.
LONGEST = 32


class SteeringExperiment(Experiment[Found]):
    """Fits vectors to pairs and measures them on other pairs."""

    # The group of settings that says what is written.
    writing_group: ClassVar[str]

    @property
    def _writing(self) -> Any:
        return getattr(self.config, self.writing_group)

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """The cost that is measured."""
        return DivergenceMeter(self.model, self.neutral_rows, site=self.site)

    def propensity(self, pairs: PairSet, *, system: str | None = None) -> PropensityMeter:
        """Return a meter of the margins of pairs."""
        return PropensityMeter(
            self.model,
            pairs,
            request=self.config.evaluation.request,
            chat=self.config.reading.chat,
            system=system,
            site=self.site,
        )

    def read_sides(self, pairs: PairSet) -> Mapping[Site, PairActivations]:
        """Return the activations of both sides at the SAE's sites."""
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

    def fits(
        self,
        train: PairSet,
        read: Callable[[str, Site], PairActivations],
        *,
        name: str,
        seed: int,
        folder: RunFolder,
    ) -> ExperimentFit:
        """Return what methods are fitted with; see `ExperimentFit`."""
        room = self._writing.max_new_tokens
        return ExperimentFit(
            self, train, read, name=name, seed=seed, max_new_tokens=room, folder=folder
        )

    def check_shared(self, methods: Iterable[str], *, judged: bool) -> None:
        """Check that parts belong together and that what all pairs share fits.

        Args:
            methods: What is to be fitted.
            judged: Whether completions are rated.

        Raises:
            SaesteerError: Something does not fit, or a needed model of embeddings is not installed.
        """
        needs = {need for method in methods for need in method_entry(method).needs}
        if judged or ("objective" in needs and self.config.objective.self_generated > 0):
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
        chat = getattr(self._writing, "chat", self.config.reading.chat)
        return has_chat_template(self.tokenizer) if chat in (None, "auto") else chat

    def check_questions(self, systems: Iterable[str | None]) -> None:
        """Check that every question leaves room for what is written.

        Raises:
            SteeringError: One does not.
        """
        room = self._writing.max_new_tokens
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
        """Check that every pair fits with the longest request before it.

        Args:
            pairs: The pairs.
            systems: System prompts that they are measured under besides.
            asked: Whether A/B questions are asked about them.

        Raises:
            DataError: A statement is too long.
        """
        config = self.config
        requests = [config.evaluation.request, config.reading.request]
        if self.plan.training_answers:
            requests += config.objective.requests
        request = max(filter(None, requests), key=_size)
        prompts = [pair.prompt or request for pair in pairs] * 2
        texts = [*pairs.positives, *pairs.negatives]
        longest = _longest(
            zip(texts, prompts, pairs.side_names, strict=True), lambda e: _size(e[0]) + _size(e[1])
        )
        for system in (config.reading.system, *systems):
            self._check_fits(*zip(*longest, strict=True), system=system)
            self.answer_rows(self.plan.answers, system=system)
        if asked:
            cue = answer_cue(self.tokenizer, config.reading.chat)
            questions = [choice_question(p.positive, p.negative) + cue for p in pairs]
            made = _longest(
                zip(questions, pairs.question_names, strict=True), lambda e: _size(e[0])
            )
            long, names = zip(*made, strict=True)
            self._check_fits(["(A"] * len(long), long, names, remedy="shorten its sides")

    def _check_fits(
        self, texts: Sequence[str], prompts: Sequence[str], names: Sequence[str], **rest: Any
    ) -> None:
        encode_statements(
            self.tokenizer,
            texts,
            prompts,
            chat=self.config.reading.chat,
            max_length=self.context,
            what=names,
            **rest,
        )


def _longest(texts: Iterable[tuple[str, ...]], size: Callable[[Any], int]) -> list[Any]:
    return sorted(texts, key=size, reverse=True)[:LONGEST]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
