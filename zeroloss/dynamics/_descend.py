"""Noisy gradient descent itself, in ensembles (theory.md, section 1)."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from zeroloss._checkpoint import NOWHERE, Checkpoint, digest, facts_of
from zeroloss._progress import progress_bar
from zeroloss._pytrees import flatten, refuse_tracing
from zeroloss.drifts._expansion import expand
from zeroloss.dynamics._trajectory import (
    Observables,
    Recorder,
    Trajectory,
    is_positive_integer,
    save_steps_of,
)
from zeroloss.errors import DivergenceError, InputError
from zeroloss.optimizers import SGD, StepSize, as_optimizer
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, zero_set_of

_FIRST_CHUNK = 64
_SECONDS_PER_CHUNK = 0.5
_REPLICAS = "replicas"  # the mesh axis that they are spread over


def descend(
    system: AbstractSystem,
    params: PyTree,
    step_size: StepSize,
    steps: int,
    *,
    key: Key[Array, ""],
    replicas: int | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    saves: int = 50,
    save_steps: Sequence[int] | np.ndarray | None = None,
    observables: Observables | None = None,
    progress: bool = False,
    checkpoint: Checkpoint = NOWHERE,
) -> Trajectory:
    """Run w_{k+1} = w_k - step_size * grad L_hat(w_k, eta_k) with fresh noise at every step.

    `zeroloss.AntiCorrelated` noise moves the parameters themselves, by eta_{k+1} - eta_k. The gradient is
    used as it is: neither this nor the theory covers clipping, or another nonlinear function of it
    (theory.md, section 4).

    **Arguments:**

    - `system`, `params`: a system and any start. Training runs in the dtype of `params`; float32
      loses drifts of less than about 1e-7 |w| a step.
    - `step_size`: alpha, below 2 / lambda_max; or a schedule, a function from the step (an integer array,
      counted from 0) to alpha that JAX can trace, such as those of Optax; or an optimizer, `zeroloss.SGD`.
    - `steps`: how many steps.
    - `key`: seeds noise and batches. A run is a function of key, start and step size alone; it does not
      depend on what is saved.
    - `replicas`: None for one run without a replica axis, R for R independent runs side by side.
    - `momentum`, `nesterov`, `weight_decay`: those of `zeroloss.SGD`, where `step_size` is not an optimizer.
    - `saves`, `save_steps`: how many evenly spaced steps to save at, or which (0 is the start); the last
      step is always saved.
    - `observables`: functions of the parameters to measure at the steps saved, by name.
    - `progress`: whether to show a progress bar in a terminal.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.

    **Returns:** a `Trajectory` with `ts` counting steps.

    **Raises:** `StabilityError` when step_size * lambda_max >= 2 at `params` (2 (1 + momentum) with
    momentum, less with nesterov); `DivergenceError`, with the
    step and the path so far, when a parameter stops being finite.

    Costs one gradient a step and replica. Memory does not depend on `steps`. Replicas are spread over the
    devices that JAX has, over as many of them as divide their number (on a CPU there is one, unless
    `jax_num_cpu_devices` says otherwise).
    """
    times = save_steps_of(steps, saves, save_steps)
    if replicas is not None and not is_positive_integer(replicas):
        raise InputError(f"replicas must be at least 1 or None, got {replicas}.")
    refuse_tracing((system, params, step_size), "descend")
    rule = as_optimizer(step_size, momentum, nesterov, weight_decay)
    system.check(params)
    rule.check_stability(largest_eigenvalue(system, params), steps)
    params = jax.tree.map(jnp.asarray, params)
    count = 1 if replicas is None else replicas
    run, start = ensemble(system, params, rule, count, key)
    zero_set = zero_set_of(system, *flatten(params))
    recorder = Recorder(
        expand(system, zero_set), observables, times, steps=times, batched=replicas is not None, like=params
    )
    return train(run, start, times, recorder, progress, checkpoint)


class Run(NamedTuple):
    """An ensemble: the system that is trained, a seed for each replica, and the rule of a step."""

    system: AbstractSystem
    keys: Key[Array, " replicas"]
    optimizer: SGD


class States(NamedTuple):
    """Where the replicas of an ensemble stand: parameters with a leading replica axis, and velocities."""

    params: PyTree
    velocity: PyTree | None


def ensemble(
    system: AbstractSystem, params: PyTree, rule: SGD, replicas: int, key: Key[Array, ""]
) -> tuple[Run, States]:
    """The run of `replicas` replicas, and their states: each at `params`, at rest."""
    tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (replicas,) + (1,) * jnp.ndim(leaf)), params)
    system = system.with_scales_as_arrays()
    run, states = Run(system, jax.random.split(key, replicas), rule), States(tiled, rule.start(tiled))
    return _over_devices(run, states, replicas)


def _over_devices(run: Run, states: States, replicas: int) -> tuple[Run, States]:
    """The same, with replicas spread evenly over as many devices as that is possible for."""
    devices = jax.devices()
    count = max(each for each in range(1, len(devices) + 1) if replicas % each == 0)
    if count == 1:
        return run, states
    mesh = Mesh(np.array(devices[:count]), (_REPLICAS,))
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_REPLICAS))
    arrays, rest = eqx.partition((run.system, run.optimizer), eqx.is_array)
    system, rule = eqx.combine(jax.device_put(arrays, everywhere), rest)
    return Run(system, jax.device_put(run.keys, spread), rule), jax.device_put(states, spread)


def train(
    run: Run,
    states: States,
    times: np.ndarray,
    recorder: Any,
    progress: bool,
    checkpoint: Checkpoint = NOWHERE,
) -> Any:
    """Train the ensemble, and have `recorder` save its parameters at `times`, in steps.

    Returns `recorder.path()`; `recorder` is a `Recorder`, or something with the same methods.
    """
    chunk = _FIRST_CHUNK
    with (
        checkpoint.open(),
        progress_bar("training", float(max(times[-1], 1)), progress) as show,
    ):
        states, done = checkpoint.begin((states, 0), recorder, lambda: _facts(run, states, times))
        for target in times[len(recorder.items) :]:
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
                        f"(step size {run.optimizer.size(bad):.6g}). What was saved until "
                        "then is kept in the error's `path`. Take a smaller step size or less noise.",
                        bad,
                        recorder.path() if recorder.started else None,
                    )
                states, done = ahead, done + count
                show(float(done))
                checkpoint.keep(lambda: (states, done), recorder)  # noqa: B023
                if count == chunk and seconds < _SECONDS_PER_CHUNK / 2:
                    chunk *= 2
            # By way of the host, so that measuring is free to run wherever the examples are.
            recorder.save(jnp.asarray(np.asarray(_flat(states.params, recorder.batched))))
        checkpoint.keep(lambda: (states, done), recorder, last=True)
    return recorder.path()


def _facts(run: Run, states: States, times: np.ndarray) -> dict[str, Any]:
    """What an ensemble is, for its checkpoint."""
    return facts_of(
        run.system, states, times, steps=int(times[-1]), replicas=len(run.keys), keys=digest(run.keys),
        **run.optimizer.facts(times),
    )  # fmt: skip


def _advance(run: Run, states: States, start: int, count: int) -> States:
    return _advance_compiled(run, states, jnp.asarray(start), jnp.asarray(count))


@eqx.filter_jit
def _advance_compiled(run: Run, states: States, start: Array, count: Array) -> States:
    """Steps `start` to `start + count` of every replica: one compiled loop, whatever the count."""

    def one(state: States, key: Key[Array, ""]) -> States:
        def step(index: Array, state: States) -> States:
            now, following = (jax.random.fold_in(key, step) for step in (index, index + 1))
            gradient = run.system.noisy_gradient(state.params, now)
            moved, velocity = run.optimizer.update(index, state.params, state.velocity, gradient)
            before = run.system.perturbation(state.params, now)
            if before is not None:
                after = run.system.perturbation(state.params, following)
                moved = jax.tree.map(
                    lambda leaf, new, old: leaf + new - jnp.where(index > 0, old, 0.0), moved, after, before
                )
            return States(moved, velocity)

        return jax.lax.fori_loop(start, start + count, step, state)

    return jax.vmap(one)(states, run.keys)


@eqx.filter_jit
def _all_finite(states: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(states)]))


def _first_bad_step(run: Run, states: States, start: int, count: int) -> int:
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
def _flat(params: PyTree, batched: bool) -> Array:
    flat = jax.vmap(lambda one: flatten(one)[0])(params)
    return flat if batched else flat[0]
