"""Figures of patching: their numbers, their labels, and that they can be drawn and opened."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from saesteer.patching.agreement import agreement
from saesteer.patching.summary import effects
from saesteer.report.patching_drawing import drawn, heatmap_figure
from saesteer.report.patching_figures import (
    MOST_ROWS,
    Chart,
    Heatmap,
    Series,
    chart_of_effects,
    column_labels,
    heatmap,
    layer_bars,
    one_prompt,
    scatter,
    strongest_cells,
)
from saesteer.report.patching_pictures import picture
from tests.patching.made_up_results import handover, result

HOSTILE = "<script>alert('x')</script> $\\frac{1}$ <b>%{z}"


def test_a_map_holds_the_effects_and_their_intervals():
    made = handover()
    shown, found = heatmap(made, "share"), effects(made, "share", resamples=1000)
    np.testing.assert_array_equal(shown.values, found.value)
    np.testing.assert_array_equal(shown.high, found.high)
    assert shown.rows == tuple(map(str, range(10)))
    assert shown.columns == made.coords["place"]
    assert "0 corrupted, 1 clean" in shown.unit


def test_token_labels_say_where_prompts_differ():
    made = result(
        np.zeros((2, 1, 3)), ("layer", "position"),
        tokens=(("The", " cat", "\n"), ("The", " dog", "\n")),
    )  # fmt: skip
    assert column_labels(made, "position") == ("0: The", "1: ␣cat…", "2: ↵")
    assert column_labels(made, "layer") == ("0",)


def test_columns_that_no_prompt_has_are_left_out():
    values = np.array([[[np.nan, 0.5, 0.2]], [[np.nan, np.nan, 0.1]]])
    shown = heatmap(
        result(values, ("layer", "position"), tokens=(("", "a", "b"), ("", "", "b"))), "share"
    )
    assert shown.columns == ("1: a…", "2: b")
    np.testing.assert_array_equal(shown.n, [[1, 2]])


def test_heads_by_position_show_the_strongest_alone():
    values = np.zeros((2, 6, 8, 3))
    values[:, 4, 5, 1] = 0.9
    shown = heatmap(result(values, ("layer", "head", "position")), "share")
    assert len(shown.rows) == MOST_ROWS and "strongest" in shown.row_title
    assert shown.values[shown.rows.index("4.5"), 1] == pytest.approx(0.9)


def test_one_prompt_has_its_own_tokens_and_no_interval():
    made = result(
        np.array([[[0.1, 0.2]], [[0.3, 0.4]]]), ("layer", "position"),
        tokens=(("a", "b"), ("c", "d")),
    )  # fmt: skip
    shown = one_prompt(made, 1, "share")
    assert shown.columns == ("0: c", "1: d") and "pair 1" in shown.title
    np.testing.assert_allclose(shown.values, [[0.3, 0.4]])
    assert np.isnan(shown.low).all()


def test_the_strongest_cells_come_first_whatever_their_sign():
    values = np.array([[[0.1, -0.9], [np.nan, 0.5]]] * 2)
    rows = strongest_cells(result(values, ("layer", "head")), "share", 3)
    assert [(row["layer"], row["head"]) for row in rows] == [(0, 1), (1, 1), (0, 0)]
    assert rows[0]["effect"] == pytest.approx(-0.9)


def test_colours_are_symmetric_about_zero_and_hover_is_exact():
    shown = heatmap(handover(), "share")
    (trace,) = json.loads(str(heatmap_figure(shown).to_json()))["data"]
    largest = np.abs(shown.values).max()
    assert -trace["zmin"] == trace["zmax"] == pytest.approx(largest) and trace["zmid"] == 0
    middle = [colour for stop, colour in trace["colorscale"] if stop == 0.5]
    assert middle == ["#fbfbfa"]
    said = trace["customdata"][9][3]
    assert f"{shown.values[9, 3]:+.4f}" in said and "12 prompts" in said


def test_missing_cells_are_no_zeros():
    values = np.array([[[np.nan, 0.5]], [[np.nan, 0.5]], [[np.inf, 0.5]]])
    figure = heatmap_figure(heatmap(result(values, ("layer", "head")), "share"))
    text = str(figure.to_json())
    json.loads(text, parse_constant=pytest.fail)
    assert json.loads(text)["data"][0]["z"] == [[0.5]]


def test_scatter_sets_both_methods_against_patching():
    exact = handover(noise=0.05)
    rough = handover(noise=0.2, method="attribution")
    found = agreement(rough, exact, normalised=False)
    made = scatter([found, found], exact)
    np.testing.assert_allclose(made.clouds[0].x, exact.values.mean(axis=0).ravel())
    np.testing.assert_allclose(made.clouds[0].y, rough.values.mean(axis=0).ravel())
    assert f"{found.rank_correlation:.2f}" in made.clouds[0].name
    assert made.clouds[0].labels[0] == "layer 0, place first token"


def every_kind() -> list:
    exact = handover(noise=0.05)
    rough = agreement(handover(noise=0.2, method="attribution"), exact, normalised=False)
    heads = result(np.full((2, 2, 2), np.nan), ("layer", "head"))
    series = (Series(HOSTILE, (1.0, float("nan"))), Series("n", (-1.0, 2.0)))
    bars = Chart("t", (HOSTILE, "b"), series, "x", HOSTILE, bars=True)
    hostile = heatmap(exact, "share")._replace(
        title=HOSTILE, columns=(HOSTILE,) * 4, row_title=HOSTILE, unit=HOSTILE
    )
    return [
        heatmap(exact, "share"),
        heatmap(heads, "share"),
        hostile,
        chart_of_effects([exact], "share"),
        layer_bars(result(np.ones((3, 4)), ("layer",)), "share"),
        scatter([rough], exact),
        bars,
        bars._replace(bars=False, log=True),
    ]


@pytest.mark.parametrize("place", range(8))
def test_every_figure_is_a_picture_and_a_drawing_that_no_text_breaks(place, tmp_path):
    figure = every_kind()[place]
    picture(figure, tmp_path / "f.png")
    head = (tmp_path / "f.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert 300 < width < 3000 and 200 < height < 3000
    text = str(drawn(figure).to_json())
    json.loads(text, parse_constant=pytest.fail)
    assert "<script" not in text and "\\u003cscript" not in text


def test_a_large_map_keeps_its_size():
    values = np.random.default_rng(0).normal(size=(2, 96, 400))
    shown = heatmap(result(values, ("layer", "position")), "share", resamples=0)
    figure = heatmap_figure(shown)
    assert isinstance(shown, Heatmap) and figure.layout.height < 1000
    assert len(figure.layout.xaxis.tickvals) <= 48
