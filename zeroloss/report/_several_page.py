"""A page that compares runs: each with a letter and a colour, over the same axes."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import xarray as xr

from zeroloss.errors import InputError
from zeroloss.report import _html
from zeroloss.report._html import Entry, Page
from zeroloss.report._labels import label_of, sentence_start, unused
from zeroloss.report._line_charts import MOST_SERIES, Chart, Group, Line, sections
from zeroloss.report._numbers import MISSING, greek, in_table, number, steps_in_words
from zeroloss.report._sentences import unfinished
from zeroloss.report._trajectory_charts import WORDS, over_time
from zeroloss.runs import ends, noises_of
from zeroloss.runs._table import over_replicas

_QUESTION = "How do these runs differ?"
_READING = (
    "Every run has a letter and a colour. The lines are means over an ensemble, with two standard errors; a "
    "dashed line of the same colour is the limit that a comparison followed, at the steps that its step size "
    "and noise need to get there.",
)
_FIELDS = (
    "command", "problem", "options", "noise", "step_size", "steps", "horizon", "replicas", "seed", "momentum",
    "nesterov", "weight_decay",
)  # fmt: skip


class Told(NamedTuple):
    """One of the runs: its name, config and results."""

    name: str
    config: Mapping[str, Any]
    results: xr.DataTree


def page(runs: Sequence[Told]) -> Page:
    """The page of at least two runs, of at most seven. Raises `InputError` for more, studies, and sweeps."""
    if len(runs) > MOST_SERIES:
        raise InputError(f"at most {MOST_SERIES} runs can be told apart on a page, got {len(runs)}.")
    for run in runs:
        if run.config.get("command") not in ("compare", *WORDS):
            raise InputError(
                f"{run.name} is a {run.config.get('command')}: only runs along paths can be compared."
            )
    board = _html.Board()
    cards = [
        _html.card(f"{letter}: {run.name}", "", _sentences(run), "")
        for letter, run in zip(string.ascii_uppercase, runs, strict=False)
    ]
    body = _html.body(
        cards=cards,
        table=_html.table([_lettered(index, run) for index, run in enumerate(runs)], _table(runs)),
        heading="Side by side",
        figures=sections(groups(runs), board) or "<p>There is nothing that these runs have in common.</p>",
        reading=_html.paragraphs(_READING),
    )
    problems = list(dict.fromkeys(str(run.config.get("problem", "a run")) for run in runs))
    return Page(
        _html.text(", ".join(problems)), f"{len(runs)} runs", _QUESTION, "", body, board.figures
    )  # fmt: skip


def groups(runs: Sequence[Told]) -> list[Group]:
    """A group for each quantity, with a chart for each noise and unit of time, and a line for each run."""
    charts: dict[str, dict[tuple[str, str], list[Line]]] = {}
    for index, run in enumerate(runs):
        for noise in noises_of(run.results):
            for path, style in _paths(run, noise):
                units = str(path["time"].attrs.get("units", ""))
                for quantity in ends(path):
                    lines = charts.setdefault(quantity, {}).setdefault((noise, units), [])
                    lines.append(_line(path, quantity, f"series-{index}{style}", f"series-{index}", index))
    entries = [
        Entry(f"series-{index}", f"series s{index}", _lettered(index, run)) for index, run in enumerate(runs)
    ]
    found = []
    for quantity, panels in charts.items():
        drawn = [_chart(quantity, noise, units, lines) for (noise, units), lines in panels.items()]
        used = {line.button for chart in drawn for line in chart.lines}
        found.append(
            Group(sentence_start(label_of(quantity)), [each for each in entries if each.shows in used], drawn)
        )
    return found


def _paths(run: Told, noise: str) -> list[tuple[xr.Dataset, str]]:
    """What is drawn of one noise: the path, or of a comparison training, and the limit thinly."""
    group = run.results.children.get(noise)
    if group is None:
        return []
    if run.config.get("command") != "compare":
        return [(group.to_dataset(inherit=False), "")]
    training = group.children["training_0"].to_dataset(inherit=False)
    limit = group.children["limit"].to_dataset(inherit=False)
    if "slow_time" not in training.coords or training["slow_time"].values[-1] == 0:  # it diverged at once
        return [(training, "")]
    rate = training["time"].values[-1] / training["slow_time"].values[-1]
    in_steps = limit.assign_coords(
        time=("time", limit["time"].values * rate, {"units": training["time"].attrs.get("units", "")})
    )
    return [(training, ""), (in_steps, "-thin")]


def _line(path: xr.Dataset, quantity: str, style: str, button: str, index: int) -> Line:
    x, (_, mean, error) = path["time"].values.astype(float), over_replicas(path[quantity])
    thin = style.endswith("-thin")
    says = f"{string.ascii_uppercase[index]}{', limit' if thin else ''} %{{y:.4~g}}"
    return Line(x, mean, style, button, says, None if thin else error)


def _chart(quantity: str, noise: str, units: str, lines: list[Line]) -> Chart:
    said = "; ".join(f"{line.says[0]} from {number(line.y[0])} to {number(line.y[-1])}" for line in lines)
    title, header = over_time(units)
    return Chart(noise, "", f"{label_of(quantity)} under {noise}: {said}.", lines, title, header=header)


def _sentences(run: Told) -> list[str]:
    found = []
    for noise in noises_of(run.results):
        group = run.results.children.get(noise)
        if group is None:
            continue
        verdict, half = group.attrs.get("verdict"), group.attrs.get("half_steps")
        parts = [greek(str(verdict))] if verdict else []
        parts += [f"half of it done after {steps_in_words(float(half))} steps"] if half is not None else []
        found.append(f"{noise}: {'; '.join(parts)}" if parts else noise)
    return [*found, *filter(None, [unfinished(run.config, run.results, f" {run.name}")])]


def _table(runs: Sequence[Told]) -> list[tuple[str, list[str]]]:
    lines = []
    for field in _FIELDS:
        values = [_used(run, field) for run in runs]
        if any(value not in (None, {}, [], False) for value in values):
            cells = [MISSING if value in (None, {}, []) else _word(value) for value in values]
            lines.append((field.replace("_", " "), cells))
    measured: dict[tuple[str, str], list[str]] = {}
    for index, run in enumerate(runs):
        for noise in noises_of(run.results):
            for path, _ in _paths(run, noise)[:1]:
                for quantity, (_, end, error) in ends(path).items():
                    cells = measured.setdefault((noise, quantity), [MISSING] * len(runs))
                    cells[index] = in_table(end, error)
    return lines + [
        (f"{label_of(quantity)}, {noise}", cells) for (noise, quantity), cells in measured.items()
    ]


def _used(run: Told, field: str) -> Any:
    """What a run has in a field of its config; None where it made no use of it."""
    stochastic = any("replica" in each.sizes for each in run.results.children.values())
    return None if field in unused(run.config, stochastic=stochastic) else run.config.get(field)


def _lettered(index: int, run: Told) -> str:
    return f"{string.ascii_uppercase[index]}: {run.name}"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
