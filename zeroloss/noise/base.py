"""What a noise is: something that rewrites a forward pass, and sums of such things."""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
from jaxtyping import PyTree

from zeroloss.errors import InputError
from zeroloss.noise.laws import AbstractLaw


class Forward(eqx.Module):
    """A forward pass about to be made, every piece of it within a noise's reach.

    `inputs` and `targets` have a leading axis over examples and are None for a loss without examples;
    `model(params, inputs)` is the network's output, or `model(params)` the loss.
    """

    model: Callable[..., PyTree]
    params: PyTree
    inputs: PyTree | None = None
    targets: PyTree | None = None

    def replace(self, **pieces: PyTree) -> "Forward":
        """A copy with some pieces exchanged."""
        fields = {name: getattr(self, name) for name in ("model", "params", "inputs", "targets")}
        return Forward(**(fields | pieces))


class AbstractNoise(eqx.Module):
    """A noise, or a sum of noises; `+` combines independent ones."""

    def __add__(self, other: "AbstractNoise") -> "Noises":
        if not isinstance(other, AbstractNoise):
            return NotImplemented
        return Noises((*parts(self), *parts(other)))


class AbstractInjection(AbstractNoise):
    """A noise eta that enters the forward pass, with a law for eta.

    `per` says whether each example has its own eta ("example": then every leaf of eta has a leading
    axis over examples) or a whole step shares one ("step").
    """

    per: eqx.AbstractVar[Literal["example", "step"]]

    @abc.abstractmethod
    def law(self, forward: Forward) -> AbstractLaw:
        """The law of eta for the given forward pass; only shapes are looked at."""

    @abc.abstractmethod
    def apply(self, forward: Forward, eta: PyTree) -> "Forward":
        """The forward pass with the noise in it; the same forward pass when eta = 0."""


class Noises(AbstractNoise):
    """A sum of independent noises. Reg and Sigma of its parts add; each keeps its own sigma."""

    noises: tuple[AbstractNoise, ...]


def parts(noise: AbstractNoise) -> tuple[AbstractNoise, ...]:
    """The noises that `noise` is the sum of."""
    if isinstance(noise, Noises):
        return noise.noises
    if isinstance(noise, AbstractNoise):
        return (noise,)
    raise InputError(f"not a noise: {noise!r}. Use for instance zeroloss.LabelNoise(sigma=0.1).")
