"""The catalogue of noises, and sums of them: drift and diffusion against the dense reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from catalogue import ENTRIES, SOFT, TANH, simulate, system_and_point
from jax.flatten_util import ravel_pytree
from problems_for_tests import flat, flat_noisy_loss

import zeroloss as zl
from zeroloss.errors import InputError

STEP_SIZE = 0.05
THIRD: dict = {}

VERDICTS = {  # others are in test_verdict.py
    "input noise": ("non-degenerate", False),
    "weight noise with a covariance": ("non-degenerate", False),
    "custom: own law": ("non-degenerate", False),
    "Gaussian DropConnect + input + minibatch": ("non-degenerate", False),
    "label noise with a covariance": ("degenerate", False),
    "label noise on one example": ("degenerate", False),
    "label noise with a covariance on two examples": ("degenerate", False),
    "amplified minibatch + label": ("degenerate", False),
    "minibatch + sampled labels": ("degenerate", False),
    "Langevin with a covariance": ("degenerate", True),
    "label + Langevin": ("degenerate", True),
    "minibatch + Langevin": ("degenerate", True),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_drift_and_diffusion(name):
    system, point = system_and_point(name)
    step_size, covariance = STEP_SIZE, None
    if system.minibatch is not None:  # at a finite step size the batch has a Hessian of its own
        step_size, covariance = 0.0, _covariance_over_batches(system, point)
    noisy_loss, w, n = flat_noisy_loss(system, point)
    maker = ENTRIES[name][0]
    if maker not in THIRD:  # it depends on the clean loss alone, and so does the point
        THIRD[maker] = w, reference.third_derivative(noisy_loss, w, n)
    np.testing.assert_array_equal(w, THIRD[maker][0])
    drift = zl.drift(system, point, step_size)
    first = reference.first_drift(noisy_loss, w, n)
    second = reference.second_drift(noisy_loss, w, n, step_size, covariance, third=THIRD[maker][1])
    scale = np.linalg.norm(jax.jit(jax.grad(lambda w: reference.regularizer(noisy_loss, w, n)))(w))
    assert np.linalg.norm(flat(drift.first) - first) <= 1e-8 * max(np.linalg.norm(first), 1e-3 * scale)
    assert np.linalg.norm(flat(drift.second) - second) <= 1e-8 * np.linalg.norm(second)
    tangent = reference.projectors(noisy_loss, w, n)[2]
    moving = tangent @ reference.first_order_noise(noisy_loss, w, n)
    expected = moving @ moving.T
    if drift.diffusion is None:
        assert np.linalg.norm(expected) <= 1e-14 * np.linalg.norm(second)
    else:
        matrix = np.asarray(drift.diffusion.as_matrix())
        assert np.linalg.norm(matrix @ matrix.T - expected) <= 1e-8 * np.linalg.norm(expected)


def _covariance_over_batches(system, point):
    """Sigma by enumerating all batches; noise on the gradient does not care for them."""
    problem, w = system.problem, ravel_pytree(point)[0]
    unravel = ravel_pytree(point)[1]
    total = np.zeros((len(w), len(w)))
    reference_law = system.noise_law(point)
    for index, noise in enumerate(system.injections):
        ratio = (reference_law.laws[index].sigma / reference_law.sigma) ** 2
        alone = problem.with_noise(noise)
        if index in system.force_injections(point):
            factor = reference.first_order_noise(*flat_noisy_loss(alone, point))
            total += ratio * factor @ factor.T
            continue

        def example_loss(w, eta, i, noise=noise):
            one = zl.LeastSquares(problem.model, problem.inputs[i : i + 1], problem.targets[i : i + 1])
            one = one.with_noise(noise)
            law = one.noise_law(unravel(w))
            return one.noisy_loss(unravel(w), law.unit(ravel_pytree(law.zeros())[1](eta)))

        first = zl.LeastSquares(problem.model, problem.inputs[:1], problem.targets[:1]).with_noise(noise)
        size, shared = first.noise_law(point).size, noise.per == "step"
        batch, strength = system.minibatch.size, system.minibatch.strength
        total += ratio * reference.minibatch_covariance(
            example_loss, w, problem.number, size, batch, shared=shared, strength=strength
        )
    return total


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name):
    system, point = system_and_point(name)
    verdict = zl.classify(system, point)
    assert (verdict.name, verdict.stochastic) == VERDICTS[name]
    assert verdict.margin > 100 and not verdict.rare and verdict.smooth


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "DropConnect",
        "label + Langevin",
        "minibatch + sampled labels",
        "label noise on one example",
        "amplified minibatch + label",
    ],
)
def test_training_makes_the_drift(name):
    """Extrapolated to step size zero; the other entries are run by benchmarks/catalogue.py."""
    _, _, _, progress, error = simulate(name, replicas=96)
    assert abs(progress - 1) <= 3 * error
    assert error < 0.2


def test_a_sum_keeps_each_sigma():
    problem, params = TANH()
    system = problem.with_noise(zl.LabelNoise(0.5) + zl.Langevin(0.1))
    point = zl.project(system, params)
    together = zl.drift(system, point)
    label = zl.drift(problem.with_noise(zl.LabelNoise(0.5)), point)
    langevin = zl.drift(problem.with_noise(zl.Langevin(0.1)), point)
    np.testing.assert_allclose(
        flat(together.second), flat(label.second) + 0.04 * flat(langevin.second), rtol=1e-9, atol=1e-12
    )
    xi = langevin.diffusion.in_structure()
    xi = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), xi)
    np.testing.assert_allclose(
        flat(together.diffusion.mv(xi)), 0.2 * flat(langevin.diffusion.mv(xi)), rtol=1e-9, atol=1e-12
    )


def test_diffusion_is_an_operator_between_pytrees():
    problem, params = TANH()
    system = problem.with_noise(zl.Langevin(0.1, where=lambda p: p["b"]))
    diffusion = zl.drift(system, zl.project(system, params)).diffusion
    (xi,) = diffusion.in_structure()
    assert [leaf.shape for leaf in xi] == [(4, 3)]
    moved = diffusion.mv(([jnp.ones((4, 3))],))
    assert moved.keys() == params.keys() and moved["a"].shape == (5, 4)
    back = diffusion.T.mv(moved)
    matrix = diffusion.as_matrix()
    np.testing.assert_allclose(flat(back), matrix.T @ (matrix @ np.ones(12)), rtol=1e-10)


def test_a_noise_that_pushes_does_nothing_else():
    problem, params = TANH()

    def both(forward, eta):
        return forward.push(jax.tree.map(lambda leaf: eta * leaf, forward.params)).replace(
            targets=forward.targets + eta
        )

    system = problem.with_noise(zl.CustomNoise(both, zl.Gaussian((), 0.1), per="step"))
    with pytest.raises(InputError, match="also changes its targets"):
        zl.classify(system, zl.project(problem.with_noise(zl.LabelNoise(0.1)), params))


def test_soft_targets_must_be_probabilities():
    problem, params = SOFT()
    wrong = zl.LeastSquares(problem.model, problem.inputs, 2 * problem.targets)
    with pytest.raises(InputError, match="summing to 1"):
        zl.project(wrong.with_noise(zl.SampledLabels()), params)
