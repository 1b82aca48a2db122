"""A loss of outputs and targets, and its curvature (theory.md, section 8).

Near its minimum the loss of an example is 1/2 |B (f - f*)|^2 to second order in its outputs f, with f* the
outputs of least loss and B^T B = S the curvature there. So the zero-loss set is that of least squares with
the whitened residuals B (f - f*).
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zeroloss.errors import InputError

PerExample = Float[Array, " examples"]
Outputs = Float[Array, "examples *outputs"]


class Minimum(eqx.Module):
    """The minimum over its outputs of the loss of each example.

    - `outputs`: f*, shaped like the outputs of the model.
    - `constant`: the loss there, which zeroloss subtracts.
    """

    outputs: Outputs
    constant: PerExample


class AbstractWhitening(eqx.Module):
    """B_i with B_i^T B_i = S_i, the curvature of the loss of example i. Arrays have an axis of them first."""

    @abc.abstractmethod
    def whitened(self, vectors: Outputs) -> Array:
        """B_i v_i for directions v in the space of outputs."""

    @abc.abstractmethod
    def whitened_gradients(self, gradients: Outputs) -> Array:
        """u_i with B_i^T u_i = g_i for gradients g by the outputs: B_i v_i where g_i = S_i v_i."""


class AbstractLoss(eqx.Module):
    """The loss of the outputs of a model, given targets.

    `linear_in_targets` says whether noise that is added to targets enters linearly, as for cross-entropy, so
    that it does not change the expected loss. `is_isotropic`: whether S is the identity for all targets.
    `fits_labels`: whether targets are probabilities of labels, and the covariance of a label drawn from
    them is S at the minimum, as for cross-entropy.
    """

    linear_in_targets: eqx.AbstractClassVar[bool]
    is_isotropic: ClassVar[bool] = False
    fits_labels: ClassVar[bool] = False

    @abc.abstractmethod
    def checked(self, targets: Array) -> Array:
        """The targets as floating-point numbers, such as probabilities for classes.

        Raises `InputError`, with the number of the first example that is wrong.
        """

    @abc.abstractmethod
    def values(self, outputs: Array, targets: Array) -> PerExample:
        """The loss of each example, as PyTorch and Optax define it, for checked targets."""

    def has_minimum(self, targets: Array) -> Bool[Array, " examples"]:
        """Whether each example has outputs of least loss; hard labels have none."""
        return jnp.ones(targets.shape[0], bool)

    @abc.abstractmethod
    def minimum(self, targets: Array) -> Minimum:
        """The minimum for checked targets; with infinite outputs where there is none."""

    @abc.abstractmethod
    def whitening(self, outputs: Array, targets: Array) -> AbstractWhitening:
        """B at these outputs. A loss without a useful curvature there may give that at its minimum."""

    @property
    def name(self) -> str:
        """The name in sentences."""
        return type(self).__name__


def refuse(targets: np.ndarray, wrong: np.ndarray, what: str) -> None:
    """Raise `InputError` for the first example where `wrong`; `what` ends the sentence "targets must"."""
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        value = targets[place]
        shown = value.tolist() if isinstance(value, np.ndarray) else value
        raise InputError(
            f"targets must {what}; example {int(place[0])} has {shown} "
            f"({int(wrong.reshape(len(wrong), -1).any(axis=1).sum())} of {len(wrong)} examples are wrong)."
        )
