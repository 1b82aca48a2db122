"""Slow time: the unit of a limit, and its conversion to training steps (theory.md, section 2)."""

from typing import Literal

import numpy as np

FAST: Literal["1/(alpha sigma^2)"] = "1/(alpha sigma^2)"
SLOW: Literal["1/(alpha^2 sigma^2)"] = "1/(alpha^2 sigma^2)"
TimeScale = Literal["1/(alpha sigma^2)", "1/(alpha^2 sigma^2)"]


def power_of_step_size(time_scale: TimeScale) -> int:
    """1 for t = alpha sigma^2 k, 2 for t = alpha^2 sigma^2 k."""
    return {FAST: 1, SLOW: 2}[time_scale]


def steps_per_unit(time_scale: TimeScale, step_size: float, sigma: float) -> float:
    """The number of training steps in one unit of slow time, 1 / (alpha^power sigma^2)."""
    return 1 / (step_size ** power_of_step_size(time_scale) * sigma**2)


def slow_time(steps: np.ndarray | int, time_scale: TimeScale, step_size: float, sigma: float) -> np.ndarray:
    """The slow time t that `steps` steps of training take."""
    return np.asarray(np.asarray(steps) * step_size ** power_of_step_size(time_scale) * sigma**2)


def steps_for(t: float, time_scale: TimeScale, step_size: float, sigma: float) -> int:
    """How many steps of training the slow time t takes."""
    return round(t / (step_size ** power_of_step_size(time_scale) * sigma**2))
