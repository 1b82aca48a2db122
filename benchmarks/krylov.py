"""Projections without the Gram matrix: iterations, seconds and error, beside a Cholesky factorization of it.

    python benchmarks/krylov.py [--examples 1797] [--units 500] [--training 2000]

Digits with ten outputs, m = 10 x examples residuals, one hidden layer of tanh units: at the random start, and
after gradient descent. The error is that of the tangent part of a random vector, relative to the vector,
against the result at the tightest tolerance.
"""

import argparse
import time

import equinox as eqx
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from zeroloss._linalg import cholesky  # noqa: E402
from zeroloss._pytrees import flatten  # noqa: E402
from zeroloss.jacobians import analyse  # noqa: E402
from zeroloss.jacobians._jacobian import StructuredJacobians  # noqa: E402
from zeroloss.zero_sets._iterative_residuals import OutputBlocks, ResidualSpaces, output_blocks  # noqa: E402

TOLERANCES = (1e-12, 1e-4, 1e-6, 1e-7, 1e-8)
LARGEST_FACTORIZED = 20_000


def network(params, inputs):
    """Tanh units between two dense layers."""
    return jnp.tanh(inputs @ params["in"] + params["shift"]) @ params["out"]


def main() -> None:
    """Print a line for each point, preconditioner and tolerance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=1797)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--training", type=int, default=2000, help="steps of gradient descent, momentum 0.9")
    given = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    inputs = jnp.asarray(images[: given.examples] / 16)
    targets = jnp.asarray(np.eye(10)[labels[: given.examples]] - 0.1)
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "in": jax.random.normal(first, (64, given.units)) / 8,
        "shift": jnp.zeros(given.units),
        "out": jax.random.normal(second, (given.units, 10)) / jnp.sqrt(given.units),
    }
    w, unravel = flatten(params)
    jacobians = StructuredJacobians(analyse(network, params, inputs), unravel)
    print(f"{targets.size} residuals, {w.size} parameters")

    def loss(w):
        return 0.5 * jnp.mean(jnp.sum((network(unravel(w), inputs) - targets) ** 2, axis=1))

    @jax.jit
    def train(w):
        def step(_, state):
            w, velocity = state
            velocity = 0.9 * velocity + jax.grad(loss)(w)
            return w - 0.01 * velocity, velocity

        return jax.lax.fori_loop(0, given.training, step, (w, jnp.zeros_like(w)))[0]

    trained = train(w)
    assert jnp.isfinite(loss(trained)), "training diverged"
    for name, point in (("random", w), (f"trained {given.training} steps", trained)):
        print(f"{name}, loss {loss(point):.3g}")
        report(jacobians, point)


def report(jacobians: StructuredJacobians, w: jax.Array) -> None:
    """Lines for one point."""

    def prepare(w):
        jacobian = jacobians.at(w)
        return jacobian, output_blocks(jacobian)

    def factorize(w):
        jacobian = jacobians.at(w)
        return cholesky(jacobian.gram(jacobian))

    (jacobian, blocks), seconds = timed(prepare, w)
    print(f"  preconditioner {seconds:.2f} s, {blocks.lower.nbytes / 2**20:.0f} MiB")
    number, outputs = blocks.number, blocks.axes.shape[0]
    none = OutputBlocks(jnp.eye(outputs), jnp.ones((outputs, number, 1, 1)), number)
    vector = jax.random.normal(jax.random.key(1), w.shape)
    vector = vector / jnp.linalg.norm(vector)
    best = None
    for name, chosen in (("output blocks", blocks), ("none", none)):
        for tolerance in TOLERANCES:
            if name == "none" and tolerance != 1e-4:
                continue
            spaces = ResidualSpaces(jacobian, chosen, tolerance)
            (tangent, iterations), seconds = timed(tangent_and_iterations, spaces, vector)
            best = tangent if best is None else best
            error = jnp.linalg.norm(tangent - best)
            print(
                f"  {name:14} {tolerance:7.0e} {int(iterations):5} iterations {seconds:8.2f} s"
                f"  error {error:.1e}",
                flush=True,
            )
    if w.size >= number * outputs and number * outputs <= LARGEST_FACTORIZED:
        _, seconds = timed(factorize, w)
        print(
            f"  Gram matrix and its factorization {seconds:.2f} s, {(number * outputs) ** 2 / 2**17:.0f} MiB"
        )


def tangent_and_iterations(spaces: ResidualSpaces, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """P_T v, and how many iterations it takes. Compiled together they iterate once."""
    return spaces.tangent(vector), spaces.iterations(vector)


def timed(function, *arguments):
    """The result of a function, and its seconds once compiled."""
    compiled = eqx.filter_jit(function).lower(*arguments).compile()
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
