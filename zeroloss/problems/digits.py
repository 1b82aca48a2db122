"""Handwritten digits, odd against even, with a tanh network.

The data are the 1797 8 x 8 images bundled with scikit-learn (`sklearn.datasets.load_digits`; Alpaydin
and Kaynak, UCI Machine Learning Repository, 1998). Every pixel is standardized over the data set: without
it the Hessian's spectrum is a hundred times wider and all time scales mix.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import Dropout, LabelNoise, MiniBatch, WeightNoise, site
from zeroloss.problems.base import Problem
from zeroloss.system import LeastSquares

_PIXELS = 64
_TOTAL = 1797


def digits(widths: Sequence[int] = (50,), examples: int = 200, seed: int = 0) -> Problem:
    """Odd (+1) against even (-1) digits: least squares with a tanh network on 64 pixels.

    **Arguments:**

    - `widths`: the width of each hidden layer; layer i is the site `"hidden_i"`, from 1.
    - `examples`: how many training examples; the rest are the test set. Zero loss needs more parameters
      than examples.
    - `seed`: for the choice of examples and the initial parameters (Gaussian, variance 1 / fan-in).
    """
    widths = tuple(int(width) for width in widths)
    if not widths or min(widths) < 1:
        raise InputError(f"widths must be one or more positive integers, got {widths}.")
    if not 1 <= examples < _TOTAL:
        raise InputError(f"examples must lie between 1 and {_TOTAL - 1}, got {examples}.")
    inputs, targets = _data(seed)
    test_inputs, test_targets = inputs[examples:], targets[examples:]

    def test_error(params: PyTree) -> Float[Array, ""]:
        return jnp.mean(network(params, test_inputs) * test_targets <= 0)

    sites = tuple(f"hidden_{i + 1}" for i in range(len(widths)))
    return Problem(
        name="digits",
        problem=LeastSquares(network, inputs[:examples], targets[:examples]),
        start=_initial_parameters(widths, seed),
        observables={"test_error": test_error},
        noises={
            "dropout": lambda rate: Dropout(rate, at=sites),
            "label": LabelNoise,
            "weight": WeightNoise,
            "minibatch": lambda size: MiniBatch(size),
        },
        description=f"odd against even digits, {examples} examples, tanh network "
        f"{'-'.join(map(str, (_PIXELS, *widths, 1)))}",
    )


def network(params: list[dict[str, Array]], inputs: Float[Array, "examples 64"]) -> Array:
    """A tanh network with one output; hidden layer i is the site `"hidden_i"`."""
    hidden = inputs
    for index, layer in enumerate(params[:-1]):
        hidden = site(jnp.tanh(hidden @ layer["weights"] + layer["biases"]), f"hidden_{index + 1}")
    return (hidden @ params[-1]["weights"] + params[-1]["biases"])[:, 0]


def _data(seed: int) -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    spread = images.std(axis=0)
    images = (images - images.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return jnp.asarray(images), jnp.asarray(np.where(labels % 2 == 1, 1.0, -1.0))


def _initial_parameters(widths: tuple[int, ...], seed: int) -> list[dict[str, Array]]:
    sizes = (_PIXELS, *widths, 1)
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(key, (into, out)) / jnp.sqrt(into),
            "biases": jnp.zeros(out),
        }
        for key, into, out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
