"""Ensembles of training runs, and their steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays, digest, facts_of
from zeroloss._compilation import compiled_once
from zeroloss._pytrees import flatten
from zeroloss.dynamics._driver import AbstractEvolution, drive
from zeroloss.dynamics._trajectory import Trajectory
from zeroloss.errors import DivergenceError
from zeroloss.optimizers import SGD
from zeroloss.systems import AbstractSystem

_REPLICAS = "replicas"  # the mesh axis that they are spread over


class Ensemble(NamedTuple):
    """Replicas of a training run: the system that is trained, a seed for each, and the optimizer."""

    system: AbstractSystem
    keys: Key[Array, " replicas"]
    optimizer: SGD


class States(NamedTuple):
    """Parameters and velocities of all replicas, with a leading replica axis."""

    params: PyTree
    velocity: PyTree | None


def ensemble_of(
    system: AbstractSystem, params: PyTree, optimizer: SGD, replicas: int, key: Key[Array, ""]
) -> tuple[Ensemble, States]:
    """An ensemble of `replicas` replicas, and their states: each at `params`, at rest."""
    tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (replicas,) + (1,) * jnp.ndim(leaf)), params)
    ensemble = Ensemble(system.with_scales_as_arrays(), jax.random.split(key, replicas), optimizer)
    return _over_devices(ensemble, States(tiled, optimizer.start(tiled)), replicas)


def _over_devices(ensemble: Ensemble, states: States, replicas: int) -> tuple[Ensemble, States]:
    """The ensemble, spread evenly over as many devices as divide the number of replicas."""
    devices = jax.devices()
    count = max(each for each in range(1, len(devices) + 1) if replicas % each == 0)
    if count == 1:
        return ensemble, states
    mesh = Mesh(np.array(devices[:count]), (_REPLICAS,))
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_REPLICAS))
    arrays, rest = eqx.partition((ensemble.system, ensemble.optimizer), eqx.is_array)
    system, optimizer = eqx.combine(jax.device_put(arrays, everywhere), rest)
    return Ensemble(system, jax.device_put(ensemble.keys, spread), optimizer), jax.device_put(states, spread)


def train(
    ensemble: Ensemble,
    states: States,
    times: np.ndarray,
    item: Callable[[Array], SavedArrays],
    checkpoint: Checkpoint = NO_CHECKPOINT,
    trajectory: Callable[[list[SavedArrays]], Trajectory | None] = lambda items: None,
) -> list[SavedArrays]:
    """Train the ensemble, and return the `item` of its flat parameters at each of `times`, in steps.

    `item` takes `[replica, parameters]`. `trajectory` makes the trajectory so far, for an error on the way
    and for readers of the checkpoint.
    """
    return drive(_TrainingRun(ensemble, states, times, item, trajectory), times, checkpoint)


class _TrainingRun(AbstractEvolution[tuple[States, int]]):
    """Training as an evolution; its state is that of the replicas and the number of steps done."""

    name = "training"
    first_chunk = 64

    def __init__(
        self,
        ensemble: Ensemble,
        states: States,
        times: np.ndarray,
        item: Callable[[Array], SavedArrays],
        trajectory: Callable[[list[SavedArrays]], Trajectory | None],
    ):
        self._ensemble, self._states, self._times = ensemble, states, times
        self._item, self._trajectory = item, trajectory

    def start(self) -> tuple[States, int]:
        return self._states, 0

    def position(self, state: tuple[States, int]) -> float:
        return float(state[1])

    def advance(self, state: tuple[States, int], target: float, chunk: int) -> tuple[States, int]:
        states, done = state
        count = min(chunk, int(target) - done)
        ahead = _advance(self._ensemble, states, done, count)
        if not bool(_all_finite(ahead)):  # asking waits for the chunk to finish
            bad = _first_bad_step(self._ensemble, states, done, count)
            raise DivergenceError(
                f"training diverged: after step {bad} a parameter is no longer finite (step size "
                f"{self._ensemble.optimizer.size(bad):.6g}). The error's `path` has what was saved until "
                "then. Take a smaller step size or less noise.",
                bad,
            )
        return ahead, done + count

    def item(self, state: tuple[States, int], time: float) -> SavedArrays:
        # By way of the host, so that measuring is free to run wherever the examples are.
        return self._item(jnp.asarray(np.asarray(_flat(state[0].params))))

    def facts(self) -> dict[str, Any]:
        system, keys, optimizer = self._ensemble
        return facts_of(
            system, self._states, self._times, steps=int(self._times[-1]), replicas=len(keys),
            keys=digest(keys), **optimizer.facts(self._times),
        )  # fmt: skip

    def trajectory(self, items: list[SavedArrays]) -> Trajectory | None:
        return self._trajectory(items)


def _advance(ensemble: Ensemble, states: States, start: int, count: int) -> States:
    return _advance_compiled(ensemble, states, jnp.asarray(start), jnp.asarray(count))


@eqx.filter_jit  # with all of XLA's optimizations: training runs for long
def _advance_compiled(ensemble: Ensemble, states: States, start: Array, count: Array) -> States:
    """Steps `start` to `start + count` of every replica: one compiled loop, whatever the count."""

    def one(state: States, key: Key[Array, ""]) -> States:
        def step(index: Array, state: States) -> States:
            now, following = (jax.random.fold_in(key, step) for step in (index, index + 1))
            gradient = ensemble.system.noisy_gradient(state.params, now)
            moved, velocity = ensemble.optimizer.update(index, state.params, state.velocity, gradient)
            before = ensemble.system.perturbation(state.params, now)
            if before is not None:
                after = ensemble.system.perturbation(state.params, following)
                moved = jax.tree.map(
                    lambda leaf, new, old: leaf + new - jnp.where(index > 0, old, 0.0), moved, after, before
                )
            return States(moved, velocity)

        return jax.lax.fori_loop(start, start + count, step, state)

    return jax.vmap(one)(states, ensemble.keys)


@compiled_once
def _all_finite(states: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(states)]))


def _first_bad_step(ensemble: Ensemble, states: States, start: int, count: int) -> int:
    """The first step after which something is not finite, found by bisection: runs repeat exactly."""
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if bool(_all_finite(_advance(ensemble, states, start, middle))):
            good = middle
        else:
            bad = middle
    return start + bad


@compiled_once
def _flat(params: PyTree) -> Float[Array, "replicas parameters"]:
    return jax.vmap(lambda one: flatten(one)[0])(params)
