"""Systems whose noises act on a forward pass: everything that losses and least squares do alike."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import (
    AbstractInjection,
    AbstractNoise,
    Forward,
    Joint,
    MiniBatch,
    describe,
    parts,
    with_scales_as_arrays,
)
from zeroloss.systems._system import AbstractSystem, Scalar, dtype_of


def split_noise(noise: AbstractNoise) -> tuple[tuple[AbstractInjection, ...], MiniBatch | None]:
    """The injections that a noise is the sum of, and its minibatch if it has one.

    Raises `InputError` for several minibatches, and for a part that is neither.
    """
    batches = [part for part in parts(noise) if isinstance(part, MiniBatch)]
    if len(batches) > 1:
        raise InputError(f"a sum of noises may hold one MiniBatch, got {len(batches)}.")
    injections = tuple(part for part in parts(noise) if not isinstance(part, MiniBatch))
    for part in injections:
        if not isinstance(part, AbstractInjection):
            raise InputError(f"cannot inject {part!r}; it must be an AbstractInjection or MiniBatch.")
    return injections, batches[0] if batches else None  # pyright: ignore[reportReturnType]


class AbstractInjectedSystem(AbstractSystem):
    """A clean problem whose forward pass is changed by injections, one after the other.

    eta is a tuple with one entry for each injection.
    """

    problem: eqx.AbstractVar[Any]
    injections: eqx.AbstractVar[tuple[AbstractInjection, ...]]

    @abc.abstractmethod
    def clean_forward(self, params: PyTree) -> Forward:
        """The forward pass of the whole problem, without noise."""

    @property
    def reports_perturbed_parameters(self) -> bool:
        return any(injection.as_increments for injection in self.injections)

    def noise_law(self, params: PyTree) -> Joint:
        return self.joint_law(self.clean_forward(params))

    def joint_law(self, forward: Forward) -> Joint:
        """The law of eta for a forward pass."""
        return Joint(tuple(injection.law(forward) for injection in self.injections))

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        """The forward pass with all noises in it."""
        for injection, noise in zip(self.injections, eta, strict=True):
            forward = injection.apply(forward, noise)
        return forward

    def draw(self, forward: Forward, key: Key[Array, ""]) -> PyTree:
        """Draw eta for the gradient of one step, with 0 for anti-correlated noise (see `perturbation`)."""
        eta = self.joint_law(forward).draw(key, dtype_of(forward.params))
        return tuple(
            jax.tree.map(jnp.zeros_like, part) if injection.as_increments else part
            for injection, part in zip(self.injections, eta, strict=True)
        )

    def noise_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """The key for eta, from the key of a step."""
        return key

    def perturbation(self, params: PyTree, key: Key[Array, ""]) -> PyTree | None:
        if not self.reports_perturbed_parameters:
            return None
        shifted = forward = self.clean_forward(params)
        # All of eta, as `draw` draws it, so that the anti-correlated noises get the same numbers.
        eta = self.joint_law(forward).draw(self.noise_key(key), dtype_of(params))
        for injection, part in zip(self.injections, eta, strict=True):
            if injection.as_increments:
                shifted = injection.apply(shifted, part)
        return jax.tree.map(jnp.subtract, shifted.params, forward.params)

    def clean_problem(self) -> Any:
        return self.problem

    def with_scales_as_arrays(self) -> "AbstractInjectedSystem":
        return dataclasses.replace(self, injections=with_scales_as_arrays(self.injections))

    def scaled(self, factor: float) -> "AbstractInjectedSystem":
        return dataclasses.replace(self, injections=tuple(each.scaled(factor) for each in self.injections))

    def describe(self) -> str:
        return " + ".join(map(describe, self.injections))


def work_of(force: PyTree | None, forward: Callable[[PyTree], Forward], params: PyTree) -> Scalar | float:
    """<force, params>, whose gradient is the force.

    A force may depend on the parameters, so it is computed again, by `forward`, from parameters without a
    derivative.
    """
    if force is None:
        return 0.0
    constant = forward(jax.lax.stop_gradient(params)).force
    return sum(jax.tree.leaves(jax.tree.map(lambda one, other: jnp.sum(one * other), constant, params)))
