"""The limiting dynamics on the zero-loss set (theory.md, section 2)."""

import logging
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._checkpoint import NOWHERE, Checkpoint
from zeroloss._pytrees import refuse_tracing
from zeroloss.drifts._expansion import expand
from zeroloss.drifts._verdict import Verdict, classify_at
from zeroloss.dynamics._diffusion import diffuse
from zeroloss.dynamics._flow import KinkError, flow
from zeroloss.dynamics._trajectory import Observables, Recorder, Trajectory
from zeroloss.errors import InputError
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import locate

_POINTS = 6
_LOG = logging.getLogger(__name__)
_LARGEST_RTOL = 1e-2


def limit(
    system: AbstractSystem,
    point: PyTree,
    t1: float = 1.0,
    *,
    ts: Sequence[float] | np.ndarray | None = None,
    saves: int = 50,
    verdict: Verdict | None = None,
    observables: Observables | None = None,
    rtol: float = 1e-8,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    dt: float | None = None,
    progress: bool = False,
    checkpoint: Checkpoint = NOWHERE,
) -> Trajectory:
    """Follow the limit of training as step size and noise go to zero, on the slow time scale.

    Non-degenerate noise: dW/dt = -P_T grad Reg(W), t = alpha sigma^2 k. Degenerate noise: dW/dt = b(W), or
    the SDE dW = P_T G dB + b(W) dt where the noise has a tangential part, t = alpha^2 sigma^2 k. Trivial
    noise: the path stays where it is. k counts training steps.

    **Arguments:**

    - `system`, `point`: a system and a point of its zero-loss set.
    - `t1`: the slow time to follow it to, from 0.
    - `ts`: increasing slow times to save at; by default `saves` evenly spaced ones from 0 to `t1`.
    - `verdict`: the verdict of `zeroloss.classify` if it is already known.
    - `observables`: functions of the parameters to measure at the times saved, by name.
    - `rtol`: relative accuracy of a deterministic limit: Dormand-Prince 8(7) with retraction onto the
      set after every step, so that the loss stays zero to rounding. A loss with kinks, as of ReLU units, is
      followed with its almost-everywhere derivatives and steps no shorter than a 2000th of `t1`, to about the
      accuracy of such a step.
    - `key`: the seed of a stochastic limit, which needs one. A path depends on key, times and `dt` alone.
    - `replicas`: of a stochastic limit: None for one path without a replica axis, R for R paths.
    - `dt`: the largest time step of a stochastic limit, by default such that a step is about 3 % of |w| at
      the start. The method has weak order one; `Trajectory.step_bias` estimates what is left of its error.
    - `progress`: whether to show a progress bar in a terminal.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.

    **Returns:** a `Trajectory` in slow time; `time_scale` says which. Of several replicas,
    `Trajectory.mean` gives mean and standard error, `Trajectory.quantiles` bands.

    **Raises:** `NotOnSetError`, `RankError`; `InputError` for a stochastic limit without `key`;
    `IntegrationError`, with the path so far, when the set stops being a manifold of constant rank
    along the path, or the drift cannot be resolved.

    Costs 13 drifts and a few corrections per step of a deterministic limit; per replica and step of a
    stochastic one, 1.5 drifts and about 5 corrections. Memory: the parameters at each time saved.
    """
    times = _times(t1, ts, saves)
    if not 0 < rtol <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {rtol}.")
    if dt is not None and not (dt > 0 and np.isfinite(dt)):
        raise InputError(f"dt must be positive and finite, got {dt}.")
    if replicas is not None and not (isinstance(replicas, int | np.integer) and replicas >= 1):
        raise InputError(f"replicas must be at least 1 or None, got {replicas}.")
    refuse_tracing((system, point), "limit")
    zero_set, start = locate(system, point)
    expansion = expand(system, zero_set)
    if verdict is None:
        verdict = classify_at(expansion, start, jax.random.key(0), _POINTS)
    if verdict.stochastic:
        if key is None:
            raise InputError(
                f"the limit of this noise is stochastic (measure of its diffusion {verdict.diffusion:.3g}): "
                "pass key=jax.random.key(...), and replicas= for an ensemble."
            )
        recorder = Recorder(
            expansion, observables, times, time_scale=verdict.time_scale, batched=replicas is not None
        )
        return diffuse(expansion, start, times, recorder, key, replicas or 1, dt, progress, checkpoint)
    if replicas is not None or dt is not None:
        what = "replicas" if replicas is not None else "dt"
        raise InputError(f"{what} makes sense for a stochastic limit only; this one is deterministic.")
    recorder = Recorder(expansion, observables, times, time_scale=verdict.time_scale)
    if verdict.time_scale is None:
        for _ in times:
            recorder.save(start)
        return recorder.path()
    arguments = (expansion, start, times, verdict.time_scale)
    try:
        return flow(*arguments, recorder, rtol, verdict.smooth, progress, checkpoint)
    except KinkError:
        recorder = Recorder(expansion, observables, times, time_scale=verdict.time_scale)
        _LOG.info("the path meets kinks of the loss: it is followed again, in steps of second order")
        # Without a checkpoint of its own: it takes few steps, and results of both would be one group.
        return flow(*arguments, recorder, rtol, False, progress, NOWHERE)


def _times(t1: float, ts: Sequence[float] | np.ndarray | None, saves: int) -> np.ndarray:
    if ts is None:
        if not (t1 > 0 and np.isfinite(t1)):
            raise InputError(f"t1 must be positive and finite, got {t1}.")
        if saves < 2:
            raise InputError(f"saves must be at least 2, got {saves}.")
        return np.linspace(0.0, t1, saves)
    times = np.asarray(ts, float)
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
        raise InputError("ts must be a non-empty one-dimensional sequence of finite times.")
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise InputError(f"ts must be increasing and not negative, got {times}.")
    return times
