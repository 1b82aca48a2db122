"""Bernoulli masks in which the loss is not quadratic: the limit of rare full drops (theory.md, section 4).

References drop one unit at a time in a model written without sites.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import zeroloss as zl
from zeroloss.drifts import LeastSquaresExpansion, RareMaskExpansion, expand_at
from zeroloss.dynamics import _limit
from zeroloss.errors import InputError
from zeroloss.zero_sets import locate

EXAMPLES, UNITS = 6, 5
KEYS = jax.random.split(jax.random.key(4), 6)
INPUTS = jax.random.normal(KEYS[0], (EXAMPLES, 3))
PARAMS = {
    "a": jax.random.normal(KEYS[1], (3, UNITS)),
    "b": jax.random.normal(KEYS[2], (UNITS, UNITS)) / 2,
    "c": jax.random.normal(KEYS[3], (UNITS, 2)) / 2,
}


def masked(params, first=1.0, second=1.0):
    """The outputs with each layer of hidden units multiplied by a mask."""
    hidden = jnp.tanh(INPUTS @ params["a"]) * first
    return (jnp.tanh(hidden @ params["b"]) * second) @ params["c"]


def model(params, inputs):
    hidden = zl.site(jnp.tanh(inputs @ params["a"]), "first")
    return zl.site(jnp.tanh(hidden @ params["b"]), "second") @ params["c"]


SQUARES = zl.LeastSquares(model, INPUTS, jax.random.normal(KEYS[4], (EXAMPLES, 2)) / 2)
CLASSES = zl.Supervised(
    model,
    INPUTS,
    jax.nn.softmax(jax.random.normal(KEYS[5], (EXAMPLES, 2))),
    loss=zl.losses.SoftmaxCrossEntropy(),
)


def losses(problem, params, **masks):
    """The loss of each example over N, so that they add up to the loss."""
    outputs = masked(params, **masks)
    return (problem.loss_function.values(outputs, problem.targets) - problem.minimum.constant) / EXAMPLES


def drops(problem, unravel, name):
    """w -> the losses of each example with each of its units dropped alone."""

    def at(w):
        keep = 1 - jnp.eye(UNITS)
        return jnp.concatenate([losses(problem, unravel(w), **{name: row}) for row in keep])

    return at


def located(problem, noise):
    system = problem.with_noise(noise)
    point = zl.project(system, PARAMS)
    zero_set, w = locate(system, point)
    return system, point, zero_set, w


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize(
    "problem,site", [(SQUARES, "first"), (CLASSES, "first"), (CLASSES, "second")], ids=["squares", "1", "2"]
)
@pytest.mark.parametrize("per", ["example", "step"])
def test_regularizer_and_first_drift(problem, site, per):
    system, point, zero_set, w = located(problem, zl.Dropout(0.01, at=site, per=per))
    at = drops(problem, zero_set.unravel, site)
    assert float(zl.regularizer(system, point)) == pytest.approx(float(at(w).sum()), rel=1e-12)
    expected = -zero_set.spaces(w).tangent(jax.grad(lambda w: at(w).sum())(w))
    found = flat(zl.drift(system, point).first)
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.linalg.norm(expected))


def test_branches_are_dropped_whole():
    """Stochastic depth: R = sum_i of the losses without each of two residual branches."""

    def residual(params, inputs, keep=(1.0, 1.0), mark=lambda value, name: value):
        hidden = jnp.tanh(inputs @ params["a"])
        hidden = hidden + mark(jnp.tanh(hidden @ params["b"]), "one") * keep[0]
        hidden = hidden + mark(jnp.tanh(hidden @ params["b"].T), "two") * keep[1]
        return hidden @ params["c"]

    problem = zl.LeastSquares(
        lambda params, inputs: residual(params, inputs, mark=zl.site), INPUTS, SQUARES.targets
    )
    system = problem.with_noise(zl.DropPath(0.1, at=["one", "two"]))
    point = zl.project(system, PARAMS)
    expected = sum(
        jnp.sum((residual(point, INPUTS, keep) - SQUARES.targets) ** 2) / (2 * EXAMPLES)
        for keep in ((0.0, 1.0), (1.0, 0.0))
    )
    assert float(zl.regularizer(system, point)) == pytest.approx(float(expected), rel=1e-10)
    assert zl.classify(system, point).rare


def test_masks_in_which_the_loss_is_quadratic_are_small_noise():
    system, _, zero_set, w = located(SQUARES, zl.Dropout(0.01, at="second"))
    assert isinstance(expand_at(system, zero_set, w), LeastSquaresExpansion)
    system, _, zero_set, w = located(SQUARES, zl.GaussianDropout(0.1, at="first"))
    assert isinstance(expand_at(system, zero_set, w), LeastSquaresExpansion)


def test_sums_weigh_their_parts():
    """Each part counts with the square of its sigma over the first one's."""
    rates = {"first": 0.01, "second": 0.03}
    rare = [zl.Dropout(rate, at=site) for site, rate in rates.items()]
    system, point, zero_set, w = located(SQUARES, rare[0] + zl.WeightNoise(0.2) + rare[1])
    odds = [rate / (1 - rate) for rate in rates.values()]
    parts = [float(zl.regularizer(SQUARES.with_noise(each), point)) for each in (*rare, zl.WeightNoise(0.2))]
    expected = parts[0] + odds[1] / odds[0] * parts[1] + 0.2**2 / odds[0] * parts[2]
    assert isinstance(expand_at(system, zero_set, w), RareMaskExpansion)
    assert float(zl.regularizer(system, point)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("per,batch", [("example", None), ("example", 2), ("step", None)])
def test_second_drift_is_that_of_the_gradients_of_drops(per, batch):
    """-P_T (T[H^+ P_N Sigma P_T] + 1/2 T[C]) with Sigma from the columns grad L_hat(w, -e) - grad L(w)."""
    noise = zl.Dropout(0.01, at="first", per=per)
    system, point, zero_set, w = located(SQUARES, noise if batch is None else noise + zl.MiniBatch(batch))
    columns = jax.jacrev(drops(SQUARES, zero_set.unravel, "first"))(w)  # on the set the clean gradient is 0
    if per == "step":
        columns = columns.reshape(UNITS, EXAMPLES, -1).sum(axis=1)
    sigma = columns.T @ columns * (1 if batch is None else EXAMPLES / batch)
    values, vectors = np.linalg.eigh(jax.hessian(zero_set.loss)(w))
    normal, values = vectors[:, -2 * EXAMPLES :], values[-2 * EXAMPLES :]
    inner = normal.T @ sigma @ normal / (values[:, None] + values)
    tangent = np.eye(len(w)) - normal @ normal.T
    matrix = normal / values @ normal.T @ sigma @ tangent + normal @ inner @ normal.T / 2
    slope = jax.grad(lambda w: jnp.sum(matrix * jax.hessian(zero_set.loss)(w)))(w)
    found = zl.drift(system, point)
    np.testing.assert_allclose(
        tangent @ flat(found.second), -tangent @ slope, atol=1e-6 * np.linalg.norm(slope)
    )
    assert found.diffusion is not None
    factor = np.stack([flat(row) for row in _columns(found.diffusion)], axis=1)
    np.testing.assert_allclose(
        factor @ factor.T, tangent @ sigma @ tangent, atol=1e-9 * np.linalg.norm(sigma)
    )


def _columns(operator):
    zero, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), operator.in_structure()))
    return [operator.mv(unravel(row)) for row in jnp.eye(len(zero))]


@pytest.mark.parametrize("problem", [SQUARES, CLASSES], ids=["squares", "classes"])
def test_estimates_from_every_unit_are_exact(problem):
    system, _, zero_set, w = located(problem, zl.Dropout(0.01, at="first"))
    expansion = expand_at(system, zero_set, w)
    assert isinstance(expansion, RareMaskExpansion)
    sampled = expansion.sampled(w, (expansion.masks[0].all_units(w),))
    for function in (lambda each: each.regularizer(w), lambda each: jax.grad(each.regularizer)(w)):
        one, other = function(expansion), function(sampled)
        if jnp.ndim(one):
            one, other = map(zero_set.spaces(w).tangent, (one, other))
        np.testing.assert_allclose(one, other, atol=1e-11 * np.linalg.norm(one))


def test_dropconnect_of_a_loss_without_examples():
    """R = sum_j [L(w without w_j) + w_j d_j L(w)] of a loss of fourth order."""

    def loss(w):
        return 0.5 * (w[0] * w[1] ** 2 + w[2] ** 3 - 1) ** 2

    system = zl.Loss(loss).with_noise(zl.DropConnect(0.01))
    point = zl.project(system, jnp.array([0.8, 0.9, 0.7]))
    expected = sum(loss(point.at[j].set(0.0)) for j in range(3))
    assert float(zl.regularizer(system, point)) == pytest.approx(float(expected), rel=1e-12)
    by_hand = zl.System(lambda w, eta: loss(w * (1 + eta)), zl.TwoPoint((3,), 0.01))
    np.testing.assert_allclose(zl.drift(by_hand, point).first, zl.drift(system, point).first, rtol=1e-12)
    assert zl.classify(system, point).rare and zl.classify(by_hand, point).rare


def test_the_limit_is_the_small_rate_of_training():
    """Gradient descent on the mean loss of single drops comes to the limit linearly in their rate."""
    system, point, zero_set, w = located(SQUARES, zl.Dropout(0.01, at="first"))
    at = drops(SQUARES, zero_set.unravel, "first")
    t1 = 0.1 * np.linalg.norm(w) / np.linalg.norm(flat(zl.drift(system, point).first))
    end = flat(zl.limit(system, point, zl.Saves(at=[t1])).final) - w
    step_size = 0.5 / float(zl.zero_sets.largest_eigenvalue(system, point))

    def gap(odds):
        gradient = jax.grad(lambda w: zero_set.loss(w) + odds * at(w).sum())
        steps = round(t1 / (step_size * odds))
        trained = jax.lax.fori_loop(0, steps, lambda _, w: w - step_size * gradient(w), w)
        return np.linalg.norm(trained - w - end) / np.linalg.norm(end)

    gaps = [gap(odds) for odds in (2e-3, 2e-4)]
    assert gaps[0] < 0.2 and gaps[1] < 0.15 * gaps[0]


def test_many_units_are_drawn(monkeypatch):
    system, point, _, w = located(SQUARES, zl.Dropout(0.01, at="first"))
    t1 = 0.2 * np.linalg.norm(w) / np.linalg.norm(flat(zl.drift(system, point).first))
    exact = flat(zl.limit(system, point, zl.Saves(at=[t1]), rtol=1e-6).final)
    with pytest.raises(InputError, match="dt makes sense for a stochastic limit only"):
        zl.limit(system, point, t1, dt=t1 / 10)
    monkeypatch.setattr(_limit, "_EXACT", UNITS - 1)
    path = zl.limit(system, point, zl.Saves(at=[0.0, t1]), key=jax.random.key(1))
    error = np.linalg.norm(flat(path.final) - exact) / np.linalg.norm(exact - w)
    assert path.uncertainty is not None and path.uncertainty.sampling[0] == 0
    assert error < 3 * path.uncertainty.sampling[1] and path.uncertainty.sampling[1] < 0.05
    assert path.loss[1] < 1e-16 and path.uncertainty.measured["regularizer"][1] > 0
    again = zl.limit(system, point, zl.Saves(at=[0.0, t1]), key=jax.random.key(1))
    np.testing.assert_array_equal(flat(again.final), flat(path.final))
