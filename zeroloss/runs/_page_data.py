"""Spectrum, learned function and zero-loss set for the page of a run.

They need the problem itself, so they are computed with the run: making its page executes nothing.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import flatten
from zeroloss._tolerances import NEWTON_ITERATIONS, ON_SET, TINY
from zeroloss.dynamics import Trajectory, flat_trajectories
from zeroloss.errors import ZerolossError
from zeroloss.problems import Problem
from zeroloss.runs._folder import column
from zeroloss.systems import AbstractSystem, LeastSquares, Supervised
from zeroloss.zero_sets import project, spectrum_at, zero_set_of

VIEWS = SPECTRUM, FUNCTION, SET = "spectrum", "function", "zero_loss_set"

_LARGEST_SPECTRUM = 2000  # residuals: some seconds and 32 MiB
_MOMENTS = 60
_ABSCISSAE = 201
_MOST_REPLICAS = 64
_MARGIN = 0.1  # of the width of the inputs, on both sides
_BORDER = 0.3  # of the extent of the trajectories, around them
_NO_EXTENT, _NEARBY = 1e-6, 0.25  # of |w|: shorter trajectories count as a point; the border around those
_RESOLUTION = 150  # points of a set along an axis
_SEEDS = {2: 60, 3: 22}  # along an axis, by number of parameters
_DRAWN, _MOST_ENDS = 5, 400  # replicas


def page_datasets(
    problem: Problem, system: AbstractSystem, trajectories: Mapping[str, Trajectory]
) -> dict[str, xr.Dataset]:
    """Datasets about one noise that the page shows beside its trajectories, by name.

    - `spectrum`: the eigenvalues of the Hessian on the normal space, from the largest, at the start and the
      end of the first of `trajectories`; up to 2000 residuals, or a loss whose Hessian is a matrix.
    - `function`: of a regression on a line the function of the model along the first trajectory, and at the
      end of the others, in the mean over at most 64 replicas.
    - `zero_loss_set`: of two or three parameters, points all over the set near the trajectories, and the
      trajectories, at most five replicas of each, and their ends.

    Costs two spectra, a few hundred evaluations of the model, or some thousand projections of few parameters.
    """
    if not trajectories:
        return {}
    found = {
        SPECTRUM: _spectrum(system, next(iter(trajectories.values()))),
        FUNCTION: _function(problem, trajectories),
        SET: _zero_loss_set(system, trajectories),
    }
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def _spectrum(system: AbstractSystem, path: Trajectory) -> xr.Dataset | None:
    clean = system.clean_problem()
    if isinstance(clean, Supervised) and clean.targets.size > _LARGEST_SPECTRUM:
        return None
    every = {}
    for where, time in (("start", 0), ("end", -1)):
        with contextlib.suppress(ZerolossError):  # not every trajectory ends where there is a spectrum
            every[where] = _eigenvalues(system, project(system, _first(path.params, path, time)))
    if not every:
        return None
    widest = max(map(len, every.values()))
    values = np.stack(
        [np.pad(each, (0, widest - len(each)), constant_values=np.nan) for each in every.values()]
    )
    return xr.Dataset(
        {"eigenvalue": (("where", "index"), values)},
        {"where": column(list(every)), "index": np.arange(1, widest + 1)},
    )


def _eigenvalues(system: AbstractSystem, point: PyTree) -> Float[np.ndarray, " rank"]:
    w, unravel = flatten(point)
    zero_set = zero_set_of(system, w, unravel)
    spectrum = spectrum_at(zero_set, w)
    return np.sort(np.asarray(spectrum.eigenvalues)[np.asarray(spectrum.is_normal)])[::-1]


def _first(params: PyTree, path: Trajectory, time: int) -> PyTree[Array]:
    """The parameters at one of the times saved; of the first replica where there are several."""
    batched = path.loss.ndim == 2
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0, time] if batched else leaf[time]), params)


def _function(problem: Problem, trajectories: Mapping[str, Trajectory]) -> xr.Dataset | None:
    clean = problem.problem
    if (
        not isinstance(clean, LeastSquares)
        or clean.targets.ndim != 1
        or not isinstance(clean.inputs, jax.Array)
    ):
        return None
    inputs = clean.inputs
    if inputs.size != inputs.shape[0] or inputs.size == 1 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        return None
    low, high = float(inputs.min()), float(inputs.max())
    margin = _MARGIN * (high - low or 1.0)
    line = jnp.linspace(low - margin, high + margin, _ABSCISSAE)
    at = line.reshape(-1, *inputs.shape[1:]).astype(inputs.dtype)

    def mean_of(path: Trajectory, times: np.ndarray) -> np.ndarray:
        many = path.loss.ndim == 2
        chosen = jax.tree.map(
            lambda leaf: jnp.asarray(leaf[:_MOST_REPLICAS, times] if many else leaf[None, times]), path.params
        )
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chosen)
        return (
            np.asarray(_function_values(clean.model, at, flat))
            .reshape(-1, len(times), _ABSCISSAE)
            .mean(axis=0)
        )

    first, *others = trajectories
    moments = _moments(len(trajectories[first].ts))
    along = mean_of(trajectories[first], moments)
    ends = {f"{name}_end": mean_of(trajectories[name], np.array([-1]))[0] for name in others}
    ends = {name: values for name, values in ends.items() if np.isfinite(values).any()}
    known = np.isfinite([*along, *ends.values()]).all(axis=0)  # outside the inputs there may be no value
    if not known.any():
        return None
    data: dict[str, Any] = {
        "inputs": ("example", np.asarray(inputs).reshape(-1)),
        "targets": ("example", np.asarray(clean.targets)),
        first: (("moment", "x"), along[:, known]),
    } | {name: ("x", values[known]) for name, values in ends.items()}
    units = {"units": trajectories[first].to_xarray(params=False)["time"].attrs["units"]}
    return xr.Dataset(
        data, {"x": np.asarray(line)[known], "at": ("moment", trajectories[first].ts[moments], units)}
    )


@compiled_once
def _function_values(model: Callable[[PyTree, Array], Array], inputs: Array, params: PyTree) -> Array:
    """The values of a model at the inputs, for parameters along a leading axis."""
    return jax.lax.map(lambda one: model(one, inputs), params)


def _moments(count: int) -> np.ndarray:
    """The indices of at most so many of the times saved, denser at the beginning, where more happens."""
    if count <= _MOMENTS:
        return np.arange(count)
    return np.unique(np.round((count - 1) * np.linspace(0, 1, _MOMENTS) ** 2).astype(int))


def _zero_loss_set(system: AbstractSystem, trajectories: Mapping[str, Trajectory]) -> xr.Dataset | None:
    w, unravel = flatten(
        _first(next(iter(trajectories.values())).params, next(iter(trajectories.values())), 0)
    )
    if w.size not in _SEEDS:
        return None
    points_of_paths = np.concatenate(
        [flat_trajectories(path.params, path.loss.ndim).reshape(-1, w.size) for path in trajectories.values()]
    )
    low, high = points_of_paths.min(axis=0), points_of_paths.max(axis=0)
    extent, size = float(np.max(high - low)), float(np.max(np.abs(points_of_paths)))
    border = _BORDER * extent if extent > _NO_EXTENT * size else _NEARBY * (size or 1.0)
    low, high = low - border, high + border
    axes = [np.linspace(*ends, _SEEDS[w.size]) for ends in zip(low, high, strict=True)]
    seeds = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, w.size)
    zero_set = zero_set_of(system, w, unravel)

    @jax.jit
    def reach(seeds: Array) -> tuple[Array, Array]:
        points = jax.lax.map(lambda seed: zero_set.retract(seed, NEWTON_ITERATIONS), seeds)
        return points, jax.vmap(zero_set.loss)(points)

    points, loss = map(np.asarray, reach(jnp.asarray(seeds)))
    scale = max(float(np.max(np.asarray(jax.vmap(zero_set.loss)(jnp.asarray(seeds))))), TINY)
    with np.errstate(invalid="ignore"):
        near = ((points >= low) & (points <= high)).all(axis=1) & (np.abs(loss) <= ON_SET**2 * scale)
    points = points[near]
    cells = np.round((points - low) / np.max(high - low) * _RESOLUTION)
    points = points[np.unique(cells, axis=0, return_index=True)[1]]
    if not len(points):
        return None
    data: dict[str, Any] = {"point": (("number", "parameter"), points)}
    for name, path in trajectories.items():
        flat = flat_trajectories(path.params, path.loss.ndim).reshape(-1, len(path.ts), w.size)
        data[name] = ((f"{name}_path", f"{name}_time", "parameter"), flat[:_DRAWN])
        data[f"{name}_end"] = ((f"{name}_replica", "parameter"), flat[:_MOST_ENDS, -1])
    return xr.Dataset(data, {"parameter": column([f"w_{index + 1}" for index in range(w.size)])})
