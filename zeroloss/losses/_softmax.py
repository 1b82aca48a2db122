"""Cross-entropy of several classes."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float

from zeroloss.errors import InputError
from zeroloss.losses._elementwise import as_floating, check_smoothing
from zeroloss.losses._loss import AbstractLoss, AbstractWhitening, Minimum, PerExample, refuse

_SUM = 1e-6  # by how much probabilities may fail to sum to 1


class SoftmaxWhitening(AbstractWhitening):
    """S = diag(p) - p p^T = B^T B with k - 1 rows.

    B v is the vector sqrt(p) v in an orthonormal basis of the complement of sqrt(p), so that the direction
    that softmax ignores is gone. The basis is that of the reflection that takes sqrt(p) to the last axis.
    """

    roots: Float[Array, "examples classes"]
    """sqrt(p)."""

    def whitened(self, vectors: Float[Array, "examples classes"]) -> Array:
        return self._in_complement(self.roots * vectors)

    def whitened_gradients(self, gradients: Float[Array, "examples classes"]) -> Array:
        return self._in_complement(gradients / self.roots)

    def _in_complement(self, vectors: Float[Array, "examples classes"]) -> Array:
        # Reflected along sqrt(p) + e_k, which is never small.
        mirror = self.roots.at[:, -1].add(1.0)
        along = jnp.sum(mirror * vectors, axis=1, keepdims=True) / (1.0 + self.roots[:, -1:])
        return (vectors - along * mirror)[:, :-1]


class SoftmaxCrossEntropy(AbstractLoss):
    """Cross-entropy with softmax, as PyTorch's `CrossEntropyLoss`: -sum_c p_c log softmax(f)_c.

    After its minimum, the entropy of p, is subtracted, it is the Kullback-Leibler divergence from p. That is
    zero at f = log p, up to a constant. With hard labels there is no minimum.

    **Arguments:**

    - `smoothing`: s in [0, 1): classes c become probabilities (1 - s) e_c + s / k.
    - `classes`: k, where the targets are classes and the last of them has no example.

    Targets are classes 0 to k - 1, integers `[N]`; or probabilities `[N, k]`.

    **Raises:** `InputError` for classes outside of 0 to k - 1, for probabilities that are negative or do not
    sum to 1, and for a smoothing outside [0, 1).
    """

    linear_in_targets: ClassVar[bool] = True
    fits_labels: ClassVar[bool] = True

    smoothing: float = eqx.field(static=True, default=0.0)
    classes: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_smoothing(self.smoothing)

    def checked(self, targets: Array) -> Array:
        values = np.asarray(targets)
        if values.ndim == 1 and jnp.issubdtype(values.dtype, jnp.integer):
            classes = max(int(values.max()) + 1, 2) if self.classes is None else self.classes
            refuse(values, (values < 0) | (values >= classes), f"be classes from 0 to {classes - 1}")
            targets = jax.nn.one_hot(targets, classes, dtype=float)
        elif values.ndim != 2:
            raise InputError(
                "targets of cross-entropy must be classes, integers of shape [N], or probabilities of shape "
                f"[N, k]; got {values.dtype} of shape {values.shape}."
            )
        else:
            sums = values.sum(axis=1)
            refuse(values, np.any(values < 0, axis=1), "be probabilities, which are not negative")
            refuse(values, ~(np.abs(sums - 1) <= _SUM), "be probabilities that sum to 1")
            targets = as_floating(targets)
        return (1 - self.smoothing) * targets + self.smoothing / targets.shape[1]

    def values(self, outputs: Float[Array, "examples classes"], targets: Array) -> PerExample:
        # Noise on targets may change their sum, which then multiplies the normalization.
        return -jnp.sum(targets * jax.nn.log_softmax(outputs, axis=1), axis=1)

    def has_minimum(self, targets: Float[Array, "examples classes"]) -> Bool[Array, " examples"]:
        return jnp.all(targets > 0, axis=1)

    def minimum(self, targets: Float[Array, "examples classes"]) -> Minimum:
        return Minimum(jnp.log(targets), jnp.sum(entr(targets), axis=1))

    def whitening(self, outputs: Float[Array, "examples classes"], targets: Array) -> SoftmaxWhitening:
        return SoftmaxWhitening(jnp.exp(jax.nn.log_softmax(outputs, axis=1) / 2))
