"""Settings of a comparison: what is refused, and what two comparisons share."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from saesteer.experiments.compare.config import CompareConfig
from saesteer.methods.registry import build_method, method_entries
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
        ({"headline": "pca"}, "headline 'pca' is not one of the methods"),
        ({"repeated": ["pca"]}, "repeated 'pca' is not one of the methods"),
        ({"writing": {"methods": ["pca"]}}, "writing.methods 'pca' is not one of"),
        ({"side_effects": {"methods": ["pca"]}}, "side_effects.methods 'pca' is not one of"),
        ({"writing": {"kl_targets": [0.2]}}, "writing.kl_targets 0.2 is not one of"),
        (
            {"evaluation": {"headline_kl_target": 0.2}},
            "headline_kl_target 0.2 is not one of the KL targets",
        ),
        ({"evaluation": {"kl_targets": [0.3, 0.3]}}, "are not different KL targets above 0"),
        ({"evaluation": {"kl_targets": [0.3, -1]}}, "are not different KL targets above 0"),
        ({"evaluation": {"kl_targets": [0.3, float("nan")]}}, "evaluation.kl_targets.1"),
        ({"evaluation": {"kl_targets": []}}, "evaluation.kl_targets"),
        ({"evaluation": {"multiples": [1, 1]}}, "are not two different multiples"),
        ({"objective": {"kl_target": float("inf")}}, "objective.kl_target"),
        ({"seeds": [1, 1]}, "are not different numbers from 0"),
        ({"seeds": [-1]}, "are not different numbers from 0"),
        ({"splits": {"judge": 3}}, "splits.judge"),
        ({"sede": [1]}, "sede is not a known setting (did you mean 'seeds'?)"),
        ({"splits": {"tran": 3}}, "splits.tran is not a known setting (did you mean"),
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
        ("difference_in_means", {"x": 1}, "has no setting 'x'; it has none"),
        ("top_feature_output_score", {"criterion": "x"}, "has no setting 'criterion'"),
        ("attributed_tied", {"signs": "free"}, "has no setting 'signs'"),
        ("attributed_sae", {"n_features": "many"}, "method attributed_sae: n_features: "),
        ("attributed_sae", {"n_features": 2.5}, "method attributed_sae: n_features: "),
        ("attributed_sae", {"n_features": 0}, "n_features must be 1 or more"),
        ("attributed_sae", {"ridge": float("nan")}, "ridge 0 or more"),
        ("attributed_sae", {"selection": 3}, "method attributed_sae: selection: "),
        ("natural_gradient", {"ridge": float("nan")}, "ridge 0 or more"),
        (
            "attributed_sae",
            {"selection": {"n_featurs": 3}},
            "method attributed_sae: selection: n_featurs is not a known setting (did you mean",
        ),
        ("clustered_sae", {"selection": {"max_firing": float("nan")}}, "selection: max_firing"),
        (
            "clustered_sae",
            {"selection": {"criterion": "auc"}},
            "method clustered_sae: selection: criterion: 'auc' is not known",
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


def test_every_method_is_made_without_settings_and_keeps_those_it_is_given():
    for name in method_entries():
        assert build_method(name, {}) is not None
    settings = {"n_features": 3, "selection": {"max_firing": 1.0}}
    made: Any = build_method("attributed_tied", settings)
    assert (made.n_features, made.signs, made.selection) == (3, "tied", {"max_firing": 1.0})
    top: Any = build_method("top_feature_output_score", {})
    assert top.criterion == "output_score"


def test_a_personas_hash_knows_nothing_of_the_others_nor_of_who_is_the_headline():
    repeated = ["attributed_sae", "difference_in_means"]
    fixed = {
        "repeated": repeated,
        "writing": {"methods": repeated},
        "side_effects": {"methods": repeated},
    }
    config = parse(**fixed)
    persona = config.personas[0]
    same: list[dict[str, Any]] = [
        {"personas": ["optimism", "agreeableness", "risk-taking"]},
        {"name": "other"},
        {"folder": "elsewhere"},
        {"headline": "difference_in_means", "baseline": "attributed_sae"},
        {"model": {"threads": 1}},
        {"writing": {"methods": repeated, "shown": 1}},
        {"llm_judge": {"model": "judge"}},
    ]
    digest = config.persona_digest(persona, pairs="p")
    for changes in same:
        assert parse(**{**fixed, **changes}).persona_digest(persona, pairs="p") == digest, changes
    # Headline and baseline alone say which are repeated, where nothing else does.
    assert parse().persona_digest(persona, pairs="p") == digest


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [0, 1]},
        {"sae": "elsewhere"},
        {"model": {"dtype": "float32"}},
        {"splits": {"train": 100}},
        {"objective": {"own_words": 0.0}},
        {"evaluation": {"request": "Well?"}},
        {"methods": [{"name": "attributed_sae", "settings": {"rounds": 2}}, "difference_in_means"]},
        {"headline": "difference_in_means", "baseline": "difference_in_means"},
        {"writing": {"n_samples": 2}},
        {"random": {"directions": 3}},
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
    assert (
        parse_config(copy.deepcopy(PLAIN), kind=CompareConfig, place="y.yaml").persona_digest(
            persona, pairs="p"
        )
        == digest
    )
