"""Trajectories: parameters and observables at the times saved, and the uncertainty of predicted ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, PyTree

from zeroloss.errors import InputError


class Trajectory(eqx.Module):
    """Parameters, and the quantities measured on them, at the times saved.

    Arrays have leading axes `[time]`, or `[replica, time]` where replicas were asked for.

    - `ts`: slow time in the units of `time_scale`. Where `time_scale` is None: training steps; or, for the
      limit of trivial noise, slow time on either scale.
    - `steps`: training steps, or None for a limit, which has no step size.
    - `params`: pytree of saved parameters.
    - `loss`, `regularizer`, `hessian_trace`: the clean loss, Reg at sigma = 1, and tr H.
    - `observables`: the observables of `zeroloss.Saves`, by name.
    - `step_bias`: for stochastic limits, by name of the measured quantity, an estimate of the error of its
      mean at each time by the finite time step: the difference to a run with twice the step on the same
      noise. None for other trajectories.
    - `uncertainty`: the estimated error of a prediction, and of the limit of rare masks of many units, where
      drops are drawn: `sampling` is then half the difference of two paths with other draws and steps, and the
      other parts are 0. For the limit of a loss with kinks, `integration` is the difference to a path in
      steps of twice the length. None for other trajectories.
    - `switched`: for a limit or a prediction of a loss with kinks, how many units are on another side of
      their kink than at the start, at each time: a ReLU unit counts once for each example. None for others.
    - `hessian_trace_error`: the standard error of tr H where tr H is estimated from random vectors, for a
      loss treated matrix-free. The vectors are the same at all times. None where tr H is exact.
    """

    ts: Float[np.ndarray, " time"]
    steps: Int[np.ndarray, " time"] | None
    params: PyTree[np.ndarray]
    loss: Float[np.ndarray, "*replica time"]
    regularizer: Float[np.ndarray, "*replica time"]
    hessian_trace: Float[np.ndarray, "*replica time"]
    observables: dict[str, np.ndarray]
    time_scale: str | None = eqx.field(static=True)
    step_bias: dict[str, np.ndarray] | None = None
    uncertainty: "Uncertainty | None" = None
    switched: Int[np.ndarray, " time"] | None = None
    hessian_trace_error: Float[np.ndarray, "*replica time"] | None = None

    @property
    def final(self) -> PyTree[Array]:
        """The parameters at the last time saved, with a leading replica axis if there are replicas."""
        axis = self.loss.ndim - 1
        return jax.tree.map(lambda leaf: jnp.take(jnp.asarray(leaf), -1, axis=axis), self.params)

    def mean(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean over replicas of a measured quantity, and its standard error (None below 2 replicas)."""
        values = self.measured()[name]
        if values.ndim == 1:
            return values, None
        replicas = values.shape[0]
        error = values.std(axis=0, ddof=1) / np.sqrt(replicas) if replicas > 1 else None
        return values.mean(axis=0), error

    def quantiles(
        self, name: str, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    ) -> Float[np.ndarray, "level time"]:
        """Quantiles over replicas of a measured quantity at each time."""
        values = self.measured()[name]
        if values.ndim == 1:
            raise InputError("quantiles need replicas, and this path has none.")
        return np.quantile(values, np.asarray(levels), axis=0)

    def measured(self) -> dict[str, np.ndarray]:
        """Everything measured, by name: loss, regularizer, hessian_trace and the observables."""
        return {
            "loss": self.loss,
            "regularizer": self.regularizer,
            "hessian_trace": self.hessian_trace,
            **self.observables,
        }

    def to_xarray(self, *, params: bool = True) -> xr.Dataset:
        """The path as an `xarray.Dataset`: dims `time` and `replica`, parameters as `params<where>`."""
        lead = ("time",) if self.loss.ndim == 1 else ("replica", "time")
        data: dict[str, Any] = {name: (lead, np.asarray(v)) for name, v in self.measured().items()}
        if self.hessian_trace_error is not None:
            data["hessian_trace_error"] = (lead, self.hessian_trace_error)
        if self.uncertainty is not None:
            parts = dataclasses.asdict(self.uncertainty)
            for name, values in parts.pop("measured").items():
                data[f"uncertainty_of_{name}"] = ("time", values)
            for name, values in parts.items():
                data[f"uncertainty_{name}"] = ("time", values)
        if params:
            for where, leaf in jax.tree_util.tree_leaves_with_path(self.params):
                name = "params" + jax.tree_util.keystr(where).replace("/", ".")  # no "/" in Zarr names
                own = tuple(f"{name}_axis{i}" for i in range(leaf.ndim - len(lead)))
                data[name] = ((*lead, *own), np.asarray(leaf))
        if self.time_scale is not None:
            unit = f"slow time, {self.time_scale} steps"
        else:
            unit = "slow time, on any scale" if self.steps is None else "training steps"
        coordinates: dict[str, Any] = {"time": ("time", self.ts, {"units": unit})}
        if self.steps is not None:
            coordinates["steps"] = ("time", self.steps, {"units": "training steps"})
        return xr.Dataset(data, coordinates, {"time_scale": self.time_scale or "none"})


class Uncertainty(eqx.Module):
    """The distance at which a prediction may be from the mean of training.

    Of the mean parameters, relative to their distance from the start:

    - `integration`: from a second integration with a coarser tolerance.
    - `sampling`: standard error of averages over the noise; 0 where they are exact.
    - `model`: the error of the model: the error of the correction for the spread of the runs and half of
      that correction, and the terms of next order in the recursion for mean and covariance, sampled along
      the path. NaN means unknown: the sample was not finite.
    - `spread`: root mean square distance of a single run from the mean. It is not an error.

    Of each quantity of `Trajectory.measured`, in its own unit:

    - `measured`: by name, a standard error that combines the same three errors and, for observables, the
      error of the mean over the fluctuations of single runs. Empty for predictions with replicas, where
      `Trajectory.mean` has the standard error.
    """

    integration: Float[np.ndarray, " time"]
    sampling: Float[np.ndarray, " time"]
    model: Float[np.ndarray, " time"]
    spread: Float[np.ndarray, " time"]
    measured: dict[str, Float[np.ndarray, " time"]] = eqx.field(default_factory=dict)

    @property
    def total(self) -> Float[np.ndarray, " time"]:
        """The root of the summed squares of the three errors, as if they were independent."""
        return np.sqrt(self.integration**2 + self.sampling**2 + self.model**2)


def flat_trajectories(params: PyTree, lead: int) -> np.ndarray:
    """Saved parameters as one array, `[..., parameters]` behind their first `lead` axes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)
