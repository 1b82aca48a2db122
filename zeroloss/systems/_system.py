"""A noisy loss L_hat(w, eta) with a law for eta (theory.md, section 1): `AbstractSystem`, and `System`."""

import abc
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._memoized import memoized
from zeroloss._pytrees import check_parameters, is_traced
from zeroloss.errors import InputError, LossError
from zeroloss.noise import AbstractLaw

Scalar = Float[Array, ""]

if TYPE_CHECKING:
    from zeroloss.systems._loss import Loss
    from zeroloss.systems._supervised import Supervised

_GEOMETRIES = ("auto", "factorized", "matrix-free")


class AbstractSystem(eqx.Module):
    """A noisy loss `loss(params, eta)` with a law for eta; `loss(params, 0)` is the clean loss >= 0."""

    @abc.abstractmethod
    def noise_law(self, params: PyTree) -> AbstractLaw:
        """The law of eta; only the shapes of `params` are read."""

    @abc.abstractmethod
    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        """L_hat(w, eta)."""

    @abc.abstractmethod
    def clean_problem(self) -> "Loss | Supervised":
        """The problem without its noise. All geometry is in terms of it."""

    @abc.abstractmethod
    def with_scales_as_arrays(self) -> "AbstractSystem":
        """The same system with its sigmas and rates as arrays, so that compiled code serves all values."""

    @abc.abstractmethod
    def scaled(self, factor: float) -> "AbstractSystem":
        """The same system with every sigma of its noise multiplied by `factor`; minibatches stay."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The noise in one line, for tables and messages."""

    @property
    def has_minibatches(self) -> bool:
        """Whether a step uses a random part of the examples, so that its Hessian is random too."""
        return False

    @property
    def reports_perturbed_parameters(self) -> bool:
        """Whether the noise moves the parameters that training reports, as anti-correlated noise does."""
        return False

    def clean_loss(self, params: PyTree) -> Array:
        """L(w)."""
        return self.clean_problem().loss(params)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """The gradient that one step of training uses. One gradient."""
        eta = self.noise_law(params).draw(key, dtype_of(params))
        return jax.grad(self.noisy_loss)(params, eta)

    def perturbation(self, params: PyTree, key: Key[Array, ""]) -> PyTree | None:
        """The shift of the parameters by anti-correlated noise at the step with this key; None without it."""
        return None

    @memoized
    def check(self, params: PyTree) -> None:
        """Raise `InputError` or `LossError` if `params` does not suit the system. No-op under tracing."""
        if is_traced((self, params)):
            return
        check_parameters(params)
        shape = getattr(jax.eval_shape(self.clean_loss, params), "shape", None)
        if shape != ():
            raise LossError(f"the loss must be a scalar, but it has shape {shape}.")
        self.noise_law(params).check()
        clean, at_zero = _clean_and_at_zero_noise(self.with_scales_as_arrays(), params)
        clean, at_zero = float(clean), float(at_zero)
        if not np.isfinite(clean):
            raise LossError(f"the loss at params is {clean}; it must be finite.")
        rounding = 1e3 * float(jnp.finfo(dtype_of(params)).eps)
        if clean < -rounding:
            raise LossError(
                f"the loss at params is {clean:.6g}; a loss with a zero-loss set must be >= 0. "
                "Subtract its minimum first."
            )
        if not abs(at_zero - clean) <= rounding * max(1.0, abs(clean)):
            raise LossError(
                f"the noisy loss at zero noise is {at_zero:.10g} but the clean loss is {clean:.10g}; "
                "L_hat(w, 0) = L(w) must hold."
            )


def dtype_of(params: PyTree) -> DTypeLike:
    """The widest type of the parameters, in which noise is drawn."""
    return jnp.result_type(*jax.tree.leaves(params))


@compiled_once
def _clean_and_at_zero_noise(system: AbstractSystem, params: PyTree) -> tuple[Scalar, Scalar]:
    zero = system.noise_law(params).zeros()
    return jnp.asarray(system.clean_loss(params)), jnp.asarray(system.noisy_loss(params, zero))


def check_geometry(geometry: str) -> None:
    """Raise `InputError` unless `geometry` is one of the known names."""
    if geometry not in _GEOMETRIES:
        raise InputError(f"geometry must be one of {', '.join(_GEOMETRIES)}, got {geometry!r}.")
