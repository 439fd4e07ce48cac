"""Figures of patching: their numbers and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saesteer.patching.summary import agreement, effects, strongest_cells
from saesteer.report.patch_figures import (
    MOST_ROWS,
    agreement_scatter,
    column_labels,
    effect_bars,
    effect_map,
    one_prompt,
    profile,
)
from tests.patching.made_up_results import handover, result


def drawn(make, *arguments, **options) -> Any:
    return make("name", *arguments, **options).draw()


def test_a_map_holds_the_effects_and_their_intervals():
    made = handover()
    figure: Any = drawn(effect_map, made, "share")
    found = effects(made, "share", resamples=1000)
    trace = figure.data[0]
    np.testing.assert_allclose(np.array(trace.z, dtype=float), found.value)
    assert list(figure.layout.yaxis.ticktext) == [str(layer) for layer in range(10)]
    assert list(figure.layout.xaxis.ticktext) == list(made.coords["place"])
    assert "0 corrupted, 1 clean" in trace.colorbar.title.text
    said = trace.customdata[9][3]
    assert f"{found.value[9, 3]:+.4f}" in said and "12 prompts" in said
    assert f"{found.low[9, 3]:+.3f} to {found.high[9, 3]:+.3f}" in said


def test_token_labels_say_where_prompts_differ():
    made = result(
        np.zeros((2, 1, 3)), ("layer", "position"),
        tokens=(("The", " cat", "\n"), ("The", " dog", "\n")),
    )  # fmt: skip
    assert column_labels(made, "position") == ["0: The", "1: ␣cat…", "2: ↵"]
    assert column_labels(made, "layer") == ["0"]


def test_columns_that_no_prompt_has_are_left_out_and_missing_cells_are_no_zeros():
    values = np.array([[[np.nan, 0.5, 0.2]], [[np.nan, np.nan, 0.1]], [[np.inf, np.nan, 0.1]]])
    made = result(values, ("layer", "position"), tokens=(("", "a", "b"), ("", "", "b"), ("",) * 3))
    figure: Any = drawn(effect_map, made, "share")
    assert list(figure.layout.xaxis.ticktext) == ["1: a…", "2: b…"]
    one, three = figure.data[0].customdata[0]
    assert one.endswith("1 prompt") and three.endswith("3 prompts")
    assert list(figure.data[0].z[0]) == pytest.approx([0.5, 0.4 / 3])


def test_heads_by_position_show_the_strongest_alone():
    values = np.zeros((2, 6, 8, 3))
    values[:, 4, 5, 1] = 0.9
    figure: Any = drawn(effect_map, result(values, ("layer", "head", "position")), "share")
    rows = list(figure.layout.yaxis.ticktext)
    assert len(rows) == MOST_ROWS and "strongest" in figure.layout.yaxis.title.text
    assert figure.data[0].z[rows.index("4.5")][1] == pytest.approx(0.9)


def test_one_prompt_has_its_own_tokens_and_no_interval():
    made = result(
        np.array([[[0.1, 0.2]], [[0.3, 0.4]]]), ("layer", "position"),
        tokens=(("a", "b"), ("c", "d")),
    )  # fmt: skip
    figure: Any = drawn(one_prompt, made, 1, "share")
    assert list(figure.layout.xaxis.ticktext) == ["0: c", "1: d"]
    assert "pair 1" in figure.layout.title.text
    np.testing.assert_allclose(figure.data[0].z, [[0.3, 0.4]])
    assert " to " not in figure.data[0].customdata[0][0]


def test_the_strongest_cells_come_first_whatever_their_sign():
    values = np.array([[[0.1, -0.9], [np.nan, 0.5]]] * 2)
    rows = strongest_cells(result(values, ("layer", "head")), "share", 3)
    assert [(row["layer"], row["head"]) for row in rows] == [(0, 1), (1, 1), (0, 0)]
    assert rows[0]["effect"] == pytest.approx(-0.9)


def test_the_scatter_sets_a_method_against_patching():
    exact = handover(noise=0.05)
    rough = handover(noise=0.2, method="attribution")
    found = agreement(rough, exact, normalised=False)
    figure: Any = drawn(agreement_scatter, [found], exact)
    _, cloud = figure.data
    np.testing.assert_allclose(cloud.x, exact.values.mean(axis=0).ravel())
    np.testing.assert_allclose(cloud.y, rough.values.mean(axis=0).ravel())
    assert f"{found.rank_correlation:.2f}" in cloud.name
    assert cloud.customdata[0] == "layer 0, place first token"


def test_a_profile_has_a_line_for_each_place_and_bars_stand_by_strength():
    made = handover()
    figure: Any = drawn(profile, made, "share")
    lines = [trace for trace in figure.data if trace.fill is None]
    assert [line.name for line in lines] == list(made.coords["place"])
    bars: Any = drawn(
        effect_bars,
        result(np.array([[0.1, -0.5, 0.3]]), ("feature",)),
        "share",
        words={"1": "kindness"},
    )
    assert list(bars.data[0].y) == pytest.approx([-0.5, 0.3, 0.1])
    assert bars.layout.xaxis.ticktext[0] == "1 kindness"
