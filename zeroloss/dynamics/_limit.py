"""The limiting dynamics on the zero-loss set (theory.md, section 2)."""

import logging

import jax
from jaxtyping import Array, Key, PyTree

from zeroloss._arguments import positive_integer, positive_number, relative_tolerance
from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays
from zeroloss._pytrees import Vector, refuse_tracing
from zeroloss.drifts import (
    CLASSIFIED_POINTS,
    FAST,
    AbstractExpansion,
    RareMaskExpansion,
    Verdict,
    classify_at,
    expand_at,
)
from zeroloss.dynamics._diffusion import Diffusion
from zeroloss.dynamics._driver import drive
from zeroloss.dynamics._flow import Flow, KinkError
from zeroloss.dynamics._recorder import Recorder
from zeroloss.dynamics._sampled_flow import SampledFlow
from zeroloss.dynamics._saves import Saves, as_saves
from zeroloss.dynamics._trajectory import Trajectory
from zeroloss.errors import InputError
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import locate

RTOL = 1e-8
"""The relative accuracy of a deterministic limit, by default."""

_EXACT = 64  # units of a rare mask up to which every drift of a limit drops all of them

_LOG = logging.getLogger(__name__)


def limit(
    system: AbstractSystem,
    point: PyTree,
    t1: float | Saves = 1.0,
    *,
    rtol: float = RTOL,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    dt: float | None = None,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Trajectory:
    """Follow the limit of training as step size and noise go to zero, on the slow time scale.

    Non-degenerate noise: dW/dt = -P_T grad Reg(W), t = alpha sigma^2 k. Degenerate noise: dW/dt = b(W), or
    the SDE dW = P_T G dB + b(W) dt where the noise has a tangential part, t = alpha^2 sigma^2 k. Trivial
    noise: the path stays where it is. k counts training steps.

    **Arguments:**

    - `system`, `point`: a system and a point of its zero-loss set.
    - `t1`: the slow time to follow it to, from 0; or a `zeroloss.Saves`, which also says when to save and
      what to measure.
    - `rtol`: relative accuracy of a deterministic limit: Dormand-Prince 8(7) with retraction onto the
      set after every step, so that the loss stays zero to rounding. A loss with kinks, as of ReLU units, is
      followed with its almost-everywhere derivatives and steps no shorter than a 2000th of `t1`, to about the
      accuracy of such a step. It is followed a second time in steps of twice the length: their difference is
      the `integration` of `Trajectory.uncertainty`, and `Trajectory.switched` counts the units that switched.
    - `key`: the seed of a stochastic limit, which needs one, and of the draws under rare masks. A path
      depends on key, times and `dt` alone.
    - `replicas`: of a stochastic limit: None for one path without a replica axis, R for R paths.
    - `dt`: the largest time step of a stochastic limit, by default such that a step is about 3 % of |w| at
      the start. The method has weak order one; `Trajectory.step_bias` estimates what is left of its error.
      Of the limit of rare masks: the time step, by default such that each example goes through its units 8
      times and a step moves at most 1 % of |w|.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.

    **Returns:** a `Trajectory` in slow time; `time_scale` says which. Of several replicas,
    `Trajectory.mean` gives mean and standard error, `Trajectory.quantiles` bands.

    **Raises:** `NotOnSetError`, `RankError`; `InputError` for a stochastic limit without `key`;
    `IntegrationError`, with the path so far, when the set stops being a manifold of constant rank
    along the path, or the drift cannot be resolved.

    Bernoulli masks in which the loss is not quadratic follow the limit of small rates (`Verdict.rare`). Up
    to 64 units its drift is exact, and costs a gradient for each unit. Beyond, each step estimates it from
    4 drops of each example, and `Trajectory.uncertainty` estimates the error.

    Costs 13 drifts and a few corrections per step of a deterministic limit; per replica and step of a
    stochastic one, 1.5 drifts and about 5 corrections. Memory: the parameters at each time saved.
    """
    relative_tolerance(rtol)
    dt = None if dt is None else positive_number("dt", dt)
    replicas = None if replicas is None else positive_integer("replicas", replicas)
    saves = as_saves(t1)
    saves.times()  # raises for times that make no sense, before anything long
    refuse_tracing((system, point), "limit")
    zero_set, start = locate(system, point)
    expansion = expand_at(system, zero_set, start)
    verdict = classify_at(expansion, start, jax.random.key(0), CLASSIFIED_POINTS)
    if verdict.stochastic:
        if key is None:
            raise InputError(
                f"the limit of this noise is stochastic (measure of its diffusion {verdict.diffusion:.3g}): "
                "pass key=jax.random.key(...), and replicas= for an ensemble."
            )
        return stochastic_limit(expansion, start, verdict, saves, key, replicas, dt, checkpoint)
    sampled = _is_sampled(expansion, start, verdict)
    if replicas is not None or (dt is not None and not sampled):
        name = "replicas" if replicas is not None else "dt"
        raise InputError(f"{name} makes sense for a stochastic limit only; this one is deterministic.")
    return deterministic_limit(expansion, start, verdict, saves, rtol, checkpoint, key=key, dt=dt)


def limit_with_verdict(
    expansion: AbstractExpansion,
    start: Vector,
    verdict: Verdict,
    saves: Saves,
    key: Key[Array, ""],
    replicas: int,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Trajectory:
    """`limit` where the `verdict` is known, from a point already located.

    `key` and `replicas` are those of a stochastic limit; a deterministic one does not use them.
    """
    if verdict.stochastic:
        return stochastic_limit(expansion, start, verdict, saves, key, replicas, checkpoint=checkpoint)
    return deterministic_limit(expansion, start, verdict, saves, checkpoint=checkpoint)


def deterministic_limit(
    expansion: AbstractExpansion,
    start: Vector,
    verdict: Verdict,
    saves: Saves,
    rtol: float = RTOL,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    *,
    key: Key[Array, ""] | None = None,
    dt: float | None = None,
) -> Trajectory:
    """`limit` of noise whose `verdict` is known to be deterministic, from a point already located."""
    times = saves.times()
    recorder = Recorder(expansion, saves.observables, times, time_scale=verdict.time_scale)
    scale = verdict.time_scale
    if scale is None:
        return recorder.trajectory([recorder.item(start)] * len(times))

    if isinstance(expansion, RareMaskExpansion) and _is_sampled(expansion, start, verdict):
        key = jax.random.key(0) if key is None else key
        sampled = SampledFlow(expansion, start, times, key, dt, recorder)
        return recorder.trajectory(drive(sampled, times, checkpoint))

    def follow(smooth: bool, checkpoint: Checkpoint, coarser: float = 1.0) -> list[SavedArrays]:
        return drive(Flow(expansion, start, times, scale, rtol, smooth, recorder, coarser), times, checkpoint)

    if verdict.smooth:
        try:
            return recorder.trajectory(follow(True, checkpoint))
        except KinkError:
            _LOG.info("the path meets kinks of the loss: it is followed again, in steps of second order")
            # It takes few steps, and must not mix with the state of the first attempt: no checkpoint.
            checkpoint = NO_CHECKPOINT
    with checkpoint.open():
        coarse = follow(False, checkpoint / "coarse", coarser=2.0)
        fine = follow(False, checkpoint / "fine")
    return recorder.trajectory_at_kinks(fine, coarse, start)


def _is_sampled(expansion: AbstractExpansion, start: Vector, verdict: Verdict) -> bool:
    """Whether the drift is estimated from drops of units, because there are many of them."""
    if not isinstance(expansion, RareMaskExpansion) or verdict.time_scale != FAST:
        return False
    return expansion.largest_row(start) > _EXACT


def stochastic_limit(
    expansion: AbstractExpansion,
    start: Vector,
    verdict: Verdict,
    saves: Saves,
    key: Key[Array, ""],
    replicas: int | None,
    dt: float | None = None,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Trajectory:
    """`limit` of noise whose `verdict` is known to be stochastic, from a point already located."""
    times, batched = saves.times(), replicas is not None
    recorder = Recorder(expansion, saves.observables, times, time_scale=verdict.time_scale, batched=batched)
    evolution = Diffusion(expansion, start, times, key, replicas or 1, dt, recorder)
    return recorder.trajectory(drive(evolution, times, checkpoint))
