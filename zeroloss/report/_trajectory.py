"""A run along one trajectory for each noise (training, its prediction, or its limit), and several runs."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.errors import InputError
from zeroloss.report import _sentences, _views
from zeroloss.report._chart import (
    MOST_SERIES,
    STYLES,
    Axis,
    Figure,
    Panel,
    Series,
    Style,
    in_rows,
    style_of_series,
    time_axis,
    with_error,
)
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._sentences import TRAJECTORIES
from zeroloss.report._text import (
    MISSING,
    ROUNDING,
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

_LEVELS = (0.05, 0.95)
_FEWEST = 8  # replicas, to show quantiles of
_SETUP = {
    "step_size": "step size {:.3g} / λ_max",
    "momentum": "momentum {:g}",
    "weight_decay": "weight decay {:g}",
}
_FIELDS = (
    "command", "problem", "options", "noise", "step_size", "steps", "horizon", "replicas", "seed", "momentum",
    "nesterov", "weight_decay",
)  # fmt: skip


class NamedRun(NamedTuple):
    """A run with the name of its folder."""

    name: str
    config: Mapping[str, Any]
    results: xr.DataTree


class _Drawn(NamedTuple):
    """A trajectory under one noise and how it looks; `name` is shown before its values."""

    noise: str
    path: xr.Dataset
    key: str
    style: Style
    name: str = ""


def trajectories(results: xr.DataTree) -> dict[str, xr.Dataset]:
    """The trajectory of each noise, in their order."""
    children = results.children
    return {
        noise: children[noise].to_dataset(inherit=False) for noise in noises_of(results) if noise in children
    }


def figures(config: Mapping[str, Any], results: xr.DataTree) -> list[Figure]:
    """A figure for each quantity that is not zero throughout, with a panel for each noise."""
    kind, paths = TRAJECTORIES[str(config["command"])], trajectories(results)
    sizes: dict[str, float] = {}
    for path in paths.values():
        for quantity in ends(path):
            sizes[quantity] = max(sizes.get(quantity, 0.0), np.abs(path[quantity].values).max())
    zeros = [quantity for quantity, size in sizes.items() if size <= ROUNDING]
    style = replace(STYLES[kind], dash="solid")
    drawn = [
        _Drawn(noise, path.drop_vars(zeros, errors="ignore"), "mean", style) for noise, path in paths.items()
    ]
    runs = max((path.sizes.get("replica", 1) for path in paths.values()), default=1)
    several = f"{kind}, mean of {runs} {'runs' if kind == 'training' else 'paths'} ± 2 standard errors"
    texts = {"mean": several if runs > 1 else kind, "spread": "5 and 95 % of them"}
    return _figures(drawn, texts, str(config.get("description", "")))


def _figures(drawn: Sequence[_Drawn], texts: Mapping[str, str], title: str = "") -> list[Figure]:
    """A figure for each quantity, with a panel for each noise and unit of time."""
    places: dict[str, dict[tuple[str, str], list[_Drawn]]] = {}
    for each in drawn:
        place = each.noise, str(each.path["time"].attrs.get("units", ""))
        for quantity in ends(each.path):
            places.setdefault(quantity, {}).setdefault(place, []).append(each)
    found = []
    for quantity, panels in places.items():
        heading = sentence_start(label_of(quantity))
        rows = in_rows([_panel(quantity, *place, lines) for place, lines in panels.items()])
        found.append(Figure(f"{len(found) + 1:02d}_{heading.lower()}", heading, rows, texts, title))
    return found


def _panel(quantity: str, noise: str, units: str, drawn: Sequence[_Drawn]) -> Panel:
    label, (time, header) = label_of(quantity), time_axis(units)
    series, changes = [], []
    for each in drawn:
        x = each.path["time"].values.astype(float)
        replicas, mean, error = over_replicas(each.path[quantity])
        if each.key == "mean" and len(replicas) >= _FEWEST:
            quantiles = np.quantile(replicas, _LEVELS, axis=0)
            series += [Series(x, values, each.style.thin(), "spread") for values in quantiles]
        line = Series(x, mean, each.style, each.key, f"{each.name} %{{y:.4~g}}".lstrip())
        series += with_error(line, error)
        changes.append(f"{each.name} from {number(mean[0])} to {number(mean[-1])}".lstrip())
    description = f"{label} under {noise}: {'; '.join(changes)}."
    return Panel(noise, description, series, time, Axis(label), header=header)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a training, a prediction, or a limit."""
    command, paths = str(config["command"]), trajectories(results)
    kind, noises = TRAJECTORIES[command], list(paths)
    setup = [text.format(config[name]) for name, text in _SETUP.items() if config.get(name)]
    return Page(
        kind=command,
        title=f"{config.get('problem', 'a run')}: {kind}",
        setup=joined([str(config.get("description", "")), *setup]),
        headline=_sentences.unfinished(config, results),
        cards=[
            Card(
                noise,
                path.attrs.get("verdict_name", ""),
                _sentences.trajectory(config, noise, path),
                greek(str(path.attrs.get("verdict", ""))),
            )
            for noise, path in paths.items()
        ],
        table=Table("Numbers", noises, [("", _sentences.trajectory_table(paths))]),
        heading=f"{kind.capitalize()} for each noise",
        figures=[
            *_views.figures(noises, results, ("zero_loss_set", "function"), kind),
            *figures(config, results),
            *_views.figures(noises, results, ("spectrum",), kind),
        ],
    )


def page_of_several(runs: Sequence[NamedRun]) -> Page:
    """The page of two to seven runs, each with a letter and a colour, over the same axes.

    Raises `InputError` for more, and for studies and sweeps.
    """
    if len(runs) > MOST_SERIES:
        raise InputError(f"a page can compare at most {MOST_SERIES} runs, got {len(runs)}.")
    for run in runs:
        command = run.config.get("command")
        if command not in ("compare", *TRAJECTORIES):
            raise InputError(f"{run.name} is a {command}: only runs along trajectories can be compared.")
    names = [f"{letter}: {run.name}" for letter, run in zip(string.ascii_uppercase, runs, strict=False)]
    problems = dict.fromkeys(str(run.config.get("problem", "a run")) for run in runs)
    drawn = [each for index, run in enumerate(runs) for each in _drawn(run, index)]
    return Page(
        kind="several",
        title=f"{', '.join(problems)}: {len(runs)} runs",
        cards=[Card(name, "", _findings(run), "") for name, run in zip(names, runs, strict=True)],
        table=Table("Numbers", names, [("", _table(runs))]),
        heading="Side by side",
        figures=_figures(drawn, {f"series-{index}": name for index, name in enumerate(names)}),
        nothing="There is nothing that these runs have in common.",
    )


def _drawn(run: NamedRun, index: int) -> list[_Drawn]:
    """The trajectories of a run: the limit of a comparison, over its steps, is dashed."""
    found = []
    key, style, letter = f"series-{index}", style_of_series(index), string.ascii_uppercase[index]
    for noise, path in _main_paths(run).items():
        found.append(_Drawn(noise, path, key, style, letter))
        slow = path.coords.get("slow_time")
        if run.config.get("command") != "compare" or slow is None or slow.values[-1] == 0:  # diverged at once
            continue
        limit = run.results.children[noise].children["limit"].to_dataset(inherit=False)
        rate = path["time"].values[-1] / slow.values[-1]
        steps = ("time", limit["time"].values * rate, {"units": path["time"].attrs.get("units", "")})
        dashed = replace(style, width=1.4, dash="dash")
        found.append(_Drawn(noise, limit.assign_coords(time=steps), key, dashed, f"{letter}, limit"))
    return found


def _main_paths(run: NamedRun) -> dict[str, xr.Dataset]:
    """The trajectory under each noise of a run; of a comparison that of its training."""
    if run.config.get("command") != "compare":
        return trajectories(run.results)
    groups = {noise: run.results.children.get(noise) for noise in noises_of(run.results)}
    return {
        noise: group.children["training_0"].to_dataset(inherit=False)
        for noise, group in groups.items()
        if group is not None
    }


def _findings(run: NamedRun) -> list[str]:
    found = []
    for noise in _main_paths(run):
        facts = run.results.children[noise].attrs
        half = facts.get("half_steps")
        after = "" if half is None else f"half of it done after {steps_in_words(float(half))} steps"
        found.append(joined([noise, joined([greek(str(facts.get("verdict") or "")), after], "; ")], ": "))
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
        for noise, path in _main_paths(run).items():
            for quantity, (_, end, error) in ends(path).items():
                cells = measured.setdefault(f"{label_of(quantity)}, {noise}", [MISSING] * len(runs))
                cells[index] = in_table(end, error)
    return [*lines, *measured.items()]


def _effective(run: NamedRun, field: str) -> Any:
    """The value of a field of a config; None where it has no effect."""
    stochastic = any("replica" in each.sizes for each in run.results.children.values())
    return None if field in unused_fields(run.config, stochastic=stochastic) else run.config.get(field)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
