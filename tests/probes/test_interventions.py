"""What people write of interventions: modes, amounts, schedules, layers."""

from __future__ import annotations

import pytest
import torch

from saesteer.probes import class_alpha, make_intervention
from saesteer.probes.interventions import parse_layers
from saesteer.steering import Add, Flip, Set
from saesteer.utils.errors import SiteError, SteeringError


def test_amounts_and_centres_can_be_named_by_class(vector_on):
    vector = vector_on()
    (edit,) = make_intervention([vector], mode="set", amount="negative").edits
    assert isinstance(edit, Set) and edit.value == -1.0
    (edit,) = make_intervention([vector], amount="2", centre="midpoint").edits
    assert isinstance(edit, Flip) and (edit.scale, edit.centre) == (2.0, 1.0)
    assert class_alpha(vector, "neutral") == 0.5


def test_a_schedule_names_its_windows_and_wins_over_the_mode(vector_on):
    vectors = [vector_on(layer=0), vector_on(layer=2)]
    text = "0-15:set=negative, 16-:add=0.4"
    made = make_intervention(vectors, mode="flip", schedule=text, compound=True)
    assert [edit.described() for edit in made.edits] == [
        "set to -1 at layer 0, tokens 0 to 15",
        "set to -1 at layer 2, tokens 0 to 15",
        "add +0.4 norm at layer 0, tokens 16 on",
        "add +0.4 norm at layer 2, tokens 16 on",
    ]
    assert made.policy == "compound"
    steps = torch.tensor([[-2, -1, 0, 15, 16, 17]])
    first, last = made.edits[0].covers(steps), made.edits[-1].covers(steps)
    assert first.tolist() == [[True, True, True, True, False, False]]
    assert torch.equal(last, ~first)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mode": "flop"}, "mode 'flop' .did you mean 'flip'.. is unknown"),
        ({"mode": "set", "amount": "positiv"}, "did you mean 'positive'"),
        ({"mode": "set"}, "mode set needs an amount"),
        ({"schedule": "now"}, "not of the form"),
        ({"schedule": "0-5:flip,3-9:flip"}, "overlap at token 3"),
        ({"schedule": "9-12:flip,3-:flip"}, "overlap at token 3"),
        ({"schedule": "0-3:shove=1"}, "mode 'shove'.* is unknown"),
        ({"schedule": "5-2:flip"}, "end before they begin"),
    ],
)
def test_what_says_nothing_clear_is_refused(vector_on, how, message):
    with pytest.raises(SteeringError, match=message):
        make_intervention([vector_on()], **how)


def test_a_vector_without_classes_has_no_class_to_set(vector_on):
    with pytest.raises(SteeringError, match="does not say where its classes lie"):
        make_intervention([vector_on(provenance={})], mode="set", amount="positive")


def test_what_is_intended_follows_mode_and_label(vector_on):
    labels = ["positive", "negative", "neutral", None]

    def intended(**settings):
        made = make_intervention([vector_on()], **settings)
        return made.intended(labels, "positive", "negative").tolist()

    assert intended(mode="flip") == [-1, 1, 0, 0]
    assert intended(mode="ablate") == [-1, 1, 0, 0]
    assert intended(mode="add", amount="0.3") == [1, 1, 0, 0]
    assert intended(mode="add", amount="-0.3") == [-1, -1, 0, 0]
    # The midpoint of the classes is 1, so 0.5 is on the negative side.
    assert intended(mode="set", amount="0.5") == [-1, -1, 0, 0]
    assert intended(mode="set", amount="positive") == [1, 1, 0, 0]
    assert intended(schedule="0-3:flip") == [0, 0, 0, 0]


def test_random_directions_differ_by_draw_and_by_site_and_repeat(vector_on):
    made = make_intervention([vector_on(layer=0), vector_on(layer=1)], centre="midpoint")
    one, same, other = (made.randomised(draw).edits for draw in (0, 0, 1))
    first = one[0].vector.direction
    assert first.equal(same[0].vector.direction)
    assert not first.equal(other[0].vector.direction)
    assert not first.equal(one[1].vector.direction)
    assert all(isinstance(edit, Flip) and edit.centre == 0.0 for edit in one)
    adding = make_intervention([vector_on()], mode="add", amount=0.5).randomised(0).scaled(2.0)
    assert isinstance(adding.edits[0], Add) and adding.edits[0].strength == 1.0


def test_layers_are_written_as_people_write_them(finished_run):
    probes = finished_run.probes
    assert parse_layers("0-2", probes) == [0, 1, 2]
    assert parse_layers("2, 0", probes) == [0, 2]
    assert parse_layers(None, probes)[-1] == probes.best
    for text in ("a", "1-", "0-1-2", ""):
        with pytest.raises(SteeringError, match="not of the form"):
            parse_layers(text, probes)
    with pytest.raises(SiteError, match="layer 9 has no probe"):
        parse_layers("9", probes)
