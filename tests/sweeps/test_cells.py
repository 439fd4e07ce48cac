"""Which trials a sweep has."""

from __future__ import annotations

import itertools

import pytest

from saesteer.sweeps.cells import grid_cells, random_cells
from saesteer.sweeps.parameters import read_parameter
from saesteer.sweeps.spec import SweepSpec, check_spec
from saesteer.utils.errors import ConfigError, SaesteerError

UNIFORM = {"selection.min_firing": {"min": 0.0, "max": 0.5}}


def parameters(**fields):
    return [read_parameter(name, data, name) for name, data in fields.items()]


def test_a_grid_has_exactly_its_cells_the_last_parameter_fastest(spec_of):
    cells = spec_of().cells()
    expected = list(itertools.product(["mean_difference", "auroc"], [8, 12, 16]))
    assert [tuple(cell.values.values()) for cell in cells] == expected
    assert [cell.number for cell in cells] == list(range(6))
    assert len({cell.key for cell in cells}) == 6


def test_cells_with_equal_settings_are_one(spec_of):
    grid = {"selection.n_features": {"values": [8, 8.0000]}, "seed": {"values": [0, 1]}}
    with pytest.raises(ConfigError, match="names a value twice"):
        spec_of(parameters=grid)
    # 64 is what the settings have by themselves, and the folder is no setting of the numbers.
    grid = {"selection.n_features": {"values": [64]}, "folder": {"values": ["a", "b"]}}
    assert len(spec_of(parameters=grid).cells()) == 1


def test_countable_distributions_make_a_grid():
    found = parameters(
        a={"min": 1, "max": 3}, b={"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}
    )
    cells = grid_cells(found, lambda values: repr(dict(values)), None)
    assert [tuple(c.values.values()) for c in cells] == [
        *((a, b) for a in (1, 2, 3) for b in (0, 0.5, 1))
    ]


def test_a_grid_that_cannot_be_counted_or_waited_for_is_refused(spec_of):
    with pytest.raises(ConfigError, match=r"min_firing: a grid cannot count 'uniform'"):
        spec_of(parameters=UNIFORM).cells()
    many = {"seed": {"min": 0, "max": 10**6}}
    with pytest.raises(ConfigError, match="the grid has 1,000,001 cells"):
        spec_of(parameters=many).cells()
    assert len(spec_of(parameters=many, run_cap=5).cells()) == 5


def test_random_draws_depend_on_their_number_alone(spec_of):
    space = {**UNIFORM, "seed": {"min": 0, "max": 9}}
    few = spec_of({"seed": 3}, method="random", parameters=space, run_cap=4).cells()
    more = spec_of({"seed": 3, "count": 9}, method="random", parameters=space).cells()
    assert more[:4] == few
    assert len({cell.key for cell in more}) == 9
    other = spec_of({"seed": 4}, method="random", parameters=space, run_cap=4).cells()
    assert not {cell.key for cell in other} & {cell.key for cell in few}


def test_random_draws_of_a_small_space_end_when_it_is_used_up():
    found = parameters(a={"values": [1, 2]}, b={"values": ["x", "y", "z"]})
    cells = random_cells(found, lambda values: repr(dict(values)), 100, seed=0)
    assert len(cells) == 6


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_without_end_is_refused(method, spec_of):
    with pytest.raises(ConfigError, match=f"{method} never ends by itself; give run_cap"):
        spec_of(method=method)


def test_bayes_refuses_what_has_no_bounds(spec_of):
    space = {"seed": {"distribution": "q_normal"}}
    with pytest.raises(ConfigError, match=r"parameters\.seed: bayes here needs bounds"):
        spec_of(method="bayes", run_cap=3, parameters=space)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parameters": {"selection.n_feature": {"values": [1]}}}, "did you mean 'n_features'?"),
        ({"parameters": {"selection.n_features": {"values": [8, 0]}}}, "selection.n_features: "),
        ({"parameters": {"selection.criterion": {"values": ["aurco"]}}}, "did you mean 'auroc'?"),
        ({"parameters": {"pairs.source": {"values": ["nowhere.csv"]}}}, "nowhere.csv"),
        ({"parameters": {"seed.x": {"values": [1]}, "seed": {"value": 3}}}, "set the same thing"),
        ({"metric": {"name": "efect"}}, "metric.name 'efect' is not known"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_anything_is_loaded(changes, text, spec_of):
    with pytest.raises(SaesteerError) as told:
        spec = spec_of(**changes)
        check_spec(spec, spec.cells())
    assert text in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_settings_file_is_told(sweep_file, base_file):
    from saesteer.sweeps.spec import make_spec
    from saesteer.sweeps.sweep_file import read_sweep_file

    file = sweep_file()
    base_file.unlink()
    with pytest.raises(ConfigError, match=r"base\.yaml cannot be read"):
        make_spec(read_sweep_file(file))


def test_a_spec_survives_json(spec_of):
    import json

    space = {"together.x": {"values": [{"seed": 1}, {"seed": 2}]}, "seed": {"min": 0, "max": 3}}
    spec = spec_of(method="random", run_cap=3, parameters=space)
    back = SweepSpec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert back == spec
    assert back.cells() == spec.cells()
    with pytest.raises(SaesteerError, match="start it anew"):
        SweepSpec.from_dict({**spec.as_dict(), "layout": 99})


def test_the_study_is_named_by_what_its_trials_depend_on(spec_of):
    one = spec_of()
    assert spec_of({"overrides": ["folder=elsewhere"]}).study == one.study
    assert spec_of({"lease": 5}).study == one.study
    assert spec_of({"overrides": ["seed=2"]}).study != one.study
    assert spec_of(metric={"name": "r2"}).study != one.study


def test_workers_of_one_machine_share_the_dtype_that_the_first_sweep_chose(spec_of, monkeypatch):
    import torch

    from saesteer.sweeps.spec import with_pinned_dtype
    from saesteer.sweeps.study import create_study, open_study

    def choosing(dtype):
        monkeypatch.setattr(
            "saesteer.models.placement.choose_dtype", lambda *rest: getattr(torch, dtype)
        )
        return with_pinned_dtype(spec_of({"overrides": ["model.dtype=auto"]}))

    first = create_study(choosing("bfloat16"))
    # Disturbed while it measured, the machine would choose otherwise the next time.
    again = create_study(choosing("float32"))
    assert again.spec.study == first.spec.study
    assert open_study(again.where).spec.pinned == {"model.dtype": "bfloat16"}
    values = again.spec.cells()[0].values
    assert again.spec.pinned_trial.config(values).model.dtype == "bfloat16"
    assert again.spec.trial.key(values) == first.spec.trial.key(values)
    # What the settings say themselves is left to them.
    assert with_pinned_dtype(spec_of()).pinned == {}
    swept = {"model.dtype": {"values": ["float32", "bfloat16"]}}
    assert with_pinned_dtype(spec_of(parameters=swept)).pinned == {}
