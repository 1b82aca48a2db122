"""How many units switch along a path, for losses with kinks such as those of ReLU units."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Bool, Float, Int, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._jaxprs import bind, callee, interpret
from zeroloss._pytrees import Vector
from zeroloss.systems import Supervised
from zeroloss.zero_sets._zero_set import AbstractZeroSet

_RULES = ("custom_jvp_call", "custom_vjp_call")  # the derivative does not matter here
_SELECTIONS = ("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min")


def switched(
    zero_set: AbstractZeroSet, start: Vector, path: Float[np.ndarray, "time parameters"]
) -> Int[np.ndarray, " time"]:
    """How many units are on another side of their kink than at the start, at each point of a path.

    A ReLU unit counts once for each example. Units are found in the traced model: `maximum` and `minimum`,
    `abs`, `where`, `clip` and maxima over an axis or a window. Those inside loops are not counted. A forward
    pass a point.
    """
    return np.asarray(_switched(zero_set, start, jnp.asarray(path)))


@compiled_once
def _switched(zero_set: AbstractZeroSet, start: Vector, path: Float[Array, "time parameters"]) -> Array:
    problem = zero_set.problem

    def sides_at(w: Vector) -> Bool[Array, " units"]:
        params = zero_set.unravel(w)
        if isinstance(problem, Supervised):
            return sides(problem.model, params, problem.inputs)
        return sides(problem.loss, params)

    here = sides_at(start)
    return jax.lax.map(lambda w: jnp.sum(sides_at(w) != here), path)


def sides(function: Callable[..., Any], *arguments: PyTree) -> Bool[Array, " units"]:
    """On which side of its kink each unit of `function` is, in the order of the traced function."""
    found: list[Array] = []

    def rule(equation: JaxprEqn, operands: list[Any]) -> Any:
        name = equation.primitive.name
        if name in _RULES:
            inner = equation.params["call_jaxpr"]
            return interpret(inner.jaxpr, inner.consts, operands, rule)
        if (called := callee(equation)) is not None:
            return interpret(*called, operands, rule)
        if name in ("max", "min"):
            found.append(operands[0] >= operands[1])
        elif name == "abs":
            found.append(operands[0] >= 0)
        elif name == "clamp":
            found.extend([operands[1] >= operands[0], operands[1] >= operands[2]])
        elif name == "select_n" and operands[0].dtype == bool:
            found.append(operands[0])
        elif name in _SELECTIONS:
            outputs, pull = jax.vjp(lambda value: bind(equation, [value])[0], operands[0])
            found.append(pull(jnp.ones_like(outputs))[0] != 0)
        return bind(equation, operands)

    closed = jax.make_jaxpr(function)(*arguments)
    interpret(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), rule)
    return jnp.concatenate([jnp.zeros(0, bool), *(jnp.ravel(each) for each in found)])
