"""A study in words and numbers: what was found for each noise in plain sentences, and the table."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zeroloss.report._labels import alone, are_many, noise_in_words, sentence_start, speed
from zeroloss.report._numbers import MISSING, greek, interval, number, percent
from zeroloss.report._study_charts import LADDERS, Ladder, Measured
from zeroloss.studies._fits import Exponent

HEAD = (
    "drifts in steps",
    "p of steps ∝ α^-p",
    "in theory",
    "q of steps ∝ σ^-q",
    "in theory",
    "order of approach in α",
    "in theory",
    "order of approach in σ",
    "seconds",
)
"""The columns of the table of a study."""

_EXPONENT = {"step size": "p", "sigma": "q"}


def findings(study: Measured, strengths: Mapping[str, Any]) -> list[str]:
    """What a study found for one noise, in plain sentences."""
    noise = sentence_start(noise_in_words(study.noise, strengths))
    if study.bound is not None:
        return [_bounded(study, noise, study.bound)]
    kind = ", with a stochastic limit" if study.stochastic else ""
    sentences = [
        f"{noise} {'are' if are_many(study.noise) else 'is'} {study.verdict_name}{kind}: in theory training "
        f"drifts on the {speed(study.verdict_name)} scale, {greek(study.time_scale or 'none')} steps."
    ]
    drift = "root-mean-square drift" if study.stochastic else "drift"
    what = f"Steps for a fixed {drift}, {percent(study.drift)} of |w|,"
    for kind in LADDERS:
        ladder = study.ladder(kind)
        if ladder is None:
            sentences.append(f"There is no ladder of {kind}s.")
            continue
        sentences.append(_growth(ladder, what))
        what = "Steps"
        sentences.append(_closing(ladder))
    return sentences


def table(found: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """A line for each noise, with a cell for each column of `HEAD`."""
    return [(study.noise, _cells(study)) for study in found]


def slope_in_words(ladder: Ladder) -> tuple[str, str]:
    """What to write beside the line fitted to the steps, and beside the limit's."""
    fitted, theory = "", ""
    if ladder.exponent is not None:
        fitted = f"measured: slope {interval(-ladder.exponent.value, ladder.exponent.half_width)}"
        if ladder.exponent.theory is not None:
            theory = f"limit: slope −{ladder.exponent.theory:g}"
    return fitted, theory


def order_in_words(ladder: Ladder) -> str:
    """What to write beside the curve fitted to the gap."""
    if ladder.approach is None:
        return "order of approach not resolved"
    order = ladder.approach.order
    beside = "" if order.theory is None else f" (theory {order.theory:g})"
    return f"order of approach {interval(order.value, order.half_width)}{beside}"


def description(ladder: Ladder, quantity: str) -> str:
    """What a panel shows, for those who do not see it."""
    points = ladder.steps_taken if quantity == "steps" else ladder.gaps
    if not points.x.size:
        return f"No {quantity} under {ladder.noise}: nothing was measured."
    text = (
        f"{'Steps to the drift' if quantity == 'steps' else 'Gap to the limit'} under {ladder.noise} against "
        f"{ladder.axis}: from {number(float(points.y[0]))} at {number(float(points.x[0]))} to "
        f"{number(float(points.y[-1]))} at {number(float(points.x[-1]))}"
    )
    added = (
        [each for each in slope_in_words(ladder) if each] if quantity == "steps" else [order_in_words(ladder)]
    )
    return "; ".join([text, *added]) + "."


def _bounded(study: Measured, noise: str, bound: Mapping[str, float]) -> str:
    does = "do" if are_many(study.noise) else "does"
    moved = "not moved"
    if bound["distance"] > 0:
        moved = f"moved by less than {number(bound['distance'], 2)}\u00a0|w|"
    return (
        f"{noise}{alone(study.noise)} {does} nothing on either time scale: after {bound['steps']:,.0f} "
        f"steps of size {number(bound['step_size'])} training had {moved} along the set of zero loss "
        f"(95 % confidence, {bound['replicas']:.0f} runs)."
    )


def _growth(ladder: Ladder, what: str) -> str:
    name, symbol, exponent = _EXPONENT[ladder.kind], ladder.symbol, ladder.exponent
    if exponent is None:
        return f"{what} were measured at too few values of {symbol} to fit how they grow."
    beside = ""
    if exponent.theory is not None:
        beside = f"; theory says {exponent.theory:g}"
        beside += "" if exponent.agrees else ", which lies outside this interval"
    value = interval(exponent.value, exponent.half_width)
    return f"{what} grow as {symbol}^-{name} with {name} = {value}{beside}."


def _closing(ladder: Ladder) -> str:
    name = "step size" if ladder.kind == "step size" else "σ"
    ends = f"At the largest {name} training takes {_against_limit(ladder, 0)}"
    if len(ladder.x) > 1:
        ends += f", at the smallest {_against_limit(ladder, -1)}"
    if ladder.approach is None:
        return f"{ends}. With which order the gap closes is not resolved."
    order = ladder.approach.order
    beside = "" if order.theory is None else f" (theory {order.theory:g})"
    return f"{ends}: the gap closes with order {interval(order.value, order.half_width)}{beside}."


def _against_limit(ladder: Ladder, index: int) -> str:
    gap, error = float(ladder.gap[index]), float(ladder.steps_error[index])
    if abs(gap) <= 2 * error:
        return f"as many steps as the limit, within {percent(np.expm1(abs(gap) + 2 * error))}"
    return f"{percent(abs(np.expm1(gap)))} {'fewer' if gap < 0 else 'more'} steps than the limit"


def _cells(study: Measured) -> list[str]:
    cells = [greek(study.time_scale) if study.time_scale else "never"]
    approaches: list[str] = []
    for kind in LADDERS:
        ladder = study.ladder(kind)
        cells += _pair(None if ladder is None else ladder.exponent)
        order = None if ladder is None or ladder.approach is None else ladder.approach.order
        missing = MISSING if ladder is None else "not resolved"
        value, theory = _pair(order, missing)
        approaches += [value, theory] if kind == "step size" else [value]
    return [*cells, *approaches, f"{study.seconds:.0f}"]


def _pair(exponent: Exponent | None, missing: str = MISSING) -> list[str]:
    if exponent is None:
        return [missing, MISSING]
    theory = MISSING if exponent.theory is None else f"{exponent.theory:g}"
    return [interval(exponent.value, exponent.half_width), theory]
