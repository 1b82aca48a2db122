"""Measures parameters, and makes a trajectory of what was saved."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zeroloss._checkpoint import SavedArrays
from zeroloss._compilation import compiled
from zeroloss._pytrees import Vector
from zeroloss.drifts import AbstractExpansion
from zeroloss.dynamics._saves import Observables
from zeroloss.dynamics._trajectory import Trajectory, Uncertainty
from zeroloss.zero_sets import switched

_PARAMS, _BIAS, _ERROR = "params", "step_bias/", "error/"  # measured quantities have other names
_WAY = _ERROR + _PARAMS


class Recorder:
    """Turns flat parameters into items to save, and a list of items into a `Trajectory`.

    - `times`: of the trajectory, slow or in training steps; its `steps` if `in_steps`.
    - `batched`: whether parameters have a leading replica axis.
    - `like`: the parameters of the trajectory get the dtypes of this pytree; float64 without it.
    """

    def __init__(
        self,
        expansion: AbstractExpansion,
        observables: Observables,
        times: np.ndarray,
        *,
        in_steps: bool = False,
        time_scale: str | None = None,
        batched: bool = False,
        like: PyTree | None = None,
    ):
        self.batched = batched
        self._expansion, self._observables = expansion, dict(observables)
        self._times, self._in_steps, self._time_scale, self._like = times, in_steps, time_scale, like

    def measure(self, w: Array | np.ndarray) -> dict[str, np.ndarray]:
        """The loss, Reg, tr H and observables at flat `w`, `[parameters]` or `[replica, parameters]`."""
        rows = np.asarray(w) if self.batched else np.asarray(w)[None]
        count = len(rows)
        capacity = 2 ** (count - 1).bit_length()  # few shapes, so few programs
        padded = np.concatenate([rows, np.zeros((capacity - count, rows.shape[1]), rows.dtype)])
        measured = jax.device_get(
            _measure(self._expansion, self._observables, jnp.asarray(padded), jnp.asarray(count))
        )
        return {k: np.asarray(v[:count] if self.batched else v[0]) for k, v in measured.items()}

    def item(self, w: Array, measured: Mapping[str, Any] | None = None) -> SavedArrays:
        """The item of `w`; `measured` is what `measure(w)` gives, where that is known already."""
        measured = self.measure(w) if measured is None else measured
        return {_PARAMS: np.asarray(w)} | {k: np.asarray(v) for k, v in measured.items()}

    def item_with_bias(self, w: Array, coarse: Array) -> SavedArrays:
        """The item of `w`, with how far the means of measured quantities move in `coarse`.

        `coarse` comes from steps of twice the length on the same noise.
        """
        fine, twice = self.item(w), self.measure(coarse)
        return fine | {
            _BIAS + name: np.asarray(np.mean(values - fine[name])) for name, values in twice.items()
        }

    def item_with_error(self, w: Array, other: Array, start: Array) -> SavedArrays:
        """The item of `w`, with half the difference to `other`; of parameters as a share of the way."""
        here, there = self.measure(w), self.measure(other)
        way = float(jnp.linalg.norm(w - start))
        error = float(jnp.linalg.norm(w - other)) / 2
        return (
            self.item(w, here)
            | {_ERROR + name: np.abs(there[name] - value) / 2 for name, value in here.items()}
            | {_WAY: np.asarray(error / way if way > 0 else 0.0)}
        )

    def trajectory_at_kinks(
        self, items: list[SavedArrays], coarse: list[SavedArrays], start: Array
    ) -> Trajectory:
        """The trajectory of `items`, with its difference to that of `coarse`, and the units that switched."""
        path = np.stack([item[_PARAMS] for item in items])
        way = np.linalg.norm(path - np.asarray(start), axis=1)
        gap = np.linalg.norm(path - np.stack([item[_PARAMS] for item in coarse]), axis=1)
        integration = gap / np.where(way > 0, way, 1.0)
        names = [name for name in items[0] if name != _PARAMS]
        measured = {
            name: np.stack(
                [np.abs(fine[name] - twice[name]) for fine, twice in zip(items, coarse, strict=True)]
            )
            for name in names
        }
        return dataclasses.replace(
            self.trajectory(items),
            uncertainty=_uncertainty(measured, integration=integration),
            switched=switched(self._expansion.zero_set, start, path),
        )

    def trajectory(self, items: list[SavedArrays]) -> Trajectory:
        """The trajectory of these items, at the first of the times."""
        count = len(items)
        axis = 1 if self.batched else 0
        flat = jnp.stack([item[_PARAMS] for item in items], axis=axis)
        unravel = jax.vmap(self._expansion.zero_set.unravel)
        params = jax.tree.map(np.asarray, (jax.vmap(unravel) if self.batched else unravel)(flat))
        if self._like is not None:
            params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, self._like)
        biases = {
            name.removeprefix(_BIAS): np.stack([item[name] for item in items])
            for name in items[0]
            if name.startswith(_BIAS)
        }
        measured = {
            name: np.stack([item[name] for item in items], axis=axis)
            for name in items[0]
            if name != _PARAMS and not name.startswith((_BIAS, _ERROR))
        }
        errors = {
            name.removeprefix(_ERROR): np.stack([item[name] for item in items])
            for name in items[0]
            if name.startswith(_ERROR)
        }
        return Trajectory(
            ts=np.asarray(self._times[:count], float),
            steps=np.asarray(self._times[:count], int) if self._in_steps else None,
            params=params,
            loss=measured.pop("loss"),
            regularizer=measured.pop("regularizer"),
            hessian_trace=measured.pop("hessian_trace"),
            hessian_trace_error=measured.pop("hessian_trace_error", None),
            observables=measured,
            time_scale=self._time_scale,
            step_bias=biases or None,
            uncertainty=_uncertainty(errors, sampling=errors.pop(_PARAMS)) if errors else None,
        )


def _uncertainty(measured: dict[str, np.ndarray], **known: np.ndarray) -> Uncertainty:
    """The uncertainty of a limit, whose other parts are 0."""
    zeros = np.zeros_like(next(iter(known.values())))
    parts = dict.fromkeys(("integration", "sampling", "model", "spread"), zeros)
    return Uncertainty(**parts | known, measured=measured)


@compiled
def _measure(
    expansion: AbstractExpansion,
    observables: dict[str, Callable[[PyTree], Array]],
    batch: Float[Array, "capacity parameters"],
    count: Int[Array, ""],
) -> dict[str, Array]:
    """Everything measured at the first `count` rows of `batch`, one after the other."""
    zero_set = expansion.zero_set

    def one(w: Vector) -> dict[str, Array]:
        params = zero_set.unravel(w)
        trace, error = zero_set.around(w).trace_and_error(w)
        return {
            "loss": zero_set.loss(w),
            "regularizer": expansion.regularizer(w),
            "hessian_trace": trace,
            **({} if error is None else {"hessian_trace_error": error}),
            **{name: jnp.asarray(function(params)) for name, function in observables.items()},
        }

    def measure(row: Int[Array, ""], found: dict[str, Array]) -> dict[str, Array]:
        return jax.tree.map(lambda all, value: all.at[row].set(value), found, one(batch[row]))

    shapes = jax.eval_shape(one, batch[0])
    nothing = jax.tree.map(lambda value: jnp.zeros((len(batch), *value.shape), value.dtype), shapes)
    return jax.lax.fori_loop(0, count, measure, nothing)
