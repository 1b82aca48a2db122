"""Bernoulli masks of a small rate: cost of the drift, and the limit against training.

First the cost of -P_T grad R in gradients of the loss, for a 64-100-100-1 tanh network on 200 digits with
dropout after its first layer: from all 100 units, and from 4 drawn units of each example. Then, on a
3-10-10-1 network, how far the limit, and that of Gaussian masks of the same variance, are from the mean of
128 runs of training, in percent of the way, as the rate falls; and the limit from drawn units beside the
exact one.

    python benchmarks/rare_masks.py
"""

import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss._pytrees import flatten  # noqa: E402
from zeroloss.drifts import expand_at, first_drift  # noqa: E402
from zeroloss.dynamics import _limit  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue, locate  # noqa: E402

RUNS = 128


def seconds(function, *arguments):
    """The shortest of 5 calls, after one that compiles."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def costs():
    """Print the cost of a drift in gradients."""
    digits = zl.problems.digits(widths=(100, 100), examples=200)
    system = digits.problem.with_noise(zl.Dropout(0.1, at="hidden_1"))
    zero_set, w = locate(system, zl.project(system, digits.start))
    expansion = expand_at(system, zero_set, w)
    gradient = seconds(jax.grad(zero_set.loss), w)
    spaces = seconds(lambda w: zero_set.spaces(w).tangent(w), w)
    units = jax.random.randint(jax.random.key(0), (4, 200), 0, 100)

    def drift(expansion):
        return lambda w: first_drift(expansion, w, zero_set.spaces(w))

    for name, each in (
        ("Reg of Gaussian masks", expansion.small),
        ("R from 4 drawn units an example", expansion.sampled(w, (units,))),
        ("R from all 100 units", expansion),
    ):
        took = seconds(drift(each), w)
        print(
            f"{name:34s} {took / gradient:7.1f} gradients with the projection, which takes "
            f"{spaces / gradient:.1f}; a gradient takes {1e3 * gradient:.2f} ms",
            flush=True,
        )


def network(params, inputs):
    """Three inputs, two layers of ten tanh units."""
    hidden = zl.site(jnp.tanh(inputs @ params["a"]), "first")
    return jnp.tanh(hidden @ params["b"]) @ params["c"]


def limits():
    """Print the errors of limits against training."""
    keys = jax.random.split(jax.random.key(3), 5)
    problem = zl.LeastSquares(
        network, jax.random.normal(keys[0], (8, 3)), jax.random.normal(keys[1], (8,)) / 2
    )
    params = {
        "a": jax.random.normal(keys[2], (3, 10)),
        "b": jax.random.normal(keys[3], (10, 10)) / 10**0.5 * 1.5,
        "c": jax.random.normal(keys[4], (10,)) / 10**0.5,
    }
    for rate in (0.01, 0.002, 0.0005):
        rare = problem.with_noise(zl.Dropout(rate))
        point = zl.project(rare, params)
        w = np.asarray(flatten(point)[0])
        sigma = rare.noise_law(point).sigma
        gaussian = problem.with_noise(zl.GaussianDropout(sigma))
        speed = np.linalg.norm(flatten(zl.drift(rare, point).first)[0])
        step_size = 0.1 / float(largest_eigenvalue(rare, point))
        steps = round(0.15 * np.linalg.norm(w) / speed / (step_size * sigma**2))
        saves = zl.Saves(at=[steps * step_size * sigma**2])
        ends = [flatten(zl.limit(system, point, saves).final)[0] - w for system in (rare, gaussian)]
        trained = zl.descend(
            rare, point, step_size, zl.Saves(steps, at=[steps]), key=jax.random.key(5), replicas=RUNS
        )
        leaves = jax.tree.leaves(trained.final)
        moved = np.concatenate([np.asarray(leaf).reshape(RUNS, -1) for leaf in leaves], axis=1) - w
        mean = moved.mean(axis=0)
        way = np.linalg.norm(mean)
        percent = [100 * np.linalg.norm(end - mean) / way for end in ends]
        ensemble = 100 * np.linalg.norm(moved.std(axis=0)) / RUNS**0.5 / way
        print(
            f"rate {rate:6g}, {steps:7,d} steps: rare masks {percent[0]:5.1f}, Gaussian masks "
            f"{percent[1]:5.1f}, ensemble {ensemble:4.1f} percent",
            flush=True,
        )
    exact, _limit._EXACT = ends[0], 0
    for seed in range(4):
        path = zl.limit(rare, point, saves, key=jax.random.key(seed))
        error = np.linalg.norm(flatten(path.final)[0] - w - exact) / np.linalg.norm(exact)
        estimate = path.uncertainty.sampling[-1]
        print(f"from drawn units: {100 * error:.2f} percent off, estimate {100 * estimate:.2f}", flush=True)


if __name__ == "__main__":
    costs()
    limits()
