"""Regression in one dimension, so that a plot shows the whole function that a network has learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss._arguments import positive_integer, positive_number
from zeroloss.errors import InputError
from zeroloss.noise import site
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares

_ACTIVATIONS = {"gelu": jax.nn.gelu, "tanh": jnp.tanh}


def regression_1d(
    activation: str = "gelu",
    width: int = 40,
    examples: int = 6,
    scale: float = 10.0,
    seed: int = 0,
) -> Problem:
    """A two-layer network that fits a few points; the hidden layer is the site `"hidden"`.

    It starts with large weights, from which gradient descent finds a wiggly interpolator. Label and weight
    noise then make the trace of the Hessian smaller, which with `"gelu"` straightens the function between the
    points; with `"tanh"` it need not, since units that saturate at the points cost nothing there.

    **Arguments:**

    - `activation`: `"gelu"` or `"tanh"`.
    - `width`: of the hidden layer.
    - `examples`: number of points, evenly spaced on [-1, 1], with targets sin(3 x).
    - `scale`: standard deviation of the first layer's initial slopes; the larger the wigglier. Each unit is
      centred at a random place of [-1, 1].
    - `seed`: for the initial parameters.
    """
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
    width, examples = positive_integer("width", width), positive_integer("examples", examples)
    scale = positive_number("scale", scale)
    inputs = jnp.linspace(-1.0, 1.0, examples) if examples > 1 else jnp.zeros(1)
    model = Network(activation)
    problem, start = LeastSquares(model, inputs, jnp.sin(3 * inputs)), _initial_parameters(width, scale, seed)
    return Problem(
        name="regression_1d",
        problem=problem,
        start=start,
        observables={"roughness": eqx.Partial(roughness, model)},
        noises=noises_for(problem, start, replace=True),
        description=f"{examples} points on a line, {activation} network of width {width}",
    )


class Network(eqx.Module):
    """x -> sum_h c_h activation(a_h x + b_h) + c, with a hidden layer that is the site `"hidden"`."""

    activation: str = eqx.field(static=True)

    def __call__(self, params: PyTree, inputs: Float[Array, " examples"]) -> Float[Array, " examples"]:
        before = inputs[:, None] * params["slopes"] + params["biases"]
        hidden = site(_ACTIVATIONS[self.activation](before), "hidden")
        return hidden @ params["outputs"] + params["offset"]


def roughness(model: Network, params: PyTree) -> Float[Array, ""]:
    """The total variation of the slope on [-1, 1]."""
    grid = jnp.linspace(-1.0, 1.0, 401)
    return jnp.sum(jnp.abs(jnp.diff(model(params, grid), 2))) / (grid[1] - grid[0])


def _initial_parameters(width: int, scale: float, seed: int) -> dict[str, Array]:
    for_slopes, for_centres, for_outputs = jax.random.split(jax.random.key(seed), 3)
    slopes = scale * jax.random.normal(for_slopes, (width,))
    return {
        "slopes": slopes,
        "biases": -slopes * jax.random.uniform(for_centres, (width,), minval=-1.0, maxval=1.0),
        "outputs": 3 * jax.random.normal(for_outputs, (width,)) / jnp.sqrt(width),
        "offset": jnp.zeros(()),
    }
