"""A study: the figures of its ladders, and its page."""

# ruff: noqa: RUF001  # Greek letters are meant

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.report import _sentences
from zeroloss.report._chart import (
    LIMIT,
    MOST_SERIES,
    TRAINING,
    Axis,
    Figure,
    Note,
    Panel,
    Series,
    Style,
    marker_of_series,
    style_of_series,
)
from zeroloss.report._ladders import KINDS, Ladder, NoiseStudy, Points, studies
from zeroloss.report._page import Card, Page, Section, Table
from zeroloss.report._text import greek, interval, joined, number

_FIT, _DOTS = replace(TRAINING, width=1.6), TRAINING.points(size=8)
_DISTANCE = Style("degenerate").points("square-open", 10)
_BOUND = "triangle-down-open"
_AXES = {"step size": "step size α, relative to 1 / λ_max", "sigma": "noise scale σ / largest"}
_EXPONENTS = {"step size": "exponent p, steps ∝ α^-p", "sigma": "exponent q, steps ∝ σ^-q"}
_STEPS_LEGEND = {
    "points": "training ± 2 standard errors",
    "fit": "power law of the fitted slope",
    "limit": "steps of the limit",
}
_GAP_LEGEND = {
    "gap": "gap |log(steps / steps of the limit)|",
    "fitted gap": "remainder + constant × power",
    "distance": "distance of the {} from the limit's",
    "bound": "upper end of values that are zero within 2 standard errors",
}
_HINT = (
    "Both axes are logarithmic, so that a power law is a straight line. Hollow triangles mark values "
    "that are zero within two standard errors, at the upper end of these."
)


def steps_panel(ladder: Ladder) -> Panel:
    """Steps to the drift along a ladder, with the fitted power law and the limit's."""
    points, (fitted, theory) = ladder.measured_steps, _sentences.slopes(ladder)
    series = [] if ladder.fitted_steps is None else [Series(*ladder.fitted_steps, _FIT, "fit")]
    series.append(Series(ladder.x, ladder.theory, LIMIT, "limit", "limit %{y:,.0f} steps"))
    series += _dots(points, ladder, _DOTS, "points", "%{y:,.0f} steps")
    notes = [Note(fitted, "training", 0.03, left=True, below=False), Note(theory, "limit", 0.97)]
    return Panel(
        ladder.noise, _description(ladder, "Steps to the drift", points, fitted, theory), series,
        Axis.logarithmic(ladder.label, ladder.x),
        Axis.logarithmic("steps to a fixed drift", points.low, points.high, ladder.theory),
        f"against {ladder.label}", [note for note in notes if note.text],
    )  # fmt: skip


def gap_panel(ladder: Ladder) -> Panel:
    """The distance of training from the limit along a ladder: in steps, and in the space of parameters."""
    gaps, distances, order = ladder.gaps, ladder.distances, _sentences.order_of_approach(ladder)
    series = [] if ladder.fitted_gap is None else [Series(*ladder.fitted_gap, _FIT, "fitted gap")]
    series += _dots(distances, ladder, _DISTANCE, "distance", "distance %{y:.2~g}")
    series += _dots(gaps, ladder, _DOTS, "gap", "gap %{y:.2~g}")
    return Panel(
        ladder.noise, _description(ladder, "Gap to the limit", gaps, order), series,
        Axis.logarithmic(ladder.label, ladder.x),
        Axis.logarithmic("from the limit", gaps.low, gaps.high, distances.low, distances.high),
        f"against {ladder.label}; {order}",
    )  # fmt: skip


def _dots(points: Points, ladder: Ladder, style: Style, key: str, value: str) -> list[Series]:
    """Dots with error bars, and hollow triangles where only an upper end is known."""
    resolved, bounds = points.only(points.resolved), points.only(~points.resolved)
    at, below = f"{ladder.symbol} = %{{x:.3~g}}<br>", value.replace("%", "below %", 1)
    ends = [np.array([f"{value:,.3g}" for value in each]) for each in (resolved.low, resolved.high)]
    hover = f"{at}{value}, %{{customdata[0]}} to %{{customdata[1]}}"
    found = [
        Series(resolved.x, resolved.y, style, key, hover, ends, resolved.low, resolved.high),
        Series(bounds.x, bounds.y, style.points(_BOUND, 9), "bound", at + below),
    ]
    return [each for each in found if each.x.size]


def _description(ladder: Ladder, quantity: str, points: Points, *facts: str) -> str:
    if not points.x.size:
        return f"{quantity} under {ladder.noise}: nothing was measured."
    first, last = (f"{number(float(points.y[i]))} at {number(float(points.x[i]))}" for i in (0, -1))
    text = f"{quantity} under {ladder.noise} against {ladder.label}: from {first} to {last}"
    return joined([text, *facts], "; ") + "."


def _figures_of(study: NoiseStudy) -> list[Figure]:
    """Steps, and distances from the limit, of one noise."""
    steps, gaps = ([draw(each) for each in study.ladders] for draw in (steps_panel, gap_panel))
    moved = "mean square displacement" if study.stochastic else "parameters"
    texts = {key: text.format(moved) for key, text in _GAP_LEGEND.items()}
    return [
        Figure("steps", f"{study.noise}: steps to a fixed drift", [steps], _STEPS_LEGEND),
        Figure("gap", f"{study.noise}: how far training is from the limit", [gaps], texts),
    ]


def figures(config: Mapping[str, Any], results: xr.DataTree) -> list[Figure]:
    """The figures of the files: steps and exponents of all noises, then one figure for each that drifts."""
    found = studies(config, results)
    drifting = [study for study in found if study.ladders]
    overviews = [_all_steps, _exponents] if drifting else [_exponents]
    rows = [[draw(found, kind) for kind in KINDS] for draw in overviews]
    texts = {f"series-{index}": study.noise for index, study in enumerate(found)}
    drawn = [Figure("overview", "", rows, texts, str(config.get("description", "")))]
    for study in drifting:
        own = _figures_of(study)
        stochastic = ", stochastic" if study.stochastic else ""
        scale = f", drift on {greek(study.time_scale)} steps" if study.time_scale else ""
        title = f"{study.noise}: {study.verdict_name}{stochastic}{scale}"
        rows = [[replace(panel, title="") for panel in figure.panels] for figure in own]
        drawn.append(Figure(study.noise, "", rows, {**own[0].texts, **own[1].texts}, title))
    return drawn


def _style_of(index: int) -> Style:
    index %= MOST_SERIES
    return style_of_series(index).points(marker_of_series(index))


def _all_steps(found: Sequence[NoiseStudy], kind: str) -> Panel:
    """Steps of all noises along the ladders of one kind; lines are those of the limit."""
    series = []
    for index, study in enumerate(found):
        if ladder := study.ladder(kind):
            style, key = _style_of(index), f"series-{index}"
            theory = replace(style, width=1.6, dash="dash", marker="")
            series.append(Series(ladder.relative, ladder.theory, theory, key))
            series.append(Series(ladder.relative, ladder.steps, style, key))
    x = Axis.logarithmic(_AXES[kind], np.array([]), *(each.x for each in series))
    y = Axis.logarithmic("steps to the drift", np.array([]), *(each.y for each in series))
    return Panel("", f"Steps to the drift against {kind}.", series, x, y)


def _exponents(found: Sequence[NoiseStudy], kind: str) -> Panel:
    """Each noise's measured exponent with its interval, and a line where theory has it."""
    series, names, ends = [], [], [0.7, 2.4]
    for index, study in enumerate(found):
        ladder = study.ladder(kind)
        exponent = None if ladder is None else ladder.exponent
        if exponent is None:
            names.append(f"{study.noise}\n{'not fitted' if study.bound is None else 'trivial: no drift'}")
            continue
        names.append(f"{study.noise}\n{interval(exponent.value, exponent.half_width)}")
        if exponent.theory is not None:
            around = index + np.array([-0.3, 0.3])
            series.append(Series(around, np.full(2, exponent.theory), LIMIT, "limit"))
        at, value, half = (np.array([float(v)]) for v in (index, exponent.value, exponent.half_width))
        low, high = value - half, value + half
        series.append(Series(at, value, _style_of(index), f"series-{index}", low=low, high=high))
        ends += [float(low[0]) - 0.1, float(high[0]) + 0.1]
    y = Axis(_EXPONENTS[kind], (min(ends), max(ends)))
    return Panel("", f"Exponents of the {kind}.", series, Axis.categorical("", names), y)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a study."""
    found, budget = studies(config, results), config.get("budget")
    strengths = config.get("strengths") or {}
    known = ""
    if isinstance(budget, int | float):
        known = f" of {budget:g} minute{'' if budget == 1 else 's'} for all noises"
    drifting = any(study.ladders for study in found)
    ladders = "ladders of step sizes and noise, trained to the same drift as the limit" if drifting else ""
    seconds = f"{number(sum(study.seconds for study in found), 2)} seconds in all"
    return Page(
        kind="study",
        title=f"{config.get('problem', 'a run')}: time scales and limits",
        setup=joined([str(config.get("description", "")), ladders, seconds]),
        headline=_sentences.unfinished(config, results),
        cards=[
            Card(study.noise, study.verdict_name, _sentences.study(study, strengths), greek(study.verdict))
            for study in found
        ],
        table=Table("Exponents", _sentences.STUDY_HEAD, [("", _sentences.study_table(found))]),
        heading="Ladders of step sizes and of noise",
        hint=_HINT,
        figures=[figure for study in found if study.ladders for figure in _figures_of(study)],
        nothing="No noise here makes training drift, so there is nothing to draw.",
        more=Section(
            "How step sizes, sigmas and numbers of runs were chosen",
            f"They were chosen so that the budget{known} is kept as far as possible: the shortest ladders "
            "may take longer.",
            [(study.noise, study.choices or ("Nothing had to be chosen.",)) for study in found],
        ),
    )
