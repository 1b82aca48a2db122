"""A tanh network, and the problem of fitting data with it."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss.noise import site
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares


def network(params: list[dict[str, Array]], inputs: Float[Array, "examples inputs"]) -> Array:
    """A tanh network: a number an example, or `[examples, outputs]`; layer i is the site `"hidden_i"`."""
    hidden = inputs
    for index, layer in enumerate(params[:-1]):
        hidden = site(jnp.tanh(hidden @ layer["weights"] + layer["biases"]), f"hidden_{index + 1}")
    outputs = hidden @ params[-1]["weights"] + params[-1]["biases"]
    return outputs[:, 0] if outputs.shape[-1] == 1 else outputs


def initial_parameters(sizes: Sequence[int], seed: int) -> list[dict[str, Array]]:
    """Gaussian weights of variance 1 / fan-in, and no biases; `sizes` from the inputs to the outputs."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(key, (into, out)) / jnp.sqrt(into),
            "biases": jnp.zeros(out),
        }
        for key, into, out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network_problem(
    name: str,
    task: str,
    data: tuple[Array, Array],
    examples: int,
    widths: Sequence[int],
    seed: int,
    error: Callable[[Array, Array, PyTree], Array],
) -> Problem:
    """The problem of fitting the first `examples` rows of `data`, inputs and targets, with a tanh network.

    The observable `test_error` is `error(inputs, targets, params)` on the other rows, if there are any.
    `task` begins the description.
    """
    inputs, targets = data
    sizes = (inputs.shape[1], *widths, 1 if targets.ndim == 1 else targets.shape[1])
    problem = LeastSquares(network, inputs[:examples], targets[:examples])
    start = initial_parameters(sizes, seed)
    test_error = eqx.Partial(error, inputs[examples:], targets[examples:])
    return Problem(
        name=name,
        problem=problem,
        start=start,
        observables={"test_error": test_error} if examples < len(targets) else {},
        noises=noises_for(problem, start),
        description=f"{task}, {examples} examples, tanh network {'-'.join(map(str, sizes))}",
    )


def wrong_signs(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples whose single output does not have the sign of the target."""
    return jnp.mean(network(params, inputs) * targets <= 0)


def wrong_classes(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples whose largest output is not where their largest target is."""
    return jnp.mean(jnp.argmax(network(params, inputs), axis=-1) != jnp.argmax(targets, axis=-1))


def mean_square(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The mean square of the difference between the single output and the target."""
    return jnp.mean((network(params, inputs) - targets) ** 2)
