"""Every kind of figure: its numbers, and that no text breaks drawing or picture."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saesteer.report import plots
from saesteer.report.pictures import save_png
from saesteer.report.plots import Dots, Series

HOSTILE = "<script>alert('x')</script> $\\frac{1}$ <b>%{z}"
NAN = float("nan")
EYE = np.eye(2, dtype=int)
CLOUD = Series(HOSTILE, [2, 1], [1, 2], labels=[HOSTILE, "b"], steps=True)


def heat(**more: Any) -> Any:
    return plots.heatmap(
        np.array([[0.5, NAN], [-0.25, np.inf]]), [HOSTILE, "b"], [HOSTILE, "d"], title=HOSTILE,
        row_title=HOSTILE, unit=HOSTILE, **more,
    )  # fmt: skip


def bars(**more: Any):
    series = [Series(HOSTILE, (1.0, NAN)), Series("n", (-1.0, 2.0), (), (-2.0, 1.0), (0.0, 3.0))]
    return plots.bars(series, [HOSTILE, "b"], title=HOSTILE, y_title=HOSTILE, **more)


def lines(**more: Any):
    series = [
        Series(HOSTILE, (1.0, None, 3.0), low=(0.5, None, 2.0), high=(2.0, None, 4.0)),
        Series("x", (2.0, 1.0), (0.1, 1.0), dash="dot"),
    ]
    return plots.lines(series, level=("level", 0.5), title=HOSTILE, **more)


KINDS: dict[str, Callable[[], Any]] = {
    "heatmap": heat,
    "losses": lambda: heat(colours="loss", downwards=True),
    "texts": lambda: heat(texts=[[HOSTILE, "b"], ["c", "d"]]),
    "confusions": lambda: plots.confusions([EYE] * 3, [HOSTILE] * 3, ["a", HOSTILE], columns=2),
    "bars": bars,
    "sideways": lambda: bars(sideways=True, percent=True),
    "lines": lines,
    "logarithmic": lambda: lines(log_x=True, log_y=True, ticks={0.1: "0.1", 1.0: "1"}),
    "labelled": lambda: plots.lines([Series("a", (1.0, 2.0))], [HOSTILE, "b"]),
    "scatter": lambda: plots.scatter([CLOUD], diagonal=True),
    "forest": lambda: plots.forest(
        [HOSTILE, "b"],
        [
            Dots(HOSTILE, [0.5, None], [0.2, None], [0.8, None], small=[[0.4, 0.6], []]),
            Dots("joined", [0.5, 1.0], start=[0.0, 0.1]),
            Dots("hollow", [0.1, 0.2], symbol="circle-open"),
            Dots("tick", [0.1, 0.2], symbol="line-ns-open"),
        ],
        null=[[-0.1, 0.1], []],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_a_picture_and_a_drawing_that_no_text_breaks(kind, tmp_path):
    figure = KINDS[kind]()
    save_png([figure, figure], tmp_path / "f.png")
    head = (tmp_path / "f.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert 300 < width < 3000 and 200 < height < 4000
    text = str(figure.to_json())
    json.loads(text, parse_constant=pytest.fail)
    assert "<script" not in text and "\\u003cscript" not in text


def test_a_map_is_symmetric_about_zero_and_its_hover_exact():
    figure: Any = plots.heatmap(
        np.array([[0.5, NAN]]), ["3"], ["answer", "x"], row_title="layer", column_title="place",
        low=np.array([[0.25, NAN]]), high=np.array([[0.75, NAN]]), n=np.array([[12, 0]]),
    )  # fmt: skip
    trace = figure.data[0]
    assert -trace.zmin == trace.zmax == 0.5
    assert trace.customdata[0][0] == (
        "layer 3, place answer<br><b>+0.5000</b> (+0.250 to +0.750)<br>12 prompts"
    )
    assert trace.z[0][1] is None


def test_losses_are_drawn_by_their_powers_and_named_by_their_values():
    figure: Any = plots.heatmap(np.array([[0.1, 100.0]]), ["a"], ["b", "c"], colours="loss")
    trace = figure.data[0]
    assert list(trace.z[0]) == pytest.approx([-1, 2])
    assert list(trace.colorbar.ticktext) == ["0.1", "1", "10", "100"]
    assert "+100.0000" in trace.customdata[0][1]


def test_maps_that_are_to_be_compared_share_their_colours():
    small: Any = heat()
    large: Any = plots.heatmap(np.array([[3.0]]), ["a"], ["b"])
    plots.share_colours([small, large])
    assert [figure.data[0].zmax for figure in (small, large)] == [3.0, 3.0]


def test_a_large_map_keeps_its_size_and_names_its_last_column():
    values = np.random.default_rng(0).normal(size=(96, 400))
    figure: Any = plots.heatmap(values, [str(i) for i in range(96)], [str(i) for i in range(400)])
    assert figure.layout.height < 1000
    assert len(figure.layout.xaxis.tickvals) <= 49 and figure.layout.xaxis.tickvals[-1] == 399


def test_bars_of_several_groups_stand_on_each_other_in_the_picture(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn = []
    real = Axes.bar

    def bar(self, x, height, **style):
        drawn.append((list(height), list(style["bottom"])))
        return real(self, x, height, **style)

    monkeypatch.setattr(Axes, "bar", bar)
    series = [Series("a", (1.0, -1.0)), Series("b", (2.0, 3.0)), Series("c", (-1.0, -2.0))]
    save_png([plots.bars(series, ["x", "y"])], tmp_path / "bars.png")
    assert [bottom for _, bottom in drawn] == [[0, 0], [1, 0], [0, -1]]
