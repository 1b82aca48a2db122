"""Noise on the parameters, or on their gradient (theory.md, section 4).

Each of these takes `where`, which picks the parameters that have noise: `where(params)` returns a
part of the pytree, or a sequence of parts, as in `equinox.tree_at`; None is all of them.
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
    Gaussian,
    Matrix,
    Scale,
    TwoPoint,
    dropping_rate,
    positive_sigma,
    scaled_rate,
    symmetric_root,
)
from zeroloss.noise._noise import AbstractInjection, Forward, Listing

Where = Callable[[PyTree], PyTree] | None


class _AbstractOnParameters(AbstractInjection):
    """Noise with an array for each chosen leaf of the parameters; eta is a list of them."""

    where: eqx.AbstractVar[Where]

    @abc.abstractmethod
    def _of_shapes(self, shapes: list[tuple[int, ...]]) -> AbstractLaw:
        """The law of eta, of the given shapes."""

    @abc.abstractmethod
    def _noisy(self, leaf: Array, noise: Array) -> Array:
        """One leaf of the parameters with its noise."""

    def law(self, forward: Forward) -> AbstractLaw:
        return self._of_shapes([jnp.shape(leaf) for leaf in _chosen(forward.params, self.where)])

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(params=_replace(forward.params, self.where, eta, self._noisy))


class _AbstractGaussian(_AbstractOnParameters):
    """Gaussian noise of one scale on the chosen parameters, the same for all examples of a step."""

    sigma: Scale
    where: Where = eqx.field(static=True)
    per: Literal["step"] = eqx.field(static=True)

    def __init__(self, sigma: float, where: Where = None):
        self.sigma = positive_sigma(sigma)
        self.where = picker(where)
        self.per = "step"

    def _of_shapes(self, shapes: list[tuple[int, ...]]) -> AbstractLaw:
        return Gaussian(shapes, self.sigma)


class WeightNoise(_AbstractGaussian):
    """Gaussian noise on the parameters while the gradient is taken: L(w + sigma * xi).

    The regularizer is half the trace of the Hessian (theory.md, section 4).

    **Arguments:**

    - `sigma`: in the units of the parameters.
    - `where`: which parameters have noise, such as `lambda params: params["hidden"]`.
    """

    listing: ClassVar[Listing] = Listing("weight", "weight noise", "sigma", 0.01)

    def _noisy(self, leaf: Array, noise: Array) -> Array:
        return leaf + noise


class AntiCorrelated(_AbstractGaussian):
    """Anti-correlated perturbations: w_{k+1} = w_k - alpha grad L(w_k) + eta_{k+1} - eta_k, eta_0 = 0.

    Training runs just this. Its analysis is that of z_k = w_k - eta_k, which takes its gradients at
    z_k + eta_k: weight noise, with half the trace of the Hessian as regularizer (theory.md, section 4;
    Orvieto et al. 2022). `sigma` and `where` as for `WeightNoise`.
    """

    listing: ClassVar[Listing] = Listing("anti-correlated", "anti-correlated weight noise", "sigma", 0.01)

    as_increments: ClassVar[bool] = True

    def _noisy(self, leaf: Array, noise: Array) -> Array:
        return leaf + noise


class DropConnect(_AbstractOnParameters):
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
    per: Literal["step"] = eqx.field(static=True)

    def __init__(self, rate: float, where: Where = None):
        self.rate = dropping_rate(rate)
        self.where = picker(where)
        self.per = "step"

    def scaled(self, factor: float) -> "DropConnect":
        return DropConnect(scaled_rate(self.rate, factor), self.where)

    def _of_shapes(self, shapes: list[tuple[int, ...]]) -> AbstractLaw:
        return TwoPoint(shapes, self.rate)

    def _noisy(self, leaf: Array, noise: Array) -> Array:
        return leaf * (1 + noise)


class GaussianDropConnect(_AbstractGaussian):
    """DropConnect with Gaussian masks: w -> w * (1 + sigma * xi), one mask a step.

    The regularizer is 1/2 sum_j w_j^2 d_jj L (theory.md, section 4). `where` as for `DropConnect`.
    """

    listing: ClassVar[Listing] = Listing("gaussian-dropconnect", "Gaussian DropConnect", "sigma", 0.1)

    def _noisy(self, leaf: Array, noise: Array) -> Array:
        return leaf * (1 + noise)


class Langevin(_AbstractOnParameters):
    """Gaussian noise on the gradient: L(w) + sigma * xi . w, the stochastic gradient Langevin dynamics.

    Degenerate and stochastic: an SDE on the zero-loss set, with invariant density proportional to
    det_+(H)^(-1/2) where the noise is isotropic (theory.md, section 4; Welling and Teh 2011). Minibatches
    do not touch it.

    **Arguments:**

    - `sigma`: in the units of the gradient; sigma^2 = 2 temperature / step_size.
    - `where`: which parameters have noise.
    - `covariance`: of the noise on all chosen parameters as one flat vector, in units of sigma^2; by
      default the identity.
    """

    listing: ClassVar[Listing] = Listing("langevin", "Langevin noise", "sigma", 0.01)

    sigma: Scale
    root: Array | None
    where: Where = eqx.field(static=True)
    per: Literal["step"] = eqx.field(static=True)

    def __init__(self, sigma: float, where: Where = None, covariance: Matrix | None = None):
        self.sigma = positive_sigma(sigma)
        self.where = picker(where)
        self.root = None if covariance is None else symmetric_root(covariance)
        self.per = "step"

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

    def _of_shapes(self, shapes: list[tuple[int, ...]]) -> AbstractLaw:
        law = Gaussian(shapes, self.sigma)
        return law if self.root is None else Correlated(law, root=self.root)

    def _noisy(self, leaf: Array, noise: Array) -> Array:
        return noise

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        still = jax.tree.map(jnp.zeros_like, forward.params)
        return forward.push(_replace(still, self.where, eta, self._noisy))


def picker(where: Any) -> Where:
    """`where`, checked to be None or a function."""
    if where is None or callable(where):
        return where
    raise InputError(
        "where must be a function that picks the parameters with noise, such as "
        f'lambda params: params["hidden"], got {where!r}.'
    )


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
    leaves = jax.tree.leaves(_pick(params, where))
    if not leaves:
        raise InputError("where chose no parameters.")
    return leaves


def _replace(params: PyTree, where: Where, eta: PyTree, noisy: Callable[[Array, Array], Array]) -> PyTree:
    """`params` with `noisy(leaf, noise)` in the place of the chosen leaves."""
    leaves, structure = jax.tree.flatten(_pick(params, where))
    new = jax.tree.unflatten(structure, [noisy(*pair) for pair in zip(leaves, eta, strict=True)])
    if where is None:
        return new
    try:
        return eqx.tree_at(where, params, new)
    except (TypeError, ValueError) as error:
        raise InputError(
            "where must return parts of the parameters as they are, each once, such as "
            'lambda params: params["hidden"]; what it returned cannot be found in them.'
        ) from error
