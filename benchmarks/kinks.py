"""Predictions of training of ReLU networks, and of masks in several layers, against training.

Digits, odd against even. For each case: the error of the prediction against the mean of the runs, the error
of that mean, and the estimate of the prediction, in percent of the way; with --smooth also the error where
third derivatives take the place of averages over the fluctuation.

    python benchmarks/kinks.py [--smooth] [name ...]
"""

import sys

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.prediction import _predict  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue  # noqa: E402


def digits(widths, examples, activation="relu"):
    """The problem and its start."""
    made = zl.problems.digits(widths=widths, examples=examples, activation=activation)
    return made.problem, made.start


def residual():
    """A tanh network with two residual branches, each a site, on 60 digits."""
    inputs, targets = digits((24,), 60)[0].inputs, digits((24,), 60)[0].targets
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (64, 24)) / 8,
        "branches": jax.random.normal(keys[1], (2, 24, 24)) / 5,
        "out": jax.random.normal(keys[2], (24,)) / 5,
    }

    def model(params, inputs):
        hidden = jnp.tanh(inputs @ params["in"])
        for number in range(2):
            branch = jnp.tanh(hidden @ params["branches"][number])
            hidden = hidden + zl.site(branch, f"branch_{number}")
        return hidden @ params["out"]

    return zl.LeastSquares(model, inputs, targets), params


BOTH = ["hidden_1", "hidden_2"]
CASES = {  # problem, noise, alpha lambda, steps, runs
    "ReLU, dropout 0.1": (lambda: digits((24,), 60), zl.Dropout(0.1), 0.2, 470, 256),
    "ReLU, dropout 0.5": (lambda: digits((24,), 60), zl.Dropout(0.5), 0.2, 50, 256),
    "ReLU, weight noise 0.02": (lambda: digits((24,), 60), zl.WeightNoise(0.02), 0.2, 5_000, 64),
    "ReLU, label noise 0.2": (lambda: digits((24,), 30), zl.LabelNoise(0.2), 0.2, 60_000, 64),
    "tanh, two layers, dropout 0.1": (
        lambda: digits((24, 24), 60, "tanh"),
        zl.Dropout(0.1, at=BOTH),
        0.2,
        500,
        256,
    ),
    "ReLU, two layers, dropout 0.1": (lambda: digits((24, 24), 60), zl.Dropout(0.1, at=BOTH), 0.2, 500, 256),
    "tanh, stochastic depth 0.1": (
        residual,
        zl.DropPath(0.1, at=["branch_0", "branch_1"]),
        0.2,
        500,
        256,
    ),
}


def errors(case, smooth):
    """Error of the prediction, of the ensemble, the estimate, and the error with third derivatives."""
    make, noise, relative, steps, runs = case
    problem, start = make()
    system = problem.with_noise(noise)
    point = zl.project(system, start)
    step_size, saves = relative / float(largest_eigenvalue(system, point)), zl.Saves(steps, at=[steps])

    def flat(params, lead):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)

    trained = zl.descend(system, point, step_size, saves, key=jax.random.key(5), replicas=runs)
    moved = flat(trained.final, 1) - flat(point, 0)
    mean = moved.mean(axis=0)
    way = np.linalg.norm(mean)

    def error(path):
        return np.linalg.norm(flat(path.final, 0) - flat(point, 0) - mean) / way

    predicted = zl.predict(system, point, step_size, saves)
    found = [error(predicted), np.linalg.norm(moved.std(axis=0)) / runs**0.5 / way]
    found.append(predicted.uncertainty.total[-1])
    if smooth:
        kept, _predict.looks_smooth = _predict.looks_smooth, lambda *_: True
        try:
            found.append(error(zl.predict(system, point, step_size, saves)))
        except zl.errors.SpreadError as refused:
            found.append(error(refused.path))
        _predict.looks_smooth = kept
    return way / np.linalg.norm(flat(point, 0)), found


def main():
    """Print a line for each case, as soon as it is there."""
    names = [name for name in sys.argv[1:] if name != "--smooth"]
    for name, case in CASES.items():
        if names and name not in names:
            continue
        way, found = errors(case, "--smooth" in sys.argv)
        labels = ("error", "ensemble", "estimate", "third derivatives")
        text = ", ".join(f"{label} {100 * value:.1f}" for label, value in zip(labels, found, strict=False))
        print(f"{name:32s} way {way:.3f}: {text}", flush=True)


if __name__ == "__main__":
    main()
