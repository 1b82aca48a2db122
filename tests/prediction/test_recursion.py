"""Many steps at once against steps one by one, and covariances against a dense Lyapunov solver."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

from zeroloss.optimizers import SGD
from zeroloss.prediction._recursion import decay_of, geometric, responses

ALPHA = 0.3
RULES = [(0.0, False), (0.9, False), (0.9, True), (0.5, True)]


def step_matrix(curvature, beta, nesterov):
    """(x, v) after one step without force, and what a unit force adds."""
    if nesterov:
        matrix = [[1 - ALPHA * (1 + beta) * curvature, -ALPHA * beta**2], [curvature, beta]]
        return np.array(matrix), np.array([-ALPHA * (1 + beta), 1.0])
    return np.array([[1 - ALPHA * curvature, -ALPHA * beta], [curvature, beta]]), np.array([-ALPHA, 1.0])


@pytest.mark.parametrize("beta,nesterov", RULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_responses_are_steps_taken_one_by_one(beta, nesterov, steps):
    curvatures = np.array([0.0, 1e-6, 0.1, 1.0, 3.0, 4.0])
    position, velocity = responses(
        SGD(ALPHA, momentum=beta, nesterov=nesterov),
        jnp.asarray(ALPHA),
        jnp.asarray(curvatures),
        jnp.asarray(steps),
    )
    for index, curvature in enumerate(curvatures):
        matrix, force = step_matrix(curvature, beta, nesterov)
        for name, start, constant, ramp in (("velocity", 1, 0, 0), ("force", 0, 1, 0), ("ramp", 0, 0, 1)):
            state = np.array([0.0, start])
            for j in range(steps):
                state = matrix @ state + force * (constant + ramp * j / steps)
            found = [getattr(each, name)[index] for each in (position, velocity)]
            np.testing.assert_allclose(found, state, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta,nesterov", RULES)
def test_stationary_covariance(beta, nesterov):
    curvatures = np.array([0.05, 0.7, 2.5])
    noise = np.array([[1, 0.3, 0.2], [0.3, 2, 0.1], [0.2, 0.1, 1]])
    law = decay_of(SGD(ALPHA, momentum=beta, nesterov=nesterov), jnp.asarray(ALPHA), jnp.asarray(curvatures))
    whole, into = np.zeros((6, 6)), np.zeros((6, 3))
    for index, curvature in enumerate(curvatures):
        matrix, force = step_matrix(curvature, beta, nesterov)
        whole[np.ix_([index, 3 + index], [index, 3 + index])] = matrix
        into[[index, 3 + index], index] = force
    expected = solve_discrete_lyapunov(whole, into @ noise @ into.T)[:3, :3]
    np.testing.assert_allclose(law.gain / law.rate * noise, expected, rtol=1e-9)


def test_covariance_along_flat_directions_grows_like_a_random_walk():
    """In a direction of no curvature each step's noise stays: alpha^2 / (1 - beta)^2."""
    for beta in (0.0, 0.9):
        law = decay_of(SGD(ALPHA, momentum=beta), jnp.asarray(ALPHA), jnp.array([0.0, 1e-14]))
        np.testing.assert_allclose(law.gain, ALPHA**2 / (1 - beta) ** 2, rtol=1e-6)
        np.testing.assert_allclose(law.rate, 0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 1000])
def test_geometric_sums(steps):
    rates = np.array([-1e-5, 0.0, 1e-9, 1e-4, 0.3, 1.0, 1.4])
    found = geometric(jnp.asarray(rates), jnp.asarray(steps))
    j = np.arange(steps)
    powers = (1 - rates)[:, None] ** (steps - 1 - j)
    np.testing.assert_allclose(found.power, (1 - rates) ** steps, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.constant, powers.sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.ramp, powers @ (j / steps), rtol=1e-7, atol=1e-9)
