"""Settings that a sweep gives a run, on its command line and by W&B's agent's file."""

from __future__ import annotations

import pytest
import yaml

from saesteer.experiments.steer.config import RunConfig
from saesteer.sweeps.overrides import flattened, merged, swept_overrides, yaml_text
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import load_config, read_word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("seed=1", 1),
        ("regression.ridge_alpha=1e-05", 1e-5),
        ("completions.chat=True", True),
        ("name=a=b", "a=b"),
        (
            "selection={'criterion': 'auroc', 'n_features': 8}",
            {"criterion": "auroc", "n_features": 8},
        ),
        ("pairs.source=", None),
    ],
)
def test_words_as_an_agent_renders_them_keep_their_types(word, value):
    assert read_word(word) == (word.partition("=")[0], value)


@pytest.mark.parametrize("word", ["seed", "=3", "--seed=3", "a={"])
def test_a_word_of_another_form_is_one_sentence(word):
    with pytest.raises(ConfigError) as told:
        read_word(word)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [1e-05, True, None, "no", "1e5", {"a": [None, "x"]}, "ä\n#"])
def test_a_value_survives_its_line_of_yaml(value):
    text = yaml_text(value)
    assert "\n" not in text
    assert yaml.safe_load(text) == value


def test_the_agents_file_wins_over_words_and_merges_deep(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "wandb_version: 1\n"
        "selection.n_features: {value: 24}\n"
        "selection: {value: {criterion: auroc}, desc: null}\n"
        "together.how: {value: {seed: 7, regression: {method: ridge}}}\n"
    )
    overrides = swept_overrides(
        ["selection.n_features=99", "seed=1", "name=mine"], {"WANDB_SWEEP_PARAM_PATH": str(file)}
    )
    base = tmp_path / "base.yaml"
    base.write_text(
        "{name: x, pairs: {source: agreeableness}, selection: {n_features: 3, min_firing: 0.1}}"
    )
    config = load_config(base, ["selection.n_features=5", *overrides], kind=RunConfig)
    assert (config.name, config.seed, config.regression.method) == ("mine", 7, "ridge")
    assert config.selection.n_features == 24
    assert config.selection.criterion == "auroc"
    # What the sweep does not name stays.
    assert config.selection.min_firing == 0.1


@pytest.mark.parametrize("content", [None, "[1]", "a: {desc: x}", "{"])
def test_a_file_that_no_agent_wrote_is_one_sentence_with_its_name(content, tmp_path):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml") as told:
        swept_overrides([], {"WANDB_SWEEP_PARAM_PATH": str(file)})
    assert "\n" not in str(told.value)


def test_settings_that_change_together_are_merged_at_the_top():
    values = {"together.method": {"methods": ["pca"], "headline": "pca"}, "seeds": [1]}
    assert flattened(values) == {"methods": ["pca"], "headline": "pca", "seeds": [1]}
    base = {"headline": "x", "random": {"features": 2}}
    found = merged(base, {**values, "random.directions": 0})
    assert found == {
        "headline": "pca",
        "methods": ["pca"],
        "seeds": [1],
        "random": {"features": 2, "directions": 0},
    }
    assert base == {"headline": "x", "random": {"features": 2}}


def test_a_name_through_a_single_value_is_refused():
    with pytest.raises(ConfigError, match=r"seed\.low: seed is a single value"):
        merged({"seed": 3}, {"seed.low": 1})
