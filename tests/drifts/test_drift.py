"""The drift against the dense reference, which shares nothing with the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree
from problems_for_tests import HYPERBOLA_POINT, flat, flat_noisy_loss, hyperbola_loss, network_problem

import zeroloss as zl
from zeroloss.errors import InputError, StabilityError

STEP_SIZES = [0.0, 0.05]


def surface_loss(w):
    return 0.5 * (w[0] * w[1] * w[2] - 1) ** 2


SURFACE_POINT = jnp.array([2.0, 0.5, 1.0])


def bounded_loss(w):
    """Not least squares: 1 - exp(-g^2)."""
    return 1 - jnp.exp(-((w[0] * w[1] + w[2] ** 2 - 2) ** 2))


BOUNDED_POINT = jnp.array([2.0, 0.5, 1.0])


def two_constraints(w):
    """Codimension 2 in 4 dimensions, two different eigenvalues, not least squares."""
    g1, g2 = w[0] * w[1] - w[2], w[1] + w[3] ** 2 - 2
    return 1 - jnp.exp(-(g1**2 + 2 * g2**2 + 0.5 * g1 * g2 + g1**3))


TWO_POINT = jnp.array([0.5, 1.0, 0.5, 1.0])

MIXING = jnp.array([[1.0, 0.3, -0.2, 0.7], [0.4, -0.8, 0.5, 0.1], [-0.3, 0.2, 0.9, -0.6]])


def with_tangential_noise(loss, d):
    """First-order noise with tangent and normal parts, and a second-order part."""

    def noisy(w, eta):
        return loss(w * (1 + 0.3 * eta)) + eta @ MIXING[:d, :d] @ jnp.sin(w)

    return zl.System(noisy, zl.Gaussian((d,), sigma=0.1))


LOSSES = {
    "hyperbola": (hyperbola_loss, HYPERBOLA_POINT),
    "surface": (surface_loss, SURFACE_POINT),
    "bounded": (bounded_loss, BOUNDED_POINT),
}

SYSTEMS = {
    **{f"{name}, weight": (zl.Loss(f).with_noise(zl.WeightNoise(0.1)), w) for name, (f, w) in LOSSES.items()},
    **{f"{name}, tangential": (with_tangential_noise(f, len(w)), w) for name, (f, w) in LOSSES.items()},
    "hyperbola, label": (
        zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta) ** 2, zl.Rademacher(())),
        HYPERBOLA_POINT,
    ),
    "hyperbola, dropconnect": (
        zl.System(lambda w, eta: hyperbola_loss(w * (1 + eta)), zl.Uniform((2,))),
        HYPERBOLA_POINT,
    ),
    "two constraints, weight": (zl.Loss(two_constraints).with_noise(zl.WeightNoise(0.1)), TWO_POINT),
    "two constraints, gradient": (
        zl.System(lambda w, eta: two_constraints(w) + eta @ MIXING @ w, zl.Gaussian((3,))),
        TWO_POINT,
    ),
}

NOISES = {
    "dropout": zl.Dropout(0.2, at="second"),
    "dropout at two sites": zl.GaussianDropout(0.5, at=["first", "second"]),
    "dropout per step": zl.GaussianDropout(0.5, at=["first", "second"], per="step"),
    "label": zl.LabelNoise(0.1),
    "weight": zl.WeightNoise(0.1),
    "dropout + label + weight": zl.Dropout(0.2, at="second") + zl.LabelNoise(0.3) + zl.WeightNoise(0.1),
    "label + dropout at different rates": zl.LabelNoise(0.1)
    + zl.GaussianDropout(0.5, at="first")
    + zl.Dropout(0.1, at="second"),
}


@pytest.fixture(scope="module")
def network():
    problem, params = network_problem()
    return problem, zl.project(problem.with_noise(zl.LabelNoise(0.1)), params)


def assert_equals_reference(system, point, step_size, covariance=None):
    noisy_loss, w, n = flat_noisy_loss(system, point)
    drift = zl.drift(system, point, step_size)
    first = reference.first_drift(noisy_loss, w, n)
    second = reference.second_drift(noisy_loss, w, n, step_size, covariance)
    assert float(zl.regularizer(system, point)) == pytest.approx(
        float(reference.regularizer(noisy_loss, w, n)), rel=1e-8
    )
    # where the exact drift is zero, zero is judged by what it is the difference of
    slope = np.linalg.norm(jax.grad(lambda w: reference.regularizer(noisy_loss, w, n))(w))
    assert np.linalg.norm(flat(drift.first) - first) <= 1e-8 * max(np.linalg.norm(first), 1e-3 * slope)
    assert np.linalg.norm(flat(drift.second) - second) <= 1e-8 * np.linalg.norm(second)
    return drift


@pytest.mark.parametrize("step_size", STEP_SIZES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_any_loss(name, step_size):
    system, point = SYSTEMS[name]
    assert_equals_reference(system, point, step_size)


@pytest.mark.parametrize("name", NOISES)
def test_network_with_two_outputs(network, name):
    """At step size 0; test_catalogue.py has the other noises, at a finite one."""
    problem, point = network
    assert_equals_reference(problem.with_noise(NOISES[name]), point, 0.0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_diffusion(name):
    system, point = SYSTEMS[name]
    noisy_loss, w, n = flat_noisy_loss(system, point)
    tangent = reference.projectors(noisy_loss, w, n)[2]
    expected = tangent @ reference.first_order_noise(noisy_loss, w, n)
    diffusion = zl.drift(system, point).diffusion.as_matrix()
    np.testing.assert_allclose(diffusion, expected, atol=1e-9 * np.linalg.norm(diffusion) + 1e-14)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("name", ["dropout at two sites", "label", "weight", "dropout per step"])
def test_minibatches_are_averaged_exactly(network, name, replace):
    problem, point = network
    noise, batch, number = NOISES[name], 2, problem.number
    system = problem.with_noise(zl.MiniBatch(batch, replace=replace) + noise)
    shared = noise.per == "step"

    def example_loss(w, eta, i):
        example = zl.LeastSquares(problem.model, problem.inputs[i : i + 1], problem.targets[i : i + 1])
        alone = example.with_noise(noise)
        law = alone.noise_law(point)
        _, unravel_noise = ravel_pytree(law.zeros())
        return alone.noisy_loss(unravel(w), law.unit(unravel_noise(eta)))

    w, unravel = ravel_pytree(point)
    one = zl.LeastSquares(problem.model, problem.inputs[:1], problem.targets[:1]).with_noise(noise)
    n = one.noise_law(point).size
    covariance = reference.minibatch_covariance(example_loss, w, number, n, batch, replace, shared)
    assert_equals_reference(system, point, 0.0, covariance)


@pytest.mark.parametrize("examples", [1, 3])
def test_label_noise_on_some_examples(network, examples):
    """Sigma by enumerating which have it; that of one is label noise of sigma N^(1/2), at any step size."""
    problem, point = network
    w, unravel = ravel_pytree(point)

    def example_loss(w, eta, i):
        outputs = problem.model(unravel(w), problem.inputs[i : i + 1])
        return jnp.sum((outputs - problem.targets[i : i + 1] - eta) ** 2) / 2

    # Noise of covariance I / n^2 times the Jacobian of each example drawn: that of a batch of n.
    covariance = reference.minibatch_covariance(example_loss, w, problem.number, 2, examples)
    system = problem.with_noise(zl.LabelNoise(0.1, examples=examples))
    noisy_loss, w, _ = flat_noisy_loss(problem.with_noise(zl.LabelNoise(0.1)), point)
    for step_size in (0.0, 0.1):
        second = flat(zl.drift(system, point, step_size).second)
        expected = reference.second_drift(noisy_loss, w, 8, step_size, covariance)
        assert np.linalg.norm(second - expected) <= 1e-8 * np.linalg.norm(expected)
        factor = (problem.number / examples) ** 0.5
        all_labels = flat(zl.drift(problem.with_noise(zl.LabelNoise(0.1 * factor)), point, step_size).second)
        difference = np.linalg.norm(second * 0.1**2 - all_labels * (0.1 * factor) ** 2)
        assert difference <= 1e-12 * 0.1**2 * np.linalg.norm(second)


def test_minibatch_and_label_noise_is_one_over_four_batch_sizes(network):
    problem, point = network
    system = problem.with_noise(zl.MiniBatch(2) + zl.LabelNoise(0.1))
    noisy_loss, w, n = flat_noisy_loss(problem.with_noise(zl.LabelNoise(0.1)), point)
    tangent = reference.projectors(noisy_loss, w, n)[2]
    slope = jax.grad(lambda w: jnp.trace(jax.hessian(lambda v: noisy_loss(v, jnp.zeros(n)))(w)))(w)
    expected = -tangent @ slope / (4 * 2)
    np.testing.assert_allclose(flat(zl.drift(system, point).second), expected, rtol=1e-8, atol=1e-10)


def test_label_noise_at_finite_step_size_follows_its_logarithmic_regularizer(network):
    """theory.md, section 5: -(1/(2 alpha N)) tr log(1 - alpha H / 2), H of rank m through K / N."""
    problem, point = network
    step_size = 0.1
    w, unravel = ravel_pytree(point)

    def regularizer(w):
        jacobian = jax.jacrev(lambda w: (problem.model(unravel(w), problem.inputs)).reshape(-1))(w)
        shrunk = jnp.eye(len(jacobian)) - step_size * jacobian @ jacobian.T / (2 * problem.number)
        return -jnp.linalg.slogdet(shrunk)[1] / (2 * step_size * problem.number)

    system = problem.with_noise(zl.LabelNoise(0.1))
    noisy_loss, w, n = flat_noisy_loss(system, point)
    tangent = reference.projectors(noisy_loss, w, n)[2]
    expected = -tangent @ jax.grad(regularizer)(w)
    computed = flat(zl.drift(system, point, step_size).second)
    np.testing.assert_allclose(computed, expected, rtol=1e-8, atol=1e-10)


def test_a_rank_small_against_the_dimension_needs_no_hessian():
    """24 parameters, codimension 3, not least squares: from Hessian-vector products alone."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], (3, 6))

    def bounded(params):
        residuals = jnp.tanh(inputs @ params["a"]) @ params["b"] - jnp.array([0.3, -0.2, 0.1])
        return jnp.sum(1 - jnp.exp(-(residuals**2) * jnp.array([1.0, 2.0, 0.5])))

    start = {"a": jax.random.normal(keys[1], (6, 3)), "b": jax.random.normal(keys[2], (3,))}
    for noise in (zl.WeightNoise(0.1), zl.Langevin(0.1)):
        system = zl.Loss(bounded).with_noise(noise)
        assert_equals_reference(system, zl.project(system, start), 0.02)


def test_under_jit_and_vmap():
    system = zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1))
    points = jnp.array([[2.0, 0.5], [4.0, 0.25]])
    together = jax.jit(jax.vmap(lambda w: zl.drift(system, w).second))(points)
    alone = jnp.stack([zl.drift(system, w).second for w in points])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda w: zl.regularizer(system, w))(points), [2.125, 8.03125])


def test_does_not_depend_on_sigma():
    drifts = [
        zl.drift(zl.Loss(surface_loss).with_noise(zl.WeightNoise(sigma)), SURFACE_POINT).first
        for sigma in (1e-3, 10.0)
    ]
    np.testing.assert_array_equal(*drifts)


def test_step_size_errors(network):
    system = zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1))
    with pytest.raises(StabilityError, match=r"2 / lambda_max = 0.470588: .* is 4.25"):
        zl.drift(system, HYPERBOLA_POINT, step_size=0.48)
    with pytest.raises(InputError, match="step_size must be >= 0"):
        zl.drift(system, HYPERBOLA_POINT, step_size=-0.1)
    problem, point = network
    batches = problem.with_noise(zl.MiniBatch(2) + zl.LabelNoise(0.1))
    with pytest.raises(InputError, match="random Hessian"):
        zl.drift(batches, point, step_size=0.1)
