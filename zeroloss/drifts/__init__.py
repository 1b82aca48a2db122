"""The drift along the zero-loss set: Reg and Sigma, both time scales, and the verdict on a noise."""

from zeroloss.drifts._drift import (
    Drift as Drift,
    drift as drift,
    first_drift as first_drift,
    regularizer as regularizer,
    second_drift as second_drift,
    second_drift_of as second_drift_of,
)
from zeroloss.drifts._rare_masks import (
    RareMaskExpansion as RareMaskExpansion,
    Units as Units,
    expand_at as expand_at,
)
from zeroloss.drifts._reg_and_sigma import (
    AbstractExpansion as AbstractExpansion,
    LeastSquaresExpansion as LeastSquaresExpansion,
    expand as expand,
)
from zeroloss.drifts._slow_time import (
    FAST as FAST,
    SLOW as SLOW,
    TimeScale as TimeScale,
    power_of_step_size as power_of_step_size,
    slow_time as slow_time,
    steps_for as steps_for,
    steps_per_unit as steps_per_unit,
)
from zeroloss.drifts._verdict import (
    CLASSIFIED_POINTS as CLASSIFIED_POINTS,
    Verdict as Verdict,
    classify as classify,
    classify_at as classify_at,
)
