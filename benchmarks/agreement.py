"""How closely training follows its limit on digits, and how much of the gap theory explains.

For each noise and step size: the distance between the mean of a training ensemble and the singular
limit, relative to the distance travelled; the distance that finite step size and finite noise are
expected to cause (theory.md, section 5); and what remains unexplained. The expectation is computed
here, independently of `zeroloss.limit`: for label noise by Runge-Kutta on the finite-alpha drift, for
dropout by noise-free gradient descent on L + sigma^2 Reg, which is the mean iteration when the residual is
affine in the noise.

    python benchmarks/agreement.py            # about 25 minutes on 2 cores
    python benchmarks/agreement.py --quick    # about 3 minutes, fewer replicas and shorter
"""

import argparse
import time
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.noise import AbstractNoise  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue  # noqa: E402


def finite_step_size_flow(system, point, step_size, t1, segments=12):
    """dW/dt = D_2(step_size), by classical Runge-Kutta with projection after each segment."""
    w, unravel = ravel_pytree(point)
    field = jax.jit(lambda w: ravel_pytree(zl.drift(system, unravel(w), step_size).second)[0])
    h = t1 / segments
    for _ in range(segments):
        k1 = field(w)
        k2 = field(w + h / 2 * k1)
        k3 = field(w + h / 2 * k2)
        k4 = field(w + h * k3)
        w = ravel_pytree(zl.project(system, unravel(w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))))[0]
    return w


def mean_iteration(problem, rate, point, step_size, steps):
    """Gradient descent on L + sigma^2 Reg for dropout at the one hidden layer, written out by hand."""
    w, unravel = ravel_pytree(point)
    inputs, targets = problem.inputs, problem.targets
    variance = rate / (1 - rate)

    def averaged_loss(w):
        first, last = unravel(w)
        hidden = jnp.tanh(inputs @ first["weights"] + first["biases"])
        outputs = (hidden @ last["weights"] + last["biases"])[:, 0]
        per_unit = hidden * last["weights"][:, 0]
        return (jnp.sum((outputs - targets) ** 2) + variance * jnp.sum(per_unit**2)) / (2 * len(targets))

    gradient = jax.grad(averaged_loss)
    run = jax.jit(lambda w: jax.lax.fori_loop(0, steps, lambda _, w: w - step_size * gradient(w), w))
    return run(w)


class Case(NamedTuple):
    """A noise on digits, a step size in units of 1 / lambda_max, and how far to go with how many runs."""

    name: str
    noise: AbstractNoise
    fraction: float
    t1: float
    replicas: int


class Agreement(NamedTuple):
    """Distances relative to the distance travelled; `ensemble` is the scatter of the ensemble's mean."""

    steps: int
    step_size: float
    measured: float
    ensemble: float
    expected: float | None
    unexplained: float | None


def start():
    """The digits problem, a point of its zero-loss set, and lambda_max there."""
    named = zl.problems.load("digits")
    system = named.problem.with_noise(zl.LabelNoise(1.0))
    point = zl.project(system, named.start)
    return named, point, largest_eigenvalue(system, point)


def measure(case, named, point, largest):
    """Train an ensemble and compare its mean with the limit and with what section 5 expects."""
    system, step_size = named.problem.with_noise(case.noise), case.fraction / largest
    comparison = zl.compare(
        system,
        point,
        [step_size],
        key=jax.random.key(1),
        t1=zl.Saves(case.t1, count=2),
        replicas=case.replicas,
    )
    training = comparison.trainings[0]
    first, limit = (
        ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], comparison.limit.params))[0] for i in (0, -1)
    )
    mean = jax.vmap(lambda p: ravel_pytree(p)[0])(training.path.final).mean(axis=0)
    travelled, steps = np.linalg.norm(limit - first), int(training.path.ts[-1])
    ensemble = float(training.distance_error[-1])

    def without_scatter(distance):
        return float(np.sqrt(max(distance**2 - ensemble**2, 0)))

    if isinstance(case.noise, zl.Dropout):
        end = mean_iteration(named.problem, case.noise.rate, point, step_size, steps)
    elif isinstance(case.noise, zl.LabelNoise):
        end = finite_step_size_flow(system, point, step_size, case.t1)
    else:  # the random Hessian of a batch is not part of this version
        return Agreement(steps, step_size, without_scatter(training.distance[-1]), ensemble, None, None)
    return Agreement(
        steps,
        step_size,
        without_scatter(training.distance[-1]),
        ensemble,
        float(np.linalg.norm(end - limit) / travelled),
        without_scatter(np.linalg.norm(mean - end) / travelled),
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    named, point, largest = start()
    runs, small = (8, 0.3) if quick else (16, 0.1)
    batches = zl.MiniBatch(32) + zl.LabelNoise(0.3)
    cases = [
        Case("label noise 0.1", zl.LabelNoise(0.1), 0.5, 1.0, 2 * runs),
        Case(f"label noise {small}", zl.LabelNoise(small), 0.1, 1.0, runs),
        Case("batches of 32 + label noise 0.3", batches, 0.5, 1.0, 4 * runs),
        Case("batches of 32 + label noise 0.3", batches, 0.1, 1.0, runs),
        *(
            Case(f"dropout {rate}", named.noises["dropout"](rate), fraction, 5.0, runs)
            for rate in (0.05, 0.01)
            for fraction in (0.5, 0.1)
        ),
    ]
    print("digits, 200 examples, 50 units; distances relative to the distance travelled")
    heads = ("measured", "ensemble", "expected", "unexplained")
    print(f"{'noise':32s} alpha*lambda  runs    steps  {'  '.join(heads)}  seconds")
    for case in cases:
        began = time.perf_counter()
        found = measure(case, named, point, largest)
        numbers = (found.measured, found.ensemble, found.expected, found.unexplained)
        cells = "  ".join("       -" if number is None else f"{number:8.4f}" for number in numbers)
        print(
            f"{case.name:32s} {case.fraction:12.2f} {case.replicas:5d} {found.steps:8d}  {cells}     "
            f"{time.perf_counter() - began:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
