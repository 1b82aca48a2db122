"""What the models of all frameworks have in common: parameters, and sites of dropout."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zeroloss._jaxprs import dtype, equations
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.noise import AbstractNoise, Dropout, DropPath, site

_AGREES = 1e-3  # relative: the framework itself computes in float32


@dataclasses.dataclass(frozen=True)
class DropoutSite:
    """A place where a model drops something out.

    - `rate`: in training, as the model has it; perhaps 0.
    - `shared`: the axes of the activation along which units share a mask, the examples being axis 0; None for
      all but the examples, as stochastic depth drops branches.
    """

    rate: float
    shared: tuple[int, ...] | None = ()

    @property
    def kind(self) -> Literal["units", "channels", "branches"]:
        """What is dropped as a whole: units, "channels" as by `Dropout2d` of PyTorch, or branches."""
        if self.shared is None:
            return "branches"
        return "channels" if self.shared else "units"

    def noise(self, names: list[str]) -> AbstractNoise:
        """The dropout at sites of these names, which are like this one."""
        if self.shared is None:
            return DropPath(self.rate, at=names)
        if 0 in self.shared:  # one mask for all examples
            return Dropout(self.rate, at=names, per="step", shared=tuple(set(self.shared) - {0}))
        return Dropout(self.rate, at=names, shared=self.shared)


class BridgedModel:
    """A model of another framework as a function of its parameters, `model(params, inputs) -> outputs`.

    Hand it to `zeroloss.CrossEntropy`, `zeroloss.LeastSquares` or any other supervised problem.

    - `params`: the trained parameters by name, in float64.
    - `sites`: the `DropoutSite` of each layer that drops something out, by the path of the layer.
    """

    params: dict[str, Array]
    sites: dict[str, DropoutSite]

    def __call__(self, params: Mapping[str, Array], inputs: PyTree) -> Any:
        """The outputs, without dropout."""
        raise NotImplementedError

    def dropout(self, rates: Mapping[str, float] | None = None) -> AbstractNoise:
        """The sum of all dropout in the model, each site with its own rate.

        `rates` exchanges those of some sites, by name. Sites of rate 0 are left out.
        Raises `InputError` for an unknown site, and for a model without dropout.
        """
        known = ", ".join(self.sites) or "none"
        unknown = sorted(set(rates or {}) - set(self.sites))
        if unknown:
            raise InputError(f"the model has no site {unknown[0]!r}. Its sites: {known}.")
        found: dict[DropoutSite, list[str]] = {}
        for name, each in self.sites.items():
            rate = (rates or {}).get(name, each.rate)
            if rate > 0:
                found.setdefault(dataclasses.replace(each, rate=rate), []).append(name)
        if not found:
            raise InputError(f"the model has no dropout of a rate above 0. Its sites: {known}.")
        return functools.reduce(operator.add, [each.noise(names) for each, names in found.items()])


class Sites:
    """Collects the sites of a model of a JAX framework while it is evaluated."""

    def __init__(self) -> None:
        self.found: dict[str, DropoutSite] = {}
        self._counts: dict[str, int] = {}

    def mark(self, value: Array, path: str, rate: float, shared: tuple[int, ...] = ()) -> Array:
        """A site at `value`; a second call of the layer has the path with `#2`."""
        count = self._counts[path] = self._counts.get(path, 0) + 1
        name = path if count == 1 else f"{path}#{count}"
        self.found[name] = DropoutSite(float(rate), shared)
        return site(value, name)


class JAXModel(BridgedModel):
    """A model of a framework that computes in JAX itself: its own layers run, and its dropout marks sites."""

    described: ClassVar[str]
    """The model in messages, such as "NNX module"."""

    def __call__(self, params: Mapping[str, Array], inputs: PyTree) -> Array:
        """The outputs, without dropout; examples along the first axis of each input, as the model takes them.

        A tuple of inputs is that of the arguments of an Equinox or NNX module.
        """
        return self.evaluate(params, inputs, Sites(), 0)

    def evaluate(self, params: Mapping[str, Array], inputs: PyTree, sites: Sites, seed: int | Array) -> Array:
        """The outputs; enters the sites that are passed. `seed` changes the model's own random numbers."""
        raise NotImplementedError

    def check(self, inputs: PyTree, own: Callable[[], Any]) -> None:
        """Find the sites, and compare the outputs with those of the framework, which `own` computes.

        Raises `UnsupportedError` where the model rounds to a shorter type than float64 on its way, returns
        something else than one floating-point array, or draws random numbers beside dropout; `InputError`
        where the outputs differ by more than float32 rounds. Costs a compiled forward pass in float64.
        """
        sites = Sites()
        traced = jax.jit(lambda params, inputs, seed: self.evaluate(params, inputs, sites, seed)).trace(
            self.params, inputs, 0
        )
        self._check_types(traced.jaxpr)
        program = traced.lower().compile()
        outputs, again = (program(self.params, inputs, seed) for seed in (0, 1))
        if not isinstance(outputs, jax.Array) or not jnp.issubdtype(outputs.dtype, jnp.floating):
            raise UnsupportedError(
                f"the {self.described} must return one floating-point array, such as logits, not "
                f"{type(outputs).__name__}. Wrap it in one that returns what the loss takes."
            )
        drawn = float(jnp.max(jnp.abs(outputs - again)))
        if drawn > 0:
            raise UnsupportedError(
                f"the {self.described} draws random numbers beside dropout: two keys give outputs that "
                f"differ by {drawn:.3g}. Take that out of the model and give it as noise, such as "
                "zeroloss.ActivationNoise at a zeroloss.site."
            )
        gap = relative_gap(np.asarray(outputs), np.asarray(own(), np.float64))
        if not gap <= _AGREES:
            raise InputError(
                f"the outputs in float64 and those of the {self.described} itself differ by {gap:.3g}, "
                f"relative; they must agree to {_AGREES:g}."
            )
        self.sites = sites.found

    def _check_types(self, jaxpr: Any) -> None:
        for equation in equations(jaxpr.jaxpr):
            if equation.primitive.name != "convert_element_type":
                continue
            before, after = dtype(equation.invars[0]), dtype(equation.outvars[0])
            if before == jnp.float64 and jnp.issubdtype(after, jnp.floating) and after != jnp.float64:
                raise UnsupportedError(
                    f"the {self.described} rounds to {after} though its parameters are in float64: there is "
                    "a cast in its forward pass. Take it out."
                )


def relative_gap(one: np.ndarray, other: np.ndarray, least: float = 0.0) -> float:
    """The largest difference, relative to the largest of `other` or to `least`; infinite if shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    scale = max(float(np.abs(other).max(initial=0.0)), least, 1e-30)
    return float(np.abs(one - other).max(initial=0.0)) / scale


def as_arguments(inputs: PyTree) -> tuple[Any, ...]:
    """The arguments of a module: a tuple of inputs, or the one input."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def check_examples(inputs: Sequence[Any]) -> None:
    """Raise `InputError` unless each input holds two or more examples."""
    if not inputs or any(np.ndim(each) == 0 or len(each) < 2 for each in inputs):
        raise InputError("example_inputs must hold two or more examples along the first axis of each input.")


def check_names(params: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Raise `InputError` unless `params` have the names of `model.params`."""
    differing = sorted(set(expected) ^ set(params))
    if differing:
        raise InputError(
            f"params must have the names of model.params; {differing[0]!r} is in one of them alone."
        )


def attention_weights(
    query: Array, key: Array, mask: Array | None, is_causal: bool, scale: float | None
) -> Array:
    """The softmax of scaled products of queries and keys, `[..., queries, keys]`."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = scale * query @ jnp.swapaxes(key, -1, -2)
    if is_causal:
        mask = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf) if mask.dtype == bool else logits + mask
    return jax.nn.softmax(logits, axis=-1)
