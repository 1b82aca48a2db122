"""Losses that are sums over outputs: squares, logistic, Poisson, Huber."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, logit, xlogy
from jaxtyping import Array, Bool

from zeroloss.errors import InputError
from zeroloss.losses._loss import AbstractLoss, AbstractWhitening, Minimum, Outputs, PerExample, refuse


class Scaling(AbstractWhitening):
    """Of a sum over outputs: S is diagonal, and B its root `scale`, shaped like the outputs."""

    scale: Outputs

    def whitened(self, vectors: Outputs) -> Array:
        return self.scale * vectors

    def whitened_gradients(self, gradients: Outputs) -> Array:
        return gradients / self.scale


class _AbstractSum(AbstractLoss):
    """A loss that is the sum of `value` over the outputs of an example."""

    @abc.abstractmethod
    def value(self, output: Array, target: Array) -> Array:
        """The loss of each output."""

    @abc.abstractmethod
    def best(self, target: Array) -> Array:
        """The output of least loss."""

    @abc.abstractmethod
    def curvature(self, output: Array) -> Array:
        """The second derivative; a constant where it does not stay positive."""

    @abc.abstractmethod
    def least(self, target: Array) -> Array:
        """The loss there."""

    def checked(self, targets: Array) -> Array:
        return as_floating(targets)

    def values(self, outputs: Array, targets: Array) -> PerExample:
        return sum_of_example(self.value(outputs, targets))

    def minimum(self, targets: Array) -> Minimum:
        return Minimum(self.best(targets), sum_of_example(self.least(targets)))

    def whitening(self, outputs: Array, targets: Array) -> Scaling:
        return Scaling(jnp.sqrt(self.curvature(outputs)))


class _AbstractDistance(_AbstractSum):
    """A loss that is 1/2 r^2 near r = f - y = 0."""

    linear_in_targets: ClassVar[bool] = False
    is_isotropic: ClassVar[bool] = True

    def best(self, target: Array) -> Array:
        return target

    def curvature(self, output: Array) -> Array:
        return jnp.ones_like(output)

    def least(self, target: Array) -> Array:
        return jnp.zeros_like(target)


class Squares(_AbstractDistance):
    """Half the squared distance: 1/2 |f - y|^2. Half of PyTorch's `MSELoss` for one output."""

    def value(self, output: Array, target: Array) -> Array:
        return 0.5 * (output - target) ** 2


class Huber(_AbstractDistance):
    """Squares near the target and linear far from it, as PyTorch's `HuberLoss`, summed over outputs.

    1/2 r^2 where |r| <= delta, and delta (|r| - delta / 2) beyond, with r = f - y.

    **Raises:** `InputError` unless delta > 0.
    """

    delta: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not self.delta > 0:
            raise InputError(f"delta of the Huber loss must be positive, got {self.delta}.")

    def value(self, output: Array, target: Array) -> Array:
        distance = jnp.abs(output - target)
        near = jnp.minimum(distance, self.delta)
        return 0.5 * near**2 + self.delta * (distance - near)


class Logistic(_AbstractSum):
    """Cross-entropy of two classes with one output, the logit: log(1 + e^f) - y f.

    PyTorch's `BCEWithLogitsLoss`, summed over outputs. It is zero, after its minimum is subtracted, at
    f = log(y / (1 - y)), so that targets must lie between 0 and 1.

    **Arguments:**

    - `smoothing`: s in [0, 1): a target y becomes (1 - s) y + s / 2, so that classes 0 and 1 have a minimum.

    **Raises:** `InputError` for targets outside [0, 1], and for a smoothing outside [0, 1).
    """

    linear_in_targets: ClassVar[bool] = True
    fits_labels: ClassVar[bool] = True

    smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        check_smoothing(self.smoothing)

    def checked(self, targets: Array) -> Array:
        targets = as_floating(targets)
        values = np.asarray(targets)
        refuse(values, (values < 0) | (values > 1), "lie in [0, 1] for the logistic loss")
        return (1 - self.smoothing) * targets + self.smoothing / 2

    def has_minimum(self, targets: Array) -> Bool[Array, " examples"]:
        return ((targets > 0) & (targets < 1)).reshape(len(targets), -1).all(axis=1)

    def value(self, output: Array, target: Array) -> Array:
        return jax.nn.softplus(output) - target * output

    def best(self, target: Array) -> Array:
        return logit(target)

    def curvature(self, output: Array) -> Array:
        return jax.nn.sigmoid(output) * jax.nn.sigmoid(-output)

    def least(self, target: Array) -> Array:
        return entr(target) + entr(1 - target)


class Poisson(_AbstractSum):
    """The Poisson likelihood of counts with one output for each, the log of the rate: e^f - y f.

    PyTorch's `PoissonNLLLoss`, summed over outputs. Its minimum is at f = log y, so that targets must be
    positive.

    **Raises:** `InputError` for targets that are negative.
    """

    linear_in_targets: ClassVar[bool] = True

    def checked(self, targets: Array) -> Array:
        targets = as_floating(targets)
        values = np.asarray(targets)
        refuse(values, values < 0, "be >= 0 for the Poisson loss")
        return targets

    def has_minimum(self, targets: Array) -> Bool[Array, " examples"]:
        return (targets > 0).reshape(len(targets), -1).all(axis=1)

    def value(self, output: Array, target: Array) -> Array:
        return jnp.exp(output) - target * output

    def best(self, target: Array) -> Array:
        return jnp.log(target)

    def curvature(self, output: Array) -> Array:
        return jnp.exp(output)

    def least(self, target: Array) -> Array:
        return target - xlogy(target, target)


def as_floating(targets: Array) -> Array:
    """Targets as floating-point numbers."""
    return targets if jnp.issubdtype(targets.dtype, jnp.floating) else targets.astype(float)


def sum_of_example(values: Array) -> PerExample:
    """The sum over all axes but the first."""
    return values.reshape(values.shape[0], -1).sum(axis=1)


def check_smoothing(smoothing: float) -> None:
    """Raise `InputError` unless `smoothing` lies in [0, 1)."""
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing must lie in [0, 1), got {smoothing}.")
