"""One figure of each kind: what the model holds is what both renderers draw."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from zeroloss.report._chart import (
    DARK,
    LIGHT,
    MOST_SERIES,
    Axis,
    Figure,
    Frames,
    HeatMap,
    Note,
    Panel,
    Series,
    Style,
    band,
    in_rows,
    log_ticks,
    marker_of_series,
    path,
    style_of_series,
    with_error,
)
from zeroloss.report._matplotlib import draw, save
from zeroloss.report._plotly import plot

X, Y = np.array([1.0, 2.0, 4.0]), np.array([3.0, np.nan, 5.0])
LINE, DOTS = Style("training", 2.5, "dash"), Style("limit").points("square-open", 8)
KINDS = {
    "line": Panel("a", "A line.", [Series(X, Y, LINE, "k", "%{y}", [X])], Axis("x", steps_per_unit=7.0)),
    "band": Panel("a", "A band.", with_error(Series(X, X, LINE, "k"), 0.1 * X)),
    "points": Panel("a", "Points.", [Series(X, X, DOTS, "k", low=X - 0.5, high=X + 0.25)]),
    "categories": Panel(
        "a", "Categories.", [Series(X - 1, X, DOTS, "k")], Axis.categorical("c", list("abcd"))
    ),
    "powers": Panel(
        "a", "Powers.", [Series(X, X**3, LINE, "k")], Axis.logarithmic("x", X), Axis("y", log=True)
    ),
    "heat map": Panel("a", "A matrix.", [HeatMap(np.array([[1.0, np.nan], [-2.0, 0.0]]), 2.0)]),
    "space": Panel("a", "Space.", [path(np.stack([X, X, X], axis=1), LINE, "k")]),
    "notes": Panel(
        "a", "Notes.", [Series(X, X, LINE, "k")], notes=[Note("$n^{$", "alarm", 3.0, in_data=True)]
    ),
    "frames": Panel("a", "Frames.", [Series(X, X, LINE, "k")], frames=Frames(0, ["0", "1"], np.ones((2, 3)))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_renderers_draw_every_kind(kind, tmp_path):
    figure = Figure("f", "F", [[KINDS[kind]]], {"k": "$k^{$"}, "$t_{$")
    pixels = imread(save(figure, tmp_path / f"{kind}.png"))[..., :3]
    assert (pixels.min(axis=-1) < 0.9).mean() > 0.005
    text = json.dumps(plot(KINDS[kind]), allow_nan=False)
    assert {role.split("/")[0].split('"')[0] for role in text.split('"@')[1:]} <= set(LIGHT)


def test_lines_and_gaps_are_the_same_in_both():
    (trace,) = plot(KINDS["line"])["data"]
    assert trace["x"] == X.tolist() and trace["y"] == [3.0, None, 5.0]
    assert trace["customdata"] == [[1.0], [2.0], [4.0]] and trace["legendgroup"] == "k"
    assert trace["line"] == {"color": "@training", "width": 2.5, "dash": "dash"}
    assert plot(KINDS["line"])["steps_per_unit"] == 7.0
    (line,) = draw(Figure("f", "F", [[KINDS["line"]]])).axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.stack([X, Y], axis=1))
    assert line.get_color() == LIGHT["training"]


def test_error_bars_and_bands():
    (trace,) = plot(KINDS["points"])["data"]
    assert trace["mode"] == "markers" and trace["marker"]["symbol"] == "square-open"
    assert trace["error_y"]["array"] == [0.25] * 3 and trace["error_y"]["arrayminus"] == [0.5] * 3
    area = band(X, np.array([0.0, np.nan, 1.0]), X, LINE.area(), "k")
    assert area.x.tolist() == [1.0, 4.0, 4.0, 1.0] and area.y.tolist() == [1.0, 4.0, 1.0, 0.0]
    assert plot(KINDS["band"])["data"][0]["fillcolor"] == "@training/0.22"


def test_axes():
    layout = plot(KINDS["powers"])["layout"]
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "log"
    low, high = KINDS["powers"].x.range
    np.testing.assert_allclose(layout["xaxis"]["range"], np.log10([low, high]))
    assert low < 1 and high > 4 and layout["xaxis"]["ticktext"] == [f"{v:g}" for v in KINDS["powers"].x.ticks]
    assert plot(KINDS["categories"])["layout"]["xaxis"]["ticktext"] == ["a", "b", "c", "d"]
    hostile = Axis.categorical("c", ["<b>bold</b>", "x" * 99])
    names = plot(Panel("a", "A.", [], hostile))["layout"]["xaxis"]["ticktext"]
    assert names[0] == "&lt;b&gt;bold&lt;/b&gt;" and len(names[1]) == 16


@pytest.mark.parametrize("ends", [(1.0, 1.5), (0.02, 0.3), (1e-3, 0.1), (200, 2e5), (1e-9, 1e7)])
def test_ticks_of_logarithmic_axes(ends):
    ticks = log_ticks(*ends)
    assert 2 <= len(ticks) <= 5
    assert ends[0] <= min(ticks) and max(ticks) <= ends[1]


def test_rows_and_roles():
    panels = [KINDS["line"]] * 5
    assert [len(row) for row in in_rows(panels, 3)] == [3, 2] and in_rows([]) == []
    assert set(LIGHT) == set(DARK)
    styles = [style_of_series(index) for index in range(MOST_SERIES)]
    assert {style.color for style in styles} <= set(LIGHT) and len(set(styles)) == MOST_SERIES
    assert len({marker_of_series(index) for index in range(MOST_SERIES)}) == MOST_SERIES
