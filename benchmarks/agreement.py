"""How closely training follows its limit on digits, and how much of the gap theory explains.

For each noise and step size: the distance between the mean of a training ensemble and the singular
limit, relative to the distance travelled; the distance that finite step size and finite noise are
expected to cause (theory.md, section 5); and what remains unexplained. The expectation is computed
here, independently of `zeroloss.limit`: for label noise by Runge-Kutta on the finite-alpha drift, for
dropout by noise-free gradient descent on L + sigma^2 Reg, which is the mean iteration when the residual is
affine in the noise.

    python benchmarks/agreement.py            # about 15 minutes on 2 cores
    python benchmarks/agreement.py --quick    # about 3 minutes, fewer replicas and shorter
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.manifold import largest_eigenvalue  # noqa: E402


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    named = zl.problems.load("digits")
    problem = named.problem
    point = zl.project(problem.with_noise(zl.LabelNoise(1.0)), named.start)
    largest = largest_eigenvalue(problem.with_noise(zl.LabelNoise(1.0)), point)
    replicas = 8 if quick else 16
    small = 0.3 if quick else 0.1
    both = zl.MiniBatch(32) + zl.LabelNoise(0.3)
    cases = [
        ("label noise 0.1", zl.LabelNoise(0.1), 0.5, 1.0, 2 * replicas),
        (f"label noise {small}", zl.LabelNoise(small), 0.1, 1.0, replicas),
        ("batches of 32 + label noise 0.3", both, 0.5, 1.0, 4 * replicas),
        ("batches of 32 + label noise 0.3", both, 0.1, 1.0, replicas),
        ("dropout 0.05", named.noises["dropout"](0.05), 0.5, 5.0, replicas),
        ("dropout 0.05", named.noises["dropout"](0.05), 0.1, 5.0, replicas),
        ("dropout 0.01", named.noises["dropout"](0.01), 0.5, 5.0, replicas),
        ("dropout 0.01", named.noises["dropout"](0.01), 0.1, 5.0, replicas),
    ]
    print(f"digits, 200 examples, 50 units; distances relative to the distance travelled; {replicas}+ runs")
    print(
        "noise                           alpha*lambda   steps  measured  ensemble  expected  unexplained  s"
    )
    for name, noise, fraction, t1, runs in cases:
        began = time.perf_counter()
        system, step_size = problem.with_noise(noise), fraction / largest
        comparison = zl.compare(
            system, point, [step_size], key=jax.random.key(1), t1=t1, replicas=runs, saves=2
        )
        training = comparison.trainings[0]
        start, limit = (
            ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], comparison.limit.params))[0] for i in (0, -1)
        )
        ensemble = jax.vmap(lambda p: ravel_pytree(p)[0])(training.path.final)
        travelled = np.linalg.norm(limit - start)
        steps = int(training.path.ts[-1])
        noise_of_mean = training.distance_error[-1]
        measured = np.sqrt(max(training.distance[-1] ** 2 - noise_of_mean**2, 0))
        if "dropout" in name:
            expected_end = mean_iteration(problem, noise.rate, point, step_size, steps)
        elif noise is not both:
            expected_end = finite_step_size_flow(system, point, step_size, t1)
        else:
            expected_end = None
        if expected_end is None:
            expected = unexplained = "       -"
        else:
            rest = np.linalg.norm(ensemble.mean(axis=0) - expected_end) / travelled
            expected = f"{np.linalg.norm(expected_end - limit) / travelled:8.4f}"
            unexplained = f"{np.sqrt(max(rest**2 - noise_of_mean**2, 0)):8.4f}"
        print(
            f"{name:32s} {fraction:10.2f} {steps:9d}  {measured:8.4f}  {noise_of_mean:8.4f}  {expected}  "
            f"   {unexplained} {time.perf_counter() - began:5.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
