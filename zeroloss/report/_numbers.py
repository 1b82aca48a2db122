"""How numbers and formulas are written for people."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_MOST_DIGITS = 9  # after the point

MISSING = "–"


def number(value: float, digits: int = 3) -> str:
    """A number in running text: thousands separated, powers of ten written out."""
    if not math.isfinite(value):
        return "not a finite number"
    if value == 0:
        return "0"
    if abs(float(f"{value:.{digits}g}")) >= min(1000, 10**digits) and round(abs(value)) < 1e7:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:#.{digits}g}".partition("e")
    mantissa = mantissa.rstrip(".")
    if not exponent:
        return mantissa
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def steps_in_words(steps: float) -> str:
    """A number of training steps, as people say it."""
    for unit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if steps >= 0.9995 * unit:
            return f"{steps / unit:.3g}\u00a0{word}"
    digits = max(0, math.floor(math.log10(steps)) - 2) if steps >= 1 else 0
    return f"{round(steps, -digits):,.0f}" if steps >= 10 else f"{steps:.2g}"


def interval(value: float, half_width: float) -> str:
    """A measured number and the half width of its interval, to as many digits as that has meaning."""
    if not (math.isfinite(half_width) and half_width > 0):
        return number(value)
    first = -math.floor(math.log10(half_width))
    if first > _MOST_DIGITS:
        return f"{number(value)}\u00a0±\u00a0{number(half_width, 1)}"
    digits = min(max(first, min(first + 1, 3), 0), _MOST_DIGITS)
    return f"{value:.{digits}f}\u00a0±\u00a0{half_width:.{digits}f}".replace("-", "−")


def in_table(value: float, error: float | None = None, digits: int = 5) -> str:
    """A measured number and its standard error, where there is one, in a cell of a table."""
    if not math.isfinite(value):
        return "not finite"
    scatter = "" if error is None or not math.isfinite(error) else f" ± {error:.1g}"
    return f"{value:.{digits}g}{scatter}"


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, digits)}\u00a0%"


def greek(text: str) -> str:
    """A formula with Greek letters: time scales, and words around them."""
    text = text.replace("alpha", "α").replace("sigma", "σ").replace("^2", "²")
    return text.replace("α σ", "ασ").replace("α² σ", "α²σ")
