"""A run in words and numbers: the verdict on each noise in plain sentences, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeroloss.report.labels import are_many, kind_in_words, noise_in_words, sentence_start, speed
from zeroloss.report.notation import MISSING, greek, interval, number, percent, steps_in_words
from zeroloss.report.series import Axis, measured

_STILL = 1e-6  # what changed by less, relative to itself, did not change


def verdict(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any]) -> list[str]:
    """What one noise does, in plain sentences, for one row of the table."""
    noise = sentence_start(noise_in_words(row["noise"], strengths))
    plural = are_many(row["noise"])
    says = kind_in_words(row["noise"], row["regime"], strengths)
    sentences = _drifting(row, axis, says) if axis.slow else _standing(row, noise, plural, says)
    if row.get("diverged_at") is not None:
        sentences.append(
            f"The training diverged at step {_count(row['diverged_at'])}: what is shown of it ends with "
            f"the last save before, at step {_count(row['steps'])}."
        )
    return sentences


def headline(rows: Sequence[Mapping[str, Any]], axes: Sequence[Axis], strengths: Mapping[str, Any]) -> str:
    """What all noises of a comparison do, and how long it takes, in a sentence each."""
    said = []
    at = " at this step size"
    for row, axis in zip(rows, axes, strict=True):
        noise = sentence_start(noise_in_words(row["noise"], strengths))
        plural = are_many(row["noise"])
        if not axis.slow:
            said.append(f"{noise} {'do' if plural else 'does'} nothing at zero loss.")
            continue
        scale = speed(row["regime"])
        if row.get("stochastic"):
            unit = steps_in_words(axis.steps_per_unit)
            said.append(
                f"{noise} {'spread' if plural else 'spreads'} training over the zero-loss set on the {scale} "
                f"scale, of {unit} steps."
            )
            continue
        text = f"{noise} {'drift' if plural else 'drifts'} on the {scale} scale"
        if row.get("half_steps") is None:
            text += f", of {steps_in_words(axis.steps_per_unit)} steps"
        elif row.get("half_of") == "regularizer":
            own = "their" if plural else "its"
            text += f": half of {own} regularization happens in {steps_in_words(row['half_steps'])} steps{at}"
            at = ""
        else:
            of = {"hessian_trace": "trace of the Hessian"}.get(row["half_of"], row["half_of"])
            own = "they do" if plural else "it does"
            text += f": half of what {own} to the {of} takes {steps_in_words(row['half_steps'])} steps{at}"
            at = ""
        said.append(f"{text}.")
    return " ".join(said)


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The rows of the table people read: a label, and a cell for each noise.

    `rows` are those of `Comparison.rows()`, one for each noise. What is missing becomes a dash.
    """
    lines: list[tuple[str, list[str]]] = []

    def add(label: str, template: str, *names: str) -> None:
        cells = [[row.get(name) for name in names] for row in rows]
        lines.append((label, [MISSING if None in cell else template.format(*cell) for cell in cells]))

    def add_mean(label: str, name: str, error: str) -> None:
        known = [(row.get(name), row.get(error)) for row in rows]
        lines.append((label, [MISSING if a is None else _mean(a, b) for a, b in known]))

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
        add(f"{label}, start", "{:.5g}", f"{quantity}_start")
        add_mean(f"{label}, limit", f"{quantity}_limit", f"{quantity}_limit_error")
        if any(row.get(f"{quantity}_prediction") is not None for row in rows):
            add(f"{label}, predicted", "{:.5g}", f"{quantity}_prediction")
        add_mean(f"{label}, trained", f"{quantity}_training", f"{quantity}_error")
        for name, where in (("limit", "limit"), ("trained", "training")):
            if any(row.get(f"{quantity}_{where}_spread") for row in rows):
                add(f"{label}, spread {name}", "{:.4g}", f"{quantity}_{where}_spread")
    add("distance limit-training", "{:.2g} ± {:.1g}", "distance", "distance_error")
    if any(row.get("prediction_distance") is not None for row in rows):
        add("distance prediction-training", "{:.2g}", "prediction_distance")
        add("... estimated", "{:.2g}", "prediction_estimate")
    lines.append(
        ("... relative to", ["distance travelled" if row.get("time_scale") else "|w|" for row in rows])
    )
    add("seconds for the limit", "{:.1f}", "seconds_limit")
    if any(row.get("seconds_prediction") is not None for row in rows):
        add("seconds for the prediction", "{:.1f}", "seconds_prediction")
    add("seconds for the training", "{:.1f}", "seconds_training")
    add("ratio", "{:.1f}", "ratio")
    return lines


def _mean(value: float, error: float | None) -> str:
    return f"{value:.5g}" if error is None else f"{value:.5g} ± {error:.1g}"


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
    main, name = (
        ("regularizer", "regularizer") if scale == "fast" else ("hessian_trace", "trace of the Hessian")
    )
    for quantity, label in ((main, name), ("test_error", "test error")):
        if stochastic:
            sentences += _ending(row, quantity, label)
        elif change := _change(row, quantity):
            start = f"In {_count(row['steps'])} steps the" if quantity == main else "The"
            sentences.append(f"{start} {label} {change}.")
    distance, error = row.get("distance"), row.get("distance_error")
    if distance is not None and error is not None:
        limit = "the mean of the limit" if stochastic else "the limit"
        so_few = f"the scatter of so few runs{' and paths' if stochastic else ''} alone"
        sentences.append(
            f"The mean of {_count(row['replicas'])} runs ends {percent(distance)} of the distance "
            f"travelled away from {limit}; {so_few} accounts for {percent(error)}."
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
        f"{label} and is {percent(distance)} of the distance away{runs}{own}."
    ]


def _ending(row: Mapping[str, Any], quantity: str, label: str) -> list[str]:
    """Where the ensembles of training and of a stochastic limit end: mean and standard deviation."""
    ends = [f"{quantity}_{each}" for each in ("start", "limit", "training")]
    extra = [f"{quantity}_{each}" for each in ("limit_error", "error", "limit_spread", "training_spread")]
    if any(row.get(name) is None for name in (*ends, *extra)):
        return []
    start, limit, trained = (row[name] for name in ends)
    limit_error, error, limit_spread, spread = (row[name] for name in extra)
    if max(limit_spread, spread, abs(limit - start), abs(trained - start)) <= _STILL * abs(start):
        return [f"In {_count(row['steps'])} steps the {label} stayed at {number(start)}."]
    return [
        f"After {_count(row['steps'])} steps the {label}, {number(start)} at the start, has the mean "
        f"{interval(trained, error)} (standard error) and the standard deviation {number(spread)}; "
        f"the limit says {interval(limit, limit_error)} and {number(limit_spread)}."
    ]


def _standing(row: Mapping[str, Any], noise: str, plural: bool, says: str) -> list[str]:
    distance, steps = row.get("distance"), _count(row["steps"])
    if distance is None:
        return [f"{says}: no drift on either time scale."]
    moved = f"after {steps} steps the parameters had moved by {number(distance, 1)} of their norm."
    if distance == 0:
        moved = f"after {steps} steps the parameters had not moved at all."
    if distance > _STILL:
        return [f"{says}: no drift is expected on either time scale; {moved}"]
    alone = " alone" if row["noise"].partition(":")[0] == "minibatch" and "+" not in row["noise"] else ""
    return [f"{noise}{alone} {'do' if plural else 'does'} nothing: {moved}"]


def _change(row: Mapping[str, Any], quantity: str) -> str:
    start, limit, trained = (row.get(f"{quantity}_{where}") for where in ("start", "limit", "training"))
    if start is None or limit is None or trained is None:
        return ""
    if abs(trained - start) <= _STILL * abs(start):
        return f"stayed at {number(start)}; the limit says {number(limit)}"
    verb = "fell" if trained < start else "rose"
    return f"{verb} from {number(start)} to {number(trained)}; the limit says {number(limit)}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
