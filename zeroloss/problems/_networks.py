"""A tanh network, and the problem of fitting data with it."""

from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss.losses import AbstractLoss
from zeroloss.noise import site
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares, Supervised

Measure = Callable[[Array, Array, PyTree], Array]
"""A number measured on inputs and targets that a network with these parameters is not trained on."""

_BINS = 15  # of confidence


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
    measures: Mapping[str, Measure],
    loss: AbstractLoss | None = None,
) -> Problem:
    """The problem of fitting the first `examples` rows of `data`, inputs and targets, with a tanh network.

    The observables are the `measures` on the other rows, if there are any. `task` begins the description.
    Without a `loss` it is least squares.
    """
    inputs, targets = data
    sizes = (inputs.shape[1], *widths, 1 if targets.ndim == 1 else targets.shape[1])
    training, tests = (inputs[:examples], targets[:examples]), (inputs[examples:], targets[examples:])
    problem = LeastSquares(network, *training) if loss is None else Supervised(network, *training, loss=loss)
    start = initial_parameters(sizes, seed)
    observables = {name: eqx.Partial(measure, *tests) for name, measure in measures.items()}
    return Problem(
        name=name,
        problem=problem,
        start=start,
        observables=observables if examples < len(targets) else {},
        noises=noises_for(problem, start),
        description=f"{task}, {examples} examples, tanh network {'-'.join(map(str, sizes))}",
    )


def wrong_signs(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples whose single output does not have the sign of the target."""
    return jnp.mean(network(params, inputs) * targets <= 0)


def wrong_classes(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples whose largest output is not where their largest target is."""
    return jnp.mean(jnp.argmax(network(params, inputs), axis=-1) != jnp.argmax(targets, axis=-1))


def cross_entropy(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The mean cross-entropy of the right classes, those of the largest targets."""
    log_probabilities = jax.nn.log_softmax(network(params, inputs), axis=-1)
    right = jnp.argmax(targets, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, right[:, None], axis=-1))


def calibration_error(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The expected calibration error (Guo et al. 2017), with 15 bins of equal width.

    The mean over examples of |accuracy - confidence| of the bin that the confidence of the example lies in.
    """
    probabilities = jax.nn.softmax(network(params, inputs), axis=-1)
    confidence = jnp.max(probabilities, axis=-1)
    is_right = jnp.argmax(probabilities, axis=-1) == jnp.argmax(targets, axis=-1)
    bins = jnp.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = jnp.zeros(_BINS).at[bins].add(is_right - confidence)
    return jnp.sum(jnp.abs(gaps)) / len(targets)


def mean_square(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The mean square of the difference between the single output and the target."""
    return jnp.mean((network(params, inputs) - targets) ** 2)
