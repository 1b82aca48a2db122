"""What the drivers return: parameters and observables along a path."""

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
    """Parameters and what is measured on them at the times saved.

    Arrays have leading axes `[time]`, or `[replica, time]` where replicas were asked for.

    - `ts`: slow time, in the units that `time_scale` says. Where that is None, training steps; or, where
      there are none of these either, of the limit of trivial noise, slow time on any scale.
    - `steps`: training steps, or None for a limit, which has no step size.
    - `params`: pytree of saved parameters.
    - `loss`, `regularizer`, `hessian_trace`: the clean loss, Reg at sigma = 1, and tr H.
    - `observables`: what the caller asked to measure, by name.
    - `step_bias`: for stochastic limits, by name of what is measured, an estimate of how far its mean at
      each time is off because of the finite time step: twice the step on the same noise moved it by as much
      again. None for other paths.
    - `uncertainty`: of predictions, what their error is estimated to be. None for other paths.
    - `hessian_trace_error`: the standard error of tr H where that is estimated from random vectors, as of a
      loss treated matrix-free, the same all along the path. None where it is exact.
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
    """How far a prediction may be from the mean of training.

    Of the mean parameters, relative to the way from the start:

    - `integration`: from a second integration with a coarser tolerance.
    - `sampling`: standard error of averages over the noise; 0 where they are exact.
    - `model`: what is left out: of the correction for the spread of the runs its error and half of itself,
      and of the recursion for mean and covariance the terms of next order, as sampled along the path. NaN
      means unknown: the sample was not finite.
    - `spread`: root mean square distance of a single run from the mean. It is not an error.

    Of everything that `Trajectory.measured` has, in its own unit:

    - `measured`: by name, a standard error that combines the same three and, for observables, the error of
      the mean over the fluctuations of single runs. Empty for predictions with replicas, where
      `Trajectory.mean` has the standard error.
    """

    integration: Float[np.ndarray, " time"]
    sampling: Float[np.ndarray, " time"]
    model: Float[np.ndarray, " time"]
    spread: Float[np.ndarray, " time"]
    measured: dict[str, Float[np.ndarray, " time"]] = eqx.field(default_factory=dict)

    @property
    def total(self) -> Float[np.ndarray, " time"]:
        """All three together, as if independent."""
        return np.sqrt(self.integration**2 + self.sampling**2 + self.model**2)


def flat_trajectories(params: PyTree, lead: int) -> np.ndarray:
    """Saved parameters as one array, `[..., parameters]` behind their first `lead` axes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)
