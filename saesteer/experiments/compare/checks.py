"""What a comparison would stumble on hours later, found once model and tokenizer are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from saesteer.evaluation.choices import answer_cue, choice_question
from saesteer.methods.registry import method_entry
from saesteer.models.tokens import chat_prompt, encode_statements, encode_texts, has_chat_template
from saesteer.utils.errors import ModelError, SaesteerError, SteeringError

if TYPE_CHECKING:
    from saesteer.experiments.compare.context import CompareContext
    from saesteer.experiments.compare.persona_run import PersonaRun

# Characters only roughly foretell tokens, so more than the one longest text is looked at.
LONGEST = 32


def check_comparison(bench: CompareContext, runs: Sequence[PersonaRun]) -> None:
    """Check that parts belong together and that every text fits, before anything is computed.

    Args:
        bench: What all personas share.
        runs: The personas that are to be measured.

    Raises:
        SaesteerError: Something does not fit, or a needed model of embeddings is not installed.
    """
    config = bench.plan.config
    needs = {need for method in config.methods for need in method_entry(method.name).needs}
    if bench.plan.questions or ("objective" in needs and config.objective.self_generated > 0):
        # Before the model, which takes longer to load.
        bench.embedder.embed(["A sentence."])
    assert bench.sae is not None
    assert bench.prose_rows is not None
    if "objective" in needs:
        assert bench.training_rows
    _check_prompts(bench)
    _check_questions(bench, [None])
    for run in runs:
        try:
            _check_pairs(bench, run)
            _check_questions(bench, _systems(run))
        except SaesteerError as error:
            raise type(error)(f"persona {run.persona.name}: {error}") from error


def _uses_chat(bench: CompareContext) -> bool:
    chat = bench.plan.config.reading.chat
    return has_chat_template(bench.tokenizer) if chat is None else chat


def _check_prompts(bench: CompareContext) -> None:
    config = bench.plan.config
    prompted = [m.name for m in config.methods if method_entry(m.name).kind == "prompt"]
    for name in prompted:
        if not _uses_chat(bench):
            raise ModelError(
                f"methods: {name} needs a chat template and model {config.model.name} has none, or "
                "reading.chat is false; leave the method out."
            )
        try:
            chat_prompt(bench.tokenizer, "Why?", "You are kind.")
        except ModelError as error:
            raise ModelError(f"methods: {name}: {error}") from error


def _systems(run: PersonaRun) -> list[str]:
    prompted = [m for m in run.config.methods if method_entry(m.name).kind == "prompt"]
    made = [run.first.prompts(method) for method in prompted]
    return [system for prompts in made for system in (prompts.positive_, prompts.negative_)]


def _check_pairs(bench: CompareContext, run: PersonaRun) -> None:
    config, pairs = bench.plan.config, run.persona.pairs
    encode = partial(
        encode_statements,
        bench.tokenizer,
        chat=config.reading.chat,
        max_length=bench.context,
    )
    requests = [config.evaluation.request, config.reading.request, *config.objective.requests]
    request = max(filter(None, requests), key=_size)
    prompts = [p.prompt or request for p in pairs] * 2
    prompted = zip((*pairs.positives, *pairs.negatives), prompts, pairs.side_names, strict=True)
    longest = _longest(list(prompted), lambda entry: _size(entry[0]) + _size(entry[1]))
    texts, asked, names = zip(*longest, strict=True)
    for system in (config.reading.system, *_systems(run)):
        encode(texts, asked, system=system, what=names)
        bench.answer_rows(bench.plan.answers, system=system)
    asks = any("answers" in method_entry(m.name).needs for m in config.methods)
    if asks or config.side_effects.choices:
        cue = answer_cue(bench.tokenizer, config.reading.chat)
        questions = [choice_question(p.positive, p.negative) + cue for p in pairs]
        made = list(zip(questions, pairs.question_names, strict=True))
        long, names = zip(*_longest(made, lambda entry: _size(entry[0])), strict=True)
        encode(["(A"] * len(long), long, what=names, remedy="shorten its sides")


def _check_questions(bench: CompareContext, systems: Iterable[str | None]) -> None:
    tokenizer, room = bench.tokenizer, bench.plan.config.writing.max_new_tokens
    for system in systems:
        for question in (*bench.plan.questions, *bench.plan.training_questions):
            text = chat_prompt(tokenizer, question, system) if _uses_chat(bench) else question
            length = len(encode_texts(tokenizer, [text])[0])
            if length + room > bench.context:
                raise SteeringError(
                    f"question {question[:40]!r} has {length} tokens, which with "
                    f"writing.max_new_tokens {room} is more than the model's context of "
                    f"{bench.context}; lower that or shorten the question."
                )


def _longest(texts: Sequence[Any], size: Callable[[Any], int]) -> list[Any]:
    return sorted(texts, key=size, reverse=True)[:LONGEST]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
