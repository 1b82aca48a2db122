"""A loss that the user writes."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zeroloss.errors import LossError
from zeroloss.losses._elementwise import as_floating
from zeroloss.losses._loss import AbstractLoss, AbstractWhitening, Minimum, Outputs, PerExample

_STEPS, _HALVINGS, _POLISHED = 200, 30, 5
_SETTLED = 1e-9  # |gradient|, relative to the curvature times the outputs
_FLAT = 1e-9  # an eigenvalue of S below this share of the largest counts as 0


class Matrices(AbstractWhitening):
    """B and its pseudo-inverse as matrices, one of each for an example."""

    roots: Float[Array, "examples outputs outputs"]
    inverses: Float[Array, "examples outputs outputs"]
    """(B^T)^+."""

    def whitened(self, vectors: Outputs) -> Array:
        return _products(self.roots, vectors)

    def whitened_gradients(self, gradients: Outputs) -> Array:
        return _products(self.inverses, gradients)


def _products(matrices: Array, vectors: Array) -> Array:
    flat = vectors.reshape(vectors.shape[0], -1)
    return jnp.einsum("nij,nj->ni", matrices, flat).reshape(vectors.shape)


class Custom(AbstractLoss):
    """A loss of your own, `function(outputs_i, target_i) -> scalar`, for one example.

    It must be smooth in the outputs, which have the shape of a target. Its minimum over the outputs of each
    example, and the curvature there, are found by Newton's method from zero, once, when the problem is made.

    **Raises:** `LossError`, with the number of the example, where Newton's method finds no minimum.

    ```python
    log_cosh = zl.losses.Custom(lambda output, target: jnp.log(jnp.cosh(output - target)).sum())
    ```
    """

    linear_in_targets: ClassVar[bool] = False

    function: Callable[[Array, Array], Array]

    def checked(self, targets: Array) -> Array:
        return as_floating(targets)

    def values(self, outputs: Array, targets: Array) -> PerExample:
        return jax.vmap(self.function)(outputs, targets)

    def minimum(self, targets: Array) -> Minimum:
        def of_one(target: Array) -> tuple[Array, ...]:
            value = self._value(target)
            outputs, settled = _newton(value, jnp.zeros(target.size))
            eigenvalues = jnp.linalg.eigvalsh(jax.hessian(value)(outputs))
            floor = _FLAT * jnp.max(jnp.abs(eigenvalues))
            convex = (jnp.min(eigenvalues) >= -floor) & jnp.any(eigenvalues > floor)
            return outputs.reshape(target.shape), value(outputs), settled, convex

        outputs, constant, settled, convex = jax.jit(jax.vmap(of_one))(targets)
        self._check(np.asarray(settled), np.asarray(convex))
        return Minimum(outputs, constant)

    def whitening(self, outputs: Array, targets: Array) -> Matrices:
        def of_one(outputs: Array, target: Array) -> tuple[Array, Array]:
            curvature = jax.hessian(self._value(target))(outputs.reshape(-1))
            eigenvalues, vectors = jnp.linalg.eigh(curvature)
            is_curved = eigenvalues > _FLAT * jnp.max(jnp.abs(eigenvalues))
            root = jnp.sqrt(jnp.where(is_curved, eigenvalues, 0.0))
            inverse = jnp.where(is_curved, 1 / jnp.where(is_curved, root, 1.0), 0.0)
            return root[:, None] * vectors.T, inverse[:, None] * vectors.T

        return Matrices(*jax.vmap(of_one)(outputs, targets))

    def _value(self, target: Array) -> Callable[[Array], Array]:
        """The loss of flat outputs."""
        return lambda outputs: self.function(outputs.reshape(target.shape), target)

    def _check(self, settled: np.ndarray, convex: np.ndarray) -> None:
        for name, good in (("has no minimum that Newton's method finds", settled), ("is not curved", convex)):
            if not good.all():
                raise LossError(
                    f"the loss of example {int(np.argmin(good))} {name} ({int((~good).sum())} of {len(good)} "
                    "examples). A zero-loss set needs a loss with a minimum at finite outputs, and positive "
                    "curvature there in some direction."
                )


def _newton(function: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
    """The minimum of a smooth function by Newton's method with halved steps, and whether it was found."""

    def gradient_and_step(x: Array) -> tuple[Array, Array]:
        gradient, hessian = jax.grad(function)(x), jax.hessian(function)(x)
        eigenvalues, vectors = jnp.linalg.eigh(hessian)
        largest = jnp.max(jnp.abs(eigenvalues))
        # Along flat directions there is nothing to gain; against negative curvature the step goes downhill.
        size = jnp.maximum(jnp.abs(eigenvalues), _FLAT * largest)
        step = -vectors @ ((vectors.T @ gradient) / jnp.where(size > 0, size, 1.0))
        return gradient, step

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = state
        gradient, step = gradient_and_step(x)
        lengths = 0.5 ** jnp.arange(_HALVINGS)
        values = jax.vmap(lambda length: function(x + length * step))(lengths)
        falls = values <= function(x) + 1e-4 * lengths * (gradient @ step)
        length = jnp.where(jnp.any(falls), lengths[jnp.argmax(falls)], 0.0)
        return x + length * step, length * jnp.linalg.norm(step), count + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        x, moved, count = state
        return (moved > 1e-12 * (1 + jnp.linalg.norm(x))) & (count < _STEPS)

    def polish(_: Array | int, x: Array) -> Array:
        """A whole step where it makes the gradient smaller, which shows when the value no longer does."""
        gradient, step = gradient_and_step(x)
        closer = jnp.linalg.norm(jax.grad(function)(x + step)) < jnp.linalg.norm(gradient)
        return jnp.where(closer, x + step, x)

    x, _, _ = jax.lax.while_loop(unfinished, improve, (start, jnp.asarray(jnp.inf), jnp.asarray(0)))
    x = jax.lax.fori_loop(0, _POLISHED, polish, x)
    gradient = jax.grad(function)(x)
    scale = jnp.linalg.norm(jax.hessian(function)(x)) * (1 + jnp.linalg.norm(x))
    return x, jnp.all(jnp.isfinite(x)) & (jnp.linalg.norm(gradient) <= _SETTLED * jnp.maximum(scale, 1e-300))
