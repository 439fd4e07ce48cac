"""What is found before anything is computed, once model and tokenizer are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.registry import run_experiment
from saesteer.utils.errors import DataError, ModelError, SaesteerError


@pytest.fixture
def refused(monkeypatch):
    """Return a function that compares and returns the sentence of its refusal."""

    def computed(*args: Any, **kwargs: Any):
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr("saesteer.experiments.compare.persona.PersonaRun.run", computed)

    def call(settings: dict[str, Any], kind: type[SaesteerError]) -> str:
        with pytest.raises(kind) as error:
            run_experiment(CompareConfig(**settings))
        assert "\n" not in str(error.value)
        # Refused before anything is computed; the list of runs may be there.
        assert not [place for place in Path(settings["folder"]).iterdir() if place.is_dir()]
        return str(error.value)

    return call


def with_pair(compare_data: dict[str, str], tmp_path: Path, **pair: str) -> str:
    file = tmp_path / "kindly.jsonl"
    text = Path(compare_data["kindly"]).read_text(encoding="utf-8")
    file.write_text(f"{text}\n{json.dumps(pair)}", encoding="utf-8")
    return str(file)


def test_a_system_prompt_that_no_template_takes_is_refused(few, refused, monkeypatch):
    def with_prompt(settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "methods": [*settings["methods"], "system_prompt"]}

    told = refused(with_prompt(few("gpt2", chat=False)), ModelError)
    assert told.startswith("methods: system_prompt needs a chat template")
    assert told.endswith("leave the method out.")
    plain = with_prompt(few(reading={"chat": False}))
    assert "or reading.chat is false" in refused(plain, ModelError)

    def refuses(tokenizer: Any, question: str, system: str | None = None) -> str:
        if system:
            raise ModelError("this model's chat template refuses the prompt (no); leave it out.")
        return question

    monkeypatch.setattr("saesteer.experiments.steering.chat_prompt", refuses)
    told = refused(with_prompt(few()), ModelError)
    assert told.startswith("methods: system_prompt: this model's chat")


def test_texts_that_do_not_fit_are_named_with_their_persona_or_setting(
    few, refused, compare_data, tmp_path
):
    file = with_pair(compare_data, tmp_path, positive="xyzq " * 60, negative="short one")
    told = refused(few(personas=[compare_data["boldly"], file]), DataError)
    assert told.startswith(f"persona kindly: pair 'kindly-0061' of {file}, positive side, ")
    assert "more than the model's context of 192" in told
    # Each side fits, but not both as the options of one question.
    file = with_pair(compare_data, tmp_path, positive="xyzq " * 20, negative="qzyx " * 20)
    told = refused(few(personas=[file]), DataError)
    assert told.startswith(f"persona kindly: question on pair 'kindly-0061' of {file} ")
    assert told.endswith("shorten its sides.")
    told = refused(few(objective={"neutral_answers": 1}), DataError)
    assert "the 1 answers that train have" in told
    assert "give more with objective.neutral_answers" in told
    prose = tmp_path / "prose.jsonl"
    prose.write_text(json.dumps({"text": "xyzq " * 90}))
    told = refused(few(side_effects={"prose": str(prose)}), DataError)
    assert told.startswith(f"prose text 1 of {prose} ('xyzq xyzq ")
    assert "side_effects.prose" in told


def test_embeddings_that_are_not_installed_are_missed_before_the_model_is_loaded(
    tiny_compare, refused, monkeypatch
):
    import saesteer.experiments.context

    def gone() -> Path:
        raise ModelError("the sentence embeddings need the wheel, which is not installed.")

    def refuse(*args: Any, **kwargs: Any):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("saesteer.evaluation.embeddings._wheel_folder", gone)
    monkeypatch.setattr(saesteer.experiments.context, "load_model", refuse)
    settings = tiny_compare(writing={"n_questions": 2}, objective={"own_words": 0.0})
    assert "which is not installed" in refused(settings, ModelError)
    own = tiny_compare(writing={"n_questions": 0}, objective={"own_words": 0.5})
    assert "which is not installed" in refused(own, ModelError)
