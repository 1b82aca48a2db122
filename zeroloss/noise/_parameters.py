"""Noise on the parameters, or on their gradient (theory.md, section 4).

`where` picks the parameters that have noise: `where(params)` returns a part of the pytree, or a sequence of
parts, as in `equinox.tree_at`; without it all parameters have noise.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError
from zeroloss.noise._laws import (
    AbstractLaw,
    Correlated,
    Matrix,
    Scale,
    dropping_rate,
    positive_sigma,
    symmetric_root,
)
from zeroloss.noise._noise import (
    AbstractDropping,
    AbstractGaussian,
    AbstractInjection,
    Forward,
    Listing,
    multiplied,
)

Where = Callable[[PyTree], PyTree] | None


def picker(where: Any) -> Where:
    """`where`, checked to be None or a function."""
    if where is None or callable(where):
        return where
    raise InputError(
        "where must be a function that picks the parameters with noise, such as "
        f'lambda params: params["hidden"], got {where!r}.'
    )


class _AbstractOnParameters(AbstractInjection):
    """Noise with an array for each chosen leaf of the parameters, one for all examples of a step.

    eta is the list of these arrays.
    """

    where: eqx.AbstractVar[Where]
    per: Literal["step"] = eqx.field(static=True, default="step", init=False)

    @abc.abstractmethod
    def of_shapes(self, shapes: Any) -> AbstractLaw:
        """The law of eta, of the given shapes."""

    def noisy(self, leaf: Array, eta: Array) -> Array:
        """One leaf of the parameters with its noise."""
        return leaf + eta

    def law(self, forward: Forward) -> AbstractLaw:
        return self.of_shapes([jnp.shape(leaf) for leaf in _chosen(forward.params, self.where)])

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(params=_replace(forward.params, self.where, eta, self.noisy))


class _AbstractGaussianOnParameters(AbstractGaussian, _AbstractOnParameters):
    """Gaussian noise of one scale on the chosen parameters."""

    sigma: Scale
    where: Where = eqx.field(static=True)

    def __init__(self, sigma: float, where: Where = None):
        self.sigma = positive_sigma(sigma)
        self.where = picker(where)


class WeightNoise(_AbstractGaussianOnParameters):
    """Gaussian noise on the parameters while the gradient is taken: L(w + sigma * xi).

    The regularizer is half the trace of the Hessian (theory.md, section 4).

    **Arguments:**

    - `sigma`: in the units of the parameters.
    - `where`: which parameters have noise, such as `lambda params: params["hidden"]`.
    """

    listing: ClassVar[Listing] = Listing("weight", "weight noise", "sigma", 0.01, usual=True)


class AntiCorrelated(_AbstractGaussianOnParameters):
    """Anti-correlated perturbations: w_{k+1} = w_k - alpha grad L(w_k) + eta_{k+1} - eta_k, eta_0 = 0.

    Training runs exactly this. The analysis is that of z_k = w_k - eta_k, whose gradients are taken at
    z_k + eta_k: weight noise, with half the trace of the Hessian as regularizer (theory.md, section 4;
    Orvieto et al. 2022). `sigma` and `where` as for `WeightNoise`.
    """

    listing: ClassVar[Listing] = Listing("anti-correlated", "anti-correlated weight noise", "sigma", 0.01)

    as_increments: ClassVar[bool] = True


class DropConnect(AbstractDropping, _AbstractOnParameters):
    """DropConnect: weights are dropped, w -> w * (1 + eta), eta from `zeroloss.TwoPoint(rate)`.

    One mask a step. The regularizer is 1/2 sum_j w_j^2 d_jj L (theory.md, section 4; Wan et al. 2013),
    exact where the loss is quadratic in each mask; otherwise that of `GaussianDropConnect`.

    **Arguments:**

    - `rate`: probability of being dropped, in [0, 1); sigma^2 = rate / (1 - rate).
    - `where`: which parameters can be dropped, such as `lambda params: params["hidden"]`.
    """

    listing: ClassVar[Listing] = Listing("dropconnect", "DropConnect", "rate", 0.01)

    rate: Scale
    where: Where = eqx.field(static=True)

    def __init__(self, rate: float, where: Where = None):
        self.rate = dropping_rate(rate)
        self.where = picker(where)

    def noisy(self, leaf: Array, eta: Array) -> Array:
        return multiplied(leaf, eta)


class GaussianDropConnect(_AbstractGaussianOnParameters):
    """DropConnect with Gaussian masks: w -> w * (1 + sigma * xi), one mask a step.

    The regularizer is 1/2 sum_j w_j^2 d_jj L (theory.md, section 4). `where` as for `DropConnect`.
    """

    listing: ClassVar[Listing] = Listing("gaussian-dropconnect", "Gaussian DropConnect", "sigma", 0.1)

    def noisy(self, leaf: Array, eta: Array) -> Array:
        return multiplied(leaf, eta)


class Langevin(_AbstractGaussianOnParameters):
    """Gaussian noise on the gradient: L(w) + sigma * xi . w, the stochastic gradient Langevin dynamics.

    Degenerate and stochastic: an SDE on the zero-loss set, with invariant density proportional to
    det_+(H)^(-1/2) where the noise is isotropic (theory.md, section 4; Welling and Teh 2011). Minibatches
    do not change it.

    **Arguments:**

    - `sigma`: in the units of the gradient; sigma^2 = 2 temperature / step_size.
    - `where`: which parameters have noise.
    - `covariance`: of the noise on all chosen parameters as one flat vector, in units of sigma^2; by
      default the identity.
    """

    listing: ClassVar[Listing] = Listing("langevin", "Langevin noise", "sigma", 0.01)

    root: Array | None

    def __init__(self, sigma: float, where: Where = None, covariance: Matrix | None = None):
        super().__init__(sigma, where)
        self.root = None if covariance is None else symmetric_root(covariance)

    @classmethod
    def from_temperature(cls, temperature: float, step_size: float, where: Where = None) -> "Langevin":
        """The noise that samples exp(-L / temperature) at a small step size: sigma^2 = 2 temperature / alpha.

        Slow time is then t = alpha^2 sigma^2 k = 2 temperature alpha k.
        """
        if not (temperature > 0 and step_size > 0):
            raise InputError(
                f"temperature and step_size must be positive, got {temperature} and {step_size}."
            )
        return cls(math.sqrt(2 * temperature / step_size), where)

    def of_shapes(self, shapes: Any) -> AbstractLaw:
        law = super().of_shapes(shapes)
        return law if self.root is None else Correlated(law, root=self.root)

    def noisy(self, leaf: Array, eta: Array) -> Array:
        return eta

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        zeros = jax.tree.map(jnp.zeros_like, forward.params)
        return forward.push(_replace(zeros, self.where, eta, self.noisy))


def _pick(params: PyTree, where: Where) -> PyTree:
    """The part of `params` that has noise."""
    if where is None:
        return params
    try:
        return where(params)
    except (AttributeError, LookupError, TypeError) as error:
        names = (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        raise InputError(
            f"where does not suit the parameters: it ends in {type(error).__name__}: {error}. "
            f"The parameters: {', '.join('params' + name for name in names)}."
        ) from error


def _chosen(params: PyTree, where: Where) -> list[Any]:
    """The leaves that have noise. Raises `InputError` if there are none."""
    leaves = jax.tree.leaves(_pick(params, where))
    if not leaves:
        raise InputError("where chose no parameters.")
    return leaves


def _replace(params: PyTree, where: Where, eta: PyTree, noisy: Callable[[Array, Array], Array]) -> PyTree:
    """`params` with `noisy(leaf, eta)` in place of each chosen leaf."""
    leaves, structure = jax.tree.flatten(_pick(params, where))
    new = jax.tree.unflatten(structure, [noisy(*pair) for pair in zip(leaves, eta, strict=True)])
    if where is None:
        return new
    try:
        return eqx.tree_at(where, params, new)
    except (TypeError, ValueError) as error:
        raise InputError(
            "where must return parts of the parameters as they are, each once, such as "
            'lambda params: params["hidden"]; its result is not found in them.'
        ) from error
