"""Noisy gradient descent itself, in ensembles (theory.md, section 1)."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss.dynamics.drift import check_stability
from zeroloss.dynamics.expansion import expand
from zeroloss.dynamics.path import Observables, Path, Recorder
from zeroloss.errors import DivergenceError, InputError
from zeroloss.manifold import largest_eigenvalue, manifold_of
from zeroloss.progress import progress_bar
from zeroloss.pytrees import flatten, refuse_tracing
from zeroloss.system import AbstractSystem, Scalar

_FIRST_CHUNK = 64
_SECONDS_PER_CHUNK = 0.5


def descend(
    system: AbstractSystem,
    params: PyTree,
    step_size: float,
    steps: int,
    *,
    key: Key[Array, ""],
    replicas: int | None = None,
    saves: int = 50,
    save_steps: Sequence[int] | np.ndarray | None = None,
    observables: Observables | None = None,
    progress: bool = False,
) -> Path:
    """Run w_{k+1} = w_k - step_size * grad L_hat(w_k, eta_k) with fresh noise at every step.

    `zeroloss.AntiCorrelated` noise moves the parameters themselves, by eta_{k+1} - eta_k.

    **Arguments:**

    - `system`, `params`: a system and any start. Training runs in the dtype of `params`; float32
      loses drifts of less than about 1e-7 |w| a step.
    - `step_size`: alpha, below 2 / lambda_max.
    - `steps`: how many steps.
    - `key`: seeds noise and batches. A run is a function of key, start and step size alone; it does not
      depend on what is saved.
    - `replicas`: None for one run without a replica axis, R for R independent runs side by side.
    - `saves`, `save_steps`: how many evenly spaced steps to save at, or which (0 is the start); the last
      step is always saved.
    - `observables`: functions of the parameters to measure at the steps saved, by name.
    - `progress`: whether to show a progress bar in a terminal.

    **Returns:** a `Path` with `ts` counting steps.

    **Raises:** `StabilityError` when step_size * lambda_max >= 2 at `params`; `DivergenceError`, with the
    step and the path so far, when a parameter stops being finite.

    Costs one gradient a step and replica. Memory does not depend on `steps`.
    """
    times = _save_steps(steps, saves, save_steps)
    if not (step_size > 0 and np.isfinite(step_size)):
        raise InputError(f"step_size must be positive and finite, got {step_size}.")
    if replicas is not None and not _is_positive_integer(replicas):
        raise InputError(f"replicas must be at least 1 or None, got {replicas}.")
    refuse_tracing((system, params, step_size), "descend")
    system.check(params)
    check_stability(step_size, largest_eigenvalue(system, params))
    params = jax.tree.map(jnp.asarray, params)
    count = 1 if replicas is None else replicas
    run, start = ensemble(system, params, step_size, count, key)
    manifold = manifold_of(system, flatten(params)[1])
    recorder = Recorder(expand(system, manifold), observables, batched=replicas is not None, like=params)
    return train(run, start, times, recorder, progress)


class Run(NamedTuple):
    """An ensemble: the system that is trained, a seed for each replica, and the step size."""

    system: AbstractSystem
    keys: Key[Array, " replicas"]
    step_size: Scalar


def ensemble(
    system: AbstractSystem, params: PyTree, step_size: float, replicas: int, key: Key[Array, ""]
) -> tuple[Run, PyTree]:
    """The run of `replicas` replicas, and their states: each at `params`."""
    states = jax.tree.map(lambda leaf: jnp.tile(leaf, (replicas,) + (1,) * jnp.ndim(leaf)), params)
    return Run(system, jax.random.split(key, replicas), jnp.asarray(step_size)), states


def train(run: Run, states: PyTree, times: np.ndarray, recorder: Any, progress: bool) -> Any:
    """Train `states`, params with a leading replica axis, and have `recorder` save at `times`, in steps.

    Returns `recorder.path(...)`; `recorder` is a `Recorder`, or something with the same methods.
    """
    done, chunk = 0, _FIRST_CHUNK
    with progress_bar("training", float(max(times[-1], 1)), progress) as show:
        for target in times:
            while done < target:
                count = int(min(chunk, target - done))
                began = time.perf_counter()
                ahead = _advance(run, states, done, count)
                finite = bool(_all_finite(ahead))  # also waits for the chunk to finish
                seconds = time.perf_counter() - began
                if not finite:
                    bad = _first_bad_step(run, states, done, count)
                    raise DivergenceError(
                        f"training diverged: after step {bad} a parameter is no longer finite "
                        f"(step size {float(run.step_size):.6g}). What was saved until then is kept in "
                        "the error's `path`. Take a smaller step size or less noise.",
                        bad,
                        recorder.path(times, times, None) if recorder.started else None,
                    )
                states, done = ahead, done + count
                show(float(done))
                if count == chunk and seconds < _SECONDS_PER_CHUNK / 2:
                    chunk *= 2
            recorder.save(_flat(states, recorder.batched))
    return recorder.path(times, times, None)


def _advance(run: Run, states: PyTree, start: int, count: int) -> PyTree:
    return _advance_compiled(run, states, jnp.asarray(start), jnp.asarray(count))


@eqx.filter_jit
def _advance_compiled(run: Run, states: PyTree, start: Array, count: Array) -> PyTree:
    """Steps `start` to `start + count` of every replica: one compiled loop, whatever the count."""

    def one(params: PyTree, key: Key[Array, ""]) -> PyTree:
        def step(index: Array, params: PyTree) -> PyTree:
            now, following = (jax.random.fold_in(key, step) for step in (index, index + 1))
            gradient = run.system.noisy_gradient(params, now)
            moved = jax.tree.map(
                lambda leaf, slope: leaf - run.step_size.astype(leaf.dtype) * slope,
                params,
                gradient,
            )
            before = run.system.perturbation(params, now)
            if before is None:
                return moved
            after = run.system.perturbation(params, following)
            return jax.tree.map(
                lambda leaf, new, old: leaf + new - jnp.where(index > 0, old, 0.0), moved, after, before
            )

        return jax.lax.fori_loop(start, start + count, step, params)

    return jax.vmap(one)(states, run.keys)


@eqx.filter_jit
def _all_finite(states: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(states)]))


def _first_bad_step(run: Run, states: PyTree, start: int, count: int) -> int:
    """The first step after which something is not finite, found by bisection: runs repeat exactly."""
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if bool(_all_finite(_advance(run, states, start, middle))):
            good = middle
        else:
            bad = middle
    return start + bad


@eqx.filter_jit
def _flat(states: PyTree, batched: bool) -> Array:
    flat = jax.vmap(lambda params: flatten(params)[0])(states)
    return flat if batched else flat[0]


def _save_steps(steps: int, saves: int, save_steps: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if not _is_positive_integer(steps):
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


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 1)
