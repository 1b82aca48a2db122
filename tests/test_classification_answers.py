"""Known answers for classifiers, and for dropout in deep linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import linprog

import zeroloss as zl
from zeroloss.errors import AccuracyWarning, InputError
from zeroloss.zero_sets import largest_eigenvalue

KEYS = jax.random.split(jax.random.key(8), 6)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def test_flipped_labels_solve_a_linear_program_on_the_quadratic_network():
    """Logistic loss of <u^2 - v^2, x>: at zero loss the logits are log (1 - p) / p, for either class.

    tr H = 4 p (1 - p) / N sum_j S_j (u_j^2 + v_j^2) with S_j = sum_i x_ij^2. Its least value for given
    coefficients is the l1 norm weighted by S, and the interpolators are those of a linear regression.
    """
    rate, examples, coefficients = 0.2, 4, 12
    inputs = jax.random.normal(KEYS[0], (examples, coefficients))
    labels = jnp.array([1.0, 0.0, 1.0, 1.0])

    def model(params, inputs):
        return inputs @ (params["u"] ** 2 - params["v"] ** 2)

    problem = zl.Supervised(model, inputs, labels, loss=zl.losses.Logistic())
    system = problem.with_noise(zl.FlippedLabels(rate))
    start = {"u": jnp.full(coefficients, 0.7), "v": jnp.full(coefficients, 0.7)}
    point = zl.project(system, start)
    verdict = zl.classify(system, point)
    assert verdict.name == "degenerate" and verdict.towards == "towards smaller tr H"
    logits = np.where(np.asarray(labels) > 0, 1, -1) * np.log((1 - rate) / rate)
    weights = np.tile((np.asarray(inputs) ** 2).sum(axis=0), 2)
    program = linprog(weights, A_eq=np.hstack([inputs, -np.asarray(inputs)]), b_eq=logits, bounds=(0, None))
    path = zl.limit(system, point, zl.Saves(at=[0.0, 300.0]))
    np.testing.assert_allclose(
        path.hessian_trace[-1], 4 * rate * (1 - rate) / examples * program.fun, rtol=1e-4
    )
    found = np.asarray(path.final["u"] ** 2 - path.final["v"] ** 2)
    np.testing.assert_allclose(found, program.x[:coefficients] - program.x[coefficients:], atol=2e-3)


@pytest.mark.parametrize("noise", [zl.SampledLabels(), zl.FlippedLabels(0.1)], ids=["drawn", "flipped"])
def test_labels_of_two_classes_have_the_covariance_of_the_curvature(noise):
    """Sigma = H / N, from draws; b = -1/(4N) P_T grad tr H with the curvature of the logistic loss."""
    inputs = jax.random.normal(KEYS[1], (5, 3))
    soft = isinstance(noise, zl.FlippedLabels)
    targets = jnp.array([1.0, 0, 1, 0, 0]) if soft else jnp.array([0.9, 0.2, 0.5, 0.3, 0.6])
    params = {"a": jax.random.normal(KEYS[2], (3, 6)), "c": jax.random.normal(KEYS[3], (6,)) / 2}

    def model(params, inputs):
        return jnp.tanh(inputs @ params["a"]) @ params["c"]

    system = zl.Supervised(model, inputs, targets, loss=zl.losses.Logistic()).with_noise(noise)
    point = zl.project(system, params)
    w, unravel = ravel_pytree(point)
    draws = jax.vmap(lambda key: ravel_pytree(system.noisy_gradient(point, key))[0])(
        jax.random.split(KEYS[4], 40_000)
    )
    hessian = np.asarray(jax.hessian(lambda w: system.clean_loss(unravel(w)))(w))
    sigma = np.cov(np.asarray(draws).T)
    assert np.linalg.norm(sigma - hessian / 5) < 0.03 * np.linalg.norm(hessian / 5)
    q = np.asarray(system.problem.targets)

    def trace(w):
        rows = jax.jacrev(lambda w: model(unravel(w), inputs))(w)
        return jnp.sum(q * (1 - q) * jnp.sum(rows**2, axis=1)) / 5

    rows = np.asarray(jax.jacrev(lambda w: model(unravel(w), inputs))(w))
    slope = np.asarray(jax.grad(trace)(w))
    along = slope - rows.T @ np.linalg.solve(rows @ rows.T, rows @ slope)
    np.testing.assert_allclose(flat(zl.drift(system, point).second), -along / 20, atol=1e-10)


def test_drawn_labels_at_a_large_step_size_warn():
    inputs = jax.random.normal(KEYS[1], (4, 3))
    params = jax.random.normal(KEYS[2], (3, 6)), jax.random.normal(KEYS[3], (6,))
    problem = zl.Supervised(
        lambda params, inputs: jnp.tanh(inputs @ params[0]) @ params[1],
        inputs,
        jnp.array([0.2, 0.7, 0.4, 0.5]),
        loss=zl.losses.Logistic(),
    )
    system = problem.with_noise(zl.SampledLabels())
    point = zl.project(system, params)
    step_size = 0.12 / float(largest_eigenvalue(system, point))
    with pytest.warns(AccuracyWarning, match=r"alpha lambda_max is 0\.12"):
        zl.predict(system, point, step_size, 10)
    with pytest.raises(InputError, match=r"probabilities of 1; they lie in \[-1, 1\]"):
        plain = zl.LeastSquares(lambda w, x: x * w, jnp.ones(2), jnp.array([-1.0, 1.0]))
        zl.classify(plain.with_noise(zl.SampledLabels()), jnp.ones(()))


def test_dropout_in_a_deep_linear_network():
    """R = Reg = 1/2N sum_ij |h_ij|^2 |column j of what follows|^2, a layer at a time, for three factors.

    For two factors that is at least |X W_1 W_2|_*^2 / (2 N n), n the hidden units, with equality where the n
    products are equal (Mianjy, Arora and Vidal 2018): the limit of dropout reaches it.
    """
    inputs = jax.random.normal(KEYS[0], (3, 5))
    targets = jax.random.normal(KEYS[1], (3, 2))
    layers = [
        jax.random.normal(key, shape) / 2
        for key, shape in zip(KEYS[2:], [(5, 4), (4, 4), (4, 2)], strict=False)
    ]

    def deep(params, inputs):
        hidden = zl.site(inputs @ params[0], "first")
        return zl.site(hidden @ params[1], "second") @ params[2]

    system = zl.LeastSquares(deep, inputs, targets).with_noise(zl.Dropout(0.1, at=["first", "second"]))
    point = zl.project(system, layers)
    first, second, last = (np.asarray(layer) for layer in point)
    hidden = np.asarray(inputs) @ first
    by_layer = [(hidden, second @ last), (hidden @ second, last)]
    expected = sum((h**2).sum(axis=0) @ (after**2).sum(axis=1) for h, after in by_layer) / 6
    assert float(zl.regularizer(system, point)) == pytest.approx(float(expected), rel=1e-12)
    assert not zl.classify(system, point).rare

    def shallow(params, inputs):
        return zl.site(inputs @ params[0], "hidden") @ params[2]

    system = zl.LeastSquares(shallow, inputs, targets).with_noise(zl.Dropout(0.1))
    point = zl.project(system, layers)
    bound = np.linalg.svd(np.asarray(targets))[1].sum() ** 2 / (2 * 3 * 4)
    path = zl.limit(system, point, zl.Saves(at=[0.0, 40.0]))
    assert path.regularizer[0] > 1.05 * bound
    assert path.regularizer[1] == pytest.approx(bound, rel=1e-6)
