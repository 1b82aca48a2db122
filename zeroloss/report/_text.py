"""Numbers, and the names of quantities and noises, as people read them."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zeroloss.noise import LISTINGS, MiniBatch

MISSING = "–"
UNCHANGED = 1e-6
"""Relative changes below this count as no change."""
ROUNDING = 1e-12
"""Smaller absolute values are rounding."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_DIGITS = 9  # after the point
_QUANTITIES = {
    "regularizer": "regularizer Reg",
    "hessian_trace": "trace of the Hessian",
    "test_error": "test error",
    "loss": "clean loss",
    "noisy_loss": "mean loss with noise",
}


def number(value: float, digits: int = 3) -> str:
    """A number in running text, with thousands separated and powers of ten."""
    if not math.isfinite(value):
        return "not a finite number"
    if value == 0:
        return "0"
    if abs(float(f"{value:.{digits}g}")) >= min(1000, 10**digits) and round(abs(value)) < 1e7:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:#.{digits}g}".partition("e")
    mantissa = mantissa.rstrip(".")
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPTS)}" if exponent else mantissa


def steps_in_words(steps: float) -> str:
    """A number of training steps, such as "8,210" or "5.12 million"."""
    for unit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if steps >= 0.9995 * unit:
            return f"{steps / unit:.3g}\u00a0{word}"
    digits = max(0, math.floor(math.log10(steps)) - 2) if steps >= 1 else 0
    return f"{round(steps, -digits):,.0f}" if steps >= 10 else f"{steps:.2g}"


def interval(value: float, half_width: float) -> str:
    """A measured number and the half width of its interval, to as many digits as the width supports."""
    if not (math.isfinite(half_width) and half_width > 0):
        return number(value)
    first = -math.floor(math.log10(half_width))
    if first > _MOST_DIGITS:
        return f"{number(value)}\u00a0±\u00a0{number(half_width, 1)}"
    digits = min(max(first, min(first + 1, 3), 0), _MOST_DIGITS)
    return f"{value:.{digits}f}\u00a0±\u00a0{half_width:.{digits}f}".replace("-", "−")


def in_table(value: float, error: float | None = None, digits: int = 5) -> str:
    """A measured number, and its standard error where that is known, in a cell of a table."""
    if not math.isfinite(value):
        return "not finite"
    scatter = "" if error is None or not math.isfinite(error) else f" ± {error:.1g}"
    return f"{value:.{digits}g}{scatter}"


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, digits)}\u00a0%"


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}"


def greek(text: str) -> str:
    """A formula, such as a time scale, with Greek letters; other words stay."""
    text = text.replace("alpha", "α").replace("sigma", "σ").replace("^2", "²")
    return text.replace("α σ", "ασ").replace("α² σ", "α²σ")


def label_of(quantity: str) -> str:
    """The name of a measured quantity in sentences, tables and figures."""
    return _QUANTITIES.get(quantity, quantity.replace("_", " "))


def sentence_start(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def joined(parts: Sequence[str], sign: str = " · ") -> str:
    """The parts that are not empty, with a sign between them."""
    return sign.join(part for part in parts if part)


def noise_in_words(name: str, strengths: Mapping[str, Any]) -> str:
    """A noise such as `dropout` or `minibatch:32+label:0.1` in words, with its strength where it is known."""
    return " and ".join(_one_noise(part.strip(), strengths) for part in name.split("+"))


def _one_noise(part: str, strengths: Mapping[str, Any]) -> str:
    name, colon, strength = part.partition(":")
    listing = LISTINGS.get(name)
    if listing is None:
        return part
    # A problem may cap the size of its batches, so only a size that was asked for is repeated.
    if not colon:
        strength = "" if name == MiniBatch.listing.name else strengths.get(name, "")
    return listing.label if strength == "" else listing.with_strength(strength)


def is_plural(name: str) -> bool:
    """Whether the words for a noise take the plural."""
    listing = LISTINGS.get(name.partition(":")[0].strip())
    return "+" in name or (listing is not None and listing.plural)


def alone(name: str) -> str:
    """The word " alone" for minibatches that no other noise joins."""
    return " alone" if name.partition(":")[0] == MiniBatch.listing.name and "+" not in name else ""


def kind_of_noise(name: str, verdict: str, strengths: Mapping[str, Any]) -> str:
    """The beginning of a sentence that gives the verdict on a noise."""
    noise = sentence_start(noise_in_words(name, strengths))
    return f"{noise} {'are' if is_plural(name) else 'is'} {verdict}"


def speed(verdict: str) -> str:
    """The name of the time scale of a noise that is not trivial."""
    return "fast" if verdict == "non-degenerate" else "slow"


def is_slow(units: str) -> bool:
    """Whether times in these units are slow time, and not training steps."""
    return units.startswith("slow time")


def unused_fields(config: Mapping[str, Any], *, stochastic: bool) -> set[str]:
    """Fields of a config without effect: steps beside a horizon, replicas of a deterministic limit."""
    steps = {"steps"} if config.get("horizon") else set()
    return steps | ({"replicas"} if config.get("command") == "limit" and not stochastic else set())


Lines = list[tuple[str, list[str]]]
"""Lines of a table: a label, and a cell for each column."""


def grouped(lines: Iterable[tuple[str, list[str]]]) -> list[tuple[str, Lines]]:
    """Lines with labels such as "regularizer, start" below the heading "regularizer"; others below none."""
    groups: list[tuple[str, Lines]] = []
    for label, cells in lines:
        heading, comma, part = label.rpartition(", ")
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append((part if comma else label, cells))
    return groups
