"""Several runs side by side: each with a letter and a colour, over the same axes."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import xarray as xr

from zeroloss.errors import InputError
from zeroloss.report import _sentences
from zeroloss.report._chart import (
    MOST_SERIES,
    Axis,
    Entry,
    Figure,
    Panel,
    Series,
    in_rows,
    style_of_series,
    time_axis,
    with_error,
)
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._sentences import TRAJECTORIES
from zeroloss.report._text import (
    MISSING,
    Lines,
    greek,
    in_table,
    joined,
    label_of,
    number,
    sentence_start,
    steps_in_words,
    unused_fields,
)
from zeroloss.runs import ends, noises_of, over_replicas

_FIELDS = (
    "command", "problem", "options", "noise", "step_size", "steps", "horizon", "replicas", "seed", "momentum",
    "nesterov", "weight_decay",
)  # fmt: skip


class NamedRun(NamedTuple):
    """A run with the name of its folder."""

    name: str
    config: Mapping[str, Any]
    results: xr.DataTree


def page(runs: Sequence[NamedRun]) -> Page:
    """The page of two to seven runs. Raises `InputError` for more, and for studies and sweeps."""
    if len(runs) > MOST_SERIES:
        raise InputError(f"a page can compare at most {MOST_SERIES} runs, got {len(runs)}.")
    for run in runs:
        command = run.config.get("command")
        if command not in ("compare", *TRAJECTORIES):
            raise InputError(f"{run.name} is a {command}: only runs along trajectories can be compared.")
    names = [_lettered(index, run) for index, run in enumerate(runs)]
    problems = dict.fromkeys(str(run.config.get("problem", "a run")) for run in runs)
    return Page(
        kind="several",
        title=f"{', '.join(problems)}: {len(runs)} runs",
        question="How do these runs differ?",
        cards=[Card(name, "", _findings(run), "") for name, run in zip(names, runs, strict=True)],
        table=Table("Numbers", names, [("", _table(runs))]),
        heading="Side by side",
        figures=figures(runs),
        nothing="There is nothing that these runs have in common.",
    )


def figures(runs: Sequence[NamedRun]) -> list[Figure]:
    """A figure for each quantity, with a panel for each noise and unit of time, and a series for each run."""
    found: dict[str, dict[tuple[str, str], list[Series]]] = {}
    for index, run in enumerate(runs):
        for noise in noises_of(run.results):
            for path, of_limit in _paths(run, noise):
                units = str(path["time"].attrs.get("units", ""))
                for quantity in ends(path):
                    series = found.setdefault(quantity, {}).setdefault((noise, units), [])
                    series += _series(path, quantity, index, of_limit)
    drawn = []
    for quantity, panels in found.items():
        used = {each.key for series in panels.values() for each in series}
        legend = [
            Entry(key, _lettered(index, run), [style_of_series(index)])
            for index, run in enumerate(runs)
            if (key := f"series-{index}") in used
        ]
        heading = sentence_start(label_of(quantity))
        rows = in_rows([_panel(quantity, *place, series) for place, series in panels.items()])
        drawn.append(Figure(heading, heading, rows, legend))
    return drawn


def _paths(run: NamedRun, noise: str) -> list[tuple[xr.Dataset, bool]]:
    """The trajectories of a run under one noise; True marks the limit of a comparison, over steps."""
    group = run.results.children.get(noise)
    if group is None:
        return []
    if run.config.get("command") != "compare":
        return [(group.to_dataset(inherit=False), False)]
    training, limit = (group.children[name].to_dataset(inherit=False) for name in ("training_0", "limit"))
    if "slow_time" not in training.coords or training["slow_time"].values[-1] == 0:  # it diverged at once
        return [(training, False)]
    rate = training["time"].values[-1] / training["slow_time"].values[-1]
    units = {"units": training["time"].attrs.get("units", "")}
    return [(training, False), (limit.assign_coords(time=("time", limit["time"].values * rate, units)), True)]


def _series(path: xr.Dataset, quantity: str, index: int, of_limit: bool) -> list[Series]:
    x, (_, mean, error) = path["time"].values.astype(float), over_replicas(path[quantity])
    letter, style, key = string.ascii_uppercase[index], style_of_series(index), f"series-{index}"
    if of_limit:
        dashed = replace(style, width=1.4, dash="dash")
        return [Series(x, mean, dashed, key, f"{letter}, limit %{{y:.4~g}}")]
    return with_error(Series(x, mean, style, key, f"{letter} %{{y:.4~g}}"), error)


def _panel(quantity: str, noise: str, units: str, series: Sequence[Series]) -> Panel:
    lines = [each for each in series if each.hover]
    changes = "; ".join(f"{each.hover[0]} from {number(each.y[0])} to {number(each.y[-1])}" for each in lines)
    time, header = time_axis(units)
    label = label_of(quantity)
    return Panel(noise, f"{label} under {noise}: {changes}.", series, time, Axis(label), header=header)


def _findings(run: NamedRun) -> list[str]:
    found = []
    for noise in noises_of(run.results):
        if noise in run.results.children:
            facts = run.results.children[noise].attrs
            half = facts.get("half_steps")
            after = "" if half is None else f"half of it done after {steps_in_words(float(half))} steps"
            text = joined([greek(str(facts.get("verdict") or "")), after], "; ")
            found.append(f"{noise}: {text}" if text else noise)
    rest = _sentences.unfinished(run.config, run.results, f" {run.name}")
    return [*found, rest] if rest else found


def _table(runs: Sequence[NamedRun]) -> Lines:
    lines = []
    for field in _FIELDS:
        values = [_effective(run, field) for run in runs]
        if any(value not in (None, {}, [], False) for value in values):
            cells = [MISSING if value in (None, {}, []) else _cell(value) for value in values]
            lines.append((field.replace("_", " "), cells))
    measured: dict[str, list[str]] = {}
    for index, run in enumerate(runs):
        for noise in noises_of(run.results):
            for path, _ in _paths(run, noise)[:1]:
                for quantity, (_, end, error) in ends(path).items():
                    cells = measured.setdefault(f"{label_of(quantity)}, {noise}", [MISSING] * len(runs))
                    cells[index] = in_table(end, error)
    return [*lines, *measured.items()]


def _effective(run: NamedRun, field: str) -> Any:
    """The value of a field of a config; None where it has no effect."""
    stochastic = any("replica" in each.sizes for each in run.results.children.values())
    return None if field in unused_fields(run.config, stochastic=stochastic) else run.config.get(field)


def _lettered(index: int, run: NamedRun) -> str:
    return f"{string.ascii_uppercase[index]}: {run.name}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
