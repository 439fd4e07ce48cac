"""Sweep files in W&B's layout: what is read, which trials there are, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import yaml

from saesteer.experiments.steer.config import RunConfig
from saesteer.sweeps.overrides import flattened, merged, swept_overrides, yaml_text
from saesteer.sweeps.parameters import DISTRIBUTIONS, read_parameters
from saesteer.sweeps.study import create_study, open_study
from saesteer.sweeps.sweep import Sweep
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.settings import load_config, read_word

UNIFORM = {"selection.min_firing": {"min": 0.0, "max": 0.5}}


def parameter(**fields):
    (found,) = read_parameters({"x": fields}, "f.yaml")
    return found


@pytest.mark.parametrize(
    ("command", "program", "kind"),
    [
        (["${env}", "saesteer", "run", "FILE", "seed=3", "${args_no_hyphens}"], None, "run"),
        (["/opt/bin/saesteer", "run", "FILE", "--set", "seed=3"], None, "run"),
        (["${env}", "${program}", "compare", "FILE", "seed=3"], "saesteer", "compare"),
        (["saesteer", "corrupt", "run", "FILE", "--set=seed=3"], None, "corrupt"),
        (["saesteer", "probe", "FILE", "seed=3"], None, "probe"),
        (None, "saesteer run FILE seed=3", "run"),
        (None, "FILE", "run"),
    ],
)
def test_the_command_names_the_base_settings(command, program, kind, sweep_of, base_file):
    def put(words):
        return words and words.replace("FILE", str(base_file))

    seeds = {"seed": {"values": [1, 2]}}
    words = None if command is None else [put(word) for word in command]
    found = sweep_of(command=words, program=put(program), parameters=seeds, metric=None)
    assert (found.kind, found.base_file) == (kind, str(base_file))
    assert found.base.get("seed") == (None if program == "FILE" else 3)


# What a file may say wrongly, and the words of the one sentence that refuses it.
WRONG = [
    ({"method": "gird"}, "method: "),
    ({"metric": {"name": "efect"}}, "metric.name 'efect' is not known"),
    ({"method": "bayes", "metric": None}, "bayes needs a metric"),
    ({"method": "random"}, "random never ends by itself; give run_cap"),
    ({"command": ["python", "train.py", "${args}"]}, "command does not call saesteer"),
    ({"command": ["saesteer", "doctor", "a.yaml"]}, "one of run, steer, compare, corrupt, "),
    ({"command": ["saesteer", "run", "a.yaml", "--fast"]}, "'--fast' is neither key=value"),
]
# Settings that do not fit are told before anything is loaded.
SETTINGS = {
    "did you mean 'n_features'?": ("selection.n_feature", 1),
    "did you mean 'auroc'?": ("selection.criterion", "aurco"),
    "nowhere.csv": ("pairs.source", "nowhere.csv"),
    "name is a single value": ("name.low", 1),
}
WRONG_PARAMETERS = [
    ({"a": {}}, "parameters.a: nothing to choose from"),
    (
        {"a": {"valuse": [1]}},
        "parameters.a: valuse is not a known setting (did you mean 'values'?)",
    ),
    ({"a": {"values": [1, True]}}, "names a value twice"),
    ({"a": {"min": 3, "max": 1}}, "min (3) is above max (1)"),
    (
        {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}},
        "needs a min above 0",
    ),
    ({"a": {"values": [1, 2], "probabilities": [0.5, 0.6]}}, "probabilities must be as many"),
    ({"a.b": {"value": 1}, "a": {"value": {}}}, "set the same thing"),
    *(({name: {"values": [value]}}, text) for text, (name, value) in SETTINGS.items()),
]


def test_what_does_not_fit_is_one_sentence_with_file_and_field(sweep_of):
    for changes, text in [*WRONG, *(({"parameters": p}, text) for p, text in WRONG_PARAMETERS)]:
        with pytest.raises(SaesteerError, match=re.escape(text)) as told:
            sweep = sweep_of(**changes)
            sweep.check(sweep.trials())
        assert "tiny-sweep.yaml" in str(told.value) or text in SETTINGS
        assert "\n" not in str(told.value)


# Means and quantiles by hand, each from its definition at W&B.
def draws(found, n=4000):
    return np.array([found.settled(found.draw(np.random.default_rng([1, k]))) for k in range(n)])


def test_draws_follow_their_distributions():
    assert draws(parameter(min=0.0, max=2.0)).mean() == pytest.approx(1, abs=0.05)
    whole = draws(parameter(min=1, max=3))
    assert sorted(set(whole.tolist())) == [1, 2, 3]
    assert (whole == 3).mean() == pytest.approx(1 / 3, abs=0.03)
    logs = np.log10(draws(parameter(distribution="log_uniform_values", min=1e-4, max=1)))
    assert logs.min() >= -4 and logs.max() <= 0
    assert logs.mean() == pytest.approx(-2, abs=0.07)
    powers = np.log(draws(parameter(distribution="log_uniform", min=0, max=2)))
    assert powers.mean() == pytest.approx(1, abs=0.05)
    bell = draws(parameter(distribution="normal", mu=3, sigma=0.5))
    assert (bell.mean(), bell.std()) == pytest.approx((3, 0.5), abs=0.03)
    skewed = draws(parameter(distribution="log_normal", mu=1, sigma=1))
    assert np.median(skewed) == pytest.approx(math.e, rel=0.08)
    steps = draws(parameter(distribution="q_uniform", min=0, max=10, q=2.5))
    assert sorted(set(steps.tolist())) == [0, 2.5, 5, 7.5, 10]
    chosen = draws(parameter(values=["a", "b"], probabilities=[0.9, 0.1]))
    assert (chosen == "a").mean() == pytest.approx(0.9, abs=0.02)


def test_whatever_is_drawn_fits_what_optuna_is_told_and_comes_back_as_it_was():
    for kind in set(DISTRIBUTIONS) - {"constant", "categorical"}:
        bounds = {} if "normal" in kind else {"min": 1, "max": 6}
        found = parameter(distribution=kind, q=4, **bounds)
        space = found.space()
        for k in range(50):
            settled = found.settled(found.draw(np.random.default_rng(k)))
            assert math.isfinite(settled)
            assert space._contains(space.to_internal_repr(found.code(settled))), kind
    found = parameter(values=[["a"], {"b": [1]}, None, True, "x", 2, 2.5])
    for value in found.values:
        back = found.decoded(found.code(value))
        assert back == value and type(back) is type(value)
    # Without a name the distribution is the one that is W&B's.
    usual = {"constant": {"value": None}, "categorical": {"values": ["a", [1], None]}}
    usual |= {"int_uniform": {"min": 1, "max": 5}, "uniform": {"min": 1.0, "max": 5}}
    assert {name: parameter(**fields).distribution for name, fields in usual.items()} == {
        name: name for name in usual
    }


def test_a_grid_has_exactly_its_cells_the_last_parameter_fastest(sweep_of):
    trials = sweep_of().trials()
    expected = list(itertools.product(["mean_difference", "auroc"], [8, 12, 16]))
    assert [tuple(trial.values.values()) for trial in trials] == expected
    assert [trial.number for trial in trials] == list(range(6))
    assert len({trial.key for trial in trials}) == 6
    nested: Any = {"selection": {"parameters": {"n_features": {"values": [8, 12, 16]}}}}
    nested["selection"]["parameters"]["criterion"] = {"values": ["mean_difference", "auroc"]}
    assert {trial.key for trial in sweep_of(parameters=nested).trials()} == {t.key for t in trials}
    # 64 is what the settings have by themselves, and the folder is no setting of the numbers.
    same = {"selection.n_features": {"values": [64]}, "folder": {"values": ["a", "b"]}}
    assert len(sweep_of(parameters=same).trials()) == 1
    countable = {
        "seed": {"min": 1, "max": 3},
        "regression.ridge_alpha": {"distribution": "q_uniform", "min": 1, "max": 2, "q": 0.5},
    }
    found = [tuple(trial.values.values()) for trial in sweep_of(parameters=countable).trials()]
    assert found == list(itertools.product([1, 2, 3], [1, 1.5, 2]))


def test_a_grid_that_cannot_be_counted_or_waited_for_is_refused(sweep_of):
    with pytest.raises(ConfigError, match=r"min_firing: a grid cannot count 'uniform'"):
        sweep_of(parameters=UNIFORM).trials()
    many = {"seed": {"min": 0, "max": 10**6}}
    with pytest.raises(ConfigError, match="the grid has 1,000,001 cells"):
        sweep_of(parameters=many).trials()
    assert len(sweep_of(parameters=many, run_cap=5).trials()) == 5
    bell = {"seed": {"distribution": "q_normal"}}
    with pytest.raises(ConfigError, match=r"parameters\.seed: bayes here needs bounds"):
        sweep_of(method="bayes", run_cap=3, parameters=bell)


def test_random_draws_depend_on_seed_and_number_alone(sweep_of):
    space = {**UNIFORM, "seed": {"min": 0, "max": 9}}
    few = sweep_of({"seed": 3}, method="random", parameters=space, run_cap=4).trials()
    more = sweep_of({"seed": 3, "count": 9}, method="random", parameters=space).trials()
    assert more[:4] == few
    assert len({trial.key for trial in more}) == 9
    other = sweep_of({"seed": 4}, method="random", parameters=space, run_cap=4).trials()
    assert not {trial.key for trial in other} & {trial.key for trial in few}
    # What numpy draws from the seed and a trial's number, as ever since sweeps were begun.
    rng = np.random.default_rng([3, 2])
    assert more[2].values["selection.min_firing"] == rng.uniform(0.0, 0.5)
    assert more[2].values["seed"] == rng.integers(0, 9, endpoint=True)
    small = {"seed": {"values": [1, 2]}, "selection.n_features": {"values": [8, 12, 16]}}
    used_up = sweep_of(method="random", run_cap=100, parameters=small).trials()
    assert len(used_up) == 6


def test_a_sweep_survives_json_and_one_of_another_version_is_refused(sweep_of):
    space = {"together.x": {"values": [{"seed": 1}, {"seed": 2}]}, "seed": {"min": 0, "max": 3}}
    sweep = sweep_of(method="random", run_cap=3, parameters=space)
    back = Sweep.from_record(json.loads(json.dumps(sweep.record())))
    assert back == sweep
    assert back.trials() == sweep.trials()
    for other in ({**sweep.record(), "layout": 1}, {"layout": 2}, {}):
        with pytest.raises(SaesteerError, match="another version of saesteer; run saesteer sweep"):
            Sweep.from_record(other)


def test_the_study_is_named_by_what_its_trials_depend_on(sweep_of):
    one = sweep_of()
    assert sweep_of({"overrides": ["folder=elsewhere"]}).study == one.study
    assert sweep_of({"lease": 5}).study == one.study
    assert sweep_of({"overrides": ["seed=2"]}).study != one.study
    assert sweep_of(metric={"name": "r2"}).study != one.study


def test_workers_of_one_machine_share_the_dtype_that_the_first_sweep_chose(sweep_of, monkeypatch):
    import torch

    def choosing(dtype):
        monkeypatch.setattr(
            "saesteer.models.placement.choose_dtype", lambda *rest: getattr(torch, dtype)
        )
        return sweep_of({"overrides": ["model.dtype=auto"]}).with_pinned_dtype()

    first = create_study(choosing("bfloat16"))
    # Disturbed while it measured, the machine would choose otherwise the next time.
    again = create_study(choosing("float32"))
    assert again.sweep.study == first.sweep.study
    assert open_study(again.where).sweep.pinned == {"model.dtype": "bfloat16"}
    values = again.sweep.trials()[0].values
    assert again.sweep.config(values, pinned=True).model.dtype == "bfloat16"
    assert again.sweep.key(values) == first.sweep.key(values)
    # What the settings say themselves is left to them.
    assert sweep_of().with_pinned_dtype().pinned == {}
    swept = {"model.dtype": {"values": ["float32", "bfloat16"]}}
    assert sweep_of(parameters=swept).with_pinned_dtype().pinned == {}


def test_words_as_an_agent_renders_them_keep_their_types():
    found = {"seed=1": 1, "regression.ridge_alpha=1e-05": 1e-5, "completions.chat=True": True}
    found |= {"name=a=b": "a=b", "pairs.source=": None}
    found |= {"selection={'criterion': 'auroc', 'n': 8}": {"criterion": "auroc", "n": 8}}
    for word, value in found.items():
        assert read_word(word) == (word.partition("=")[0], value)
    for value in (1e-05, True, None, "no", "1e5", {"a": [None, "x"]}, "ä\n#"):
        text = yaml_text(value)
        assert "\n" not in text and yaml.safe_load(text) == value


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
    # A file that no agent wrote is one sentence with its name.
    for content in ("[1]", "a: {desc: x}", "{"):
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
    with pytest.raises(ConfigError, match=r"seed\.low: seed is a single value"):
        merged({"seed": 3}, {"seed.low": 1})
