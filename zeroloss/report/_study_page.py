"""The page of a study: for each noise its exponents, and how training approaches the limit."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from zeroloss.report import _html
from zeroloss.report._html import Page, asset, text
from zeroloss.report._numbers import greek, number
from zeroloss.report._sentences import unfinished
from zeroloss.report._study_charts import Measured, studies
from zeroloss.report._study_plotly import gap_legend, plot_gap, plot_steps, steps_legend
from zeroloss.report._study_sentences import HEAD, description, findings, order_in_words, table

_HINT = (
    "Both axes are logarithmic, so that a power law is a straight line. Hollow triangles mark what is zero "
    "within two standard errors, at the upper end of these."
)
_QUESTION = (
    "Does training with noise drift on the time scale that theory says, and does it approach the limit as "
    "step size and noise shrink?"
)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a study."""
    found = studies(config, results)
    strengths = config.get("strengths") or {}
    board = _html.Board()
    drawn = _figures(found, board)
    body = _html.body(
        headline=unfinished(config, results),
        cards=[
            _html.card(study.noise, study.verdict_name, findings(study, strengths), greek(study.verdict))
            for study in found
        ],
        table=_html.table(HEAD, table(found)),
        numbers="Exponents",
        heading="Ladders of step sizes and of noise",
        hint=_HINT,
        figures=drawn or "<p>No noise here makes training drift, so there is nothing to draw.</p>",
        more=_chosen(config, found),
        reading=asset("reading_study.html"),
    )
    title = text(config.get("problem", "a run"))
    return Page(title, "time scales and limits", _QUESTION, _setup(config, found), body, board.figures)


def _setup(config: Mapping[str, Any], found: Sequence[Measured]) -> str:
    parts = [text(config.get("description", ""))]
    drifting = [study for study in found if study.ladders]
    if drifting:
        parts.append("ladders of step sizes and of noise, trained to the same drift as the limit")
    parts.append(f"{number(sum(study.seconds for study in found), 2)} seconds in all")
    return " \u00b7 ".join(part for part in parts if part)


def _chosen(config: Mapping[str, Any], found: Sequence[Measured]) -> str:
    budget = config.get("budget")
    known = ""
    if isinstance(budget, int | float):
        known = f" of {budget:g} minute{'' if budget == 1 else 's'} for all noises"
    return (
        '<section aria-labelledby="chosen">\n<h2 id="chosen">What was chosen</h2>\n<p class="setup">Step '
        f"sizes, sigmas and numbers of runs were chosen so that the budget{text(known)} is kept as far as "
        "possible: the shortest ladders may take longer.</p>\n"
        + "\n".join(_choices(study) for study in found)
        + "\n</section>\n\n"
    )


def _choices(study: Measured) -> str:
    said = study.choices or ("Nothing had to be chosen.",)
    items = "".join(f"<li>{text(each)}</li>" for each in said)
    return f'<h3>{text(study.noise)}</h3><ul class="choices">{items}</ul>'


def _figures(found: Sequence[Measured], board: _html.Board) -> str:
    sections = []
    for study in found:
        if not study.ladders:
            continue
        for quantity, heading, draw, entries in (
            ("steps", "steps to a fixed drift", plot_steps, steps_legend()),
            ("gap", "how far training is from the limit", plot_gap, gap_legend(study.ladders)),
        ):
            drawn = []
            for ladder in study.ladders:
                said = description(ladder, quantity)
                weak = f"against {ladder.axis}" + (f"; {order_in_words(ladder)}" if quantity == "gap" else "")
                drawn.append(board.panel(study.noise, weak, said, draw(ladder)))
            sections.append(_html.section(f"{study.noise}: {heading}", entries, drawn))
    return "\n".join(sections)
