"""The limit, the prediction and the training that they describe, side by side."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint
from zeroloss._compilation import seconds_compiling
from zeroloss._pytrees import refuse_tracing
from zeroloss._tolerances import SHOWN_STEPS
from zeroloss.drifts import (
    CLASSIFIED_POINTS,
    TimeScale,
    Verdict,
    classify_at,
    expand_at,
    slow_time,
    steps_for,
)
from zeroloss.dynamics import (
    Saves,
    Trajectory,
    as_saves,
    descend,
    flat_trajectories,
    limit_with_verdict,
)
from zeroloss.errors import DivergenceError, InputError, RunError, ZerolossError
from zeroloss.optimizers import SGD
from zeroloss.prediction import predict
from zeroloss.studies._answers import what_took_longer, which_answer
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, locate, project

_LIMIT_REPLICAS = 200  # of a stochastic limit, and of its prediction
_COUNT = 26  # times saved
_STILL = 1e-9  # of |w|: what a limit travels less than that is rounding


class Prediction(eqx.Module):
    """The prediction of the training by `zeroloss.predict`, at the same times.

    - `path`: without replicas, or with them where the limit is stochastic; `path.ts` counts steps.
    - `distance`: |mean over replicas of w - prediction|, in the unit of `Training.distance`.
    - `seconds`: wall-clock time, compilation included; `compiling`: how much of it JAX spent compiling.
    """

    path: Trajectory
    distance: Float[np.ndarray, " time"]
    seconds: float
    compiling: float = 0.0


class Training(eqx.Module):
    """An ensemble of training runs at one step size, at the times of the limit it is compared with.

    - `path`: replicas first; `path.ts` counts steps.
    - `distance`: |mean over replicas of w - limit| at each time. The unit is the distance that the limit
      travels in all, or |w| if it does not move. A stochastic limit enters by its mean over replicas and the
      root mean square distance that they travel.
    - `distance_error`: the contribution of the scatter of the ensemble, and of a stochastic limit, to
      `distance`: the root of the summed squared standard errors of all parameters, in the same unit.
    - `seconds`: wall-clock time, compilation included; `compiling`: how much of it JAX spent compiling, in
      this process where the call went on from a checkpoint.
    - `diverged_at`: the step at which a run left the finite numbers, or None.
    - `prediction`: what was predicted, or None; then `no_prediction` says why.
    """

    step_size: float
    path: Trajectory
    distance: Float[np.ndarray, " time"]
    distance_error: Float[np.ndarray, " time"]
    seconds: float
    diverged_at: int | None
    prediction: Prediction | None = None
    no_prediction: str = ""
    compiling: float = 0.0


class Comparison(eqx.Module):
    """A limit and trainings towards it. `print` it, take `rows()`, or `to_xarray()`.

    - `noise`: the noise in words, `sigma` its scale (of a sum that of the first noise that has one).
    - `verdict`: on which time scale the noise acts.
    - `largest_eigenvalue`: lambda_max of the Hessian at the start; training is stable below 2 / it.
    - `limit`: in slow time; `limit_seconds` with compilation, `limit_compiling` of them.
    - `trainings`: one per step size.
    """

    noise: str
    sigma: float
    verdict: Verdict
    largest_eigenvalue: float
    limit: Trajectory
    limit_seconds: float
    trainings: tuple[Training, ...]
    limit_compiling: float = 0.0

    @property
    def distance_of(self) -> str:
        """The unit of distances: the "way" of the limit, or "|w|" for a limit that does not move."""
        return "|w|" if self.verdict.time_scale is None else _way(self.limit)[0]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per training: what was run, what came out, how far limit and prediction are from it.

        For each measured quantity: `<name>_start`, `<name>_limit`, `<name>_prediction`, `<name>_training` and
        its standard error `<name>_error`, all at the last time saved. Values without a prediction are None.
        `seconds_<which>` is how long limit, prediction and training took, `seconds_<which>_compiling` how
        much of it JAX compiled, and `ratio` that of training to limit, compiling included.
        """
        return [self._row(training) for training in self.trainings]

    def to_xarray(self) -> xr.DataTree:
        """A tree of `limit`, `training_<i>` and `prediction_<i>`, with the verdict as attributes."""
        nodes = {"limit": self.limit.to_xarray()}
        for index, training in enumerate(self.trainings):
            dataset = self._in_slow_time(training.path, training)
            dataset["distance"] = ("time", training.distance)
            dataset["distance_error"] = ("time", training.distance_error)
            nodes[f"training_{index}"] = dataset
            if training.prediction is not None:
                dataset = self._in_slow_time(training.prediction.path, training)
                reached = len(training.prediction.distance)  # a training that diverged ends earlier
                rest = np.full(dataset.sizes["time"] - reached, np.nan)
                dataset["distance"] = ("time", np.append(training.prediction.distance, rest))
                nodes[f"prediction_{index}"] = dataset
        tree = xr.DataTree.from_dict(nodes)
        tree.attrs.update(noise=self.noise, sigma=self.sigma, verdict=str(self.verdict))
        return tree

    def _in_slow_time(self, path: Trajectory, training: Training) -> xr.Dataset:
        dataset = path.to_xarray()
        if self.verdict.time_scale is not None:
            slow = slow_time(path.ts, self.verdict.time_scale, training.step_size, self.sigma)
            unit = f"slow time, {self.verdict.time_scale} steps"
            dataset = dataset.assign_coords(slow_time=("time", slow, {"units": unit}))
        dataset.attrs["step_size"] = training.step_size
        return dataset

    def __str__(self) -> str:
        lines = [f"{self.noise}: {self.verdict}"]
        for row in self.rows():
            lines.append(
                f"  step size {row['step_size']:.4g} ({row['step_size_relative']:.2g} / lambda_max), "
                f"{row['steps']} steps, {row['replicas']} runs:"
            )
            lines += [f"    {said}" for said in (which_answer(row), what_took_longer(row)) if said]
            known = row["prediction_distance"] is not None
            predicted = f", to the prediction {row['prediction_distance']:.3g}" if known else ""
            trace = f", {row['hessian_trace_prediction']:.5g} predicted" if known else ""
            lines += [
                f"    distance to the limit {row['distance']:.3g}{predicted} (ensemble error "
                f"{row['distance_error']:.2g})",
                f"    tr H {row['hessian_trace_start']:.5g} -> {row['hessian_trace_limit']:.5g} in the "
                f"limit{trace}, {row['hessian_trace_training']:.5g} trained",
                f"    seconds, of which compiling: {_seconds(row)}",
            ]
        return "\n".join(lines)

    def _row(self, training: Training) -> dict[str, Any]:
        prediction, last = training.prediction, len(training.path.ts) - 1
        row: dict[str, Any] = {
            "noise": self.noise,
            "sigma": self.sigma,
            "verdict_name": self.verdict.name,
            "time_scale": self.verdict.time_scale,
            "step_size": training.step_size,
            "step_size_relative": training.step_size * self.largest_eigenvalue,
            "steps": int(training.path.ts[-1]),
            "replicas": training.path.loss.shape[0],
            "distance": float(training.distance[-1]),
            "distance_error": float(training.distance_error[-1]),
            "distance_of": self.distance_of,
            "seconds_limit": self.limit_seconds,
            "seconds_limit_compiling": self.limit_compiling,
            "seconds_training": training.seconds,
            "seconds_training_compiling": training.compiling,
            "ratio": training.seconds / self.limit_seconds,
            "diverged_at": training.diverged_at,
            "prediction_distance": None if prediction is None else float(prediction.distance[-1]),
            "prediction_estimate": None,
            "seconds_prediction": None if prediction is None else prediction.seconds,
            "seconds_prediction_compiling": None if prediction is None else prediction.compiling,
            "no_prediction": training.no_prediction,
        }
        if prediction is not None and prediction.path.uncertainty is not None:
            estimate = float(prediction.path.uncertainty.total[last])
            row["prediction_estimate"] = estimate if np.isfinite(estimate) else None
        for name in self.limit.measured():
            values, _ = self.limit.mean(name)
            mean, error = training.path.mean(name)
            row[f"{name}_start"] = float(values[0])
            row[f"{name}_limit"] = float(values[last])
            row[f"{name}_prediction"] = None
            if prediction is not None:
                row[f"{name}_prediction"] = float(prediction.path.mean(name)[0][last])
            row[f"{name}_training"] = float(mean[last])
            row[f"{name}_error"] = float(error[last]) if error is not None else None
        return row


def compare(
    system: AbstractSystem,
    params: PyTree,
    step_sizes: Sequence[float],
    *,
    key: Key[Array, ""],
    t1: float | Saves | None = None,
    steps: int | Saves = 100_000,
    replicas: int = 8,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Comparison:
    """Project, classify, follow the limit, predict training, and train ensembles to the same slow time.

    **Arguments:**

    - `system`, `params`: a system and any start from which zero loss can be reached.
    - `step_sizes`: one ensemble for each.
    - `key`: for the training runs.
    - `t1`: the slow time to go to, rounded to whole steps at the largest step size; by default, the slow time
      of `steps` steps at the smallest step size. Both may be a `zeroloss.Saves`, with the number of times to
      save at (by default 26), and observables to measure.
    - `replicas`: runs in each ensemble, at least 2 so that errors can be estimated. Where the limit is
      stochastic, limit and prediction have 200.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.

    **Returns:** a `Comparison`. A training that diverges is kept up to its divergence. Where `predict`
    raises, the comparison has no prediction and says why. Trivial noise is not predicted.

    **Raises:** what `project`, `classify` and `limit` raise, and `StabilityError`, before any training.
    """
    step_sizes = [float(step_size) for step_size in step_sizes]
    if not step_sizes or min(step_sizes) <= 0:
        raise InputError(f"step_sizes must be one or more positive numbers, got {step_sizes}.")
    if replicas < 2:
        raise InputError(f"replicas must be at least 2 for error estimates, got {replicas}.")
    saves = as_saves(steps if t1 is None else t1)
    if saves.at is not None:
        raise InputError("compare chooses the times to save at itself: give Saves a count, not `at`.")
    refuse_tracing((system, params), "compare")
    point = project(system, params)
    largest = largest_eigenvalue(system, point)
    for step_size in step_sizes:
        SGD(step_size).check_stability(largest)
    sigma = system.noise_law(point).sigma
    zero_set, start = locate(system, point)
    expansion = expand_at(system, zero_set, start)
    verdict = classify_at(expansion, start, jax.random.key(0), CLASSIFIED_POINTS)
    ts, save_steps = _times(verdict.time_scale, step_sizes, sigma, saves, in_steps=t1 is None)
    limit_key, training_key = jax.random.split(key)
    at_ts, stage = Saves(at=ts, observables=saves.observables), checkpoint / "limit"
    with checkpoint.open():
        clock = _Clock()
        followed = limit_with_verdict(expansion, start, verdict, at_ts, limit_key, _LIMIT_REPLICAS, stage)
        limit_seconds, limit_compiling = clock.read(stage)
        trainings = []
        for index, (step_size, at, one_key) in enumerate(
            zip(step_sizes, save_steps, jax.random.split(training_key, len(step_sizes)), strict=True)
        ):
            at_steps = Saves(at=at, observables=saves.observables)
            training = _train(
                system, point, followed, step_size, at_steps, one_key, replicas,
                checkpoint / f"training_{index}",
            )  # fmt: skip
            stage = checkpoint / f"prediction_{index}"
            trainings.append(_predict(system, point, verdict, training, followed, at_steps, stage))
    return Comparison(
        system.describe(), sigma, verdict, largest, followed, limit_seconds, tuple(trainings), limit_compiling
    )


class _Clock:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._began, self._compiled = time.perf_counter(), seconds_compiling()

    def read(self, stage: Checkpoint) -> tuple[float, float]:
        """The seconds of a stage in all processes, and those that JAX compiled since this clock began."""
        return stage.earlier_seconds + time.perf_counter() - self._began, seconds_compiling() - self._compiled


def _seconds(row: Mapping[str, Any]) -> str:
    """How long limit, prediction and training took."""
    return ", ".join(
        f"{name} {row[f'seconds_{name}']:.1f} ({row[f'seconds_{name}_compiling']:.1f})"
        for name in ("limit", "prediction", "training")
        if row[f"seconds_{name}"] is not None
    )


def _times(
    time_scale: TimeScale | None, step_sizes: list[float], sigma: float, saves: Saves, in_steps: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Slow times to save at, and the training steps they are at each step size.

    The times are whole numbers of steps at the largest step size, which takes the fewest. For noise without a
    time scale they go from 0 to 1, and the steps are the same at each step size.
    """
    end = int(saves.steps()[-1]) if in_steps else float(saves.times()[-1])
    count = saves.count or _COUNT
    if time_scale is None:
        shared = _save_steps(min(int(end), SHOWN_STEPS) if in_steps else SHOWN_STEPS, count)
        return shared / shared[-1], [shared for _ in step_sizes]
    t1 = float(slow_time(int(end), time_scale, min(step_sizes), sigma)) if in_steps else end
    coarsest = max(step_sizes)
    fewest = _save_steps(steps_for(t1, time_scale, coarsest, sigma), count)
    ts = slow_time(fewest, time_scale, coarsest, sigma)
    return ts, [
        np.array([steps_for(float(t), time_scale, step_size, sigma) for t in ts]) for step_size in step_sizes
    ]


def _save_steps(steps: int, count: int) -> np.ndarray:
    if steps < count - 1:
        raise InputError(
            f"the horizon takes only {steps} training steps at the largest step size, fewer than the {count} "
            "times saved. Take a longer horizon, a smaller step size or less noise."
        )
    return np.linspace(0, steps, count).round().astype(int)


def _train(
    system: AbstractSystem,
    start: PyTree,
    followed: Trajectory,
    step_size: float,
    saves: Saves,
    key: Key[Array, ""],
    replicas: int,
    checkpoint: Checkpoint,
) -> Training:
    """Train an ensemble, up to where it diverges."""
    clock, diverged_at = _Clock(), None
    try:
        path = descend(system, start, step_size, saves, key=key, replicas=replicas, checkpoint=checkpoint)
    except DivergenceError as error:
        if error.path is None:
            raise
        path, diverged_at = error.path, error.step
    seconds, compiling = clock.read(checkpoint)
    distance, distance_error = _distance(path, followed)
    return Training(step_size, path, distance, distance_error, seconds, diverged_at, compiling=compiling)


def _predict(
    system: AbstractSystem,
    start: PyTree,
    verdict: Verdict,
    training: Training,
    followed: Trajectory,
    saves: Saves,
    checkpoint: Checkpoint,
) -> Training:
    """The training with its prediction, or with the reason why there is none."""
    if verdict.time_scale is None:
        reason = "a trivial noise does nothing that could be predicted."
        return dataclasses.replace(training, no_prediction=reason)
    clock, replicas = _Clock(), _LIMIT_REPLICAS if verdict.stochastic else None
    try:
        path = predict(system, start, training.step_size, saves, replicas=replicas, checkpoint=checkpoint)
    except RunError:  # of the checkpoint
        raise
    except ZerolossError as error:
        return dataclasses.replace(training, no_prediction=str(error))
    distance = _distance_between(training.path, path, _way(followed)[1])
    return dataclasses.replace(training, prediction=Prediction(path, distance, *clock.read(checkpoint)))


def _distance(training: Trajectory, followed: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the ensemble's mean from the limit, and the ensemble's share in it, at each time."""
    ensemble, paths, unit = _runs(training), _runs(followed), _way(followed)[1]
    variance = _variance_of_mean(ensemble) + _variance_of_mean(paths)[: ensemble.shape[1]]
    return _distance_between(training, followed, unit), np.sqrt(variance) / unit


def _distance_between(training: Trajectory, other: Trajectory, unit: float) -> np.ndarray:
    """Between the means over replicas, at the times that the training reached."""
    mean = _runs(training).mean(axis=0)
    return np.linalg.norm(mean - _runs(other).mean(axis=0)[: len(mean)], axis=-1) / unit


def _way(followed: Trajectory) -> tuple[str, float]:
    """The unit of distances: the root mean square distance that the limit travels; |w| if it is rounding."""
    paths, size = _runs(followed), float(np.linalg.norm(_runs(followed)[0, 0]))
    travelled = float(np.sqrt(np.mean(np.sum((paths[:, -1] - paths[:, 0]) ** 2, axis=-1))))
    return ("way", travelled) if travelled > _STILL * size else ("|w|", size)


def _runs(path: Trajectory) -> np.ndarray:
    """Parameters, `[replica, time, parameters]`, one replica where there are none."""
    flat = flat_trajectories(path.params, path.loss.ndim)
    return flat if flat.ndim == 3 else flat[None]


def _variance_of_mean(paths: np.ndarray) -> np.ndarray:
    """Summed over parameters, at each time; 0 for a single path."""
    replicas = len(paths)
    return paths.var(axis=0, ddof=1).sum(axis=-1) / replicas if replicas > 1 else np.zeros(paths.shape[1])
