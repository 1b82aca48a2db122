"""Power laws fitted to measurements with known errors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_TWO_SIDED_95 = 1.96
_LOWEST_ORDER, _HIGHEST_ORDER = 0.2, 5.0
_CLEAR = 9.0  # a slope counts if it lowers the sum of squares by this much


class Exponent(NamedTuple):
    """A measured exponent with its 95 % interval, beside that of the theory.

    - `value`, `half_width`: the interval is value - half_width to value + half_width.
    - `theory`: None where theory gives no number.
    - `points`: how many measurements it was fitted to.
    """

    value: float
    half_width: float
    theory: float | None
    points: int

    @property
    def agrees(self) -> bool | None:
        """Whether theory's value lies inside the interval; None without one."""
        return None if self.theory is None else abs(self.value - self.theory) <= self.half_width

    def __str__(self) -> str:
        beside = "" if self.theory is None else f" (theory {self.theory:g})"
        return f"{self.value:.3f} ± {self.half_width:.3f}{beside}"


def power_law(
    x: np.ndarray,
    logs: np.ndarray,
    errors: np.ndarray,
    *,
    corrections: Sequence[np.ndarray] = (),
    prior: float = 1.0,
    theory: float | None = None,
    sign: int = 1,
) -> Exponent:
    """Fit logs = constant + sign * exponent * log x + sum_i c_i corrections_i by weighted least squares.

    **Arguments:**

    - `x`, `logs`, `errors`: positive abscissae, logarithms measured there, and their standard errors.
    - `corrections`: corrections to the power law, such as alpha lambda_max and its square, each times an
      unknown c that is normal with standard deviation `prior` before the data are seen.
    - `theory`, `sign`: the exponent of the theory, and the sign with which the exponent enters.

    The errors are enlarged where the scatter around the fit is larger than they are.
    """
    design = np.stack([np.ones_like(logs), sign * np.log(x), *corrections], axis=1) / errors[:, None]
    known = np.eye(design.shape[1])[2:] / prior
    design = np.concatenate([design, known])
    right = np.concatenate([logs / errors, np.zeros(len(known))])
    solution, *_ = np.linalg.lstsq(design, right, rcond=None)
    freedom = len(logs) - 2
    excess = float(np.sum((right - design @ solution) ** 2)) / freedom if freedom > 0 else 1.0
    covariance = np.linalg.inv(design.T @ design) * max(excess, 1.0)
    half_width = _TWO_SIDED_95 * float(np.sqrt(covariance[1, 1]))
    return Exponent(float(solution[1]), half_width, theory, len(logs))


class Approach(NamedTuple):
    """How a gap closes along a ladder: gap = remainder + constant * x^order.

    - `order`: of x, with its 95 % interval.
    - `remainder`, `remainder_error`: the limit of the gap as x goes to zero, and its standard error.
    """

    order: Exponent
    remainder: float
    remainder_error: float

    def __str__(self) -> str:
        return f"{self.order}, down to {self.remainder:.2g} ± {self.remainder_error:.1g}"


def approach(
    x: np.ndarray, gaps: np.ndarray, errors: np.ndarray, *, theory: float | None = None
) -> Approach | None:
    """Fit gap = remainder + constant * x^order; None where the data leave the order open.

    The interval holds the orders whose sum of squares exceeds the least by no more than a chi-square
    variable of one degree of freedom does in 95 % of cases.
    """
    if len(x) < 4:
        return None
    orders = np.linspace(_LOWEST_ORDER, _HIGHEST_ORDER, 1000)
    x = x / x.max()

    def fit(order: float) -> tuple[float, np.ndarray, np.ndarray]:
        design = np.stack([np.ones_like(x), x**order], axis=1) / errors[:, None]
        solution, *_ = np.linalg.lstsq(design, gaps / errors, rcond=None)
        left = float(np.sum((gaps / errors - design @ solution) ** 2))
        return left, solution, np.linalg.inv(design.T @ design)

    squares = np.array([fit(order)[0] for order in orders])
    least = squares.min()
    unit = max(least / max(len(x) - 3, 1), 1.0)
    flat = np.sum(((gaps - np.average(gaps, weights=errors**-2)) / errors) ** 2)
    inside = orders[squares <= least + _TWO_SIDED_95**2 * unit]
    if flat - least < _CLEAR * unit or inside[0] == orders[0] or inside[-1] == orders[-1]:
        return None
    best = float(orders[np.argmin(squares)])
    _, solution, covariance = fit(best)
    half_width = max(best - float(inside[0]), float(inside[-1]) - best)
    error = float(np.sqrt(covariance[0, 0] * unit))
    return Approach(Exponent(best, half_width, theory, len(x)), float(solution[0]), error)


def expected_half_width(
    x: np.ndarray, error: float, corrections: Sequence[np.ndarray], prior: float = 1.0
) -> float:
    """The half width that `power_law` will report for measurements of equal `error` at `x`."""
    errors = np.full_like(x, error)
    return power_law(x, np.zeros_like(x), errors, corrections=corrections, prior=prior).half_width


def jackknife(samples: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """`statistic` of the mean over the first axis of `samples`, and its jackknife standard error."""
    count = len(samples)
    total = samples.sum(axis=0)
    left_out = np.array([statistic((total - each) / (count - 1)) for each in samples])
    spread = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    return float(statistic(total / count)), float(spread)
