"""Steps per second of `zeroloss.descend`, against a jitted loop written by hand and a plain PyTorch loop.

Label noise and dropout on networks of 200 examples, label noise on the hyperbola. All times are medians of
turns that all take one after the other, compilation excluded, so the ratios are of one run. Above 1 is faster
than that. Operations are those of the matrix products alone, forward and backward, a multiplication and an
addition each; the machine's peak is what a large matrix product reaches in the same run. "The call adds" what
`descend` does beside the steps when it is called for the second time: checks, and measuring start and end.

    pip install -e ".[torch]" && python benchmarks/throughput.py [--dtype float32] [--devices 2]
"""

import argparse
import functools
import itertools
import math
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zeroloss as zl
from zeroloss.dynamics._training import _advance, ensemble_of
from zeroloss.optimizers import SGD

ALPHA, SIGMA, RATE = 0.01, 0.1, 0.1


class Case(NamedTuple):
    """What is trained: hidden widths (None for the hyperbola), noise, replicas, steps timed."""

    name: str
    widths: tuple[int, ...] | None
    noise: str
    replicas: int
    steps: int


CASES = [
    Case("hyperbola", None, "label", 10_000, 1000),
    Case("64-50-1", (50,), "label", 1, 1000),
    Case("64-50-1", (50,), "label", 64, 50),
    Case("64-50-1", (50,), "dropout", 1, 1000),
    Case("64-50-1", (50,), "dropout", 64, 50),
    Case("64-500-500-1", (500, 500), "label", 1, 50),
]


def hyperbola(params, inputs, mask=None):
    """L = (w_1 w_2 - 1)^2 / 2."""
    return params[0] * params[1] * inputs


def network(params, inputs, mask=None):
    """A tanh network; without `mask` its last hidden layer is a site."""
    x = inputs
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weights"] + layer["biases"])
    x = zl.site(x, "hidden") if mask is None else x * mask
    return (x @ params[-1]["weights"] + params[-1]["biases"])[:, 0]


def prepare(case, dtype):
    """Model, start, inputs and targets."""
    if case.widths is None:
        ones = jnp.ones(1, dtype)
        return hyperbola, jnp.array([2.0, 0.5], dtype), ones, ones
    sizes = (64, *case.widths, 1)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        {
            "weights": jax.random.normal(key, shape, dtype) / math.sqrt(shape[0]),
            "biases": jnp.zeros(shape[1], dtype),
        }
        for key, shape in zip(keys[1:], itertools.pairwise(sizes), strict=True)
    ]
    inputs = jax.random.normal(keys[0], (200, 64), dtype)
    return network, params, inputs, network(params, inputs)


def system_of(case, dtype):
    """The system of a case, and its start."""
    model, params, inputs, targets = prepare(case, dtype)
    noise = zl.LabelNoise(SIGMA) if case.noise == "label" else zl.Dropout(RATE, at="hidden")
    return zl.LeastSquares(model, inputs, targets).with_noise(noise), params


def ours(case, dtype):
    """`descend`, without its checks and without saving."""
    system, params = system_of(case, dtype)
    run, states = ensemble_of(system, params, SGD(ALPHA), case.replicas, jax.random.key(1))
    return functools.partial(_advance, run, states, 0, case.steps)


def as_called(case, dtype):
    """`descend` as a user calls it, the second time: with its checks, and saving start and end."""
    system, params = system_of(case, dtype)
    steps, key = zl.Saves(case.steps, 2), jax.random.key(1)
    replicas = None if case.replicas == 1 else case.replicas
    return lambda: zl.descend(system, params, ALPHA, steps, key=key, replicas=replicas).params


def by_hand(case, dtype):
    """What someone who knows JAX would write for this one problem."""
    model, params, inputs, targets = prepare(case, dtype)

    def loss(params, key):
        if case.noise == "label":
            noise = SIGMA * jax.random.normal(key, targets.shape, dtype)
            return jnp.mean((model(params, inputs) - targets - noise) ** 2) / 2
        kept = jax.random.bernoulli(key, 1 - RATE, (len(targets), case.widths[-1]))
        return jnp.mean((model(params, inputs, kept.astype(dtype) / (1 - RATE)) - targets) ** 2) / 2

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    def train(params, key, steps):
        def step(_, carry):
            params, key = carry
            key, now = jax.random.split(key)
            gradient = jax.grad(loss)(params, now)
            return jax.tree.map(lambda w, g: w - ALPHA * g, params, gradient), key

        return jax.lax.fori_loop(0, steps, step, (params, key))[0]

    keys = jax.random.split(jax.random.key(1), case.replicas)
    return functools.partial(train, params, keys, jnp.asarray(case.steps))


def in_pytorch(case, dtype):
    """One run as a plain PyTorch loop, a tenth of the steps or 50; None where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    if case.widths is None:
        return None
    kind = getattr(torch, jnp.dtype(dtype).name)
    _, params, inputs, targets = prepare(case, dtype)
    layers = []
    for index, values in enumerate(params):
        linear = torch.nn.Linear(*values["weights"].shape, dtype=kind)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.array(values["weights"]).T))
            linear.bias.zero_()
        layers += [linear] if index == len(params) - 1 else [linear, torch.nn.Tanh()]
    if case.noise == "dropout":
        layers.insert(-1, torch.nn.Dropout(RATE))
    model = torch.nn.Sequential(*layers)
    descent = torch.optim.SGD(model.parameters(), lr=ALPHA)
    inputs, targets = torch.tensor(np.array(inputs)), torch.tensor(np.array(targets))

    def train():
        for _ in range(steps_in_pytorch(case)):
            noisy = targets + SIGMA * torch.randn_like(targets) if case.noise == "label" else targets
            descent.zero_grad()
            (((model(inputs)[:, 0] - noisy) ** 2).mean() / 2).backward()
            descent.step()

    return train


def steps_in_pytorch(case):
    """How many of them are timed in a turn."""
    return max(50, case.steps // 10)


def operations(case):
    """Floating-point operations of the matrix products of one step of one replica."""
    if case.widths is None:
        return None
    first, *others = [a * b for a, b in itertools.pairwise((64, *case.widths, 1))]
    return 2 * 200 * (2 * first + 3 * sum(others))  # the first layer needs no gradient of its inputs


def peak(dtype):
    """Operations per second of a large matrix product."""
    matrix = jnp.ones((2000, 2000), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * 2000**3 / min(seconds_of(lambda: product(matrix)) for _ in range(6))


def seconds_of(function):
    """Wall-clock time of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main():
    """Print the table, each line as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--devices", type=int, default=1, help="host devices to spread replicas over")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    dtype = jnp.dtype(options.dtype)
    limit = peak(dtype)
    print(
        f"{options.dtype}, {jax.device_count()} device(s), a matrix product reaches {limit / 1e9:.0f} GFLOP/s"
    )
    print(
        "                              microseconds a step and replica  descend against     share call adds"
    )
    print(
        "case          noise    replicas   descend   by hand   PyTorch  by hand  PyTorch   of peak      (ms)"
    )
    for case in CASES:
        ways = {
            "ours": ours(case, dtype),
            "called": as_called(case, dtype),
            "hand": by_hand(case, dtype),
            "torch": in_pytorch(case, dtype),
        }
        each = dict.fromkeys(("ours", "called", "hand"), case.steps * case.replicas)
        each["torch"] = steps_in_pytorch(case)
        taken = {name: [] for name, way in ways.items() if way is not None}
        for turn in range(options.turns + 1):
            for name in sorted(taken, reverse=turn % 2 == 1):  # none always follows the same other
                taken[name].append(seconds_of(ways[name]) / each[name])
        median = {name: statistics.median(values[1:]) for name, values in taken.items()}
        own, hand, torch, count = median["ours"], median["hand"], median.get("torch"), operations(case)
        cells = [
            f"{case.name:13s} {case.noise:8s} {case.replicas:8,d} {1e6 * own:9.3g} {1e6 * hand:9.3g}",
            "        -" if torch is None else f"{1e6 * torch:9.3g}",
            f"{hand / own:8.2f}",
            "       -" if torch is None else f"{torch / own:8.1f}",
            "        -" if count is None else f"{count / own / limit:9.0%}",
            f"{1e3 * (median['called'] - own) * each['ours']:9.0f}",
        ]
        print(" ".join(cells), flush=True)


if __name__ == "__main__":
    main()
