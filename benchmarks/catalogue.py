"""Every noise of the catalogue, and sums of them, against training.

    python benchmarks/catalogue.py [name ...]

For each entry an ensemble is trained for as long as the limit takes to drift by 5 % of |w|, once at a step
size and sigma and once at half the step size (and half of sigma^2 where the drift is on the fast scale, whose
limit needs both). What it has made of the drift is extrapolated to zero: progress 1 is agreement. For a
stochastic limit, progress is the mean square tangential displacement over the limit's.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import zeroloss as zl
from zeroloss.drifts._slow_time import power_of_step_size
from zeroloss.noise import AbstractNoise
from zeroloss.zero_sets import largest_eigenvalue

jax.config.update("jax_enable_x64", True)

STEP_SIZE = 0.1  # times 1 / lambda_max; the other is half of it
DRIFT = 0.05


def tanh_network(params, inputs):
    """Two outputs, two sites, nothing affine in the parameters."""
    hidden = zl.site(jnp.tanh(inputs @ params["a"]), "first")
    hidden = zl.site(jnp.tanh(hidden @ params["b"]), "second")
    return hidden @ params["c"]


def linear_network(params, inputs):
    """The same without the nonlinearity: quadratic in each Bernoulli mask."""
    hidden = zl.site(inputs @ params["a"], "first")
    hidden = zl.site(hidden @ params["b"], "second")
    return hidden @ params["c"]


def problem(model=tanh_network, soft=False):
    """Four examples, 38 parameters, two outputs; with soft targets, probabilities."""
    keys = jax.random.split(jax.random.key(0), 5)
    inputs = jax.random.normal(keys[0], (4, 5))
    targets = jax.random.normal(keys[1], (4, 2)) / 2
    if soft:
        targets = jax.nn.softmax(targets, axis=1)
    params = {
        "a": jax.random.normal(keys[2], (5, 4)),
        "b": jax.random.normal(keys[3], (4, 3)) / 2,
        "c": jax.random.normal(keys[4], (3, 2)),
    }
    return zl.LeastSquares(model, inputs, targets), params


def only_c(params):
    """The last layer."""
    return params["c"]


def brightness(forward, eta):
    """A noise of one's own: each example's inputs are a little brighter or darker."""
    return forward.replace(inputs=forward.inputs * (1 + eta[:, None]))


def shift_c(forward, eta):
    """Weight noise with a given covariance on the last layer."""
    return forward.replace(params=forward.params | {"c": forward.params["c"] + eta})


MIXED = np.array([[2.0, 0.5, 0, 0, 0, 0.3], [0.5, 1, 0, 0, 0, 0], [0, 0, 1, 0, -0.4, 0]])
MIXED = MIXED.T @ MIXED  # of rank 3

TANH, LINEAR, SOFT = problem, lambda: problem(linear_network), lambda: problem(soft=True)

ENTRIES: dict[str, tuple[Callable, AbstractNoise]] = {
    "dropout": (LINEAR, zl.Dropout(0.002, at="second")),
    "dropout at two sites": (LINEAR, zl.Dropout(0.002, at="first") + zl.Dropout(0.001, at="second")),
    "Gaussian dropout": (TANH, zl.GaussianDropout(0.045, at=["first", "second"])),
    "Gaussian dropout per step": (TANH, zl.GaussianDropout(0.045, at="first", per="step")),
    "DropConnect": (LINEAR, zl.DropConnect(0.002)),
    "DropConnect on one layer": (LINEAR, zl.DropConnect(0.002, where=lambda p: p["b"])),
    "Gaussian DropConnect": (TANH, zl.GaussianDropConnect(0.045)),
    "input noise": (TANH, zl.InputNoise(0.045)),
    "weight noise": (TANH, zl.WeightNoise(0.045)),
    "weight noise on two layers": (TANH, zl.WeightNoise(0.045, where=lambda p: (p["a"], p["c"]))),
    "weight noise with a covariance": (
        TANH,
        zl.CustomNoise(shift_c, zl.Correlated(zl.Gaussian((3, 2), 0.045), MIXED), per="step"),
    ),
    "anti-correlated": (TANH, zl.AntiCorrelated(0.045)),
    "label noise": (TANH, zl.LabelNoise(0.6)),
    "label noise with a covariance": (TANH, zl.LabelNoise(0.6, covariance=[[1, 0.5], [0.5, 2]])),
    "label noise on one example": (TANH, zl.LabelNoise(0.3, examples=1)),
    "label noise with a covariance on two examples": (
        TANH,
        zl.LabelNoise(0.4, covariance=[[1, 0.5], [0.5, 2]], examples=2),
    ),
    "sampled labels": (SOFT, zl.SampledLabels()),
    "Langevin": (TANH, zl.Langevin(0.2)),
    "Langevin with a covariance": (TANH, zl.Langevin(0.2, where=only_c, covariance=MIXED)),
    "custom: brightness": (TANH, zl.CustomNoise(brightness, zl.Uniform((), 0.045))),
    "custom: own law": (
        TANH,
        zl.CustomNoise(
            brightness, zl.Law(lambda key, shape: jax.random.laplace(key, shape) / 2**0.5, (), 0.045)
        ),
    ),
    "minibatch + label": (TANH, zl.MiniBatch(2) + zl.LabelNoise(0.6)),
    "amplified minibatch + label": (TANH, zl.MiniBatch(2, strength=1.5) + zl.LabelNoise(0.4)),
    "amplified minibatch + weight": (TANH, zl.MiniBatch(1, strength=0.5) + zl.WeightNoise(0.045)),
    "minibatch + dropout": (LINEAR, zl.MiniBatch(2) + zl.Dropout(0.002, at="second")),
    "minibatch + weight": (TANH, zl.MiniBatch(1) + zl.WeightNoise(0.045)),
    "minibatch + Langevin": (TANH, zl.MiniBatch(2) + zl.Langevin(0.2)),
    "minibatch + sampled labels": (SOFT, zl.MiniBatch(3) + zl.SampledLabels()),
    "label + Langevin": (TANH, zl.LabelNoise(0.6) + zl.Langevin(0.1)),
    "label + dropout": (LINEAR, zl.LabelNoise(0.06) + zl.Dropout(0.002, at="second")),
    "weight + input": (TANH, zl.WeightNoise(0.02) + zl.InputNoise(0.045)),
    "anti-correlated + label": (TANH, zl.AntiCorrelated(0.045) + zl.LabelNoise(0.06)),
    "Gaussian DropConnect + input + minibatch": (
        TANH,
        zl.GaussianDropConnect(0.02) + zl.InputNoise(0.045) + zl.MiniBatch(3),
    ),
}


def system_and_point(name: str):
    """The system of an entry, and a point of its zero-loss set."""
    make, noise = ENTRIES[name]
    clean, params = make()
    system = clean.with_noise(noise)
    return system, zl.project(system, params)


def flat(params, lead):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def simulate(name: str, replicas: int | None = None):
    """Progress at each of two step sizes and extrapolated, with standard errors."""
    system, point = system_and_point(name)
    verdict = zl.classify(system, point)
    assert verdict.time_scale is not None
    replicas = replicas or (2048 if verdict.stochastic else 96)
    drift = zl.drift(system, point)
    w = np.asarray(ravel_pytree(point)[0])
    reach = DRIFT * np.linalg.norm(w)
    sigma, power = system.noise_law(point).sigma, power_of_step_size(verdict.time_scale)
    if verdict.stochastic:
        factor = np.asarray(drift.diffusion.as_matrix())  # pyright: ignore
        t1 = reach**2 / np.sum(factor**2)
        path = zl.limit(system, point, zl.Saves(at=[t1]), key=jax.random.key(1), replicas=4096, dt=t1 / 20)
        tangent = _tangent(system, point)
        squares = np.sum(((flat(path.params, 2)[:, 0] - w) @ tangent) ** 2, axis=1)
        size, size_error = squares.mean(), squares.std() / 64 / squares.mean()
    else:
        rate = flat(drift.first if power == 1 else drift.second, 0)
        t1 = reach / np.linalg.norm(rate)
        end = flat(zl.limit(system, point, zl.Saves(at=[t1])).params, 1)[0] - w
        size, size_error = end @ end, 0.0
    largest = largest_eigenvalue(system, point)
    means, errors = [], []
    for index, relative in enumerate((STEP_SIZE, STEP_SIZE / 2)):
        if index == 1 and power == 1:
            system = system.scaled(0.5**0.5)
            sigma = system.noise_law(point).sigma
        steps = round(t1 / ((relative / largest) ** power * sigma**2))
        alpha = (t1 / (steps * sigma**2)) ** (1 / power)  # so that the time is met exactly
        trained = zl.descend(
            system, point, alpha, zl.Saves(steps, at=[steps]), key=jax.random.key(index), replicas=replicas
        )
        moved = flat(trained.params, 2)[:, -1] - w
        made = np.sum((moved @ tangent) ** 2, axis=1) if verdict.stochastic else moved @ end
        progress = made / size
        means.append(progress.mean())
        errors.append(progress.std(ddof=1) / np.sqrt(replicas))
    extrapolated = 2 * means[1] - means[0]
    error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2 + size_error**2)
    return verdict, steps, means, extrapolated, error


def _tangent(system, point):
    """P_T as a dense matrix: the parameters are few."""
    w, unravel = ravel_pytree(point)
    jacobian = jax.jacrev(lambda w: system.problem.model(unravel(w), system.problem.inputs).reshape(-1))(w)
    return np.eye(len(w)) - np.asarray(jnp.linalg.pinv(jacobian) @ jacobian)


def main() -> None:
    names = sys.argv[1:] or list(ENTRIES)
    print(f"{'noise':42} {'verdict':28} {'steps':>8} {'coarse':>8} {'half':>8} {'at 0':>8} {'error':>7}  z")
    for name in names:
        began = time.perf_counter()
        verdict, steps, means, extrapolated, error = simulate(name)
        verdict = verdict.name + (", stochastic" if verdict.stochastic else "")
        print(
            f"{name:42} {verdict:28} {steps:8,} {means[0]:8.4f} {means[1]:8.4f} {extrapolated:8.4f} "
            f"{error:7.4f} {(extrapolated - 1) / error:5.1f}  {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
