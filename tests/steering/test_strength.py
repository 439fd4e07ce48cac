from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.steering import SteeringVector, parse, to_raw
from saesteer.steering.strength import check_strength, check_strengths, check_unit
from saesteer.utils.errors import SteeringError


@pytest.fixture
def vector():
    return SteeringVector.from_raw(
        [3.0, 4.0], site="blocks.0.hook_resid_post", model="m", residual_norm=50.0, max_act=8.0
    )


def test_each_unit_is_a_multiple_of_its_own_measure(vector):
    assert to_raw(0.2, "norm", vector) == pytest.approx(10.0)
    assert to_raw(-2.5, "raw", vector) == -2.5
    assert to_raw(-0.5, "max_act", vector) == pytest.approx(-4.0)


@pytest.mark.parametrize(
    ("unit", "field", "way"), [("norm", "residual_norm", "raw"), ("max_act", "max_act", "norm")]
)
def test_a_unit_that_the_vector_cannot_carry_names_the_way_out(unit, field, way):
    bare = SteeringVector.from_raw([1.0], site="blocks.0.hook_resid_post", model="m", name="bare")
    with pytest.raises(SteeringError, match=f"'bare' does not carry; use unit '{way}'.*{field}="):
        to_raw(1.0, unit, bare)
    assert to_raw(1.0, "raw", bare) == 1.0


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "0.2", None, True, [0.1], torch.ones(2)]
)
def test_a_strength_that_is_no_finite_number_is_refused(bad, vector):
    with pytest.raises(SteeringError, match="strength"):
        to_raw(bad, "raw", vector)


def test_numpy_and_torch_numbers_are_strengths():
    assert check_strength(np.float32(0.5)) == 0.5
    assert check_strengths(np.array([0.5, 1.0])) == (0.5, 1.0)
    assert check_strengths(torch.tensor(0.5)) == (0.5,)
    assert check_strengths(range(2)) == (0.0, 1.0)


def test_an_empty_list_of_strengths_and_an_unknown_unit_are_refused():
    with pytest.raises(SteeringError, match="'percent' is unknown; use one of norm, raw, max_act"):
        check_unit("percent")
    with pytest.raises(SteeringError, match="empty"):
        check_strengths([])
    with pytest.raises(SteeringError, match="not finite"):
        check_strengths([0.1, float("nan")])


def test_parse_reads_what_a_person_types():
    assert parse("-0.2") == -0.2
    assert parse(" 1e-1 ") == 0.1
    for text in ("much", "", "nan", "inf", "0,2"):
        with pytest.raises(SteeringError, match="strength"):
            parse(text)
