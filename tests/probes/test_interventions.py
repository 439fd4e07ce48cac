"""What an intervention means, and how a schedule is written."""

from __future__ import annotations

import pytest
import torch

from saesteer.probes.interventions import (
    Intervention,
    class_alpha,
    make_intervention,
    parse_schedule,
)
from saesteer.utils.errors import SteeringError

ALPHA = torch.tensor([-2.0, 0.0, 3.0])


@pytest.mark.parametrize(
    ("mode", "amount", "centre", "expected"),
    [
        ("flip", 1.0, 0.0, [2.0, 0.0, -3.0]),
        ("flip", 20.0, 0.0, [40.0, 0.0, -60.0]),
        ("flip", 0.0, 0.0, [0.0, 0.0, 0.0]),
        ("flip", 1.0, 1.0, [4.0, 2.0, -1.0]),
        ("ablate", 1.0, 0.0, [0.0, 0.0, 0.0]),
        ("ablate", 1.0, 1.0, [1.0, 1.0, 1.0]),
        ("add", 0.2, 0.0, [-1.0, 1.0, 4.0]),
        ("set", -7.0, 0.0, [-7.0, -7.0, -7.0]),
    ],
)
def test_each_mode_does_what_its_name_says(probe_vector, mode, amount, centre, expected):
    item = Intervention(probe_vector(), mode, amount, centre=centre)
    assert item.target(ALPHA).tolist() == pytest.approx(expected)


def test_a_raw_strength_is_added_as_it_is(probe_vector):
    item = Intervention(probe_vector(), "add", -1.5, unit="raw")
    assert item.target(ALPHA).tolist() == pytest.approx([-3.5, -1.5, 1.5])


def test_amounts_and_centres_can_be_named_by_class(probe_vector):
    vector = probe_vector()
    assert make_intervention(vector, "set", "negative").amount == -1.0
    assert make_intervention(vector, "flip", "2", centre="midpoint").centre == 1.0
    assert class_alpha(vector, "neutral") == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "flop"}, "mode 'flop' .did you mean 'flip'.. is unknown"),
        ({"mode": "flip", "amount": -1.0}, "flip has scale -1"),
        ({"mode": "add", "amount": float("nan")}, "strength nan is not finite"),
        ({"mode": "add", "amount": 1.0, "unit": "norms"}, "unit 'norms' is unknown"),
        ({"mode": "add", "amount": 1.0, "unit": "max_act"}, "needs max_act"),
        ({"mode": "set", "amount": 1.0, "first": 5, "last": 2}, "end before they begin"),
        ({"mode": "set", "amount": 1.0, "first": -1}, "not whole numbers from 0"),
    ],
)
def test_what_cannot_be_done_is_refused(probe_vector, fields, message):
    with pytest.raises(SteeringError, match=message):
        Intervention(probe_vector(), **fields)


def test_a_class_that_the_vector_does_not_know_is_refused(probe_vector):
    with pytest.raises(SteeringError, match="did you mean 'positive'"):
        make_intervention(probe_vector(), "set", "positiv")
    with pytest.raises(SteeringError, match="does not say where its classes lie"):
        make_intervention(probe_vector(provenance={}), "set", "positive")
    with pytest.raises(SteeringError, match="mode set needs an amount"):
        make_intervention(probe_vector(), "set")


def test_a_schedule_names_its_windows(probe_vector):
    vectors = [probe_vector(layer=0), probe_vector(layer=2)]
    items = parse_schedule("0-15:set=negative, 16-:add=0.4", vectors)
    assert [(i.mode, i.amount, i.first, i.last, i.vector.site.layer) for i in items] == [
        ("set", -1.0, 0, 15, 0),
        ("set", -1.0, 0, 15, 2),
        ("add", 0.4, 16, None, 0),
        ("add", 0.4, 16, None, 2),
    ]
    assert items[-1].described() == "add +0.4 norm at layer 2, tokens 16 on"
    assert items[0].described() == "set to -1 at layer 0, tokens 0 to 15"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not of the form"),
        ("0-15", "is not of the form"),
        ("a-b:flip", "is not of the form"),
        ("0-5:flip,5-9:flip", "overlap at token 5"),
        ("0-:flip,9-12:flip", "overlap at token 9"),
        ("8-12:flip,0-9:flip", "overlap at token 0"),
        ("9-12:flip,3-:flip", "overlap at token 3"),
        ("0-3:shove=1", "mode 'shove'.* is unknown"),
        ("0-3:add", "needs an amount"),
        ("5-2:flip", "end before they begin"),
    ],
)
def test_a_schedule_that_says_nothing_clear_is_refused(probe_vector, text, message):
    with pytest.raises(SteeringError, match=message):
        parse_schedule(text, [probe_vector()])


def test_windows_cover_their_steps_and_the_prompt_goes_with_the_first(probe_vector):
    steps = torch.tensor([[-2, -1, 0, 1, 2, 3]])
    first = Intervention(probe_vector(), "flip", first=0, last=1).covers(steps)
    rest = Intervention(probe_vector(), "flip", first=2).covers(steps)
    assert first.tolist() == [[True, True, True, True, False, False]]
    assert rest.tolist() == [[False, False, False, False, True, True]]
