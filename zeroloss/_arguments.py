"""Checks of single numbers that users pass."""

import math
from typing import Any

import numpy as np

from zeroloss.errors import InputError

_LARGEST_RTOL = 1e-2


def positive_integer(name: str, value: Any) -> int:
    """`value` as an integer. Raises `InputError`, which begins with `name`, unless it is a positive one."""
    if not (_is_integer(value) and value >= 1):
        raise InputError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def integer_between(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an integer. Raises `InputError`, which begins with `name`, unless it is in [low, high]."""
    if not (_is_integer(value) and low <= value <= high):
        raise InputError(f"{name} must be an integer between {low} and {high}, got {value!r}.")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """`value` as a float. Raises `InputError`, which begins with `name`, unless it is positive and finite."""
    value = float(value)
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive and finite, got {value}.")
    return value


def relative_tolerance(value: float) -> float:
    """`value` itself. Raises `InputError` unless an integrator can keep to this relative tolerance."""
    if not 0 < value <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {value}.")
    return value


def _is_integer(value: Any) -> bool:
    """Whether `value` is a whole number, such as 3 or 3.0; truth values are not."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and int(value) == value
