"""The limit and the training it stands for, side by side: the only place where they meet."""

import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key, PyTree

from zeroloss.dynamics.descend import descend
from zeroloss.dynamics.limit import limit
from zeroloss.dynamics.optimizer import optimizer
from zeroloss.dynamics.path import Observables, Path, flat_paths
from zeroloss.dynamics.regime import Regime, TimeScale, classify, slow_time, steps_for
from zeroloss.errors import DivergenceError, InputError
from zeroloss.manifold import largest_eigenvalue, project
from zeroloss.pytrees import refuse_tracing
from zeroloss.system import AbstractSystem

_TRIVIAL_STEPS = 20_000


class Training(eqx.Module):
    """An ensemble of training runs at one step size, at the times of the limit it is compared with.

    - `path`: replicas first; `path.ts` counts steps.
    - `distance`: |mean over replicas of w - limit| at each time, relative to the distance the limit
      travels in all; relative to |w| where it does not travel. Of a stochastic limit, its mean over
      replicas and the root mean square of what they travel.
    - `distance_error`: what the scatter of the ensemble, and of a stochastic limit, contributes to
      `distance`: the root of the summed squared standard errors of all parameters, in the same unit.
    - `seconds`: wall-clock time, compilation included.
    - `diverged_at`: the step at which a run left the finite numbers, or None.
    """

    step_size: float
    path: Path
    distance: Float[np.ndarray, " time"]
    distance_error: Float[np.ndarray, " time"]
    seconds: float
    diverged_at: int | None


class Comparison(eqx.Module):
    """A limit and trainings towards it. `print` it, take `rows()`, or `to_xarray()`.

    - `noise`: the noise in words, `sigma` its scale, `regime` the verdict.
    - `largest_eigenvalue`: lambda_max of the Hessian at the start; training is stable below 2 / it.
    - `limit`: in slow time; `limit_seconds` with compilation.
    - `trainings`: one per step size.
    """

    noise: str
    sigma: float
    regime: Regime
    largest_eigenvalue: float
    limit: Path
    limit_seconds: float
    trainings: tuple[Training, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per training: what was run, what came out, how far it is from the limit.

        For each measured quantity: `<name>_start`, `<name>_limit`, `<name>_training` and its standard
        error `<name>_error`, all at the last time saved.
        """
        return [self._row(training) for training in self.trainings]

    def to_xarray(self) -> xr.DataTree:
        """A tree with the groups `limit` and `training_<i>`, and the verdict as attributes."""
        nodes = {"limit": self.limit.to_xarray()}
        for index, training in enumerate(self.trainings):
            dataset = training.path.to_xarray()
            dataset["distance"] = ("time", training.distance)
            dataset["distance_error"] = ("time", training.distance_error)
            if self.regime.time_scale is not None:
                slow = slow_time(training.path.ts, self.regime.time_scale, training.step_size, self.sigma)
                unit = f"slow time, {self.regime.time_scale} steps"
                dataset = dataset.assign_coords(slow_time=("time", slow, {"units": unit}))
            dataset.attrs["step_size"] = training.step_size
            nodes[f"training_{index}"] = dataset
        tree = xr.DataTree.from_dict(nodes)
        tree.attrs.update(noise=self.noise, sigma=self.sigma, verdict=str(self.regime))
        return tree

    def __str__(self) -> str:
        lines = [f"{self.noise}: {self.regime}"]
        for row in self.rows():
            lines.append(
                f"  step size {row['step_size']:.4g} ({row['step_size_relative']:.2g} / lambda_max), "
                f"{row['steps']} steps: distance to the limit {row['distance']:.3g} "
                f"(ensemble error {row['distance_error']:.2g}), tr H {row['hessian_trace_start']:.5g} -> "
                f"{row['hessian_trace_limit']:.5g} in the limit, {row['hessian_trace_training']:.5g} "
                f"trained; {row['seconds_limit']:.1f} s against {row['seconds_training']:.1f} s"
            )
        return "\n".join(lines)

    def _row(self, training: Training) -> dict[str, Any]:
        row: dict[str, Any] = {
            "noise": self.noise,
            "sigma": self.sigma,
            "regime": self.regime.name,
            "time_scale": self.regime.time_scale,
            "step_size": training.step_size,
            "step_size_relative": training.step_size * self.largest_eigenvalue,
            "steps": int(training.path.ts[-1]),
            "replicas": training.path.loss.shape[0],
            "distance": float(training.distance[-1]),
            "distance_error": float(training.distance_error[-1]),
            "seconds_limit": self.limit_seconds,
            "seconds_training": training.seconds,
            "ratio": training.seconds / self.limit_seconds,
            "diverged_at": training.diverged_at,
        }
        last = len(training.path.ts) - 1
        for name in self.limit.measured():
            values, _ = self.limit.mean(name)
            mean, error = training.path.mean(name)
            row[f"{name}_start"] = float(values[0])
            row[f"{name}_limit"] = float(values[last])
            row[f"{name}_training"] = float(mean[last])
            row[f"{name}_error"] = float(error[last]) if error is not None else None
        return row


def compare(
    system: AbstractSystem,
    params: PyTree,
    step_sizes: Sequence[float],
    *,
    key: Key[Array, ""],
    t1: float | None = None,
    steps: int = 100_000,
    replicas: int = 8,
    limit_replicas: int = 200,
    saves: int = 26,
    observables: Observables | None = None,
    progress: bool = False,
) -> Comparison:
    """Project, classify, follow the limit, and train ensembles to the same slow time.

    **Arguments:**

    - `system`, `params`: a system and any start from which zero loss can be reached.
    - `step_sizes`: one ensemble for each.
    - `key`: for the training runs.
    - `t1`: the slow time to go to, rounded to whole steps at the largest step size. By default, what
      `steps` steps at the smallest step size take.
    - `replicas`: runs in each ensemble, at least 2 so that errors can be estimated.
    - `limit_replicas`: paths of the limit where it is stochastic, likewise.
    - `saves`: how many times to save at.
    - `observables`: functions of the parameters to measure, by name.
    - `progress`: whether to show progress bars in a terminal.

    **Returns:** a `Comparison`. A training that diverges is kept up to there.

    **Raises:** what `project`, `classify` and `limit` raise, and `StabilityError`, before any training.
    """
    step_sizes = [float(step_size) for step_size in step_sizes]
    if not step_sizes or min(step_sizes) <= 0:
        raise InputError(f"step_sizes must be one or more positive numbers, got {step_sizes}.")
    if min(replicas, limit_replicas) < 2:
        raise InputError(
            "replicas and limit_replicas must be at least 2 for error estimates, got "
            f"{replicas} and {limit_replicas}."
        )
    if not steps >= 1:
        raise InputError(f"steps must be a positive integer, got {steps}.")
    refuse_tracing((system, params), "compare")
    point = project(system, params)
    largest = largest_eigenvalue(system, point)
    for step_size in step_sizes:
        optimizer(step_size).check_stability(largest)
    sigma = system.noise_law(point).sigma
    regime = classify(system, point)
    if regime.time_scale is None:
        shared = _save_steps(min(steps, _TRIVIAL_STEPS), saves)
        ts, save_steps = shared / shared[-1], [shared for _ in step_sizes]
    else:
        ts, save_steps = _times(regime.time_scale, step_sizes, sigma, steps, t1, saves)
    began = time.perf_counter()
    limit_key, training_key = jax.random.split(key)
    ensemble = dict(key=limit_key, replicas=limit_replicas) if regime.stochastic else {}
    followed = limit(
        system, point, ts=ts, regime=regime, observables=observables, progress=progress, **ensemble
    )
    limit_seconds = time.perf_counter() - began
    trainings = tuple(
        _train(system, point, followed, step_size, at, one_key, replicas, observables, progress)
        for step_size, at, one_key in zip(
            step_sizes, save_steps, jax.random.split(training_key, len(step_sizes)), strict=True
        )
    )
    return Comparison(system.describe(), sigma, regime, largest, followed, limit_seconds, trainings)


def _times(
    time_scale: TimeScale, step_sizes: list[float], sigma: float, steps: int, t1: float | None, saves: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Slow times to save at, and the training steps they are at each step size.

    The times are whole numbers of steps at the largest step size, which takes the fewest.
    """
    if t1 is None:
        t1 = float(slow_time(steps, time_scale, min(step_sizes), sigma))
    if not (t1 > 0 and np.isfinite(t1)):
        raise InputError(f"t1 must be positive and finite, got {t1}.")
    coarsest = max(step_sizes)
    fewest = _save_steps(steps_for(t1, time_scale, coarsest, sigma), saves)
    ts = slow_time(fewest, time_scale, coarsest, sigma)
    return ts, [
        np.array([steps_for(float(t), time_scale, step_size, sigma) for t in ts]) for step_size in step_sizes
    ]


def _save_steps(steps: int, saves: int) -> np.ndarray:
    if saves < 2:
        raise InputError(f"saves must be at least 2, got {saves}.")
    if steps < saves - 1:
        raise InputError(
            f"the horizon takes only {steps} training steps at the largest step size, fewer than the {saves} "
            "times saved. Take a longer horizon, a smaller step size or less noise."
        )
    return np.linspace(0, steps, saves).round().astype(int)


def _train(
    system: AbstractSystem,
    start: PyTree,
    followed: Path,
    step_size: float,
    save_steps: np.ndarray,
    key: Key[Array, ""],
    replicas: int,
    observables: Observables | None,
    progress: bool,
) -> Training:
    began, diverged_at = time.perf_counter(), None
    try:
        path = descend(
            system,
            start,
            step_size,
            int(save_steps[-1]),
            key=key,
            replicas=replicas,
            save_steps=save_steps,
            observables=observables,
            progress=progress,
        )
    except DivergenceError as error:
        if error.path is None:
            raise
        path, diverged_at = error.path, error.step
    seconds = time.perf_counter() - began
    distance, distance_error = _distance(path, followed)
    return Training(step_size, path, distance, distance_error, seconds, diverged_at)


def _distance(training: Path, followed: Path) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the ensemble's mean from the limit, and the ensemble's share in it, at each time."""
    ensemble = flat_paths(training.params, 2)
    paths = flat_paths(followed.params, followed.loss.ndim)
    paths = paths if paths.ndim == 3 else paths[None]
    reached = ensemble.shape[1]
    travelled = np.sqrt(np.mean(np.sum((paths[:, -1] - paths[:, 0]) ** 2, axis=-1)))
    unit = travelled if travelled > 0 else np.linalg.norm(paths[0, 0])
    distance = np.linalg.norm(ensemble.mean(axis=0) - paths.mean(axis=0)[:reached], axis=-1)
    variance = _variance_of_mean(ensemble) + _variance_of_mean(paths)[:reached]
    return distance / unit, np.sqrt(variance) / unit


def _variance_of_mean(paths: np.ndarray) -> np.ndarray:
    """Summed over parameters, at each time; 0 for a single path."""
    replicas = len(paths)
    return paths.var(axis=0, ddof=1).sum(axis=-1) / replicas if replicas > 1 else np.zeros(paths.shape[1])
