"""Minibatches: a sampling scheme, averaged exactly and never expanded (theory.md, section 4)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, Key

from zeroloss._arguments import positive_integer, positive_number
from zeroloss.errors import InputError
from zeroloss.noise._laws import draw_subset
from zeroloss.noise._noise import AbstractNoise, Listing


def _size(size: float) -> int:
    return positive_integer("the size of a minibatch", size)


def _strength(strength: float) -> float:
    return positive_number("the strength of a minibatch", strength)


class MiniBatch(AbstractNoise):
    """Each step uses a fresh random batch of `size` examples: L_hat = 1/N sum_i c_i l_i, E c = 1.

    Alone it does nothing on the zero-loss set: every per-example gradient vanishes there. With
    another noise it changes the covariance of that noise, not its regularizer. The counts c are not
    small (variance about N / size), so they are averaged exactly.

    **Arguments:**

    - `size`: B, the number of examples in a batch.
    - `replace`: whether an example may be drawn several times for one batch.
    - `strength`: s, the factor of the batch's noise. The gradient of a step is
      grad L + s (grad L_B - grad L), so c = 1 + s (c_B - 1), with c_B = N / B on the batch and 0 elsewhere.
      1 is plain training on batches and costs B examples a step; any other strength costs all N. Noise of an
      example, such as label noise, is multiplied by the same count as the loss of that example.

    Consider the step grad L + delta (grad L_B - grad L_B') with two independent batches of B (HaoChen et al.
    2021). Its counts have the mean and covariance of `MiniBatch(B, strength=delta * 2**0.5)`. For two single
    examples that always differ, a full gradient plus delta (grad l_i - grad l_j), it is `MiniBatch(1,
    strength=delta * (2 * N / (N - 1))**0.5)`. Verdicts, drifts and limits depend on mean and covariance of
    the counts alone.
    """

    listing: ClassVar[Listing] = Listing("minibatch", "minibatches", "batch", 32.0, plural=True, usual=True)

    size: int = eqx.field(static=True, converter=_size)
    replace: bool = eqx.field(static=True, default=False)
    strength: float = eqx.field(static=True, default=1.0, converter=_strength)
    needs: ClassVar[str] = "examples"

    def indices(self, key: Key[Array, ""], number: int) -> Int[Array, " size"]:
        """The examples of one batch out of `number`."""
        if self.replace:
            return jax.random.randint(key, (self.size,), 0, number)
        return draw_subset(key, number, self.size)

    def counts(self, key: Key[Array, ""], number: int, dtype: DTypeLike = float) -> Float[Array, " number"]:
        """The weights 1 + strength * (c_B - 1) of all `number` examples, for the batch of `indices`."""
        batch = jnp.zeros(number, dtype).at[self.indices(key, number)].add(number / self.size)
        return 1 + self.strength * (batch - 1)

    def second_moments(self, number: int) -> tuple[float, float]:
        """(E[c_i^2], E[c_i c_j] for i != j) with `number` = N examples.

        At strength 1, without replacement, c_i is N/B on the batch, so E[c_i^2] = N/B and
        E[c_i c_j] = N (B - 1) / (B (N - 1)); with replacement the counts are multinomial. The strength
        multiplies the covariances, which are these less 1, by its square.
        """
        batch, n = self.size, number
        if self.replace:
            same, different = n / batch * (1 - 1 / n) + 1, 1 - 1 / batch
        else:
            same, different = n / batch, (n * (batch - 1) / (batch * (n - 1)) if n > 1 else 1.0)
        if self.strength == 1:
            return same, different
        return 1 + self.strength**2 * (same - 1), 1 + self.strength**2 * (different - 1)

    def check(self, number: int) -> None:
        """Raise `InputError` when the batch is larger than the data set."""
        if not self.replace and self.size > number:
            raise InputError(
                f"a minibatch of {self.size} cannot be drawn without replacement from {number} examples."
            )
