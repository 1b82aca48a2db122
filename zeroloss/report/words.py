"""A run in words and numbers: the verdict on each noise in plain sentences, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from zeroloss.report.labels import (
    alone,
    are_many,
    kind_in_words,
    label_of,
    noise_in_words,
    sentence_start,
    speed,
)
from zeroloss.report.notation import MISSING, greek, in_table, interval, number, percent, steps_in_words
from zeroloss.report.series import Axis, measured, of_the_way
from zeroloss.runs import noises_of

STILL = 1e-6
"""What changed by less, relative to itself, did not change."""


def verdict(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any]) -> list[str]:
    """What one noise does, in plain sentences, for one row of the table."""
    noise = sentence_start(noise_in_words(row["noise"], strengths))
    plural = are_many(row["noise"])
    says = kind_in_words(row["noise"], row["regime"], strengths)
    sentences = _drifting(row, axis, says) if axis.slow else [_standing(row, noise, plural, says)]
    if row.get("diverged_at") is not None:
        sentences.append(
            f"The training diverged at step {_count(row['diverged_at'])}: what is shown of it ends with "
            f"the last save before, at step {_count(row['steps'])}."
        )
    return sentences


def headline(rows: Sequence[Mapping[str, Any]], axes: Sequence[Axis], strengths: Mapping[str, Any]) -> str:
    """What all noises of a comparison do, and how long it takes, in a sentence each."""
    said, at = [], " at this step size"
    for row, axis in zip(rows, axes, strict=True):
        text = _in_short(row, axis, strengths, at)
        said.append(f"{text}.")
        at = "" if text.endswith(at) else at  # said once
    return " ".join(said)


def unfinished(config: Mapping[str, Any], results: xr.DataTree, folder: str = "") -> str:
    """How much of a run is done, and how to go on or why it failed; nothing where all noises are done."""
    done, asked = len(noises_of(results)), len(config.get("noise") or ())
    if done >= asked:
        return ""
    said = f"{done} of {asked} noises {'is' if done == 1 else 'are'} done; the results are those until now."
    if failure := results.attrs.get("failure"):
        return f"{said} The next one failed: {failure}"
    return f"{said} zeroloss resume{folder} goes on with the others."


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The rows of the table people read: a label, and a cell for each noise.

    `rows` are those of `Comparison.rows()`, one for each noise. What is missing becomes a dash.
    """
    lines: list[tuple[str, list[str]]] = []

    def add(label: str, template: str, name: str) -> None:
        known = [row.get(name) for row in rows]
        lines.append((label, [MISSING if each is None else template.format(each) for each in known]))

    def add_number(label: str, name: str, error: str = "", digits: int = 5) -> None:
        known = [(row.get(name), row.get(error)) for row in rows]
        lines.append((label, [MISSING if a is None else in_table(a, b, digits) for a, b in known]))

    add("verdict", "{}", "regime")
    scales = [row.get("time_scale") for row in rows]
    lines.append(("drifts in steps", [greek(each) if each else "never" for each in scales]))
    if any(row.get("half_steps") is not None for row in rows):
        halves = [row.get("half_steps") for row in rows]
        lines.append(("half of it done after", [MISSING if n is None else steps_in_words(n) for n in halves]))
    add("training steps", "{:,.0f}", "steps")
    if any(row.get("diverged_at") is not None for row in rows):
        add("diverged at step", "{:,.0f}", "diverged_at")
    for quantity, label in measured(rows).items():
        add_number(f"{label}, start", f"{quantity}_start")
        add_number(f"{label}, limit", f"{quantity}_limit", f"{quantity}_limit_error")
        if any(row.get(f"{quantity}_prediction") is not None for row in rows):
            add_number(f"{label}, predicted", f"{quantity}_prediction")
        add_number(f"{label}, trained", f"{quantity}_training", f"{quantity}_error")
        for name, where in (("limit", "limit"), ("trained", "training")):
            if any(row.get(f"{quantity}_{where}_spread") for row in rows):
                add_number(f"{label}, spread {name}", f"{quantity}_{where}_spread", digits=4)
    add_number("distance limit-training", "distance", "distance_error", 2)
    if any(row.get("prediction_distance") is not None for row in rows):
        add_number("distance prediction-training", "prediction_distance", digits=2)
        add_number("... estimated", "prediction_estimate", digits=2)
    lines.append(("... relative to", [_way(row).removeprefix("the ") for row in rows]))
    add("seconds for the limit", "{:.1f}", "seconds_limit")
    if any(row.get("seconds_prediction") is not None for row in rows):
        add("seconds for the prediction", "{:.1f}", "seconds_prediction")
    add("seconds for the training", "{:.1f}", "seconds_training")
    add("ratio", "{:.1f}", "ratio")
    return lines


def _in_short(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any], at: str) -> str:
    """A sentence of the headline without its full stop."""
    noise, plural = sentence_start(noise_in_words(row["noise"], strengths)), are_many(row["noise"])
    diverged, half, of = row.get("diverged_at"), row.get("half_steps"), row.get("half_of")
    scale = speed(row["regime"])
    if not axis.slow and _stands_still(row):
        return f"{noise} {'do' if plural else 'does'} nothing at zero loss"
    if not axis.slow:
        text = f"{noise} {'have' if plural else 'has'} no drift on either time scale"
    elif row.get("stochastic"):
        text = (
            f"{noise} {'spread' if plural else 'spreads'} training over the zero-loss set on the {scale} "
            f"scale, of {steps_in_words(axis.steps_per_unit)} steps"
        )
    else:
        text = f"{noise} {'drift' if plural else 'drifts'} on the {scale} scale"
        if diverged is not None or half is None:
            text += f", of {steps_in_words(axis.steps_per_unit)} steps"
        elif of == "regularizer":
            own = "their" if plural else "its"
            text += f": half of {own} regularization happens in {steps_in_words(half)} steps{at}"
        else:
            own = "they do" if plural else "it does"
            text += f": half of what {own} to the {label_of(str(of))} takes {steps_in_words(half)} steps{at}"
    return text if diverged is None else f"{text}; training diverged at step {_count(diverged)}{at}"


def _drifting(row: Mapping[str, Any], axis: Axis, says: str) -> list[str]:
    scale, stochastic = speed(row["regime"]), bool(row.get("stochastic"))
    unit = f"{greek(row['time_scale'])} ≈ {number(axis.steps_per_unit)} steps"
    sentences = [f"{says}: training drifts on the {scale} scale, {unit}."]
    if stochastic:
        sentences.append(
            "The limit is a stochastic differential equation: training spreads over the set, and is compared "
            f"with {_count(row['limit_replicas'])} paths of it."
        )
    if row.get("diverged_at") is not None:
        return sentences
    main = "regularizer" if scale == "fast" else "hessian_trace"
    name = main if scale == "fast" else label_of(main)
    for quantity, label in ((main, name), ("test_error", label_of("test_error"))):
        if stochastic:
            sentences += _ending(row, quantity, label)
        elif change := _change(row, quantity):
            start = f"In {_count(row['steps'])} steps the" if quantity == main else "The"
            sentences.append(f"{start} {label} {change}.")
    distance, error = row.get("distance"), row.get("distance_error")
    if distance is not None and error is not None:
        limit = "the mean of the limit" if stochastic else "the limit"
        sentences.append(
            f"The mean of {_count(row['replicas'])} runs ends {percent(distance)} of {_way(row)} away from "
            f"{limit}{_scatter(error, stochastic)}."
        )
    sentences += _predicted(row, main, name)
    if row.get("half_unknown"):
        sentences.append(f"How long half of it takes could not be found: {row['half_unknown']}")
    return sentences


def _predicted(row: Mapping[str, Any], quantity: str, label: str) -> list[str]:
    """What the prediction for this very step size and noise says."""
    value, distance = row.get(f"{quantity}_prediction"), row.get("prediction_distance")
    if row.get("no_prediction"):
        return [f"There is no prediction at this step size and noise: {row['no_prediction']}"]
    if value is None or distance is None:
        return []
    error, estimate = row.get("distance_error"), row.get("prediction_estimate")
    runs = "" if error is None else f"; the scatter of the runs accounts for {percent(error)}"
    own = "" if estimate is None else f", and it expects to be off by {percent(estimate)}"
    return [
        f"The prediction at this step size and noise, made without training, says {number(value)} for the "
        f"{label} and is {percent(distance)} of {_way(row)} away{runs}{own}."
    ]


def _way(row: Mapping[str, Any]) -> str:
    """What distances are shares of."""
    return "the distance travelled" if of_the_way(row) else "|w|"


def _ending(row: Mapping[str, Any], quantity: str, label: str) -> list[str]:
    """Where the ensembles of training and of a stochastic limit end: mean and standard deviation."""
    ends = [f"{quantity}_{each}" for each in ("start", "limit", "training")]
    extra = [f"{quantity}_{each}" for each in ("limit_error", "error", "limit_spread", "training_spread")]
    if any(row.get(name) is None for name in (*ends, *extra)):
        return []
    start, limit, trained = (row[name] for name in ends)
    limit_error, error, limit_spread, spread = (row[name] for name in extra)
    if max(limit_spread, spread, abs(limit - start), abs(trained - start)) <= STILL * abs(start):
        return [f"In {_count(row['steps'])} steps the {label} stayed at {number(start)}."]
    return [
        f"After {_count(row['steps'])} steps the {label}, {number(start)} at the start, has the mean "
        f"{interval(trained, error)} (standard error) and the standard deviation {number(spread)}; "
        f"the limit says {interval(limit, limit_error)} and {number(limit_spread)}."
    ]


def _standing(row: Mapping[str, Any], noise: str, plural: bool, says: str) -> str:
    distance, error = row.get("distance"), row.get("distance_error")
    if distance is None or row.get("diverged_at") is not None:
        return f"{says}: no drift on either time scale."
    after = f"after {_count(row['steps'])} steps the parameters had"
    if _stands_still(row):
        moved = f"moved by {number(distance, 1)} of their norm" if distance > 0 else "not moved at all"
        return f"{noise}{alone(row['noise'])} {'do' if plural else 'does'} nothing: {after} {moved}."
    mean = "" if error is None else f" in the mean of {_count(row['replicas'])} runs{_scatter(error)}"
    return (
        f"{says}: no drift is expected on either time scale; {after} moved by {percent(distance)} of their "
        f"norm{mean}."
    )


def _stands_still(row: Mapping[str, Any]) -> bool:
    distance = row.get("distance")
    return distance is not None and distance <= STILL and row.get("diverged_at") is None


def _scatter(error: float, stochastic: bool = False) -> str:
    """How much of a distance between means is none of the noise's doing."""
    paths = " and paths" if stochastic else ""
    return f"; the scatter of so few runs{paths} alone accounts for {percent(error)}"


def _change(row: Mapping[str, Any], quantity: str) -> str:
    start, limit, trained = (row.get(f"{quantity}_{where}") for where in ("start", "limit", "training"))
    if start is None or limit is None or trained is None:
        return ""
    if abs(trained - start) <= STILL * abs(start):
        return f"stayed at {number(start)}; the limit says {number(limit)}"
    verb = "fell" if trained < start else "rose"
    return f"{verb} from {number(start)} to {number(trained)}; the limit says {number(limit)}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
