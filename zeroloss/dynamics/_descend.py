"""Noisy gradient descent itself, in ensembles (theory.md, section 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._arguments import positive_integer
from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays
from zeroloss._pytrees import flatten, refuse_tracing
from zeroloss.drifts import expand_at
from zeroloss.dynamics._recorder import Recorder
from zeroloss.dynamics._saves import Saves, as_saves
from zeroloss.dynamics._training import ensemble_of, train
from zeroloss.dynamics._trajectory import Trajectory
from zeroloss.optimizers import StepSize, as_optimizer
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, zero_set_of


def descend(
    system: AbstractSystem,
    params: PyTree,
    step_size: StepSize,
    steps: int | Saves,
    *,
    key: Key[Array, ""],
    replicas: int | None = None,
    checkpoint: Checkpoint = NO_CHECKPOINT,
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
    - `steps`: the number of training steps; or a `zeroloss.Saves`, which also says when to save and what to
      measure.
    - `key`: seeds noise and batches. A run is a function of key, start and step size alone; it does not
      depend on what is saved.
    - `replicas`: None for one run without a replica axis, R for R independent runs side by side.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.

    **Returns:** a `Trajectory` with `ts` counting steps.

    **Raises:** `StabilityError` when step_size * lambda_max >= 2 at `params` (2 (1 + momentum) with
    momentum, less with nesterov); `DivergenceError`, with the
    step and the path so far, when a parameter stops being finite.

    Costs one gradient a step and replica. Memory does not depend on `steps`. Replicas are spread over the
    devices that JAX has, over as many of them as divide their number (on a CPU there is one, unless
    `jax_num_cpu_devices` says otherwise).
    """
    saves = as_saves(steps)
    times = saves.steps()
    replicas = None if replicas is None else positive_integer("replicas", replicas)
    refuse_tracing((system, params, step_size), "descend")
    optimizer = as_optimizer(step_size)
    system.check(params)
    optimizer.check_stability(largest_eigenvalue(system, params), int(times[-1]))
    params = jax.tree.map(jnp.asarray, params)
    ensemble, states = ensemble_of(system, params, optimizer, replicas or 1, key)
    w, unravel = flatten(params)
    expansion = expand_at(system, zero_set_of(system, w, unravel), w)
    recorder = Recorder(
        expansion, saves.observables, times, in_steps=True, batched=replicas is not None, like=params
    )

    def item(w: Float[Array, "replicas parameters"]) -> SavedArrays:
        return recorder.item(w if recorder.batched else w[0])

    return recorder.trajectory(train(ensemble, states, times, item, checkpoint, recorder.trajectory))
