"""The page of a comparison: for each noise the verdict, and for each quantity limit and training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import xarray as xr

from zeroloss.report import _html
from zeroloss.report._charts import DISTANCE, Panel, panels, table_rows, time_axis, windows
from zeroloss.report._colors import DARK, LIGHT, rendered
from zeroloss.report._figures import PORTRAIT
from zeroloss.report._html import Page, asset, text
from zeroloss.report._labels import verdict_in_words
from zeroloss.report._numbers import greek
from zeroloss.report._plotly import description, legend_entries, plot
from zeroloss.report._plotly_zero_sets import scenes
from zeroloss.report._sentences import grouped, headline, table, unfinished, verdict
from zeroloss.report._zero_set_pictures import portraits
from zeroloss.runs._geometry import FUNCTION, SET, SPECTRUM

_QUESTION = (
    "What does the noise in a training recipe do once the loss is zero: where does training drift, how fast, "
    "and does the limiting dynamics say so without running it?"
)
_STOCHASTIC = (
    "<p>Where the limit is <em>stochastic</em> no single path is the limit: training and limit are two "
    "ensembles, to be compared in their means and in how wide they are. Shaded is where the middle 90 % and, "
    "darker, the middle 50 % of the limit's paths lie; the thin lines are the same quantiles of the training "
    "runs, which few runs know only roughly. The spread is the standard deviation at the end.</p>\n"
)
_HINT = (
    "The panels of one quantity share their scale, except for Reg, which is another function for each noise, "
    "and the loss."
)
_THEMES = {
    "dark wide": DARK,
    "light narrow": LIGHT._replace(narrow=True),
    "dark narrow": DARK._replace(narrow=True),
}
_Row = Mapping[str, Any]


def page(config: Mapping[str, Any], results: xr.DataTree, figures: Path) -> Page:
    """The page of a comparison whose PNG figures are in the folder `figures`."""
    rows, shown = table_rows(results), panels(results)
    strengths = config.get("strengths") or {}
    board, noises = _html.Board(), [row["noise"] for row in rows]
    stochastic = _STOCHASTIC if any(row.get("stochastic") for row in rows) else ""
    said = [headline(rows, [time_axis(row) for row in rows], strengths), unfinished(config, results)]
    drawn = [
        scenes(noises, results, board, (SET, FUNCTION)),
        _figures(rows, shown, board),
        scenes(noises, results, board, (SPECTRUM,)),
    ]
    body = _html.body(
        headline=" ".join(filter(None, said)),
        picture=_portrait(config, results, figures),
        cards=[
            _html.card(
                row["noise"],
                row["verdict_name"],
                verdict(row, time_axis(row), strengths),
                greek(row.get("verdict") or ""),
            )
            for row in rows
        ],
        table=_html.grouped_table(noises, grouped(table(rows))),
        heading="Limit, prediction and training",
        hint=_HINT if len(rows) > 1 else "",
        figures="\n".join([_html.clock(board), *drawn]),
        reading=Template(asset("reading_comparison.html")).substitute(stochastic=stochastic),
    )
    title = text(config.get("problem", "a run"))
    return Page(title, "what noise does at zero loss", _QUESTION, _setup(config, rows), body, board.figures)


def _setup(config: Mapping[str, Any], rows: Sequence[_Row]) -> str:
    parts = [text(config.get("description", ""))]
    relative = {row.get("step_size_relative") for row in rows} - {None}
    if len(relative) == 1:
        parts.append(f"step size {relative.pop():.3g} / \u03bb<sub>max</sub>")
    replicas = {row.get("replicas") for row in rows} - {None}
    if len(replicas) == 1:
        parts.append(f"{replicas.pop():.0f} training runs for each noise")
    return " \u00b7 ".join(part for part in parts if part)


def _portrait(config: Mapping[str, Any], results: xr.DataTree, figures: Path) -> str:
    """The picture of the run, drawn again for dark screens and for narrow ones."""
    path = figures / f"{PORTRAIT}.png"
    if not path.is_file():
        return ""
    problem = config.get("problem", "the problem")
    drawn = portraits(config, results, list(_THEMES.values()))
    pngs = {
        name: rendered(figure, theme=theme)
        for (name, theme), figure in zip(_THEMES.items(), drawn, strict=bool(drawn))
    }
    pngs = {"light wide": path.read_bytes()} | pngs
    return _html.picture(pngs, f"What noise does to {problem}, from the start to the end")


def _figures(rows: Sequence[_Row], shown: Mapping[str, Sequence[Panel]], board: _html.Board) -> str:
    verdicts = {row["noise"]: verdict_in_words(row) for row in rows}
    sections = []
    for quantity in shown.values():
        drawn = [
            board.panel(
                panel.noise, verdicts[panel.noise] + _unit(panel), description(panel), plot(panel, limits)
            )
            for panel, limits in zip(quantity, windows(quantity), strict=True)
        ]
        label = next((panel.label for panel in quantity if not _unit(panel)), quantity[0].label)
        sections.append(_html.section(label[:1].upper() + label[1:], legend_entries(quantity), drawn))
    return "\n".join(sections)


def _unit(panel: Panel) -> str:
    return ", relative to |w|" if panel.quantity == DISTANCE and panel.label.endswith("|w|") else ""
