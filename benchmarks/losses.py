"""Projections for a loss of many parameters: whole Hessian, basis of its range, and iteration.

    python benchmarks/losses.py [--size 35] [--rank 30]

Half the mean square error of q random measurements <A_i, U V^T>, as a plain `zeroloss.Loss`, in float64. The
error is that of the tangent part of a random vector, relative to the vector, against the Jacobian of the
measurements. Seconds are of spaces and projection together, compilation excluded.
"""

import argparse

import equinox as eqx
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
from krylov import timed  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss._pytrees import flatten  # noqa: E402
from zeroloss.zero_sets import DenseZeroSet, IterativeZeroSet  # noqa: E402
from zeroloss.zero_sets._dense import is_small  # noqa: E402


def main() -> None:
    """Print a line for each number of measurements and way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=35)
    parser.add_argument("--rank", type=int, default=30)
    given = parser.parse_args()
    for measurements in (50, 200, 600):
        report(given.size, given.rank, measurements)


def report(size: int, rank: int, measurements: int) -> None:
    """The lines of one number of measurements."""
    keys = jax.random.split(jax.random.key(0), 3)
    matrices = jax.random.normal(keys[0], (measurements, size, size)) / size
    params = {name: jax.random.normal(key, (size, rank)) for name, key in zip("uv", keys[1:], strict=True)}
    w, unravel = flatten(params)

    def measure(params):
        return jnp.einsum("qij,ij->q", matrices, params["u"] @ params["v"].T)

    values = measure(params)
    problem = zl.Loss(lambda params: 0.5 * jnp.mean((measure(params) - values) ** 2))
    jacobian = jax.jacrev(lambda w: measure(unravel(w)))(w)
    squares = jnp.linalg.svd(jacobian, compute_uv=False) ** 2
    print(
        f"{w.size} parameters, {measurements} measurements, condition of the Hessian on its range "
        f"{squares[0] / squares[-1]:.0f}"
    )
    vector = jax.random.normal(jax.random.key(1), w.shape)
    vector = vector / jnp.linalg.norm(vector)
    exact = vector - jacobian.T @ jnp.linalg.lstsq(jacobian.T, vector)[0]
    ways = {"whole Hessian": DenseZeroSet(problem, unravel), "iteration": IterativeZeroSet(problem, unravel)}
    if is_small(measurements, w):
        ways["basis"] = DenseZeroSet(problem, unravel, rank=measurements)
    for name, zero_set in ways.items():

        def project(w, vector, zero_set=zero_set):
            return zero_set.spaces(w).tangent(vector)

        found, seconds = timed(project, w, vector)
        line = f"  {name:14} {seconds:8.2f} s  error {jnp.linalg.norm(found - exact):.1e}"
        if isinstance(zero_set, IterativeZeroSet):
            line += f"  {int(eqx.filter_jit(zero_set.spaces)(w).iterations(vector))} iterations"
        print(line, flush=True)


if __name__ == "__main__":
    main()
