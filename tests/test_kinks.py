"""Losses with kinks, such as those of ReLU units (theory.md, section 9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import zeroloss as zl
from zeroloss.zero_sets import largest_eigenvalue
from zeroloss.zero_sets._switches import sides

DIGITS = zl.problems.digits(widths=(12,), examples=30, activation="relu")


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def flat_path(path):
    leaves = jax.tree.leaves(path.params)
    return np.concatenate([np.asarray(leaf).reshape(*path.loss.shape, -1) for leaf in leaves], axis=-1)


@pytest.mark.parametrize(
    "function,inputs,expected",
    [
        (jax.nn.relu, [1.0, -1.0], [1, 0]),
        (jax.nn.leaky_relu, [1.0, -1.0], [1, 0]),
        (lambda x: jnp.where(x > 0, x, 2 * x), [1.0, -1.0], [1, 0]),
        (jnp.abs, [-2.0, 3.0], [0, 1]),
        (lambda x: jnp.clip(x, 0.0, 1.0), [-1.0, 0.5, 2.0], [1, 0, 0, 1, 1, 0]),
        (jnp.max, [1.0, 3.0, 2.0], [0, 1, 0]),
        (jax.jit(jax.nn.hard_tanh), [0.5], [0, 0]),
        (jnp.tanh, [0.5], []),
        (jax.checkpoint(jax.nn.relu), [0.5], [1]),  # pyright: ignore
        (
            lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), "VALID"),
            [1.0, 2.0, 4.0, 3.0],
            [0, 1, 1, 0],
        ),
    ],
    ids=["relu", "leaky", "where", "abs", "clip", "max", "jit", "smooth", "checkpoint", "pooling"],
)
def test_units_are_found_in_the_traced_model(function, inputs, expected):
    found = np.asarray(sides(function, jnp.array(inputs))).astype(int).tolist()
    if len(expected) == 2 * len(inputs):  # a unit between two kinks has one of them at a time
        assert len(found) == 2 * len(inputs)
    else:
        assert found == expected


def test_a_limit_counts_switches_and_gives_the_error_of_its_steps():
    system = DIGITS.problem.with_noise(zl.Dropout(0.05))
    point = zl.project(system, DIGITS.start)
    start = flat(point)
    t1 = 0.2 * np.linalg.norm(start) / np.linalg.norm(flat(zl.drift(system, point).first))
    path = zl.limit(system, point, zl.Saves(t1, count=3))
    assert path.switched is not None and path.uncertainty is not None

    def hidden(params):
        return np.asarray(DIGITS.problem.inputs @ params[0]["weights"] + params[0]["biases"]) > 0

    by_hand = [
        np.sum(hidden(jax.tree.map(lambda leaf, i=i: leaf[i], path.params)) != hidden(point))
        for i in range(3)
    ]
    np.testing.assert_array_equal(path.switched, by_hand)
    assert by_hand[0] == 0 < by_hand[2]
    assert path.uncertainty.integration[0] == 0 < path.uncertainty.integration[2] < 0.01
    finer = zl.limit(system, point, zl.Saves(t1, count=3), rtol=1e-6)  # the shortest step stays
    gap = np.linalg.norm(flat(finer.final) - flat(path.final)) / np.linalg.norm(flat(path.final) - start)
    assert gap < 3 * path.uncertainty.integration[2]
    smooth = zl.problems.digits(widths=(12,), examples=30)
    system = smooth.problem.with_noise(zl.Dropout(0.05))
    path = zl.limit(system, zl.project(system, smooth.start), t1)
    assert path.switched is None and path.uncertainty is None


def _at(path, index):
    """The parameters at one of the times saved."""
    return jax.tree.map(lambda leaf: leaf[index], path.params)


def prediction_and_training(noise, relative, steps, replicas):
    """The error of a prediction, that of the ensemble, and its own estimate, in shares of the way."""
    system = DIGITS.problem.with_noise(noise)
    point = zl.project(system, DIGITS.start)
    step_size = relative / float(largest_eigenvalue(system, point))
    saves = zl.Saves(steps, at=[steps])
    predicted = zl.predict(system, point, step_size, saves)
    trained = zl.descend(system, point, step_size, saves, key=jax.random.key(3), replicas=replicas)
    moved = flat_path(trained)[:, 0] - flat(point)
    way = np.linalg.norm(moved.mean(axis=0))
    error = np.linalg.norm(flat_path(predicted)[0] - flat(point) - moved.mean(axis=0)) / way
    assert predicted.uncertainty is not None and predicted.switched is not None and predicted.switched[0] > 0
    ensemble = np.linalg.norm(moved.std(axis=0)) / replicas**0.5 / way
    return error, ensemble, predicted.uncertainty.total[0]


def test_dropout_is_predicted_within_its_estimate():
    error, ensemble, estimate = prediction_and_training(zl.Dropout(0.1), 0.2, 600, 256)
    assert error < 0.02 + ensemble and error < 2 * (estimate + ensemble) and estimate < 0.03


@pytest.mark.ensemble
def test_label_noise_is_predicted_within_its_estimate():
    """Third derivatives almost everywhere are off by a quarter; averages over fluctuations by 5 to 10 %."""
    error, ensemble, estimate = prediction_and_training(zl.LabelNoise(0.2), 0.2, 60_000, 64)
    assert error < 0.1 + ensemble and error < 2 * (estimate + ensemble) and estimate < 0.15
