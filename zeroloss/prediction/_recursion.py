"""Many training steps at once, for the linear part of training (docs/prediction.md).

Along an eigenvector of the Hessian one training step is a linear recursion, and so are n of them. At n = 1
the formulas are the training step itself; for large n they are the relaxation onto the zero-loss set. They
are exact for every stable step size, eigenvalue and number of steps, however stiff.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zeroloss._tolerances import TINY
from zeroloss.optimizers import SGD
from zeroloss.systems import Scalar

_SMALL = 1e-3


class Response(NamedTuple):
    """The result of n steps with unit velocity, unit force, and a force that grows like j / n, per mode."""

    velocity: Float[Array, " modes"]
    force: Float[Array, " modes"]
    ramp: Float[Array, " modes"]


def responses(
    optimizer: SGD, step_size: Scalar, curvatures: Float[Array, " modes"], steps: Int[Array, ""]
) -> tuple[Response, Response]:
    """The change of position, and the velocity, after `steps` steps along modes of the given curvatures.

    v <- momentum v + curvature x + force, x <- x - step_size v, from x = 0. Costs a few operations per mode
    and binary digit of `steps`.
    """
    beta, zero = optimizer.momentum, jnp.zeros_like(curvatures)
    one = jnp.ones_like(curvatures)
    # The state is (x, v, force, slope of the force, sum of the slopes so far).
    forced = [curvatures, beta * one, one, zero, one]
    if optimizer.nesterov:
        lookahead = [(1 + beta) * curvatures, beta**2 * one, (1 + beta) * one, zero, (1 + beta) * one]
    else:
        lookahead = forced
    moved = [-step_size * each for each in lookahead]
    rows = [
        [one + moved[0], *moved[1:]],
        forced,
        [zero, zero, one, zero, zero],
        [zero, zero, zero, one, zero],
        [zero, zero, zero, one, one],
    ]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    power = _power(matrix, steps)
    position, velocity = (
        Response(power[:, row, 1], power[:, row, 2], power[:, row, 3] / steps) for row in (0, 1)
    )
    return position, velocity


def _power(matrices: Float[Array, "modes k k"], exponent: Int[Array, ""]) -> Float[Array, "modes k k"]:
    def product(left: Array, right: Array) -> Array:  # small matrices: faster than batched matmul on a CPU
        return jnp.sum(left[:, :, :, None] * right[:, None, :, :], axis=2)

    def digit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        result, square, left = state
        result = jnp.where(left % 2 == 1, product(square, result), result)
        return result, product(square, square), left // 2

    identity = jnp.broadcast_to(jnp.eye(matrices.shape[-1]), matrices.shape)
    return jax.lax.while_loop(lambda state: state[2] > 0, digit, (identity, matrices, exponent))[0]


class Decay(NamedTuple):
    """The covariance of the fluctuations, between pairs of modes: C <- (1 - rate) C + gain S each step."""

    rate: Float[Array, "modes modes"]
    gain: Float[Array, "modes modes"]

    @property
    def stationary(self) -> Float[Array, "modes modes"]:
        """The stationary covariance for S = 1, gain / rate; 0 for modes that do not decay."""
        return jnp.where(self.rate > 0, self.gain / jnp.where(self.rate > 0, self.rate, 1.0), 0.0)


def decay_of(optimizer: SGD, step_size: Scalar, curvatures: Float[Array, " modes"]) -> Decay:
    """The decay of the covariance of the iterates, and its growth by gradient noise of covariance S.

    Without momentum rate = l_i + l_j - l_i l_j with l = step_size * curvature, and gain = step_size^2: the
    Stein equation of theory.md, section 5. With momentum gain / rate is the exact stationary covariance of
    the iteration, and the rate is the rate of its slower root (docs/prediction.md).
    """
    l = step_size * curvatures  # noqa: E741
    if not optimizer.has_momentum:
        return Decay(_pairwise(l), jnp.full((l.size, l.size), step_size**2))
    beta = optimizer.momentum
    if optimizer.nesterov:
        a, b = (1 + beta) * (1 - l), beta * (1 - l)
        now, before = 1 + beta, -beta  # x' = a x - b x_before - step_size (now noise + before noise_before)
    else:
        a, b = 1 + beta - l, beta * jnp.ones_like(l)
        now, before = 1.0, 0.0
    # The roots of mu^2 - a mu + b; 1 - mu = y solves y^2 - (2 - a) y + l = 0.
    discriminant = (2 - a) ** 2 - 4 * l
    slower = 2 * l / (2 - a + jnp.sqrt(jnp.maximum(discriminant, 0.0)))
    slower = jnp.where(discriminant >= 0, jnp.minimum(slower, 1.0), 1 - jnp.sqrt(jnp.abs(b)))
    rate = _pairwise(slower)
    ai, aj, bi, bj = a[:, None], a[None, :], b[:, None], b[None, :]
    both = 1 - bi * bj
    cross = now * before
    noise = now**2 + before**2 + (ai + aj) * cross - cross * (ai * bj * (1 - bi) + bi * aj * (1 - bj)) / both
    if optimizer.nesterov:
        kept = 1 - ai * aj - bi * bj + (ai * bj * (ai - bi * aj) + bi * aj * (aj - bj * ai)) / both
    else:  # the same formula without cancellation for small curvatures
        li, lj = l[:, None], l[None, :]
        kept = (1 - beta) * (li + lj - li * lj / (1 + beta)) + beta * (li - lj) ** 2 / (1 - beta**2)
    floor = jnp.where(kept > TINY, kept, 1.0)
    slow = step_size**2 / (1 - beta) ** 2  # the gain where rate and kept both vanish
    return Decay(rate, jnp.where(kept > 1e-12, step_size**2 * noise * rate / floor, slow))


def _pairwise(rates: Float[Array, " modes"]) -> Float[Array, "modes modes"]:
    """1 - (1 - r_i)(1 - r_j)."""
    row, column = rates[:, None], rates[None, :]
    return row + column - row * column


class Sums(NamedTuple):
    """With rho = 1 - rate: rho^n, sum_j rho^(n-1-j), and sum_j rho^(n-1-j) j / n, over j = 0 ... n - 1."""

    power: Array
    constant: Array
    ramp: Array


def geometric(rate: Array, steps: Int[Array, ""]) -> Sums:
    """Geometric sums for rates in [0, 2], free of cancellation for small ones."""
    n = jnp.asarray(steps, rate.dtype)
    small = n * jnp.abs(rate) < _SMALL
    logarithm = jnp.where(
        rate < 0.5,
        jnp.log1p(-jnp.minimum(rate, 0.5)),
        jnp.log(jnp.maximum(jnp.abs(1 - rate), TINY)),
    )
    positive = (rate <= 1) | (steps % 2 == 0)
    size = jnp.exp(n * logarithm)
    power = jnp.where(positive, size, -size)
    rest = jnp.where(positive, -jnp.expm1(n * logarithm), 1 + size)
    divisor = jnp.where(small, 1.0, rate)
    second, third = (n - 1) / 2, (n - 1) * (n - 2) / 6
    fourth = third * (n - 3) / 4
    constant = jnp.where(small, n * (1 - second * rate + third * rate**2), rest / divisor)
    ramp = jnp.where(small, second - third * rate + fourth * rate**2, (n - constant) / (divisor * n))
    return Sums(power, constant, ramp)
