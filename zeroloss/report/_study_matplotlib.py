"""Static figures of a study."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from zeroloss.report._colors import BOX, LIMIT, MUTED, NOISES, TRAINING, lighten, save, stem
from zeroloss.report._numbers import greek, interval
from zeroloss.report._study_charts import (
    LADDERS,
    Ladder,
    Measured,
    Points,
    log_ticks,
    log_window,
    studies,
    tick_label,
)
from zeroloss.report._study_sentences import order_in_words, slope_in_words

OVERVIEW = "overview"

_DASHES = (0, (4, 2.5))
_DISTANCE = "#8a3d72"
_MARKERS = "osD^vPX"
_AXES = {
    "step size": r"step size α, in units of $1/\lambda_{\max}$",
    "sigma": "noise scale σ, relative to the largest",
}
_EXPONENTS = {
    "step size": r"exponent p, steps $\propto α^{-p}$",
    "sigma": r"exponent q, steps $\propto σ^{-q}$",
}
_HALF_BAR = 0.22


def write_study_figures(
    config: Mapping[str, Any], results: xr.DataTree, folder: Path, format: str = "png"
) -> list[Path]:
    """Draw a study into `folder` and return the files written.

    `overview` shows the steps and the exponents of all noises. Each noise that drifts then has a figure
    of its own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = studies(config, results)
    written = [save(_overview(config, found), folder / f"{OVERVIEW}.{format}")]
    taken = {OVERVIEW}
    for study in found:
        name = stem(study.noise, taken)
        if study.ladders:
            written.append(save(_one_noise(study), folder / f"{name}.{format}"))
    return written


def _overview(config: Mapping[str, Any], found: Sequence[Measured]) -> Figure:
    drifting = any(study.ladders for study in found)
    heights = [3.0, 0.6 + 0.44 * len(found)] if drifting else [0.6 + 0.44 * len(found)]
    figure = Figure(figsize=(9.6, sum(heights) + 1.1), layout="constrained")
    grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    for column, kind in enumerate(LADDERS):
        if drifting:
            _all_steps(grid[0, column], found, kind)
        _exponents(grid[-1, column], found, kind)
    grid[-1, 1].tick_params(labelleft=False)
    if drifting:
        grid[0, 0].set_ylabel("steps to the drift", fontsize=9.5)
    figure.suptitle(str(config.get("description", "")), fontsize=10, color=MUTED, parse_math=False)
    return figure


def _all_steps(axes: Axes, found: Sequence[Measured], kind: str) -> None:
    xs, ys = [], []
    for index, study in enumerate(found):
        ladder = study.ladder(kind)
        if ladder is None:
            continue
        x = ladder.step_sizes if kind == "step size" else ladder.x / ladder.x.max()
        color = NOISES[index % len(NOISES)]
        axes.plot(x, ladder.theory, color=color, linewidth=1.2, linestyle=_DASHES)
        marker = _MARKERS[index % len(_MARKERS)]
        axes.plot(x, ladder.steps, marker, color=color, markersize=5, label=study.noise.replace("$", r"\$"))
        xs, ys = [*xs, x], [*ys, ladder.theory, ladder.steps]
    if not xs:
        axes.set_axis_off()
        return
    _logarithmic(axes, log_window(*xs), log_window(*ys))
    axes.set_xlabel(_AXES[kind], fontsize=9.5)
    axes.legend(frameon=False, fontsize=8.5, title="dots: training; dashed: limit", title_fontsize=8.5)


def _exponents(axes: Axes, found: Sequence[Measured], kind: str) -> None:
    """Each noise's measured exponent with its interval, and a cross-bar where theory has it."""
    for index, study in enumerate(found):
        ladder = study.ladder(kind)
        exponent = None if ladder is None else ladder.exponent
        if exponent is None:
            words = "not fitted" if study.bound is None else "trivial: no drift"
            axes.annotate(
                words, (0.5, index), xycoords=("axes fraction", "data"), ha="center", va="center",
                fontsize=8.5, color=MUTED,
            )  # fmt: skip
            continue
        color = NOISES[index % len(NOISES)]
        if exponent.theory is not None:
            axes.plot(
                [exponent.theory] * 2, [index - _HALF_BAR, index + _HALF_BAR], color=LIMIT, linewidth=1.5
            )
        axes.errorbar(
            exponent.value, index, xerr=exponent.half_width, color=color,
            marker=_MARKERS[index % len(_MARKERS)], markersize=5, capsize=3, linewidth=1.5,
        )  # fmt: skip
        axes.annotate(
            interval(exponent.value, exponent.half_width), (exponent.value, index), (0, 9),
            textcoords="offset points", ha="center", va="bottom", fontsize=8, color=color, bbox=BOX, zorder=1,
        )  # fmt: skip
    axes.set_xlabel(f"{_EXPONENTS[kind]}; bar: theory", fontsize=9.5)
    axes.set_ylim(len(found) - 0.4, -0.75)
    axes.set_yticks(range(len(found)), [study.noise.replace("$", r"\$") for study in found])
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.7), max(high, 2.4))
    lighten(axes)


def _one_noise(study: Measured) -> Figure:
    columns = len(study.ladders)
    figure = Figure(figsize=(4.8 * columns, 7.4), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for column, ladder in enumerate(study.ladders):
        _draw_steps(grid[0, column], ladder)
        _draw_gap(grid[1, column], ladder)
        for axes in grid[:, column]:
            axes.set_xlabel(ladder.axis, fontsize=9.5)
    grid[0, 0].set_ylabel("steps to a fixed drift", fontsize=9.5)
    grid[1, 0].set_ylabel("from the limit", fontsize=9.5)
    kind = ", stochastic" if study.stochastic else ""
    scale = f", drift on {greek(study.time_scale)} steps" if study.time_scale else ""
    title = f"{study.noise}: {study.verdict_name}{kind}{scale}"
    figure.suptitle(title, fontweight="bold", fontsize=11.5, parse_math=False)
    return figure


def _draw_steps(axes: Axes, ladder: Ladder) -> None:
    points = ladder.steps_taken
    fitted, theory = slope_in_words(ladder)
    label = f"limit{theory.removeprefix('limit')}"
    if ladder.fitted_steps is not None:
        axes.plot(*ladder.fitted_steps, color=TRAINING, linewidth=1.2, label=fitted)
    axes.plot(ladder.x, ladder.theory, color=LIMIT, linewidth=1.5, linestyle=_DASHES, label=label)
    _bars(axes, points, TRAINING, "o", "training ± 2 s.e.")
    _logarithmic(axes, log_window(ladder.x), log_window(points.low, points.high, ladder.theory))
    axes.legend(frameon=False, fontsize=8.5)


def _draw_gap(axes: Axes, ladder: Ladder) -> None:
    gaps, distances = ladder.gaps, ladder.distances
    _bars(axes, distances, _DISTANCE, "s", f"distance of the {_moved(ladder)}")
    _bars(axes, gaps, TRAINING, "o", "gap |log(steps / steps of the limit)|")
    if ladder.fitted_gap is not None:
        axes.plot(*ladder.fitted_gap, color=TRAINING, linewidth=1.2, label=order_in_words(ladder))
    else:
        axes.plot([], [], " ", label=order_in_words(ladder))
    if not (gaps.resolved.all() and distances.resolved.all()):
        axes.plot(
            [], [], "v", color=MUTED, markerfacecolor="white", label="upper end of what is zero within 2 s.e."
        )
    window = log_window(gaps.low, gaps.high, distances.low, distances.high)
    _logarithmic(axes, log_window(ladder.x), window)
    # Below the panel, for the points may lie anywhere in it.
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _moved(ladder: Ladder) -> str:
    return "mean square displacement" if ladder.stochastic else "parameters"


def _bars(axes: Axes, points: Points, color: str, marker: str, label: str) -> None:
    """Dots with error bars; hollow triangles where there is only an upper end."""
    known, bounded = (Points(*(each[points.resolved == it] for each in points)) for it in (True, False))
    bars = np.stack([known.y - known.low, known.high - known.y])
    face, size = (color, 5) if marker == "o" else ("none", 8)  # two markers at one place are both seen
    axes.errorbar(
        known.x, known.y, bars, color=color, marker=marker, markersize=size, markerfacecolor=face,
        linestyle="none", capsize=2, linewidth=1.2, label=label,
    )  # fmt: skip
    axes.plot(bounded.x, bounded.y, "v", color=color, markerfacecolor="white", markersize=6)


def _logarithmic(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xscale="log", yscale="log", xlim=x, ylim=y)
    for axis, limits in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_locator(FixedLocator(log_ticks(*limits)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
    lighten(axes)
