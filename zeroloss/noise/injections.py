"""The catalogue of noises that enter a forward pass (theory.md, section 4)."""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError
from zeroloss.noise.base import AbstractInjection, Forward
from zeroloss.noise.laws import AbstractLaw, Gaussian, TwoPoint, dropping_rate, positive_sigma
from zeroloss.noise.sites import inject, site_shapes


def _names(at: str | Sequence[str]) -> tuple[str, ...]:
    names = (at,) if isinstance(at, str) else tuple(at)
    if not names or len(set(names)) < len(names):
        raise InputError(f"at must name one or several different sites, got {at!r}.")
    return names


class Dropout(AbstractInjection):
    """Dropout at named activations: h -> h * (1 + eta), eta from `zeroloss.TwoPoint(rate)`.

    The regularizer is 1/(2N) sum_i |d f_i / d eta_i|^2, so it is non-degenerate in general
    (theory.md, section 4; Srivastava et al. 2014; Wei, Kakade and Ma 2020).

    **Arguments:**

    - `rate`: probability of being dropped, in [0, 1); sigma^2 = rate / (1 - rate).
    - `at`: the site, or sites, named with `zeroloss.site` inside the model.
    - `per`: `"example"` for a mask per example, as frameworks do; `"step"` for one mask a step.

    A mask of a small rate is rarely but then fully off, so it is a small noise only where the loss is
    quadratic in it, as before a linear last layer. Before a nonlinearity the formula above holds for
    Gaussian masks; with Bernoulli masks, finite differences take the place of the derivatives.
    """

    rate: float
    at: tuple[str, ...] = eqx.field(static=True)
    per: Literal["example", "step"] = eqx.field(static=True)

    def __init__(self, rate: float, at: str | Sequence[str], per: Literal["example", "step"] = "example"):
        if per not in ("example", "step"):
            raise InputError(f'per must be "example" or "step", got {per!r}.')
        self.rate = dropping_rate(rate)
        self.at = _names(at)
        self.per = per

    def law(self, forward: Forward) -> AbstractLaw:
        shapes = _shapes_at(forward, self.at)
        if self.per == "step":
            shapes = {name: shape[1:] for name, shape in shapes.items()}
        return TwoPoint(shapes, self.rate)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        def multiply(noise: Array):
            return lambda activation: activation * (1 + noise)

        handlers = {name: multiply(eta[name]) for name in self.at}
        return forward.replace(model=inject(forward.model, handlers))


class LabelNoise(AbstractInjection):
    """Fresh Gaussian noise on every target at every step: y_i -> y_i + sigma * xi_i.

    Its regularizer is constant, so it acts on the slow scale: dW/dt = -1/(4N) P_T grad tr H
    (theory.md, section 4; Blanc et al. 2020; Li, Wang and Arora 2022). `sigma` is in the units of
    the targets.
    """

    sigma: float
    per: Literal["example"] = eqx.field(static=True)

    def __init__(self, sigma: float):
        self.sigma = positive_sigma(sigma)
        self.per = "example"

    def law(self, forward: Forward) -> AbstractLaw:
        if forward.targets is None:
            raise InputError("label noise needs targets: use it with zeroloss.LeastSquares.")
        return Gaussian(jnp.shape(forward.targets), self.sigma)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(targets=forward.targets + eta)


class WeightNoise(AbstractInjection):
    """Gaussian noise on every parameter while the gradient is taken: L(w + sigma * xi).

    The regularizer is half the trace of the Hessian (theory.md, section 4). `sigma` is in the units
    of the parameters. eta is a list with an array for each leaf of the parameters.
    """

    sigma: float
    per: Literal["step"] = eqx.field(static=True)

    def __init__(self, sigma: float):
        self.sigma = positive_sigma(sigma)
        self.per = "step"

    def law(self, forward: Forward) -> AbstractLaw:
        return Gaussian([jnp.shape(leaf) for leaf in jax.tree.leaves(forward.params)], self.sigma)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        leaves, structure = jax.tree.flatten(forward.params)
        shifted = [leaf + noise for leaf, noise in zip(leaves, eta, strict=True)]
        return forward.replace(params=jax.tree.unflatten(structure, shifted))


def _shapes_at(forward: Forward, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    if forward.inputs is None:
        raise InputError("noise at a site needs a model with sites: use it with zeroloss.LeastSquares.")
    known = site_shapes(forward.model, forward.params, forward.inputs)
    number = jax.tree.leaves(forward.inputs)[0].shape[0]
    for name in names:
        if name not in known:
            listing = ", ".join(map(repr, known)) or "none; name one with zeroloss.site(h, name)"
            raise InputError(f"the model has no site {name!r}. Its sites: {listing}.")
        if known[name][:1] != (number,):
            raise InputError(
                f"site {name!r} has shape {known[name]}; its leading axis must run over the "
                f"{number} examples."
            )
    return {name: known[name] for name in names}
