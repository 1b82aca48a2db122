"""The estimated error of a prediction (docs/prediction.md)."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zeroloss._pytrees import Vector
from zeroloss.dynamics import Trajectory, Uncertainty
from zeroloss.errors import SpreadError
from zeroloss.prediction._snapshots import Snapshot, correction_of
from zeroloss.zero_sets import norm_or_one

_SMALLEST_WAY = 1e-6  # |w|: of less there is nothing to predict
_UNRELIABLE, _WIDE = 0.05, 0.3  # shares of the way: errors and spreads beyond both are refused
_NEXT_ORDER = 0.5  # the next order of the correction for the spread, relative to the correction


def check_spread(start: Vector, snapshots: list[Snapshot], path: Trajectory, steps: int) -> None:
    """Raise `SpreadError` where the mean is not known well enough to be called a prediction."""
    assert path.uncertainty is not None
    ways = np.array([np.linalg.norm(snapshot.mean - start) for snapshot in snapshots])
    parts = (path.uncertainty.integration, path.uncertainty.sampling, path.uncertainty.model)
    errors = np.sqrt(np.nansum(np.square(parts), axis=0)) * ways  # without unknown parts
    spreads = path.uncertainty.spread * ways
    longest = ways.max()
    refused = (errors > _UNRELIABLE * longest) & (spreads > _WIDE * longest)
    if not refused.any() or longest <= _SMALLEST_WAY * float(norm_or_one(start)):
        return
    worst = int(np.argmax(np.where(refused, errors, 0.0)))
    scatter = spreads[worst] / longest
    raise SpreadError(
        f"the mean of training cannot be predicted to better than {100 * errors[worst] / longest:.0f} % of "
        f"its way at step {snapshots[worst].step:,}: single runs scatter by {100 * scatter:.0f} % of the way "
        "there, too widely for a mean path and small fluctuations around it. Take a smaller step size, less "
        f"noise or larger batches; or run zeroloss.descend with replicas=, {steps:,} gradients for each. The "
        "error's `path` has what was found.",
        path,
    )


def uncertainty(
    start: Vector, snapshots: list[Snapshot], measure: Callable[[Array], dict[str, np.ndarray]]
) -> Uncertainty:
    steps = np.array([snapshot.step for snapshot in snapshots], float)
    # Later steps are assumed neither to undo nor to enlarge the error of one step.
    moved = _added_up(steps, _interpolated(steps, np.array([snapshot.left_out for snapshot in snapshots])))
    excess = _interpolated(steps, np.array([snapshot.excess for snapshot in snapshots]))
    rows = [
        _one_uncertainty(start, snapshot, gap)
        for snapshot, gap in zip(snapshots, np.linalg.norm(moved, axis=1), strict=True)
    ]
    return Uncertainty(*np.transpose(rows), measured=_of_measured(snapshots, moved, excess, measure))


def _interpolated(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values`, `[time, ...]`, interpolated where they are not finite; all NaN where none are finite."""
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat).all(axis=1)
    if not known.any():
        return np.full_like(values, np.nan)
    columns = [np.interp(steps, steps[known], column[known]) for column in flat.T]
    return np.stack(columns, axis=1).reshape(values.shape)


def _added_up(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The sums of rates per step, from step 0 to each of `steps`; `[time, ...]`."""
    lengths = np.diff(steps).reshape((-1,) + (1,) * (rates.ndim - 1))
    added = np.cumsum(lengths * (rates[1:] + rates[:-1]) / 2, axis=0)
    return rates[:1] * steps[0] + np.concatenate([np.zeros_like(rates[:1]), added])


def _of_measured(
    snapshots: list[Snapshot],
    moved: Float[np.ndarray, "time parameters"],
    excess: Float[np.ndarray, " time"],
    measure: Callable[[Array], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The standard error of everything measured, in its own unit, at each time.

    `moved`: how far what is left out has moved the parameters.
    """
    if not snapshots[0].measured:
        return {}
    known = np.asarray(np.isfinite(moved).all(axis=1))
    means = np.array([snapshot.mean for snapshot in snapshots])
    displaced = measure(jnp.asarray(means + np.where(known.reshape(-1, 1), moved, 0.0)))
    names = [
        *snapshots[0].measured,
        *(name for name in snapshots[0].losses if name not in snapshots[0].measured),
    ]

    def errors(name: str) -> np.ndarray:
        source = "loss" if name == "noisy_loss" else name  # both move alike with the parameters
        found = [
            _one_error(snapshot, name, float(value - snapshot.measured[source]), float(factor))
            for snapshot, value, factor in zip(snapshots, displaced[source], excess, strict=True)
        ]
        return np.where(known, found, np.nan)

    return {name: errors(name) for name in names}


def _one_error(snapshot: Snapshot, name: str, left_out: float, excess: float) -> float:
    """The standard error of one quantity at one time; `left_out`: what the terms left out do to it."""
    ensemble = snapshot.ensemble
    pairs = len(ensemble.runs) // 2
    if name in ensemble.losses:  # the mean over fluctuations is known there, up to their covariance
        coarse, at_runs = ensemble.mean_losses[name], ensemble.losses[name]
        drawn = at_runs[:, None]
        left_out = float(np.hypot(left_out, excess * (snapshot.losses["loss"] - snapshot.measured["loss"])))
    else:
        coarse, at_runs = ensemble.mean_measured[name], ensemble.runs_measured[name]
        drawn = ensemble.drawn_measured[name]
    spread = ensemble.variance_along**0.5
    # Errors of sampled averages have the directions of the displacements of the runs.
    sampling = at_runs.std() * float(snapshot.variance) ** 0.5 / spread if spread > 0 else 0.0
    # The parts of a pair's two values that are odd in its displacements and fluctuations cancel.
    even = (drawn[:pairs] + drawn[pairs:]) / 2
    between = even.mean(axis=1).std(ddof=1) / np.sqrt(pairs) if pairs > 1 else abs(even.mean() - coarse)
    within = even.std(ddof=1) / np.sqrt(even.size) if even.size > 1 else 0.0
    next_order = _NEXT_ORDER * (at_runs.mean() - coarse)
    parts = (sampling, max(between, within), next_order, snapshot.integration_of[name], left_out)
    return float(np.linalg.norm(np.array(parts, float)))


def _one_uncertainty(start: Vector, snapshot: Snapshot, left_out: float) -> tuple[float, float, float, float]:
    way = float(np.linalg.norm(snapshot.mean - start))
    unit = way if way > 0 else 1.0
    correction, variance = correction_of(snapshot)
    return (
        float(snapshot.integration) / unit,
        float(snapshot.variance) ** 0.5 / unit,
        float(np.hypot(np.sqrt(variance / 2 + _NEXT_ORDER**2 * correction @ correction), left_out)) / unit,
        float(np.sqrt(snapshot.ensemble.normal.mean() + snapshot.ensemble.variance_along)) / unit,
    )
