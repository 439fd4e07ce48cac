"""Settings of a comparison: what is refused, and what two comparisons share."""

from __future__ import annotations

from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.methods.registry import METHODS, build_method
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import parse_config

PLAIN: dict[str, Any] = {
    "name": "plain",
    "personas": ["agreeableness", "optimism"],
    "methods": ["attributed_sae", "difference_in_means", "system_prompt"],
}


def parse(**changes: Any) -> CompareConfig:
    return parse_config({**PLAIN, **changes}, kind=CompareConfig, place="x.yaml")


def test_names_alone_are_personas_and_methods():
    config = parse()
    assert [persona.label for persona in config.personas] == ["agreeableness", "optimism"]
    assert [method.settings for method in config.methods] == [{}, {}, {}]
    assert config.pair == ("attributed_sae", "difference_in_means")
    assert config.seeds_of("system_prompt") == [0]
    assert config.seeds_of("attributed_sae") == [0, 1, 2]
    assert [m.name for m in config.methods_under(1)] == ["attributed_sae", "difference_in_means"]


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("clusterd_sae", {}, "method 'clusterd_sae' is unknown (did you mean 'clustered_sae'?)"),
        (
            "pca",
            {"varient": "x"},
            "method pca: varient is not a known setting (did you mean 'variant'?)",
        ),
        ("attributed_tied", {"signs": "free"}, "signs is not a known setting"),
        ("attributed_sae", {"n_features": 2.5}, "method attributed_sae: n_features: "),
        (
            "attributed_sae",
            {"n_features": 0},
            "n_features: input should be greater than or equal to 1",
        ),
        ("pca", {"n": 3}, "method pca: n is not a known setting"),
        ("natural_gradient", {"ridge": float("nan")}, "ridge: input should be a finite number"),
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
    assert text in str(error.value) and "\n" not in str(error.value)


def test_every_method_is_made_without_settings_and_keeps_those_it_is_given():
    for name in METHODS:
        assert build_method(name, {}) is not None
    settings = {"n_features": 3, "selection": {"max_firing": 1.0}}
    made: Any = build_method("attributed_tied", settings)
    assert (made.n_features, made.signs, made.selection) == (3, "tied", {"max_firing": 1.0})


FIXED = {
    "repeated": ["attributed_sae", "difference_in_means"],
    "writing": {"methods": ["attributed_sae", "difference_in_means"]},
    "side_effects": {"methods": ["attributed_sae", "difference_in_means"]},
}


# What changes nothing for a persona: who else is compared, who is the headline, where it is kept.
SAME: list[dict[str, Any]] = [
    {"personas": ["optimism", "agreeableness", "risk-taking"]},
    {"name": "other", "folder": "elsewhere", "model": {"threads": 1}},
    {"headline": "difference_in_means", "baseline": "attributed_sae"},
    {"writing": {**FIXED["writing"], "shown": 1}, "llm_judge": {"model": "judge"}},
]
OTHER: list[dict[str, Any]] = [
    {"seeds": [0, 1]},
    {"sae": "elsewhere"},
    {"model": {"dtype": "float32"}},
    {"splits": {"train": 100}},
    {"objective": {"own_words": 0.0}},
    {"methods": [{"name": "attributed_sae", "settings": {"rounds": 2}}, "difference_in_means"]},
    {"headline": "difference_in_means", "baseline": "difference_in_means"},
    {"writing": {"n_samples": 2}},
    {"reading": {"positions": "last"}},
]


def test_a_personas_hash_knows_what_its_numbers_depend_on_and_nothing_else():
    persona = parse().personas[0]
    digest = parse().persona_digest(persona, pairs="p")
    for changes in SAME:
        # Headline and baseline alone say which are repeated, where nothing else does.
        assert parse(**{**FIXED, **changes}).persona_digest(persona, pairs="p") == digest, changes
    for changes in OTHER:
        assert parse(**changes).persona_digest(persona, pairs="p") != digest, changes
    assert parse().persona_digest(persona, pairs="q") != digest
    described = persona.model_copy(update={"description": "a kind person"})
    assert parse().persona_digest(described, pairs="p") != digest
