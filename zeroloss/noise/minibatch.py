"""Minibatches: a sampling scheme, averaged exactly and never expanded (theory.md, section 4)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zeroloss.errors import InputError
from zeroloss.noise.base import AbstractNoise


def _positive_size(size: float) -> int:
    if not (math.isfinite(size) and int(size) == size and size >= 1):
        raise InputError(f"the size of a minibatch must be a positive integer, got {size!r}.")
    return int(size)


class MiniBatch(AbstractNoise):
    """Each step uses a fresh random batch of `size` examples: L_hat = 1/N sum_i c_i l_i, E c = 1.

    Alone it does nothing on the zero-loss set: every per-example gradient vanishes there. With
    another noise it changes the covariance of that noise, not its regularizer. The counts c are not
    small (variance about N / size), so they are averaged exactly.
    """

    size: int = eqx.field(static=True, converter=_positive_size)
    replace: bool = eqx.field(static=True, default=False)

    def indices(self, key: Key[Array, ""], number: int) -> Int[Array, " size"]:
        """The examples of one batch out of `number`."""
        if self.replace:
            return jax.random.randint(key, (self.size,), 0, number)
        if self.size == number:
            return jnp.arange(number)
        return jax.random.choice(key, number, (self.size,), replace=False)

    def second_moments(self, number: int) -> tuple[float, float]:
        """(E[c_i^2], E[c_i c_j] for i != j) with `number` = N examples.

        Without replacement c_i is N/B on the batch, so E[c_i^2] = N/B and
        E[c_i c_j] = N (B - 1) / (B (N - 1)); with replacement the counts are multinomial.
        """
        batch, n = self.size, number
        if self.replace:
            return n / batch * (1 - 1 / n) + 1, 1 - 1 / batch
        return n / batch, (n * (batch - 1) / (batch * (n - 1)) if n > 1 else 1.0)

    def check(self, number: int) -> None:
        """Raise `InputError` when the batch is larger than the data set."""
        if not self.replace and self.size > number:
            raise InputError(
                f"a minibatch of {self.size} cannot be drawn without replacement from {number} examples."
            )
