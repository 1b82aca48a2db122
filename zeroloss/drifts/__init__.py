"""The drift along the zero-loss set: Reg and Sigma, both time scales, and the verdict on a noise."""

from zeroloss.drifts._drift import Drift, drift, first_drift, regularizer, second_drift, second_drift_of
from zeroloss.drifts._expansion import AbstractExpansion, LeastSquaresExpansion, expand
from zeroloss.drifts._slow_time import (
    FAST,
    SLOW,
    TimeScale,
    power_of_step_size,
    slow_time,
    steps_for,
    steps_per_unit,
)
from zeroloss.drifts._verdict import CLASSIFIED_POINTS, Verdict, classify, classify_at

__all__ = [
    "CLASSIFIED_POINTS",
    "FAST",
    "SLOW",
    "AbstractExpansion",
    "Drift",
    "LeastSquaresExpansion",
    "TimeScale",
    "Verdict",
    "classify",
    "classify_at",
    "drift",
    "expand",
    "first_drift",
    "power_of_step_size",
    "regularizer",
    "second_drift",
    "second_drift_of",
    "slow_time",
    "steps_for",
    "steps_per_unit",
]
