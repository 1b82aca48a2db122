"""The slow drift along the zero-loss set, on both time scales (theory.md, sections 2 and 5)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from zeroloss._compilation import compiled, compiled_once
from zeroloss._pytrees import Vector, is_traced
from zeroloss.drifts._rare_masks import expand_at
from zeroloss.drifts._reg_and_sigma import AbstractExpansion
from zeroloss.errors import InputError, LossError
from zeroloss.optimizers import SGD
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import AbstractSpaces, AbstractSpectrum, largest_eigenvalue, locate, spectrum_of


class Drift(eqx.Module):
    """The slow drift at one point: per training step, sigma^2 (alpha first + alpha^2 second).

    It assumes that moments of the noise beyond the second are of higher order, with one exception: Bernoulli
    masks in which the loss is not quadratic (`Verdict.rare`) drop whole units, however small their rate. For
    them R of theory.md, section 4, takes the place of Reg, and Sigma is the covariance of the gradients of
    single drops. Where the loss is quadratic in the masks, `second` is that of Gaussian masks.

    - `first`: D_1 = -P_T grad Reg, per unit of t = alpha sigma^2 k.
    - `second`: b, per unit of t = alpha^2 sigma^2 k; with a step size, D_2(alpha) of section 5. It may
      have a normal part, the Ito correction that keeps a diffusion on the set.
    - `diffusion`: P_T G, a `lineax.AbstractLinearOperator` from standardized noise, a pytree like the law's,
      to pytrees like the parameters, in units of the square root of t = alpha^2 sigma^2 k: `.mv`, `.T`,
      and `.as_matrix()` for small problems. None where no noise can have a tangential part; otherwise
      it acts on the noises that can (in a sum, a tuple of them).
    """

    first: PyTree[Array]
    second: PyTree[Array]
    diffusion: lx.AbstractLinearOperator | None


def regularizer(system: AbstractSystem, point: PyTree) -> Scalar:
    """Reg(w) = 1/2 Laplacian_eta L_hat(w, 0) at sigma = 1 (theory.md, section 1).

    `point` must lie on the zero-loss set (`zeroloss.project`), otherwise `NotOnSetError`. In a sum of
    noises, the regularizers add with the squared ratio of each sigma to the first. For Bernoulli masks in
    which the loss is not quadratic, it is R of theory.md, section 4, the limit of small rates. Costs n
    gradients, n the noise components (per example, for noise per example).
    """
    zero_set, w = locate(system, point)
    value = _regularizer(expand_at(system, zero_set, w), w)
    _check_finite_derivatives(value)
    return value


def drift(system: AbstractSystem, point: PyTree, step_size: float | Scalar = 0.0) -> Drift:
    """The drift along the zero-loss set at `point`, on both scales.

    **Arguments:**

    - `system`, `point`: a system and a point of its zero-loss set.
    - `step_size`: 0 for the singular limit of theory.md, section 2. Otherwise alpha of plain gradient descent
      (a number: momentum and schedules are for `zeroloss.predict`), and the Lyapunov equation becomes the
      Stein equation of section 5, exact at any alpha below the stability limit for training on all examples.

    **Returns:** a `Drift`. It does not depend on sigma; of a sum of noises, on the ratios of their sigmas.

    **Raises:** `NotOnSetError`, `RankError`; `StabilityError` when step_size * lambda_max >= 2;
    `InputError` for a step size with minibatches, whose random Hessian is not accounted for.

    Works under `jax.jit` and `jax.vmap`, where only the step size can be checked.

    Under rare masks of n units `first` costs n gradients, and `second` n for each residual. From 200,000
    on it is estimated from some of the units.
    """
    zero_set, w = locate(system, point)
    expansion = expand_at(system, zero_set, w)
    if not is_traced(step_size):
        _check_step_size(system, float(step_size))
        if step_size > 0 and not is_traced(w):
            SGD(step_size).check_stability(largest_eigenvalue(system, point))
    if not is_traced(step_size) and step_size == 0 and expansion.hessian_multiple(w) is not None:
        first, second = _both_scales_of_multiple(expansion, w)
    else:
        first, second = _both_scales(expansion, w, jnp.asarray(step_size, jnp.float64))
    _check_finite_derivatives((first, second))
    return Drift(zero_set.unravel(first), zero_set.unravel(second), _diffusion(expansion, w))


def first_drift(expansion: AbstractExpansion, w: Vector, spaces: AbstractSpaces) -> Vector:
    """D_1 = -P_T grad Reg (theory.md, section 2)."""
    return -spaces.tangent(jax.grad(expansion.regularizer)(w))


def second_drift(
    expansion: AbstractExpansion, w: Vector, spectrum: AbstractSpectrum, step_size: Scalar | float = 0.0
) -> Vector:
    """P_T b, or P_T D_2(alpha) with a step size (theory.md, sections 2 and 5; Li, Wang and Arora 2022).

    -P_T T[H^+ P_N Sigma P_T]  -  1/2 P_T T[C]
    """
    zero_set = expansion.zero_set
    covariance = spectrum.lyapunov(expansion.normal_covariance(w, spectrum), step_size)
    force = -0.5 * zero_set.third_derivative_of_normal(w, spectrum, covariance)
    if expansion.tangential_law(w) is not None:
        left = spectrum.embed(jnp.diag(spectrum.inverses))  # H^+ Q
        force = force - zero_set.third_derivative(w, left, expansion.tangential_covariance(w, spectrum))
    return spectrum.tangent(force)


def second_drift_of(expansion: AbstractExpansion, w: Vector) -> Vector:
    """P_T b, without the spectrum of H if Sigma is a multiple of H.

    Where Sigma = c H, as for label noise, C = c P_N / 2 solves the Lyapunov equation, and
    b = -c/4 P_T grad tr H (theory.md, section 4).
    """
    multiple = expansion.hessian_multiple(w)
    if multiple is None:
        return second_drift(expansion, w, spectrum_of(expansion.zero_set, w))
    slope = jax.grad(expansion.zero_set.trace)(w)
    return -0.25 * multiple * expansion.zero_set.spaces(w).tangent(slope)


def curvature_drift(expansion: AbstractExpansion, w: Vector, spectrum: AbstractSpectrum) -> Vector:
    """The normal part of b: -1/2 H^+ T[P_T Sigma P_T] (theory.md, section 2).

    Ito's correction, which keeps a diffusion on the curved set; a retraction after each step does the
    same. Costs n second derivatives, n the components of the noise with a tangential part.
    """
    if expansion.tangential_law(w) is None:
        return jnp.zeros_like(w)
    factor = expansion.factor(w)

    def add(total: Vector, direction: Array) -> tuple[Vector, None]:
        velocity = spectrum.tangent(factor.mv(direction))
        return total + expansion.zero_set.acceleration(w, spectrum, velocity), None

    return 0.5 * jax.lax.scan(add, jnp.zeros_like(w), jnp.eye(factor.in_size()))[0]


def _diffusion(expansion: AbstractExpansion, w: Vector) -> lx.AbstractLinearOperator | None:
    """P_T G between pytrees, or None where it vanishes identically."""
    law, unravel = expansion.tangential_law(w), expansion.zero_set.unravel
    if law is None:
        return None
    spectrum, factor = _spectrum_and_factor(expansion, w)

    def moved(xi: PyTree[Array]) -> PyTree[Array]:
        return unravel(spectrum.tangent(factor.mv(ravel_pytree(xi)[0])))

    return lx.FunctionLinearOperator(moved, jax.eval_shape(lambda: law.zeros(jnp.float64)))


@compiled_once
def _spectrum_and_factor(
    expansion: AbstractExpansion, w: Vector
) -> tuple[AbstractSpectrum, lx.AbstractLinearOperator]:
    return spectrum_of(expansion.zero_set, w), expansion.factor(w)


def _check_step_size(system: AbstractSystem, step_size: float) -> None:
    """Raise `InputError` for a step size that the finite-alpha drift cannot serve."""
    if not 0 <= step_size < float("inf"):
        raise InputError(f"step_size must be >= 0 and finite, got {step_size}.")
    if step_size > 0 and system.has_minibatches:
        raise InputError(
            "the drift of minibatches at a finite step size involves the random Hessian of the batch, "
            "which this version does not compute; use step_size=0."
        )


@compiled
def _both_scales_of_multiple(expansion: AbstractExpansion, w: Vector):
    return first_drift(expansion, w, expansion.zero_set.spaces(w)), second_drift_of(expansion, w)


@compiled
def _both_scales(expansion: AbstractExpansion, w: Vector, step_size: Scalar):
    spectrum = spectrum_of(expansion.zero_set, w)
    unstable = step_size * jnp.max(spectrum.eigenvalues) >= 2
    w = eqx.error_if(w, unstable, "step_size is beyond the stability limit 2 / lambda_max")
    second = second_drift(expansion, w, spectrum, step_size) + curvature_drift(expansion, w, spectrum)
    return first_drift(expansion, w, spectrum), second


@compiled
def _regularizer(expansion: AbstractExpansion, w: Vector) -> Scalar:
    return expansion.regularizer(w)


def _check_finite_derivatives(values: PyTree) -> None:
    if not is_traced(values) and not all(
        bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(values)
    ):
        raise LossError(
            "a derivative of the noisy loss at the point is not finite; it must be three times "
            "differentiable in params and twice in the noise there."
        )
