"""What a page shows of a run that follows one path for each noise: training, its prediction, or its limit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.drifts._slow_time import FAST, SLOW
from zeroloss.report._charts import ROUNDING
from zeroloss.report._html import Entry
from zeroloss.report._labels import is_slow, kind_in_words, label_of, noise_in_words, sentence_start, speed
from zeroloss.report._line_charts import Chart, Group, Line
from zeroloss.report._numbers import MISSING, greek, in_table, interval, number, percent
from zeroloss.report._sentences import STILL
from zeroloss.runs import ends, noises_of
from zeroloss.runs._table import over_replicas

WORDS = {"descend": "training", "predict": "prediction", "limit": "limit"}
"""What the path of a command is; also how it looks."""

_LEVELS = (0.05, 0.95)
_FEWEST = 8  # replicas, to say quantiles of
_PLAINLY, _SURE = 0.01, 4  # a way to speak of: at least that share of the size, and so many standard errors


def paths(results: xr.DataTree) -> dict[str, xr.Dataset]:
    """For each noise, in their order, its path."""
    return {
        noise: results.children[noise].to_dataset(inherit=False)
        for noise in noises_of(results)
        if noise in results.children
    }


def groups(config: Mapping[str, Any], results: xr.DataTree) -> list[Group]:
    """A group for each quantity, with a chart for each noise."""
    style, every = WORDS[str(config["command"])], paths(results)
    found = []
    for quantity in dict.fromkeys(name for path in every.values() for name in ends(path)):
        if all(
            np.abs(path[quantity].values).max() <= ROUNDING for path in every.values() if quantity in path
        ):
            continue
        charts = [_chart(noise, quantity, path, style) for noise, path in every.items() if quantity in path]
        runs = max((path.sizes.get("replica", 1) for path in every.values()), default=1)
        name = style if runs == 1 else f"{style}, mean of {runs} {'runs' if style == 'training' else 'paths'}"
        entries = [Entry("mean", style if style != "training" else "training line", name)]
        if runs > 1:
            swatch = "training" if style == "training" else style
            entries[0] = Entry("mean", swatch, f"{name} ± 2 standard errors")
        if runs >= _FEWEST:
            entries.append(Entry("spread", f"{style} line thin", "5 and 95 % of them"))
        label = label_of(quantity)
        found.append(Group(sentence_start(label), entries, charts))
    return found


def _chart(noise: str, quantity: str, path: xr.Dataset, style: str) -> Chart:
    values, x = path[quantity], path["time"].values.astype(float)
    each, mean, error = over_replicas(values)
    lines = []
    if len(each) >= _FEWEST:
        lines += [Line(x, q, f"{style}-thin", "spread") for q in np.quantile(each, _LEVELS, axis=0)]
    lines.append(Line(x, mean, style, "mean", "%{y:.4~g}", error))
    description = f"{label_of(quantity)} under {noise}: from {number(mean[0])} to {number(mean[-1])}."
    title, header = over_time(_units(path))
    return Chart(noise, "", description, lines, title, header=header)


def over_time(units: str) -> tuple[str, str]:
    """The title of an axis of time in these units, and the header of what is said where the mouse is."""
    if is_slow(units):
        return greek(units).removesuffix(" steps"), "t = %{x:.3~g}"
    return "training steps k", "step %{x:,.0f}"


def _units(path: xr.Dataset) -> str:
    return str(path["time"].attrs.get("units", ""))


def sentences(config: Mapping[str, Any], noise: str, path: xr.Dataset) -> list[str]:
    """What a path did, in plain sentences."""
    words, strengths = WORDS[str(config["command"])], config.get("strengths") or {}
    last = float(path["time"].values[-1])
    after = f"In {number(last)} of slow time" if is_slow(_units(path)) else f"In {last:,.0f} steps"
    said = []
    for quantity, (start, end, error) in ends(path).items():
        if quantity in ("loss", "noisy_loss"):
            continue
        value = number(end) if error is None else interval(end, error)
        changed = not abs(end - start) <= STILL * max(abs(start), abs(end)) < np.inf
        what = f"went from {number(start)} to {value}" if changed else f"stayed at {number(start)}"
        if changed and value == number(start) and np.isfinite(end):
            what = f"stayed at {value} but for {percent(abs(end / start - 1))}"
        said.append(f"the {label_of(quantity)} {what}")
    noise_words = noise_in_words(noise, strengths)
    kind = {"training": "training", "prediction": "the prediction", "limit": "the limit"}[words]
    found = _verdict(noise, path, strengths)
    found.append(f"{after} of {kind} under {noise_words} {'; '.join(said)}.")
    found += _half_way(path)
    if "uncertainty_model" in path:
        found.append(sentence_start(certainty(path)))
    return found


def _half_way(path: xr.Dataset) -> list[str]:
    """Between which saves what the noise changes most plainly had gone half of its way."""
    quantity = "hessian_trace" if path.attrs.get("verdict_name") == "degenerate" else "regularizer"
    if quantity not in path or path.attrs.get("stochastic") or path.attrs.get("verdict_name") == "trivial":
        return []
    _, mean, error = over_replicas(path[quantity])
    change = mean[-1] - mean[0]
    surely = max(_PLAINLY * np.abs(mean[[0, -1]]).max(), 0.0 if error is None else _SURE * float(error[-1]))
    if not np.isfinite(mean).all() or abs(change) <= surely:
        return []
    after = int(np.argmax((mean - mean[0]) / change >= 0.5))
    time, slow = path["time"].values.astype(float), is_slow(_units(path))
    early, late = (number(each) if slow else f"{each:,.0f}" for each in time[[after - 1, after]])
    unit = "of slow time" if slow else "steps"
    return [f"The {label_of(quantity)} had gone half of that way after {early} to {late} {unit}."]


def certainty(path: xr.Dataset) -> str:
    """How sure a prediction is, in words."""
    parts = [path[f"uncertainty_{part}"].values[-1] for part in ("integration", "sampling", "model")]
    spread, error = float(path["uncertainty_spread"].values[-1]), float(np.linalg.norm(parts))
    share = percent(error) if np.isfinite(error) else "an unknown share"
    return (
        f"the mean parameters are expected to be off by {share} of the way from the start; single runs lie "
        f"{percent(spread)} of it from their mean."
    )


def _verdict(noise: str, path: xr.Dataset, strengths: Mapping[str, Any]) -> list[str]:
    if "verdict_name" not in path.attrs:
        unknown = path.attrs.get("verdict_unknown")
        return [] if unknown is None else [f"There is no verdict on {noise}: {unknown}"]
    says = kind_in_words(noise, path.attrs["verdict_name"], strengths)
    if path.attrs["verdict_name"] == "trivial":
        return [f"{says}: no drift on either time scale."]
    scale = speed(path.attrs["verdict_name"])
    unit = greek(FAST if scale == "fast" else SLOW)
    spread = " and spreads over the zero-loss set" if path.attrs.get("stochastic") else ""
    return [f"{says}: training drifts on the {scale} scale, {unit} steps{spread}."]


def table(results: xr.DataTree) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The head and the lines of the table: where every quantity starts and ends, a column for each noise."""
    every = {noise: ends(path) for noise, path in paths(results).items()}
    lines = []
    for quantity in dict.fromkeys(name for each in every.values() for name in each):
        starts, finals = [], []
        for each in every.values():
            start, end, error = each.get(quantity, (None, None, None))
            starts.append(MISSING if start is None else in_table(start))
            finals.append(MISSING if end is None else in_table(end, error))
        label = label_of(quantity)
        lines += [(f"{label}, start", starts), (f"{label}, end", finals)]
    return list(every), lines
