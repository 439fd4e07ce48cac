"""Settings of a comparison: what is refused, and what two comparisons share."""

from __future__ import annotations

from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.methods.registry import build_method
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import parse_config

PLAIN: dict[str, Any] = {
    "name": "plain",
    "personas": ["agreeableness", "optimism"],
    "methods": ["attributed_sae", "difference_in_means", "system_prompt"],
}


def parse(**changes: Any) -> CompareConfig:
    return parse_config({**PLAIN, **changes}, kind=CompareConfig, place="x.yaml")


def sentence(error: pytest.ExceptionInfo[ConfigError]) -> str:
    told = str(error.value)
    assert "\n" not in told
    assert told.endswith(".")
    return told


def test_names_alone_are_personas_and_methods():
    config = parse()
    assert [persona.label for persona in config.personas] == ["agreeableness", "optimism"]
    assert [method.settings for method in config.methods] == [{}, {}, {}]
    assert config.pair == ("attributed_sae", "difference_in_means")
    assert config.seeds_of("system_prompt") == [0]
    assert config.seeds_of("attributed_sae") == [0, 1, 2]
    assert [m.name for m in config.methods_under(1)] == ["attributed_sae", "difference_in_means"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"personas": []}, "personas: list should have at least 1 item"),
        ({"personas": ["a.jsonl", "b/a.csv"]}, "personas: a stands there twice"),
        ({"personas": [{"source": "a", "name": "x/y"}]}, "personas.0.name"),
        ({"methods": ["difference_in_means"] * 2}, "difference_in_means stands there twice"),
        ({"methods": ["attributed_sae"]}, "baseline 'difference_in_means' is not one of the"),
        ({"writing": {"methods": ["pca"]}}, "writing.methods 'pca' is not one of"),
        ({"writing": {"kl_targets": [0.2]}}, "writing.kl_targets 0.2 is not one of"),
        (
            {"evaluation": {"headline_kl_target": 0.2}},
            "headline_kl_target 0.2 is not one of the KL targets",
        ),
        ({"evaluation": {"kl_targets": [0.3, 0.3]}}, "are not different KL targets above 0"),
        ({"evaluation": {"kl_targets": [0.3, float("nan")]}}, "evaluation.kl_targets.1"),
        ({"evaluation": {"multiples": [1, 1]}}, "names a multiple twice; name each once"),
        ({"seeds": [1, 1]}, "are not different numbers from 0"),
        ({"sede": [1]}, "sede is not a known setting (did you mean 'seeds'?)"),
        ({"random": {"directions": -1}}, "random.directions"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_with_its_field(changes, text):
    with pytest.raises(ConfigError) as error:
        parse(**changes)
    told = sentence(error)
    assert told.startswith("x.yaml: ")
    assert text in told


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("clusterd_sae", {}, "method 'clusterd_sae' is unknown (did you mean 'clustered_sae'?)"),
        ("pca", {"varient": "x"}, "method pca has no setting 'varient'; it has variant"),
        ("attributed_tied", {"signs": "free"}, "has no setting 'signs'"),
        ("attributed_sae", {"n_features": 2.5}, "method attributed_sae: n_features: "),
        ("attributed_sae", {"n_features": 0}, "n_features must be 1 or more"),
        ("natural_gradient", {"ridge": float("nan")}, "ridge 0 or more"),
        (
            "attributed_sae",
            {"selection": {"n_featurs": 3}},
            "method attributed_sae: selection: n_featurs is not a known setting (did you mean",
        ),
        ("clustered_sae", {"clustering": {"method": "kmeans"}}, "clustering: method: 'kmeans'"),
        ("clustered_sae", {"regression": {"method": "rige"}}, "did you mean 'ridge'"),
    ],
    ids=str,
)
def test_a_method_or_setting_that_is_not_known_is_one_sentence(name, settings, text):
    with pytest.raises(ConfigError) as error:
        build_method(name, settings)
    assert text in sentence(error)


FIXED = {
    "repeated": ["attributed_sae", "difference_in_means"],
    "writing": {"methods": ["attributed_sae", "difference_in_means"]},
    "side_effects": {"methods": ["attributed_sae", "difference_in_means"]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"personas": ["optimism", "agreeableness", "risk-taking"]},
        {"name": "other", "folder": "elsewhere", "model": {"threads": 1}},
        {"headline": "difference_in_means", "baseline": "attributed_sae"},
        {"writing": {**FIXED["writing"], "shown": 1}, "llm_judge": {"model": "judge"}},
    ],
    ids=str,
)
def test_a_personas_hash_knows_nothing_of_the_others_nor_of_who_is_the_headline(changes):
    # Headline and baseline alone say which are repeated, where nothing else does.
    persona = parse().personas[0]
    digest = parse().persona_digest(persona, pairs="p")
    assert parse(**{**FIXED, **changes}).persona_digest(persona, pairs="p") == digest


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [0, 1]},
        {"sae": "elsewhere"},
        {"model": {"dtype": "float32"}},
        {"splits": {"train": 100}},
        {"objective": {"own_words": 0.0}},
        {"methods": [{"name": "attributed_sae", "settings": {"rounds": 2}}, "difference_in_means"]},
        {"headline": "difference_in_means", "baseline": "difference_in_means"},
        {"writing": {"n_samples": 2}},
        {"reading": {"positions": "last"}},
    ],
    ids=str,
)
def test_whatever_its_numbers_depend_on_changes_the_hash(changes):
    config, other = parse(), parse(**changes)
    persona = config.personas[0]
    assert other.persona_digest(persona, pairs="p") != config.persona_digest(persona, pairs="p")


def test_a_personas_own_settings_and_pairs_change_its_hash():
    config = parse()
    persona = config.personas[0]
    digest = config.persona_digest(persona, pairs="p")
    assert config.persona_digest(persona, pairs="q") != digest
    described = persona.model_copy(update={"description": "a kind person"})
    assert config.persona_digest(described, pairs="p") != digest
