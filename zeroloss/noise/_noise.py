"""A noise rewrites a forward pass; noises can be added."""

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError, UnsupportedError
from zeroloss.noise._laws import AbstractLaw, Gaussian, Scale, TwoPoint, scaled_rate


class Forward(eqx.Module):
    """A forward pass before it is evaluated, in pieces that a noise may exchange.

    `inputs` and `targets` have a leading axis over examples and are None for a loss without examples;
    `model(params, inputs)` is the network's output, or `model(params)` the loss. `force` is added to
    the gradient, like `params` in structure: the loss gains <force, params>. None is no force.
    `number` is how many examples the whole problem has; `inputs` may be a part of them, such as a minibatch.
    """

    model: Callable[..., PyTree]
    params: PyTree
    inputs: PyTree | None = None
    targets: PyTree | None = None
    force: PyTree | None = None
    number: int | None = eqx.field(static=True, default=None)

    def replace(self, **pieces: PyTree) -> "Forward":
        """A copy with some pieces exchanged."""
        return dataclasses.replace(self, **pieces)

    def push(self, force: PyTree) -> "Forward":
        """A copy with `force` added to the force on the parameters."""
        total = force if self.force is None else jax.tree.map(jnp.add, self.force, force)
        return self.replace(force=total)


class Listing(NamedTuple):
    """The names of a noise on the command line and in sentences, and its default strength.

    - `name`: its name after `--noise`, such as "gaussian-dropout".
    - `label`: its name in sentences, such as "Gaussian dropout"; `plural` where that takes a plural verb.
    - `strength`: the option that gives its strength, `--rate`, `--sigma` or `--batch`; None without one.
    - `default`: the strength where none is given.
    - `usual`: whether people train with it, so that the command line classifies it where none is named.
    """

    name: str
    label: str
    strength: Literal["rate", "sigma", "batch"] | None = None
    default: float | None = None
    plural: bool = False
    usual: bool = False

    def with_strength(self, value: object) -> str:
        """The label with a strength, such as "dropout at rate 0.1"."""
        if self.strength is None:
            return self.label
        joining = {"rate": "at rate", "sigma": "with sigma", "batch": "of"}
        return f"{self.label} {joining[self.strength]} {value}"


class AbstractNoise(eqx.Module):
    """A noise, or a sum of noises; `+` combines independent ones.

    `listing` is None for a noise that the command line cannot name.
    """

    listing: ClassVar[Listing | None] = None

    def __add__(self, other: "AbstractNoise") -> "Noises":
        if not isinstance(other, AbstractNoise):
            return NotImplemented
        return Noises((*parts(self), *parts(other)))


class AbstractInjection(AbstractNoise):
    """A noise eta that enters the forward pass, with a law for eta.

    `per` says whether each example has its own eta ("example": then every leaf of eta has a leading
    axis over examples) or a whole step shares one ("step").

    `as_increments` is for anti-correlated noise alone: training then moves the parameters by
    eta_{k+1} - eta_k at step k, where the analysis shifts them by eta_k.
    """

    per: eqx.AbstractVar[Literal["example", "step"]]
    as_increments: ClassVar[bool] = False

    @property
    def needs(self) -> str | None:
        """The data that the noise takes beside a loss and its parameters; None if it takes none.

        "examples", "inputs", "targets" or "a model with sites". `zeroloss.Loss` refuses a noise with a need.
        """
        return "examples" if self.per == "example" else None

    def check_problem(self, number: int, *, batched: bool) -> None:
        """Raise `InputError` if the noise does not suit `number` examples, or minibatches of them."""

    def mean_targets(self, targets: Array) -> Array:
        """The mean of the targets that training sees, which become those of the problem without noise."""
        return targets

    @abc.abstractmethod
    def law(self, forward: Forward) -> AbstractLaw:
        """The law of eta for a forward pass; only shapes are read."""

    def scaled(self, factor: float) -> "AbstractInjection":
        """The same noise with sigma multiplied by `factor`. Raises `UnsupportedError` if it has no scale."""
        if not hasattr(self, "sigma"):
            raise UnsupportedError(f"{type(self).__name__} has no scale to change.")
        return eqx.tree_at(lambda noise: noise.sigma, self, factor * self.sigma)  # pyright: ignore

    @abc.abstractmethod
    def apply(self, forward: Forward, eta: PyTree) -> "Forward":
        """The forward pass with the noise in it; the same forward pass when eta = 0."""


class AbstractDropping(AbstractInjection):
    """A noise that drops activations or weights at a `rate`: 1 + eta is 0, or 1 / (1 - rate)."""

    rate: eqx.AbstractVar[Scale]

    def scaled(self, factor: float) -> AbstractInjection:
        return eqx.tree_at(lambda noise: noise.rate, self, scaled_rate(self.rate, factor))

    def of_shapes(self, shapes: Any) -> AbstractLaw:
        """The law of eta, of the given shapes."""
        return TwoPoint(shapes, self.rate)


class AbstractGaussian(AbstractInjection):
    """A noise with independent Gaussian components of standard deviation `sigma`."""

    sigma: eqx.AbstractVar[Scale]

    def of_shapes(self, shapes: Any) -> AbstractLaw:
        """The law of eta, of the given shapes."""
        return Gaussian(shapes, self.sigma)


def multiplied(value: Array, eta: Array) -> Array:
    """An activation or a weight with a mask: value * (1 + eta)."""
    return value * (1 + eta)


class Noises(AbstractNoise):
    """A sum of independent noises, each with its sigma. Reg and Sigma of the sum are sums over the parts."""

    noises: tuple[AbstractNoise, ...]


def parts(noise: AbstractNoise) -> tuple[AbstractNoise, ...]:
    """The noises that `noise` is the sum of."""
    if isinstance(noise, Noises):
        return noise.noises
    if isinstance(noise, AbstractNoise):
        return (noise,)
    raise InputError(f"not a noise: {noise!r}. Use for instance zeroloss.LabelNoise(sigma=0.1).")


def describe(noise: AbstractNoise) -> str:
    """The kind of one noise with the options that differ from their defaults, such as `MiniBatch(size=2)`.

    Its sigma or rate is left out, and so are arrays and functions.
    """
    options = []
    for name, parameter in inspect.signature(type(noise)).parameters.items():
        value = getattr(noise, name, None)
        if isinstance(value, int | float | str | tuple) and name not in ("sigma", "rate"):
            value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
            options += [] if value == parameter.default else [f"{name}={value!r}"]
    return type(noise).__name__ + (f"({', '.join(options)})" if options else "")
