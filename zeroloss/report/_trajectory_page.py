"""The page of a run that follows one path for each noise."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

from collections.abc import Mapping
from typing import Any

import xarray as xr

from zeroloss.report import _html
from zeroloss.report._html import Page, text
from zeroloss.report._line_charts import sections
from zeroloss.report._numbers import greek
from zeroloss.report._plotly_zero_sets import scenes
from zeroloss.report._sentences import unfinished
from zeroloss.report._trajectory_charts import WORDS, groups, paths, sentences, table
from zeroloss.runs._geometry import FUNCTION, SET, SPECTRUM

_QUESTIONS = {
    "descend": "Where does training with noise go once the loss is zero?",
    "predict": "Where does training with noise go, at its own step size and noise, without running it?",
    "limit": "Where does training with noise tend to, as step size and noise go to zero?",
}
_REG = (
    "Reg is what the noise adds to the loss on average, to leading order and divided by σ², the variance of "
    "the noise."
)
_READING = {
    "descend": f"Training starts on the set of zero loss and takes step after step with noise. {_REG}",
    "predict": "The mean of training at this very step size and noise, computed without training; how far it "
    f"expects to be off is part of it. {_REG}",
    "limit": "What training tends to as the step size α and the scale σ of the noise go to zero, in slow "
    f"time: after k steps ασ²k where the noise is non-degenerate, α²σ²k where it is degenerate. {_REG}",
}


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a training, a prediction, or a limit."""
    command, board = str(config["command"]), _html.Board()
    every, (head, lines) = paths(results), table(results)
    cards = [
        _html.card(
            noise,
            path.attrs.get("verdict_name", ""),
            sentences(config, noise, path),
            greek(str(path.attrs.get("verdict", ""))),
        )
        for noise, path in every.items()
    ]
    noises = list(every)
    drawn = [
        scenes(noises, results, board, (SET, FUNCTION), WORDS[command]),
        sections(groups(config, results), board),
        scenes(noises, results, board, (SPECTRUM,), WORDS[command]),
    ]
    body = _html.body(
        headline=unfinished(config, results),
        cards=cards,
        table=_html.table(head, lines),
        heading=f"{WORDS[command].capitalize()} for each noise",
        figures="\n".join(drawn),
        reading=_html.paragraphs([_READING[command]]),
    )
    title = text(config.get("problem", "a run"))
    return Page(title, WORDS[command], _QUESTIONS[command], _setup(config), body, board.figures)


def _setup(config: Mapping[str, Any]) -> str:
    parts = [str(config.get("description", ""))]
    if "step_size" in config:
        parts.append(f"step size {config['step_size']:.3g} / λ_max")
    if config.get("momentum"):
        parts.append(f"momentum {config['momentum']:g}")
    if config.get("weight_decay"):
        parts.append(f"weight decay {config['weight_decay']:g}")
    return text(" · ".join(part for part in parts if part))
