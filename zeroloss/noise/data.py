"""Noise on the data: inputs, labels (theory.md, section 4)."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss.errors import InputError
from zeroloss.noise.base import AbstractInjection, Forward
from zeroloss.noise.laws import (
    AbstractLaw,
    Correlated,
    Gaussian,
    Independent,
    Matrix,
    OneHot,
    Scale,
    positive_sigma,
    symmetric_root,
)
from zeroloss.pytrees import is_traced


class LabelNoise(AbstractInjection):
    """Fresh Gaussian noise on every target at every step: y_i -> y_i + sigma * xi_i.

    Its regularizer is constant, so it acts on the slow scale: dW/dt = -1/(4N) P_T grad tr H
    (theory.md, section 4; Blanc et al. 2020; Li, Wang and Arora 2022). With several outputs of unequal
    or correlated noise it is degenerate still, but does not follow tr H.

    **Arguments:**

    - `sigma`: in the units of the targets.
    - `covariance`: for targets `[N, k]`, the k x k covariance between the outputs of one example, in
      units of sigma^2; by default the identity.
    """

    sigma: Scale
    root: Float[Array, "outputs outputs"] | None
    per: Literal["example"] = eqx.field(static=True)

    def __init__(self, sigma: float, covariance: Matrix | None = None):
        self.sigma = positive_sigma(sigma)
        self.root = None if covariance is None else symmetric_root(covariance)
        self.per = "example"

    def law(self, forward: Forward) -> AbstractLaw:
        shape = jnp.shape(_targets(forward))
        if self.root is None:
            return Gaussian(shape, self.sigma)
        if len(shape) < 2:
            raise InputError(f"a covariance between outputs needs targets of shape [N, k], got {shape}.")
        return Independent(Correlated(Gaussian(shape[1:], self.sigma), root=self.root), shape[0])

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(targets=forward.targets + eta)


class SampledLabels(AbstractInjection):
    """Labels drawn afresh from soft targets at every step: y_i -> e_c with probability y_ic.

    What training on randomly relabelled, or smoothed, one-hot targets does: label noise of covariance
    diag(y_i) - y_i y_i^T, so it is degenerate (theory.md, section 4). Zero loss is at the soft targets
    themselves, `[N, k]`, whose rows must be probabilities. sigma is 1.
    """

    per: Literal["example"] = eqx.field(static=True, default="example", init=False)

    def law(self, forward: Forward) -> AbstractLaw:
        targets = _targets(forward)
        if not is_traced(targets):
            _check_probabilities(np.asarray(targets))
        return OneHot(targets)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(targets=forward.targets + eta)


class InputNoise(AbstractInjection):
    """Gaussian noise on the inputs of every example, fresh at every step: x_i -> x_i + sigma * xi_i.

    Gaussian data augmentation. The regularizer is 1/(2N) sum_i |d f_i / d x_i|^2, so it is non-degenerate in
    general (theory.md, section 4; Bishop 1995). `sigma` is in the units of the inputs; every
    floating-point array of the inputs has noise.
    """

    sigma: Scale
    per: Literal["example"] = eqx.field(static=True)

    def __init__(self, sigma: float):
        self.sigma = positive_sigma(sigma)
        self.per = "example"

    def law(self, forward: Forward) -> AbstractLaw:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(forward.inputs) if _is_floating(leaf)]
        if not shapes:
            raise InputError("input noise needs floating-point inputs: use it with zeroloss.LeastSquares.")
        return Gaussian(shapes, self.sigma)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        noises = iter(eta)
        leaves, structure = jax.tree.flatten(forward.inputs)
        noisy = [leaf + next(noises) if _is_floating(leaf) else leaf for leaf in leaves]
        return forward.replace(inputs=jax.tree.unflatten(structure, noisy))


def _is_floating(leaf: Array) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _targets(forward: Forward) -> Array:
    if forward.targets is None:
        raise InputError("label noise needs targets: use it with zeroloss.LeastSquares.")
    return forward.targets


def _check_probabilities(targets: np.ndarray) -> None:
    if targets.ndim != 2:
        raise InputError(f"labels are drawn from targets of shape [N, k], got {targets.shape}.")
    sums = targets.sum(axis=1)
    if targets.min() < 0 or np.abs(sums - 1).max() > 1e-6:
        raise InputError(
            "labels are drawn from targets that are probabilities, >= 0 and summing to 1 for every example; "
            f"the smallest is {targets.min():.3g} and the sums lie in [{sums.min():.6g}, {sums.max():.6g}]."
        )
