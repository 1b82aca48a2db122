"""A recommendation between limit, prediction and training, in words, from a row of `Comparison.rows()`."""

from collections.abc import Mapping
from typing import Any

AGREEMENT = 0.05
"""An answer holds if it ends this close to the mean of training, as a share of the limit's way."""

_ERRORS = 2.0  # standard errors: a shorter distance may be the scatter of the runs
_STILL = 1e-6  # of |w|
_VISIBLE_DIFFERENCE = 1e-3  # relative difference from which two values look different


def which_answer(row: Mapping[str, Any]) -> str:
    """A sentence on which of limit and prediction describes this training; nothing without a distance."""
    said, reason = answer_in_short(row), row.get("no_prediction")
    if not said:
        return ""
    sentence = f"At this step size and noise {said}{_scatter(row)}."
    if row.get("diverged_at") is not None or not row.get("time_scale"):
        return sentence
    if row.get("prediction_distance") is None:
        return f"{sentence} There is no prediction: {reason}" if reason else sentence
    expected, error = row.get("prediction_estimate"), row.get("distance_error") or 0.0
    if expected is not None and row["prediction_distance"] > expected + _ERRORS * error:
        sentence += f" The prediction is further off than the {percent(expected)} that it expected."
    return sentence


def answer_in_short(row: Mapping[str, Any]) -> str:
    """The clause of that sentence: which one to use, and how far off each ends.

    An answer holds where its distance from the mean of training is at most `AGREEMENT` of the way of the
    limit, or no more than twice the share that the scatter of the runs explains.
    """
    limit, predicted = row.get("distance"), row.get("prediction_distance")
    if row.get("diverged_at") is not None:
        return "neither limit nor prediction describes the training, which diverged"
    if limit is None:
        return ""
    if not row.get("time_scale"):
        moved = "does not move" if limit <= _STILL else f"moves by {percent(limit)} of |w|"
        return f"the limit stays where it is, and training {moved}"
    travels = row.get("distance_of") != "|w|"
    most = max(AGREEMENT if travels else 0.0, _ERRORS * (row.get("distance_error") or 0.0))
    holds, predicted_holds = (
        _as_written(limit) <= most,
        predicted is not None and _as_written(predicted) <= most,
    )
    off = f"{percent(limit)} of {'the way' if travels else '|w|'} off"
    if predicted is None:
        return f"the limit {'holds' if holds else 'does not hold'} ({off})"
    also = f"{percent(predicted)} of {'the way' if travels else '|w|'} off"
    if holds and predicted_holds:
        return f"limit and prediction both hold ({percent(limit)} and {also})"
    if predicted_holds:
        return f"use the prediction ({also}), not the limit ({percent(limit)})"
    if holds:
        return f"use the limit ({off}), not the prediction ({percent(predicted)})"
    return f"use the training: neither the limit ({off}) nor the prediction ({percent(predicted)}) holds"


def what_took_longer(row: Mapping[str, Any]) -> str:
    """Which of limit and prediction took longer than the training; nothing if neither did."""
    training = row.get("seconds_training")
    if training is None:
        return ""
    others = {name: row.get(f"seconds_{name}") for name in ("limit", "prediction")}
    longer = [f"the {name} ({each:.1f} s)" for name, each in others.items() if each and each > training]
    if not longer:
        return ""
    return (
        f"Training was faster here: it took {training:.1f} s, less than {' and '.join(longer)}, compiling "
        "included."
    )


def why_below_the_limit(row: Mapping[str, Any]) -> str:
    """Why tr H trained or predicted may lie below that of the limit, where it does; nothing elsewhere."""
    limit, scatter = row.get("hessian_trace_limit"), row.get("hessian_trace_error") or 0.0
    if limit is None or row.get("diverged_at") is not None:
        return ""
    least = _VISIBLE_DIFFERENCE * abs(limit)
    found = (
        ("trained", row.get("hessian_trace_training"), max(_ERRORS * scatter, least)),
        ("predicted", row.get("hessian_trace_prediction"), least),
    )
    below = [
        f"{word}, {value:.4g}" for word, value, room in found if value is not None and value + room < limit
    ]
    if not below:
        return ""
    return (
        f"The trace of the Hessian {' and '.join(below)}, is below the {limit:.4g} of the limit, which "
        "stays on the zero-loss set. Training at finite step size and noise may be further along, and stays "
        "beside the set, around the minimum of the loss averaged over the noise (L + sigma^2 Reg): there its "
        "trace can be lower than at any point of the set (docs/theory.md, section 5)."
    )


def percent(share: float) -> str:
    """A share as a percentage of two digits."""
    value = _as_written(100 * share)
    return f"{value:,.0f} %" if value >= 10 else f"{value:.2g} %"


def _as_written(value: float) -> float:
    """To two digits: a share of 5.0 % is within 5 %, whatever the next digits are."""
    return float(f"{value:.2g}")


def _scatter(row: Mapping[str, Any]) -> str:
    error = row.get("distance_error")
    if error is None or error <= _STILL or row.get("diverged_at") is not None:
        return ""
    runs = f"{row['replicas']:.0f} runs" if row.get("replicas") else "runs"
    return f"; the scatter of the {runs} accounts for {percent(error)}"
