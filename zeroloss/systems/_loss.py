"""Losses without examples: `System` has noise in its formula, `Loss` is clean, `LossSystem` adds noise."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import AbstractInjection, AbstractLaw, AbstractNoise, Forward, with_scales_as_arrays
from zeroloss.systems._injection import AbstractInjectedSystem, split_noise, work_of
from zeroloss.systems._system import AbstractSystem, Scalar, check_geometry, dtype_of


class System(AbstractSystem):
    """Any noisy loss, with the law of its noise.

    **Arguments:**

    - `loss`: `loss(params, eta) -> scalar`, with `loss(params, 0) >= 0` and twice differentiable in
      both arguments near the points of interest.
    - `law`: the law of eta, such as `zeroloss.Gaussian((2,), sigma=0.05)`.
    - `clean`: optionally the noise-free `clean(params) -> scalar`, checked against `loss(params, 0)`.
    - `geometry`: as in `zeroloss.Loss`.
    """

    loss: Callable[[PyTree, PyTree], Scalar]
    law: AbstractLaw
    clean: Callable[[PyTree], Scalar] | None = None
    geometry: str = eqx.field(static=True, default="auto")

    def __check_init__(self):
        check_geometry(self.geometry)

    def noise_law(self, params: PyTree) -> AbstractLaw:
        return self.law

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        return self.loss(params, eta)

    def clean_problem(self) -> "Loss":
        clean = _WithoutNoise(self.loss, self.law) if self.clean is None else self.clean
        return Loss(clean, self.geometry)

    def with_scales_as_arrays(self) -> "System":
        return dataclasses.replace(self, law=with_scales_as_arrays(self.law))

    def scaled(self, factor: float) -> "System":
        return dataclasses.replace(self, law=self.law.scaled(factor))

    def describe(self) -> str:
        return f"custom noise, {type(self.law).__name__} law"


class _WithoutNoise(eqx.Module):
    """params -> loss(params, 0)."""

    loss: Callable[[PyTree, PyTree], Scalar]
    law: AbstractLaw

    def __call__(self, params: PyTree) -> Array:
        return self.loss(params, self.law.zeros(dtype_of(params)))


class LossSystem(AbstractInjectedSystem):
    """A `Loss` with noise on its parameters or on their gradient."""

    problem: "Loss"
    injections: tuple[AbstractInjection, ...]

    def clean_forward(self, params: PyTree) -> Forward:
        return Forward(self.problem.function, params)

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        def forward(params: PyTree) -> Forward:
            return self.apply(self.clean_forward(params), eta)

        noisy = forward(params)
        return noisy.model(noisy.params) + work_of(noisy.force, forward, params)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        eta = self.draw(self.clean_forward(params), key)
        return jax.grad(self.noisy_loss)(params, eta)


class Loss(eqx.Module):
    """A clean loss without examples.

    **Arguments:**

    - `function`: `function(params) -> scalar >= 0`, twice differentiable.
    - `geometry`: how normal and tangent space of the zero-loss set are found. "factorized" takes the whole
      Hessian up to 2000 parameters, beyond that a basis of its range, and serves everything. "matrix-free"
      iterates with Hessian-vector products, whatever the dimension of the normal space, and serves `project`;
      `classify` and `limit` of noise that drifts on the fast scale. "auto" factorizes while the basis takes
      at most 1 GiB.
    """

    function: Callable[[PyTree], Scalar]
    geometry: str = eqx.field(static=True, default="auto")

    def __check_init__(self):
        check_geometry(self.geometry)

    def loss(self, params: PyTree) -> Array:
        """L(w)."""
        return self.function(params)

    def with_noise(self, noise: AbstractNoise) -> LossSystem:
        """The system that trains this loss under `noise`, a noise that enters at the parameters."""
        injections, minibatch = split_noise(noise)
        for part in (*injections, *([] if minibatch is None else [minibatch])):
            if part.needs is not None:
                raise InputError(
                    f"{type(part).__name__} needs {part.needs}, and zeroloss.Loss has none: use "
                    "zeroloss.LeastSquares(model, inputs, targets). zeroloss.Loss takes noise on parameters "
                    "and their gradient: WeightNoise, AntiCorrelated, DropConnect, GaussianDropConnect, "
                    'Langevin, and CustomNoise with per="step".'
                )
        return LossSystem(self, injections)
