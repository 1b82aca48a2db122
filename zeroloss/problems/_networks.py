"""A fully connected network, and the problem of fitting data with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss.errors import InputError
from zeroloss.losses import AbstractLoss
from zeroloss.noise import site
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares, Supervised

Measure = Callable[[Array, Array], Array]
"""A number measured on outputs and targets of examples that a network is not trained on."""

ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "tanh": (jnp.tanh, 1.0),
    "relu": (jax.nn.relu, 2.0),
}
"""Each with the variance of its initial weights, times fan-in (He et al. 2015)."""

SMOOTHING = 0.1
"""The part of a label that is spread over all classes, by default: without, cross-entropy has no minimum."""

_BINS = 15  # of confidence


class Layers(NamedTuple):
    """The widths of the hidden layers, and their activation, a name of `ACTIVATIONS`."""

    widths: Sequence[int]
    activation: str = "tanh"


class Network(eqx.Module):
    """A network of full layers, whose layer i is the site `"hidden_i"`.

    Its outputs are a number an example, or `[examples, outputs]`.
    """

    activation: str = eqx.field(static=True, default="tanh")

    def __call__(self, params: list[dict[str, Array]], inputs: Float[Array, "examples inputs"]) -> Array:
        function, hidden = ACTIVATIONS[self.activation][0], inputs
        for index, layer in enumerate(params[:-1]):
            hidden = site(function(hidden @ layer["weights"] + layer["biases"]), f"hidden_{index + 1}")
        outputs = hidden @ params[-1]["weights"] + params[-1]["biases"]
        return outputs[:, 0] if outputs.shape[-1] == 1 else outputs


def initial_parameters(sizes: Sequence[int], seed: int, variance: float = 1.0) -> list[dict[str, Array]]:
    """Gaussian weights of `variance` / fan-in, and no biases; `sizes` from the inputs to the outputs."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(key, (into, out)) * jnp.sqrt(variance / into),
            "biases": jnp.zeros(out),
        }
        for key, into, out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network_problem(
    name: str,
    task: str,
    data: tuple[Array, Array],
    examples: int,
    layers: Layers,
    seed: int,
    measures: Mapping[str, Measure],
    loss: AbstractLoss | None = None,
) -> Problem:
    """The problem of fitting the first `examples` rows of `data`, inputs and targets, with a network.

    The observables are the `measures` on the other rows, if there are any. `task` begins the description.
    Without a `loss` it is least squares. Raises `InputError` for an unknown activation.
    """
    widths, activation = layers
    if activation not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    inputs, targets = data
    sizes = (inputs.shape[1], *widths, 1 if targets.ndim == 1 else targets.shape[1])
    training, tests = (inputs[:examples], targets[:examples]), (inputs[examples:], targets[examples:])
    network = Network(activation)
    problem = LeastSquares(network, *training) if loss is None else Supervised(network, *training, loss=loss)
    start = initial_parameters(sizes, seed, ACTIVATIONS[activation][1])
    observables = {
        name: eqx.Partial(_measured, measure, network, *tests) for name, measure in measures.items()
    }
    return Problem(
        name=name,
        problem=problem,
        start=start,
        observables=observables if examples < len(targets) else {},
        noises=noises_for(problem, start),
        description=f"{task}, {examples} examples, {activation} network {'-'.join(map(str, sizes))}",
    )


def _measured(measure: Measure, network: Network, inputs: Array, targets: Array, params: PyTree) -> Array:
    return measure(network(params, inputs), targets)


def wrong_signs(outputs: Array, targets: Array) -> Float[Array, ""]:
    """The share of examples whose single output does not have the sign of the target."""
    return jnp.mean(outputs * targets <= 0)


def wrong_classes(outputs: Array, targets: Array) -> Float[Array, ""]:
    """The share of examples whose largest output is not where their largest target is."""
    return jnp.mean(jnp.argmax(outputs, axis=-1) != jnp.argmax(targets, axis=-1))


def cross_entropy(outputs: Array, targets: Array) -> Float[Array, ""]:
    """The mean cross-entropy of the right classes, those of the largest targets."""
    log_probabilities = jax.nn.log_softmax(outputs, axis=-1)
    right = jnp.argmax(targets, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, right[:, None], axis=-1))


def calibration_error(outputs: Array, targets: Array) -> Float[Array, ""]:
    """The expected calibration error (Guo et al. 2017), with 15 bins of equal width.

    The mean over examples of |accuracy - confidence| of the bin that the confidence of the example lies in.
    """
    probabilities = jax.nn.softmax(outputs, axis=-1)
    confidence = jnp.max(probabilities, axis=-1)
    is_right = jnp.argmax(probabilities, axis=-1) == jnp.argmax(targets, axis=-1)
    bins = jnp.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = jnp.zeros(_BINS).at[bins].add(is_right - confidence)
    return jnp.sum(jnp.abs(gaps)) / len(targets)


def mean_square(outputs: Array, targets: Array) -> Float[Array, ""]:
    """The mean square of the difference between the single output and the target."""
    return jnp.mean((outputs - targets) ** 2)


def soft_labels(classes: np.ndarray, number: int, smoothing: float) -> Array:
    """The probabilities of `number` classes: that of the right one is 1 but for the part spread over all.

    Raises `InputError` unless smoothing lies between 0 and 1.
    """
    if not 0 < smoothing < 1:
        raise InputError(f"smoothing must lie strictly between 0 and 1, got {smoothing}.")
    return jnp.asarray((1 - smoothing) * np.eye(number)[classes] + smoothing / number)


CLASSIFIER_MEASURES: dict[str, Measure] = {
    "test_error": wrong_classes,
    "test_loss": cross_entropy,
    "calibration_error": calibration_error,
}
"""What is measured on a classifier trained with cross-entropy."""
