"""Layer programs as a user writes them."""

from __future__ import annotations

import pytest

from saesteer.corruption.program import (
    LinearSpan,
    NoiseEdit,
    PartEdit,
    check_program,
    make_family,
    parse_program,
)
from saesteer.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0-5", [0, 1, 2, 3, 4, 5]),
        ("[]", []),
        ("[0, 1, 1, 5]", [0, 1, 1, 5]),
        ("[3-1]", [3, 2, 1]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("0-1, 4-5", [0, 1, 4, 5]),
        ("keep 2 then 5", [0, 1, 5]),
        ("skip 2-4", [0, 1, 5]),
        ("skip 0 2 4-5", [1, 3]),
        ("repeat 3 x2", [0, 1, 2, 3, 3, 4, 5]),
        ("repeat 2-3 x2", [0, 1, 2, 3, 2, 3, 4, 5]),
        ("skip 1, repeat 2 x3", [0, 2, 2, 2, 3, 4, 5]),
        ("reverse 1-3", [0, 3, 2, 1, 4, 5]),
        ("swap 0 5", [5, 1, 2, 3, 4, 0]),
        ("linear 1-3", [0, LinearSpan(1, 3), 4, 5]),
        ("skip 0 then linear 4-5", [1, 2, 3, LinearSpan(4, 5)]),
        ([0, 2, 2], [0, 2, 2]),
    ],
)
def test_an_expression_gives_the_order_it_says(text, steps):
    check_program(str(text))
    assert list(parse_program(text, 6).steps) == steps


def test_a_permutation_is_seeded_and_complete():
    first = parse_program("permute seed=7", 12)
    assert first.steps == parse_program("permute seed=7", 12).steps
    assert sorted(first.steps) == list(range(12)) != list(first.steps)
    assert first.steps != parse_program("permute seed=8", 12).steps
    inner = parse_program("permute 4-9 seed=1", 12).steps
    assert inner[:4] == (0, 1, 2, 3) and inner[10:] == (10, 11) and sorted(inner[4:10]) == [
        4, 5, 6, 7, 8, 9,
    ]  # fmt: skip


def test_parts_and_noise_are_edits():
    program = parse_program("zero heads 1.0 2.3, mean mlp 4, noise 0.5 at 3 seed=9", 6, n_heads=4)
    assert program.edits == (
        PartEdit(1, "zero", 0),
        PartEdit(2, "zero", 3),
        PartEdit(4, "mean"),
        NoiseEdit(3, 0.5, 9),
    )
    assert len(parse_program("mean heads 1.*", 6, n_heads=4).edits) == 4
    assert parse_program("all", 6).is_intact and not program.is_intact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("   ", "a program is empty"),
        ("skip", "'skip' is not understood"),
        ("skip 6", "names layer 6 and the model has layers 0 to 5"),
        ("keep 7", "keeps 7 layers where 6 run"),
        ("__import__('os')", "is not understood"),
        ("skip 1 then skip 1", "changes layer 1, which does not run"),
        ("repeat 3 x0", "repeats 0 times"),
        ("repeat 0-5 x999", "runs more than 1000 layers"),
        ("skip " + "9" * 5000, "names layer 99999999"),
        ("1" * 20_000, "has 20000 characters"),
        ("reverse then linear 2-3", "no layers 2-3 that run one after the other"),
        ("linear 3-2", "no layers 3-2"),
        ("zero heads 1.9", "names head 1.9 and a layer has heads 0 to 3"),
        ("[0, 1-]", "'[0, 1-]' is not understood"),
        ("noise nan at 2", "is not understood"),
    ],
)
def test_what_cannot_run_is_one_sentence(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_program(text, 6, n_heads=4)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 400


def test_a_family_has_a_program_for_every_layer():
    keep = make_family("keep", 4)
    assert [len(p.steps) for p in keep.programs] == [0, 1, 2, 3, 4]
    skip = make_family("skip", 4, width=2)
    assert [p.steps for p in skip.programs] == [(2, 3), (0, 3), (0, 1)]
    assert [p.steps for p in make_family("swap", 3).programs] == [(1, 0, 2), (0, 2, 1)]
    assert [p.spans[0] for p in make_family("linear", 3, width=3).programs] == [LinearSpan(0, 2)]
    assert len(make_family("permute", 4, count=3).programs) == 3
    assert [p.edits for p in make_family("mean_mlp", 2).programs] == [
        (PartEdit(0, "mean"),),
        (PartEdit(1, "mean"),),
    ]

    with pytest.raises(ConfigError, match="width 5 is more than the model's 4 layers"):
        make_family("skip", 4, width=5)
