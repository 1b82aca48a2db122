"""Models of other frameworks: seconds of conversion, and their speed against models written in JAX by hand.

The gradient of the loss is compiled and timed in turn for both, in float64; the ratio is above 1 where the
converted model is faster. Needs PyTorch; Flax and Keras are left out where they are not installed.

    python benchmarks/bridges.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import importlib.util
import time

import equinox as eqx
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import zeroloss as zl  # noqa: E402

EXAMPLES, REPEATS = 128, 200


def perceptron_of_torch():
    """Two hidden layers of 100 units."""
    return nn.Sequential(
        nn.Linear(64, 100), nn.Tanh(), nn.Dropout(0.1), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10)
    )


def perceptron(params, x):
    """The same by hand, with the names of PyTorch."""
    x = jnp.tanh(x @ params["0.weight"].T + params["0.bias"])
    x = jnp.tanh(zl.site(x, "2") @ params["3.weight"].T + params["3.bias"])
    return x @ params["5.weight"].T + params["5.bias"]


def convolutions_of_torch():
    """Two convolutions and a layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def convolutions(params, x):
    """The same by hand."""

    def convolve(x, name, stride):
        result = jax.lax.conv_general_dilated(
            x, params[f"{name}.weight"], (stride, stride), [(1, 1), (1, 1)],
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )  # fmt: skip
        return jax.nn.relu(result + params[f"{name}.bias"][:, None, None])

    x = zl.site(convolve(convolve(x, "0", 1), "2", 2), "4")
    return x.reshape(len(x), -1) @ params["6.weight"].T + params["6.bias"]


def perceptron_of_equinox():
    """The perceptron in Equinox."""
    one, two, three = jax.random.split(jax.random.key(0), 3)
    return eqx.nn.Sequential([
        eqx.nn.Linear(64, 100, key=one), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.1),
        eqx.nn.Linear(100, 100, key=two), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(100, 10, key=three),
    ])  # fmt: skip


def perceptron_of_nnx():
    """The perceptron in NNX."""
    from flax import nnx

    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, 100, rngs=rngs), jnp.tanh, nnx.Dropout(0.1, rngs=rngs),
        nnx.Linear(100, 100, rngs=rngs), jnp.tanh, nnx.Linear(100, 10, rngs=rngs),
    )  # fmt: skip


def perceptron_of_keras():
    """The perceptron in Keras."""
    import keras

    return keras.Sequential([
        keras.layers.Input((64,)), keras.layers.Dense(100, activation="tanh"), keras.layers.Dropout(0.1),
        keras.layers.Dense(100, activation="tanh"), keras.layers.Dense(10),
    ])  # fmt: skip


def renamed(params):
    """Parameters of a perceptron with the names of PyTorch, its kernels by their shapes, its biases zero."""
    kernels = [each for each in params.values() if each.ndim == 2]
    first = next(each for each in kernels if 64 in each.shape)
    last = next(each for each in kernels if 10 in each.shape)
    middle = next(each for each in kernels if each.shape == (100, 100))
    biases = [jnp.zeros(100), jnp.zeros(100), jnp.zeros(10)]
    weights = [first if first.shape[0] == 100 else first.T, middle, last if last.shape[0] == 10 else last.T]
    return {
        f"{index}.{name}": value
        for index, weight, bias in zip((0, 3, 5), weights, biases, strict=True)
        for name, value in (("weight", weight), ("bias", bias))
    }


def timed(ours, theirs):
    """Median microseconds of both, called in turn."""
    times = [], []
    for call in (ours, theirs):
        jax.block_until_ready(call())
    for _ in range(REPEATS):
        for call, found in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            found.append(time.perf_counter() - began)
    return [1e6 * float(np.median(each)) for each in times]


def gradient(model, params, x):
    """A compiled gradient of the sum of squares."""
    compiled = jax.jit(jax.grad(lambda params, x: jnp.sum(model(params, x) ** 2)))
    return lambda: compiled(params, x)


def main():
    """Print a line for each model."""
    torch.manual_seed(0)
    flat = jax.random.normal(jax.random.key(0), (EXAMPLES, 64))
    images = flat.reshape(-1, 1, 8, 8)
    convolutional = images, convolutions, dict
    full, full_by_name = (flat, perceptron, renamed), (flat, perceptron, dict)
    cases = [
        ("PyTorch, perceptron", lambda: zl.from_torch(perceptron_of_torch(), flat[:2]), full_by_name),
        ("PyTorch, convolutions", lambda: zl.from_torch(convolutions_of_torch(), images[:2]), convolutional),
        ("Equinox, perceptron", lambda: zl.from_equinox(perceptron_of_equinox(), flat[:2]), full),
    ]
    if importlib.util.find_spec("flax"):
        cases.append(("NNX, perceptron", lambda: zl.from_nnx(perceptron_of_nnx(), flat[:2]), full))
    if importlib.util.find_spec("keras"):
        cases.append(("Keras, perceptron", lambda: zl.from_keras(perceptron_of_keras(), flat[:2]), full))
    print(f"{EXAMPLES} examples; microseconds are of a gradient")
    print(f"{'':24}{'conversion, s':>14}{'converted, us':>15}{'by hand, us':>13}{'ratio':>7}")
    for name, convert, (x, by_hand, names) in cases:
        began = time.perf_counter()
        model = convert()
        conversion = time.perf_counter() - began
        own = names(model.params)
        ours, theirs = timed(gradient(model, model.params, x), gradient(by_hand, own, x))
        print(f"{name:24}{conversion:14.2f}{ours:15.0f}{theirs:13.0f}{theirs / ours:7.2f}")


if __name__ == "__main__":
    main()
