"""A run in words and numbers: the verdict on each noise in plain sentences, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from zeroloss.report._charts import Axis, measured, of_the_way
from zeroloss.report._labels import (
    alone,
    are_many,
    kind_in_words,
    label_of,
    noise_in_words,
    sentence_start,
    speed,
)
from zeroloss.report._numbers import MISSING, greek, in_table, interval, number, percent, steps_in_words
from zeroloss.runs import noises_of
from zeroloss.studies._answers import answer_in_short, what_took_longer, which_answer, why_below_the_limit

STILL = 1e-6
"""What changed by less, relative to itself, did not change."""

_TIMED = ("limit", "prediction", "training")


def verdict(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any]) -> list[str]:
    """What one noise does, in plain sentences, for one row of the table."""
    noise = sentence_start(noise_in_words(row["noise"], strengths))
    plural = are_many(row["noise"])
    says = kind_in_words(row["noise"], row["verdict_name"], strengths)
    sentences = _drifting(row, axis, says) if axis.slow else [_standing(row, noise, plural, says)]
    sentences += remarks(row)
    if row.get("diverged_at") is not None:
        sentences.append(
            f"The training diverged at step {_count(row['diverged_at'])}: what is shown of it ends with "
            f"the last save before, at step {_count(row['steps'])}."
        )
    return sentences


def remarks(row: Mapping[str, Any]) -> list[str]:
    """What needs an explanation in the numbers of a row, in sentences."""
    return [greek(said) for said in (why_below_the_limit(row), what_took_longer(row)) if said]


def headline(rows: Sequence[Mapping[str, Any]], axes: Sequence[Axis], strengths: Mapping[str, Any]) -> str:
    """Which answer holds for each noise of a comparison, then what they do, and how long it takes."""
    said, at = [], " at this step size"
    answers = [
        f"{noise_in_words(row['noise'], strengths)}: {answer_in_short(row)}"
        for row, axis in zip(rows, axes, strict=True)
        if axis.slow and row.get("diverged_at") is None and answer_in_short(row)
    ]
    if answers:
        said.append(f"At this step size and noise, for {'; for '.join(answers)}.")
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

    add("verdict", "{}", "verdict_name")
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
    from_training = "distance from training"
    add_number(f"{from_training}, limit", "distance", "distance_error", 2)
    if any(row.get("prediction_distance") is not None for row in rows):
        add_number(f"{from_training}, prediction", "prediction_distance", "distance_error", 2)
    if any(row.get("prediction_estimate") is not None for row in rows):
        add_number(f"{from_training}, prediction expected", "prediction_estimate", digits=2)
    lines.append((f"{from_training}, relative to", [_way(row).removeprefix("the ") for row in rows]))
    lines += _durations(rows)
    return lines


def _durations(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """How long limit, prediction and training took, with and without compiling, and how they compare."""
    lines: list[tuple[str, list[str]]] = []
    parts = [each for each in _TIMED if any(row.get(f"seconds_{each}") is not None for row in rows)]
    known = any(row.get(f"seconds_{each}_compiling") is not None for each in parts for row in rows)

    def cell(row: Mapping[str, Any], which: str) -> str:
        seconds, compiling = row.get(f"seconds_{which}"), row.get(f"seconds_{which}_compiling")
        if seconds is None:
            return MISSING
        return f"{seconds:.1f}" + ("" if compiling is None else f" ({compiling:.1f})")

    def ratio(row: Mapping[str, Any], which: str, warm: bool) -> str:
        training, other = _seconds(row, "training", warm), _seconds(row, which, warm)
        if training is None or not other:
            return MISSING
        quotient = training / other
        return f"{quotient:.1f}" if quotient >= 1 else f"{quotient:.2g}"

    heading = "seconds (of them compiling)" if known else "seconds"
    lines += [(f"{heading}, {each}", [cell(row, each) for row in rows]) for each in parts]
    for which in (each for each in parts if each != "training"):
        for words, warm in (("with compiling", False), *([("without", True)] if known else [])):
            line = [ratio(row, which, warm) for row in rows]
            lines.append((f"time of training / {which}, {words}", line))
    return lines


def _seconds(row: Mapping[str, Any], which: str, warm: bool) -> float | None:
    """How long limit, prediction or training took; where it is `warm`, without compiling."""
    seconds, compiling = row.get(f"seconds_{which}"), row.get(f"seconds_{which}_compiling")
    if not warm or seconds is None:
        return seconds
    return None if compiling is None else max(seconds - compiling, 0.0)


def grouped(lines: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Lines with labels such as "regularizer, start" below the heading "regularizer"; others below none."""
    groups: list[tuple[str, list[tuple[str, list[str]]]]] = []
    for label, cells in lines:
        heading, comma, part = label.rpartition(", ")
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append((part if comma else label, cells))
    return groups


def _in_short(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any], at: str) -> str:
    """A sentence of the headline without its full stop."""
    noise, plural = sentence_start(noise_in_words(row["noise"], strengths)), are_many(row["noise"])
    diverged, half, of = row.get("diverged_at"), row.get("half_steps"), row.get("half_of")
    scale = speed(row["verdict_name"])
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
    scale, stochastic = speed(row["verdict_name"]), bool(row.get("stochastic"))
    unit = f"{greek(row['time_scale'])} ≈ {number(axis.steps_per_unit)} steps"
    sentences = [which_answer(row), f"{says}: training drifts on the {scale} scale, {unit}."]
    sentences = [each for each in sentences if each]
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
    if row.get("half_unknown"):
        sentences.append(f"How long half of it takes could not be found: {row['half_unknown']}")
    return sentences


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
        f"the limit says {interval(limit, limit_error)} and {number(limit_spread)}"
        f"{_predicted(row, quantity)}."
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


def _predicted(row: Mapping[str, Any], quantity: str) -> str:
    """What the prediction says, after what the limit says."""
    value = row.get(f"{quantity}_prediction")
    return "" if value is None else f", the prediction {number(value)}"


def _change(row: Mapping[str, Any], quantity: str) -> str:
    start, limit, trained = (row.get(f"{quantity}_{where}") for where in ("start", "limit", "training"))
    if start is None or limit is None or trained is None:
        return ""
    if abs(trained - start) <= STILL * abs(start):
        return f"stayed at {number(start)}; the limit says {number(limit)}{_predicted(row, quantity)}"
    verb = "fell" if trained < start else "rose"
    said = f"the limit says {number(limit)}{_predicted(row, quantity)}"
    return f"{verb} from {number(start)} to {number(trained)}; {said}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
