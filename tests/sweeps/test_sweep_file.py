"""Sweep files in W&B's layout: what is read, and what is refused where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saesteer.sweeps.parameters import DISTRIBUTIONS, read_parameter
from saesteer.sweeps.sweep_file import read_parameters, read_sweep_file
from saesteer.utils.errors import ConfigError


def parameter(**fields):
    return read_parameter("x", fields, "f.yaml: parameters.x")


def test_nested_and_dotted_names_are_one(sweep_file):
    nested = {"selection": {"parameters": {"n_features": {"values": [1, 2]}}}, "seed": {"value": 3}}
    found = read_sweep_file(sweep_file(parameters=nested))
    assert [p.name for p in found.parameters] == ["selection.n_features", "seed"]
    dotted = {"selection.n_features": {"values": [1, 2]}, "seed": {"value": 3}}
    assert read_sweep_file(sweep_file(parameters=dotted)).parameters == found.parameters


@pytest.mark.parametrize(
    ("command", "program", "expected"),
    [
        (
            ["${env}", "saesteer", "run", "a.yaml", "${args_no_hyphens}"],
            None,
            ("run", "a.yaml", ()),
        ),
        (
            ["${env}", "${program}", "compare", "a.yaml", "seeds=[0]", "${args_no_hyphens}"],
            "saesteer",
            ("compare", "a.yaml", ("seeds=[0]",)),
        ),
        (
            ["/opt/bin/saesteer", "run", "a.yaml", "--set", "seed=3"],
            None,
            ("run", "a.yaml", ("seed=3",)),
        ),
        (
            ["${interpreter}", "-m", "saesteer.cli.main", "run", "a.yaml"],
            None,
            ("run", "a.yaml", ()),
        ),
        (None, "saesteer run a.yaml", ("run", "a.yaml", ())),
        (None, "a.yaml", ("run", "a.yaml", ())),
    ],
)
def test_the_command_names_the_base_settings(command, program, expected, sweep_file):
    found = read_sweep_file(sweep_file(command=command, program=program))
    assert (found.kind, str(found.base), found.words) == expected


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "gird"}, "method: "),
        ({"parameters": None}, "parameters: "),
        ({"parameters": {}}, "parameters: "),
        ({"metric": {"name": "effect", "goal": "max"}}, "metric.goal: "),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type: "),
        ({"early_terminate": {"type": "hyperband", "eta": 1}}, "early_terminate.eta: "),
        ({"run_cap": 0}, "run_cap: "),
        ({"paramters": {}}, "paramters: is no field of a sweep"),
        ({"method": "bayes", "metric": None}, "bayes needs a metric"),
        ({"command": ["python", "train.py", "${args}"]}, "command does not call saesteer"),
        (
            {"command": ["saesteer", "probe", "a.yaml"]},
            "one of run, compare, corrupt run, ",
        ),
        ({"command": ["saesteer", "doctor", "a.yaml"]}, "probe train and a settings file"),
        ({"command": ["saesteer", "run", "${args_no_hyphens}"]}, "and a settings file"),
        ({"command": ["saesteer", "run", "a.yaml", "--fast"]}, "'--fast' is neither key=value"),
        ({"command": None}, "command does not call saesteer"),
        ({"parameters": {"a": 3}}, "parameters.a is not a mapping"),
        ({"parameters": {"a": {}}}, "parameters.a says nothing to choose from"),
        ({"parameters": {"a": {"values": []}}}, "parameters.a.values: "),
        ({"parameters": {"a": {"valuse": [1]}}}, "parameters.a.valuse: is no field of a parameter"),
        ({"parameters": {"a": {"values": [1, True]}}}, "names a value twice"),
        ({"parameters": {"a": {"min": 3, "max": 1}}}, "min (3) is above max (1)"),
        ({"parameters": {"a": {"min": 1}}}, "says nothing to choose from"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "distribution 'beta' is not known here"),
        ({"parameters": {"a": {"distribution": "uniform"}}}, "uniform needs min and max"),
        (
            {"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "needs a min above 0",
        ),
        (
            {"parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 2}}},
            "needs whole numbers",
        ),
        (
            {"parameters": {"a": {"distribution": "log_uniform", "min": 0, "max": 1000}}},
            "takes logarithms",
        ),
        (
            {"parameters": {"a": {"values": [1, 2], "probabilities": [0.5, 0.6]}}},
            "probabilities must be as many",
        ),
        ({"parameters": {"a": {"distribution": "constant"}}}, "constant without a value"),
        (
            {"parameters": {"a": {"parameters": {"b": {"values": [1]}}, "value": 1}}},
            "parameters stands alone",
        ),
        (
            {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}},
            "a.b and a.b set the same thing",
        ),
        ({"parameters": {"a.b": {"value": 1}, "a": {"value": {}}}}, "set the same thing"),
        ({"parameters": {"a..b": {"value": 1}}}, "is no name of a setting"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_file_and_field(changes, text, sweep_file):
    with pytest.raises(ConfigError) as told:
        read_sweep_file(sweep_file(**changes))
    assert text in str(told.value)
    assert "tiny-sweep.yaml" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["[1]", "{", "3", ""])
def test_no_mapping_is_no_sweep(content, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        read_sweep_file(file)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        read_sweep_file(tmp_path / "nowhere.yaml")


def test_what_wandb_alone_needs_is_let_pass(sweep_file):
    found = read_sweep_file(sweep_file(project="p", entity="e", description="d", name="My sweep!"))
    assert found.name == "My-sweep"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"value": None}, "constant"),
        ({"values": ["a", [1], None]}, "categorical"),
        ({"min": 1, "max": 5}, "int_uniform"),
        ({"min": 1.0, "max": 5}, "uniform"),
        ({"distribution": "categorical_w_probabilities", "values": [1, 2]}, "categorical"),
    ],
)
def test_the_usual_distribution_is_wandbs(fields, kind):
    assert parameter(**fields).distribution == kind


# Quantiles by hand, each from its definition at W&B.
def draws(found, n=4000):
    return np.array([found.settled(found.draw(np.random.default_rng([1, k]))) for k in range(n)])


def test_draws_follow_their_distributions():
    assert draws(parameter(min=0.0, max=2.0)).mean() == pytest.approx(1, abs=0.05)
    whole = draws(parameter(min=1, max=3))
    assert sorted(set(whole.tolist())) == [1, 2, 3]
    assert (whole == 3).mean() == pytest.approx(1 / 3, abs=0.03)
    logs = np.log10(draws(parameter(distribution="log_uniform_values", min=1e-4, max=1)))
    assert (logs.min() >= -4, logs.max() <= 0) == (True, True)
    assert logs.mean() == pytest.approx(-2, abs=0.07)
    assert np.log(
        draws(parameter(distribution="log_uniform", min=0, max=2))
    ).mean() == pytest.approx(1, abs=0.05)
    bell = draws(parameter(distribution="normal", mu=3, sigma=0.5))
    assert (bell.mean(), bell.std()) == pytest.approx((3, 0.5), abs=0.03)
    assert np.median(draws(parameter(distribution="log_normal", mu=1, sigma=1))) == pytest.approx(
        math.e, rel=0.08
    )
    steps = draws(parameter(distribution="q_uniform", min=0, max=10, q=2.5))
    assert sorted(set(steps.tolist())) == [0, 2.5, 5, 7.5, 10]
    chosen = draws(parameter(values=["a", "b"], probabilities=[0.9, 0.1]))
    assert (chosen == "a").mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("kind", sorted(set(DISTRIBUTIONS) - {"constant", "categorical"}))
def test_whatever_is_drawn_fits_what_optuna_is_told(kind):
    found = parameter(distribution=kind, **({} if "normal" in kind else {"min": 1, "max": 6}), q=4)
    space = found.space()
    for k in range(200):
        drawn = found.draw(np.random.default_rng(k))
        code = found.code(drawn)
        assert space._contains(space.to_internal_repr(code))
        assert math.isfinite(found.settled(drawn))
    for value in found.choices() or ():
        assert space._contains(space.to_internal_repr(found.code(value)))


def test_lists_and_mappings_come_back_from_optuna_as_they_were():
    found = parameter(values=[["a"], {"b": [1]}, None, True, "x", 2, 2.5])
    for value in found.values:
        back = found.decoded(found.code(value))
        assert back == value and type(back) is type(value)


def test_parameters_keep_the_order_of_the_file():
    data = {"b": {"value": 1}, "a": {"values": [1, 2]}}
    assert [p.name for p in read_parameters(data, "f")] == ["b", "a"]
