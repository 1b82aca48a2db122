"""Static figures of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from zeroloss.report._charts import DISTANCE, Panel, panels, table_rows, window, windows
from zeroloss.report._colors import (
    ALARM,
    BOX,
    LIMIT,
    MUTED,
    PREDICTION,
    THOUSANDS,
    TRAINING,
    lighten,
    save,
    stem,
)
from zeroloss.report._labels import verdict_in_words
from zeroloss.report._numbers import greek
from zeroloss.report._zero_set_pictures import portrait

OVERVIEW, PORTRAIT = "overview", "portrait"

_COLUMNS = 3
_STEPS = [1, 2, 2.5, 5, 10]
_DASHES = (0, (4, 2.5))
_WIDE, _NARROW = 0.09, 0.13  # how dark the quantiles of a stochastic limit are

_Row = Mapping[str, Any]
_Panels = Sequence[Panel]


def write_figures(
    config: Mapping[str, Any], results: xr.DataTree, folder: Path, format: str = "png"
) -> list[Path]:
    """Draw a run into `folder` and return the files written.

    `overview` shows the trace of the Hessian, and the test error where there is one, for all noises
    side by side. Each noise then has a figure of its own, with every quantity and the distance. Where the
    problem has a portrait, it is `portrait`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown, rows = panels(results), table_rows(results)
    written = [save(_overview(config, rows, shown), folder / f"{OVERVIEW}.{format}")]
    drawn = portrait(config, results)
    if drawn is not None:
        written.append(save(drawn, folder / f"{PORTRAIT}.{format}"))
    taken = {OVERVIEW, PORTRAIT}
    for row in rows:
        own = [panel for each in shown.values() for panel in each if panel.noise == row["noise"]]
        written.append(save(_one_noise(row, own), folder / f"{stem(row['noise'], taken)}.{format}"))
    return written


def _overview(config: Mapping[str, Any], rows: Sequence[_Row], shown: Mapping[str, _Panels]) -> Figure:
    chosen = [shown[name] for name in ("hessian_trace", "test_error") if name in shown]
    # One block of panels below the other, of at most so many noises side by side; a single noise
    # has its quantities side by side instead.
    columns = -(-len(rows) // -(-len(rows) // _COLUMNS)) if len(rows) > 1 else len(chosen)
    blocks = -(-len(rows) // columns)
    lines = blocks * len(chosen) if len(rows) > 1 else 1
    figure = Figure(figsize=(max(3.5 * columns, 6.0), 2.35 * lines + 1.7), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for line, quantity in enumerate(chosen):
        for index, (panel, limits) in enumerate(zip(quantity, windows(quantity), strict=True)):
            block, column = divmod(index, columns) if len(rows) > 1 else (0, line)
            axes = grid[block * len(chosen) + line if len(rows) > 1 else 0, column]
            _draw(axes, panel, limits)
            if line == 0 or len(rows) == 1:
                _steps_on_top(axes, panel)
            if line == 0:
                _head(axes, rows[index])
            if line + 1 < len(chosen) and len(rows) > 1:
                axes.set_xlabel("")
            if column > 0 and len(rows) > 1:
                axes.set_ylabel("")
                axes.tick_params(labelleft=False)
    _legend(figure, chosen[0])
    figure.suptitle(str(config.get("description", "")), fontsize=10, color=MUTED, parse_math=False)
    return figure


def _one_noise(row: _Row, own: _Panels) -> Figure:
    columns = min(len(own), 2)
    lines = -(-len(own) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(own) :]:
        axes.set_visible(False)
    for index, (axes, panel) in enumerate(zip(grid.flat, own, strict=False)):
        _draw(axes, panel, window([panel]))
        if index < columns:
            _steps_on_top(axes, panel)
        if panel.quantity == DISTANCE and panel.constant is None:
            axes.legend(frameon=False, fontsize=8.5)
    _legend(figure, own[:1])
    scale = f", drift on {greek(row['time_scale'])} steps" if row["time_scale"] else ""
    title = f"{row['noise']}: {verdict_in_words(row)}{scale}"
    figure.suptitle(title, fontweight="bold", fontsize=11.5, parse_math=False)
    return figure


def _draw(axes: Axes, panel: Panel, limits: tuple[float, float]) -> None:
    axes.set_visible(True)
    training, reference = panel.training, panel.reference
    if reference.quantiles is not None:
        lowest, low, high, highest = reference.quantiles
        axes.fill_between(reference.x, lowest, highest, color=LIMIT, alpha=_WIDE, linewidth=0)
        axes.fill_between(reference.x, low, high, color=LIMIT, alpha=_NARROW, linewidth=0)
    for curve, color in ((reference, LIMIT), (training, TRAINING)):
        if curve.error is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.25, linewidth=0)
    for index, each in enumerate(() if training.quantiles is None else training.quantiles):
        line = ":" if index in (0, 3) else "-"
        axes.plot(training.x, each, color=TRAINING, linewidth=0.9, linestyle=line)
    dashes, color = (_DASHES, LIMIT) if panel.quantity != DISTANCE else (":", MUTED)
    axes.plot(training.x, training.y, color=TRAINING, linewidth=2.2, label=training.name)
    axes.plot(reference.x, reference.y, color=color, linewidth=1.5, linestyle=dashes, label=reference.name)
    if panel.prediction is not None:
        x, y, name = panel.prediction.x, panel.prediction.y, panel.prediction.name
        axes.plot(x, y, color=PREDICTION, linewidth=1.7, linestyle="-.", label=name)
    axes.set_ylim(limits)
    axes.set_xlim(0, panel.end)
    axes.set_xlabel(panel.axis.title, fontsize=9.5)
    axes.set_ylabel(panel.label, fontsize=9.5, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    if not panel.axis.slow:
        axes.xaxis.set_major_formatter(THOUSANDS)
    lighten(axes)
    if panel.constant is not None:
        below = panel.constant > sum(limits) / 2
        axes.annotate(
            panel.constant_in_words, (0.97, panel.constant), (0, -8 if below else 8),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="top" if below else "bottom", fontsize=9, color=MUTED, bbox=BOX,
        )  # fmt: skip
    if panel.diverged is not None:
        axes.axvline(panel.diverged, color=ALARM, linewidth=1.5, linestyle="-.")
        axes.annotate(
            "training diverged", (0.97, 0.95), xycoords="axes fraction", ha="right", va="top",
            fontsize=9, color=ALARM, bbox=BOX,
        )  # fmt: skip


def _head(axes: Axes, row: _Row) -> None:
    # Above the axis of training steps, whether a panel has one or not.
    axes.set_title(
        row["noise"], y=1.0, pad=45, fontweight="bold", parse_math=False,
        fontsize=11 if len(row["noise"]) < 30 else 8.5,
    )  # fmt: skip
    axes.annotate(
        verdict_in_words(row), (0.5, 1.0), (0, 31), xycoords="axes fraction", textcoords="offset points",
        ha="center", fontsize=9.5, color=MUTED, parse_math=False,
    )  # fmt: skip


def _steps_on_top(axes: Axes, panel: Panel) -> None:
    unit = panel.axis.steps_per_unit
    if not panel.axis.slow:
        return

    def steps(t: Any) -> Any:
        return t * unit

    def slow_time(k: Any) -> Any:
        return k / unit

    top = axes.secondary_xaxis("top", functions=(steps, slow_time))
    top.set_xlabel("training steps k", fontsize=8.5, color=MUTED)
    top.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    top.xaxis.set_major_formatter(THOUSANDS)
    top.tick_params(labelsize=8, color=MUTED, labelcolor=MUTED)
    top.spines["top"].set_color(MUTED)


def _legend(figure: Figure, shown: Sequence[Panel]) -> None:
    panel = shown[0]
    spread = next((each.reference for each in shown if each.stochastic), None)
    error = " ± 2 s.e." if panel.training.error is not None else ""
    limit = "limit"
    if spread is not None:
        alone = all(each.stochastic for each in shown)
        limit = f"limit, {'' if alone else 'or '}mean of {spread.members} paths ± 2 s.e."
    handles: list[Any] = [
        Line2D([], [], color=TRAINING, linewidth=2.2, label=panel.training.name + error),
        Line2D([], [], color=LIMIT, linewidth=1.5, linestyle=_DASHES, label=limit),
    ]
    if any(each.prediction is not None for each in shown):
        line = Line2D([], [], color=PREDICTION, linewidth=1.7, linestyle="-.", label="prediction")
        handles.append(line)
    if spread is not None:
        handles += [
            Line2D([], [], color=TRAINING, linewidth=0.8, label="5, 25, 75, 95 % of runs"),
            Patch(color=LIMIT, alpha=_WIDE, linewidth=0, label="limit, 5 to 95 %"),
            Patch(color=LIMIT, alpha=_WIDE + _NARROW, linewidth=0, label="limit, 25 to 75 %"),
        ]
    columns = len(handles) if spread is None else 3 if figure.get_figwidth() > 8 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
