"""What the models of all frameworks have in common: parameters, and sites of dropout."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

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
    - `kind`: "units"; "channels", as `Dropout2d` of PyTorch; or "branches", as stochastic depth.
    - `shared`: the axes of the activation along which units share a mask, the examples being axis 0.
    """

    rate: float
    kind: Literal["units", "channels", "branches"] = "units"
    shared: tuple[int, ...] = ()

    def noise(self, names: list[str]) -> AbstractNoise:
        """The dropout at sites of these names, which are like this one."""
        if self.kind == "branches":
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

    def mark(self, value: Array, path: str, rate: float, shared: Callable[[int], tuple[int, ...]]) -> Array:
        """A site at `value`; a second call of the layer has the path with `#2`.

        `shared` takes the number of axes, and returns those along which a mask is shared.
        """
        count = self._counts[path] = self._counts.get(path, 0) + 1
        name = path if count == 1 else f"{path}#{count}"
        self.found[name] = DropoutSite(float(rate), *_kind(shared(value.ndim)))
        return site(value, name)


def _kind(shared: tuple[int, ...]) -> tuple[Literal["units", "channels"], tuple[int, ...]]:
    return ("channels" if shared else "units"), shared


def as_float64(value: Any) -> Array:
    """An array of parameters, in float64 where it is floating-point."""
    array = jnp.asarray(value)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def check_names(params: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Raise `InputError` unless `params` have the names of `model.params`."""
    differing = sorted(set(expected) ^ set(params))
    if differing:
        raise InputError(
            f"params must have the names of model.params; {differing[0]!r} is in one of them alone."
        )


def check_outputs(outputs: Any, own: Any, kind: str) -> None:
    """Compare the outputs of a model in float64 with those of its framework.

    Raises `UnsupportedError` for outputs that are not one floating-point array; `InputError` where they
    differ by more than float32 rounds.
    """
    if not isinstance(outputs, jax.Array) or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise UnsupportedError(
            f"the {kind} must return one floating-point array, such as logits, not {type(outputs).__name__}. "
            "Wrap it in one that returns what the loss takes."
        )
    one, other = np.asarray(outputs), np.asarray(own, np.float64)
    scale = max(float(np.abs(other).max(initial=0.0)), 1e-30)
    gap = float(np.abs(one - other).max(initial=0.0)) / scale if one.shape == other.shape else float("inf")
    if not gap <= _AGREES:
        raise InputError(
            f"the outputs in float64 and those of the {kind} itself differ by {gap:.3g}, relative; they must "
            f"agree to {_AGREES:g}."
        )


def check_types(evaluate: Callable[..., Any], params: PyTree, inputs: PyTree, kind: str) -> None:
    """Raise `UnsupportedError` where a model rounds to a shorter type than float64 on its way."""
    for equation in equations(jax.make_jaxpr(evaluate)(params, inputs).jaxpr):
        if equation.primitive.name != "convert_element_type":
            continue
        before, after = dtype(equation.invars[0]), dtype(equation.outvars[0])
        if before == jnp.float64 and jnp.issubdtype(after, jnp.floating) and after != jnp.float64:
            raise UnsupportedError(
                f"the {kind} rounds to {after} though its parameters are in float64: there is a cast in its "
                "forward pass. Take it out."
            )


RANDOM = (
    "the {kind} draws random numbers beside dropout: two keys give outputs that differ by {gap:.3g}. Take "
    "that out of the model and give it as noise, such as zeroloss.ActivationNoise at a zeroloss.site."
)


def check_deterministic(one: Array, other: Array, kind: str) -> None:
    """Raise `UnsupportedError` where outputs depend on random numbers."""
    gap = float(jnp.max(jnp.abs(one - other)))
    if gap > 0:
        raise UnsupportedError(RANDOM.format(kind=kind, gap=gap))


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
