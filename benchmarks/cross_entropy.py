"""Predictions of training with cross-entropy, against training.

A tanh network 4-16-3, 20 examples, labels smoothed by 0.2. For each noise: alpha times the largest
eigenvalue, steps, and the way of the mean of 256 runs relative to |w|. Then in percent of that way the
distance of the prediction from the mean, the error of the ensemble, and what the prediction estimates its
error to be. Last the expected loss, predicted and trained.

    python benchmarks/cross_entropy.py [name ...]
"""

import sys

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss._pytrees import flatten  # noqa: E402

EXAMPLES, CLASSES, RUNS = 20, 3, 256
CASES = {
    "Gaussian dropout 0.1": (zl.GaussianDropout(0.1, at="hidden"), 0.5, 4_000, "on"),
    "dropout 0.1": (zl.Dropout(0.1, at="hidden"), 0.5, 1_000, "on"),
    "dropout 0.5": (zl.Dropout(0.5, at="hidden"), 0.3, 1_000, "on"),
    "label noise 0.1": (zl.LabelNoise(0.1), 0.5, 20_000, "on"),
    "labels drawn": (zl.SampledLabels(), 0.1, 40_000, "on"),
    "weight noise 0.02": (zl.WeightNoise(0.02), 0.5, 4_000, "on"),
    "batches of 5, off the set": (zl.MiniBatch(5), 0.5, 2_000, "off"),
    "batches of 5 + Gaussian dropout 0.2, off the set": (
        zl.MiniBatch(5) + zl.GaussianDropout(0.2, at="hidden"),
        0.3,
        3_000,
        "off",
    ),
}


def network(params, inputs):
    """A tanh network whose hidden layer is a site."""
    return zl.site(jnp.tanh(inputs @ params["in"]), "hidden") @ params["out"]


def main():
    """Print a line for each case, as soon as it is there."""
    inputs = jax.random.normal(jax.random.key(0), (EXAMPLES, 4))
    labels = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, EXAMPLES))
    params = {
        "in": jax.random.normal(jax.random.key(1), (4, 16)) / 2,
        "out": jax.random.normal(jax.random.key(2), (16, CLASSES)) / 4,
    }
    problem = zl.CrossEntropy(network, inputs, labels, smoothing=0.2)
    clean = problem.with_noise(zl.WeightNoise(0.1))
    point = zl.project(clean, params)
    largest = zl.zero_sets.largest_eigenvalue(clean, point)
    for name, (noise, relative, steps, where) in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        system, start, saves = (
            problem.with_noise(noise),
            point if where == "on" else params,
            zl.Saves(steps, 3),
        )
        predicted = zl.predict(system, start, relative / largest, saves)
        trained = zl.descend(system, start, relative / largest, saves, key=jax.random.key(5), replicas=RUNS)
        ends = jax.tree.map(lambda leaf: leaf[:, -1], trained.params)
        runs = np.stack(
            [flatten(jax.tree.map(lambda leaf, run=run: leaf[run], ends))[0] for run in range(RUNS)]
        )
        mean, end = runs.mean(axis=0), flatten(jax.tree.map(lambda leaf: leaf[-1], predicted.params))[0]
        way = np.linalg.norm(mean - flatten(start)[0])
        percent = 100 * np.array(
            [
                np.linalg.norm(end - mean),
                np.sqrt(runs.var(axis=0).sum() / RUNS),
                way * predicted.uncertainty.total[-1],
            ]
        )
        error, ensemble, estimate = percent / way
        print(
            f"{name:50s} {relative:4g} {steps:7,d} way {way / np.linalg.norm(flatten(start)[0]):6.3f} "
            f"error {error:5.2f} ensemble {ensemble:5.2f} estimate {estimate:5.2f} "
            f"loss {predicted.loss[-1]:.4g} trained {trained.loss[:, -1].mean():.4g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
