"""The page of a sweep: small multiples of every quantity over the grid, and all cells in a table."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from zeroloss.report import _html
from zeroloss.report._html import Page, text
from zeroloss.report._labels import unused
from zeroloss.report._line_charts import sections
from zeroloss.report._sweep_charts import SEED, cell_table, failures, groups, layout, left_out
from zeroloss.report._trajectory_charts import WORDS

_QUESTION = "What does the noise do over a grid of recipes?"
_MOST_ROWS = 1000
_MOST_FAILURES = 50
_READING = {
    "compare": "Every dot with an error bar is where the training runs of a cell end: their mean, with two "
    "standard errors. The solid line is the prediction for that very step size and noise, the dashed line "
    "the limit as both go to zero. Where a line would mean nothing, as between noises, crosses or diamonds "
    "are the prediction, and hollow or black dots the limit.",
    "study": "Every dot is what the study of a cell measured, with its 95 % interval; or the mean over "
    "seeds, with two standard errors.",
}
_READING_PATHS = (
    "Every dot is where the {} of a cell ends; of several runs, or seeds, the mean with two standard errors."
)
_READING_CELLS = (
    "Each cell of the grid is a run in a folder of its own, in the folder cells beside this page: zeroloss "
    "report makes a page of it, and zeroloss report of several, but studies, compares them."
)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a sweep."""
    table, board = results.to_dataset().load(), _html.Board()
    cell: Mapping[str, Any] = config.get("cell") or {}
    command = str(cell.get("command", "runs"))
    reading = _READING.get(command, _READING_PATHS.format(WORDS.get(command)))
    statuses = table["status"].values.ravel().astype(str)
    complete = int((statuses == "complete").sum())
    head, lines = cell_table(table)
    failed, more = failures(table), left_out(table)
    cards = [
        _html.card(
            f"{complete} of {len(statuses)} cells are complete",
            "",
            [_axes(config), *_seeds(table)],
            "" if complete == len(statuses) else "zeroloss resume goes on with the others.",
        ),
        *(_html.card(name, "failed", [reason], "") for name, reason in failed[:_MOST_FAILURES]),
    ]
    if len(failed) > _MOST_FAILURES:
        cards.append(_html.card(f"... and {len(failed) - _MOST_FAILURES} more cells", "failed", [], ""))
    body = _html.body(
        cards=cards,
        table=_html.table(head, lines[:_MOST_ROWS]),
        numbers="Cells"
        if len(lines) <= _MOST_ROWS
        else f"The first {_MOST_ROWS} of {len(lines)} rows of the cells",
        hint=f"The first panels; those of {more:,} more places are in the cells' own pages." if more else "",
        heading=f"Over {layout(table).across}",
        figures=sections(groups(table), board) or "<p>No cell is complete, so there is nothing to draw.</p>",
        reading=_html.paragraphs([reading, _READING_CELLS]),
    )
    title = text(cell.get("problem", "a sweep"))
    return Page(
        title,
        f"a sweep of {text(command)}",
        _QUESTION,
        _setup(config, table),
        body,
        board.figures,
    )


def _axes(config: Mapping[str, Any]) -> str:
    grid: Mapping[str, Any] = config.get("grid") or {}
    parts = [f"{axis} ({len(values)})" for axis, values in grid.items()]
    return f"The axes, and how many values each has: {', '.join(parts)}."


def _seeds(table: xr.Dataset) -> list[str]:
    if table.sizes.get(SEED, 1) == 1:
        return []
    return [f"What is drawn is the mean over {table.sizes[SEED]} seeds, with the standard error of that."]


def _setup(config: Mapping[str, Any], table: xr.Dataset) -> str:
    cell: Mapping[str, Any] = config.get("cell") or {}
    grid = config.get("grid") or {}
    stochastic = "stochastic" in table and bool((table["stochastic"].values == 1).any())
    hidden = {*grid, *unused({**cell, **grid}, stochastic=stochastic)}
    named = ("noise", "step_size", "steps", "horizon", "replicas", "momentum", "weight_decay")
    parts = []
    for name in named:
        value = cell.get(name)
        if value and name not in hidden:
            parts.append(f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}")
    return text(" · ".join(parts))
