"""What the drivers return: parameters and observables along a path."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, PyTree

from zeroloss._pytrees import Vector
from zeroloss.drifts._expansion import AbstractExpansion
from zeroloss.errors import InputError

Observables = Mapping[str, Callable[[PyTree], Array]]


_LONGEST_NAME = 200  # bytes
_PARAMS, _BIAS = "params", "step_bias/"  # beside what is measured

_TAKEN = (
    "params",
    "loss",
    "noisy_loss",
    "regularizer",
    "hessian_trace",
    "hessian_trace_error",
    "time",
    "steps",
    "slow_time",
    "distance",
    "distance_error",
    "seconds",
    "replica",
    "spectrum",
    "function",
    "zero_loss_set",
)
_PREFIXES = ("params", "uncertainty_", "seconds_")


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


class Recorder:
    """Collects what is saved along a path, at one of `ts` after the other, in `items`.

    An item holds the flat parameters, as "params", what is measured by name, and as "step_bias/<name>" what
    a time step made of it. The parameters of the path come out in the dtypes of `like`, in float64
    without it.
    """

    def __init__(
        self,
        expansion: AbstractExpansion,
        observables: Observables | None,
        ts: np.ndarray,
        *,
        steps: np.ndarray | None = None,
        time_scale: str | None = None,
        batched: bool = False,
        like: PyTree | None = None,
    ):
        self._expansion = expansion
        self._ts, self._steps, self._time_scale = ts, steps, time_scale
        self._observables = dict(observables or {})
        self.batched = batched
        self._like = like
        self.items: list[dict[str, np.ndarray]] = []
        for name in self._observables:
            if name in _TAKEN:
                raise InputError(
                    f"an observable cannot be called {name!r}: these names are taken, {', '.join(_TAKEN)}."
                )
            if name.startswith(_PREFIXES):
                raise InputError(
                    f"an observable cannot be called {name!r}: what begins with {' or '.join(_PREFIXES)} is "
                    "ours."
                )
            # Each becomes a folder in a Zarr store.
            if not name.strip(".") or name.startswith("__") or {"/", "\0"} & set(name):
                raise InputError(
                    f"an observable cannot be called {name!r}: there must be more than dots, no slash, and "
                    "no two underscores in front."
                )
            if len(name.encode(errors="surrogatepass")) > _LONGEST_NAME:
                raise InputError(
                    f"the name of an observable has {len(name)} characters, {name[:40]!r}...; at most "
                    f"{_LONGEST_NAME} bytes fit into the name of a file."
                )

    @property
    def started(self) -> bool:
        """Whether anything has been saved yet."""
        return bool(self.items)

    def measure(self, w: Array) -> dict[str, np.ndarray]:
        """What is measured at the flat parameters `w`, `[parameters]` or `[replica, parameters]`."""
        measured = _measure(self._expansion, self._observables, w if self.batched else w[None])
        return {k: np.asarray(v if self.batched else v[0]) for k, v in measured.items()}

    def save(self, w: Array) -> None:
        """Measure and keep `w`."""
        self.save_measured(w, self.measure(w))

    def save_measured(self, w: Array, measured: Mapping[str, Any]) -> None:
        """Keep `w`, with what was `measured` of it already."""
        self.items.append({_PARAMS: np.asarray(w)} | {k: np.asarray(v) for k, v in measured.items()})

    def save_with_bias(self, w: Array, coarse: Array) -> None:
        """Save `w`, and how far steps of twice the length, at `coarse`, move the mean of what is measured."""
        self.save(w)
        fine, twice = self.items[-1], self.measure(coarse)
        self.items[-1] = fine | {
            _BIAS + name: np.asarray(np.mean(values - fine[name])) for name, values in twice.items()
        }

    def path(self) -> Trajectory:
        """Everything saved so far."""
        count = len(self.items)
        axis = 1 if self.batched else 0
        flat = jnp.stack([item[_PARAMS] for item in self.items], axis=axis)
        unravel = jax.vmap(self._expansion.zero_set.unravel)
        params = jax.tree.map(np.asarray, (jax.vmap(unravel) if self.batched else unravel)(flat))
        if self._like is not None:
            params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, self._like)
        biases = {
            name.removeprefix(_BIAS): np.stack([item[name] for item in self.items])
            for name in self.items[0]
            if name.startswith(_BIAS)
        }
        measured = {
            name: np.stack([item[name] for item in self.items], axis=axis)
            for name in self.items[0]
            if name != _PARAMS and not name.startswith(_BIAS)
        }
        return Trajectory(
            ts=np.asarray(self._ts[:count], float),
            steps=None if self._steps is None else np.asarray(self._steps[:count], int),
            params=params,
            loss=measured.pop("loss"),
            regularizer=measured.pop("regularizer"),
            hessian_trace=measured.pop("hessian_trace"),
            hessian_trace_error=measured.pop("hessian_trace_error", None),
            observables=measured,
            time_scale=self._time_scale,
            step_bias=biases or None,
        )


@eqx.filter_jit
def _measure(
    expansion: AbstractExpansion, observables: dict[str, Callable[[PyTree], Array]], batch: Array
) -> dict[str, Array]:
    zero_set = expansion.zero_set

    def one(w: Vector) -> dict[str, Array]:
        params = zero_set.unravel(w)
        trace, error = zero_set.trace_and_error(w)
        return {
            "loss": zero_set.loss(w),
            "regularizer": expansion.regularizer(w),
            "hessian_trace": trace,
            **({} if error is None else {"hessian_trace_error": error}),
            **{name: jnp.asarray(function(params)) for name, function in observables.items()},
        }

    return jax.lax.map(one, batch)


def save_steps_of(steps: int, saves: int, save_steps: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """The steps to save at: those given, or `saves` evenly spaced ones, and the last."""
    if not is_positive_integer(steps):
        raise InputError(f"steps must be a positive integer, got {steps}.")
    if save_steps is None:
        if saves < 2:
            raise InputError(f"saves must be at least 2, got {saves}.")
        return np.unique(np.linspace(0, steps, saves).round().astype(int))
    times = np.asarray(save_steps)
    if times.ndim != 1 or times.size == 0 or not np.issubdtype(times.dtype, np.integer):
        raise InputError("save_steps must be a non-empty one-dimensional sequence of integers.")
    if times[0] < 0 or times[-1] > steps or (np.diff(times) <= 0).any():
        raise InputError(f"save_steps must be increasing and within 0 and steps = {steps}, got {times}.")
    return times if times[-1] == steps else np.append(times, steps)


def is_positive_integer(value: object) -> bool:
    """Whether `value` is an integer of at least 1."""
    return isinstance(value, int | np.integer) and bool(value >= 1)
