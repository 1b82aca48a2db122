"""What J J^T, ||J||^2 and their gradients cost through the structure of a model, in full-batch gradients.

Three models in float32: 64-500-500-1 tanh with 1000 examples, a convolutional network with ten outputs on 500
images of 28 x 28, a one-block transformer on 500 sequences of 16 tokens. All times are medians of calls taken
in turns, compilation excluded; the ratios are to one jitted gradient of the loss, in the same run. With
--materialized the first also against jax.vmap(jax.jacrev), which is what one would otherwise do.

    python benchmarks/structure.py --models mlp convnet transformer --materialized
"""

import argparse
import functools
import itertools
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zeroloss.jacobians import MAX_MEMORY, analyse


def mlp():
    """64-500-500-1, tanh."""
    sizes = (64, 500, 500, 1)
    params = [
        {"weights": weights(i, (a, b), a), "biases": jnp.zeros(b)}
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]

    def model(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["weights"] + layer["biases"])
        return x @ params[-1]["weights"] + params[-1]["biases"]

    return model, params, jax.random.normal(jax.random.key(9), (1000, 64))


def convnet():
    """Three convolutions with ten outputs, on 28 x 28 x 1."""
    channels = (1, 16, 32, 32)
    params = {
        f"convolution {i}": {"weights": weights(i, (3, 3, a, b), 9 * a), "biases": jnp.zeros(b)}
        for i, (a, b) in enumerate(itertools.pairwise(channels))
    }
    params["out"] = {"weights": weights(5, (7 * 7 * 32, 10), 7 * 7 * 32), "biases": jnp.zeros(10)}

    def model(params, x):
        for i in range(3):
            layer = params[f"convolution {i}"]
            x = jax.lax.conv_general_dilated(
                x,
                layer["weights"],
                (1, 1) if i == 0 else (2, 2),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jnp.tanh(x + layer["biases"])
        return x.reshape(x.shape[0], -1) @ params["out"]["weights"] + params["out"]["biases"]

    return model, params, jax.random.normal(jax.random.key(9), (500, 28, 28, 1))


def transformer():
    """One block of width 64 with four heads, on 16 tokens of a vocabulary of 100, one output."""
    width, tokens, vocabulary = 64, 16, 100
    shapes = {name: (width, width) for name in ("query", "key", "value", "mix")}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width), "out": (width, 1)}
    params = {name: weights(i, shape, shape[0]) for i, (name, shape) in enumerate(shapes.items())}
    params |= {"table": weights(20, (vocabulary, width), 1), "place": weights(21, (tokens, width), 1)}
    params |= {"scale": jnp.ones((2, width)), "shift": jnp.zeros((2, width)), "bias": jnp.zeros(4 * width)}

    def normalize(x, scale, shift):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * scale + shift

    def heads(x):
        return x.reshape(*x.shape[:-1], 4, -1)

    def model(params, words):
        x = params["table"][words] + params["place"]
        h = normalize(x, params["scale"][0], params["shift"][0])
        query, key, value = (heads(h @ params[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("nthi,nshi->nhts", query, key) / jnp.sqrt(width / 4)
        mixed = jnp.einsum("nhts,nshi->nthi", jax.nn.softmax(scores), value)
        x = x + mixed.reshape(x.shape) @ params["mix"]
        h = normalize(x, params["scale"][1], params["shift"][1])
        x = x + jax.nn.gelu(h @ params["up"] + params["bias"]) @ params["down"]
        return x.mean(axis=1) @ params["out"]

    return model, params, jax.random.randint(jax.random.key(9), (500, tokens), 0, vocabulary)


def weights(seed, shape, fan_in):
    return jax.random.normal(jax.random.key(seed), shape) / jnp.sqrt(fan_in)


def tasks(model, params, inputs, max_memory, materialized):
    """Named jitted functions of the parameters; the first is the gradient that all are compared with."""
    structure = analyse(model, params, inputs, max_memory)
    start = jax.tree.map(lambda leaf: leaf + 0.01, params)
    outputs = jax.jit(model)(params, inputs)
    targets = jnp.zeros_like(outputs)
    weights = jax.random.normal(jax.random.key(7), (outputs.size, outputs.size)) / outputs.size
    flat, unravel = ravel_pytree(params)

    def jacobian(structure, params):
        def one(example):
            return jax.jacrev(lambda w: model(unravel(w), example[None])[0])(ravel_pytree(params)[0])

        return jax.vmap(one)(structure.inputs).reshape(outputs.size, -1)

    at_start = eqx.filter_jit(structure.factors)(start)
    found = {
        "gradient of the loss": lambda s, p: jax.grad(
            lambda p: jnp.mean((model(p, s.inputs) - targets) ** 2)
        )(p),
        "J J^T": lambda s, p: s.gram(s.factors(p)),
        "||J||^2": lambda s, p: s.squared_norm(s.factors(p)),
        "gradient of ||J||^2": lambda s, p: jax.grad(lambda p: s.squared_norm(s.factors(p)))(p),
        "gradient of <B, J J0^T>": lambda s, p: jax.grad(
            lambda p: jnp.sum(weights * s.gram(s.factors(p), at_start))
        )(p),
        "J v": lambda s, p: s.mv(s.factors(p), flat),
    }
    if materialized:
        found["materialized J J^T"] = lambda s, p: (lambda J: J @ J.T)(jacobian(s, p))
        found["materialized gradient of ||J||^2"] = lambda s, p: jax.grad(
            lambda p: jnp.sum(jacobian(s, p) ** 2)
        )(p)
    arrays, rest = eqx.partition((structure, params), eqx.is_array)  # the inputs are arguments, not constants
    return {
        name: (
            jax.jit(lambda arrays, f=function: f(*eqx.combine(arrays, rest))).lower(arrays).compile(),
            arrays,
        )
        for name, function in found.items()
    }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = {"mlp": mlp, "convnet": convnet, "transformer": transformer}
    parser.add_argument("--models", nargs="+", choices=list(models), default=list(models))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--max-memory", type=int, default=MAX_MEMORY, help="bytes (default: %(default)s)")
    parser.add_argument("--materialized", action="store_true", help="also J as a matrix (slow, much memory)")
    options = parser.parse_args()
    for name in options.models:
        model, params, inputs = models[name]()
        timed = tasks(model, params, inputs, options.max_memory, options.materialized and name == "mlp")
        run = {task: functools.partial(function, arrays) for task, (function, arrays) in timed.items()}
        seconds = in_turns(run, options.repeats)
        number = sum(leaf.size for leaf in jax.tree.leaves(params))
        unit = seconds["gradient of the loss"]
        print(f"\n{name}: {models[name].__doc__} {len(inputs)} examples, {number} parameters")
        for task, each in seconds.items():
            megabytes = timed[task][0].memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"  {task:34s} {1e3 * each:9.1f} ms {each / unit:8.2f} gradients {megabytes:8.0f} MiB",
                flush=True,
            )


def seconds_of(function):
    """Wall-clock time of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def in_turns(run, repeats):
    """Median seconds of each function, all measured in turns; slow ones a few times only.

    In every turn the better of two calls, one right after the other: a loop would not begin cold either.
    """
    seconds = {name: [] for name in run}
    for function in run.values():
        jax.block_until_ready(function())
    for repeat in range(repeats):
        for name, function in run.items():
            if repeat >= 2 and statistics.median(seconds[name]) > 5:
                continue
            seconds[name].append(min(seconds_of(function) for _ in range(2)))
    return {name: statistics.median(each) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
