"""Real data: training against its limit, and the gap against what theory.md, section 5, expects."""

import agreement
import jax
import numpy as np
import pytest
from problems_for_tests import flat

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.zero_sets import GramZeroSet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return agreement.start()


@pytest.fixture(scope="module")
def spectrum(digits):
    named, point, _ = digits
    w, unravel = flatten(point)
    zero_set = GramZeroSet(named.problem, unravel)
    return np.asarray(zero_set.spectrum(w).eigenvalues), np.asarray(zero_set.jacobians.at(w).matrix)


def scatter(found):
    """How far the mean of an ensemble strays from its expectation: three standard errors of a squared
    norm with some 200 independent components, one for each normal direction."""
    return found.ensemble * (3 * (2 / 200) ** 0.5) ** 0.5


@pytest.mark.ensemble
def test_label_noise(digits, spectrum):
    """The gap is that of the Stein equation, but for the time the slowest directions take to settle."""
    smallest = spectrum[0].min()
    gaps = []
    for fraction, sigma, t1, replicas in ((0.5, 0.1, 0.5, 8), (0.1, 0.3, 0.25, 8)):
        case = agreement.Case("label", zl.LabelNoise(sigma), fraction, t1, replicas)
        found = agreement.measure(case, *digits)
        settling = 1 / (2 * found.step_size * smallest) / found.steps
        assert found.unexplained < scatter(found) + settling
        assert abs(found.measured - found.expected) < scatter(found) + settling
        gaps.append((found.measured, found.expected, scatter(found)))
    (far, far_expected, _), (near, near_expected, error) = gaps
    assert near_expected < far_expected / 3
    assert near < far + error


@pytest.mark.ensemble
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_dropout(digits, rate):
    """The gap is that of the averaged loss, but for the second scale, which is smaller by alpha."""
    named, point, _ = digits
    noise = named.noises["dropout"](rate)
    drift = zl.drift(named.problem.with_noise(noise), point)
    share = np.linalg.norm(flat(drift.second)) / np.linalg.norm(flat(drift.first))
    left = []
    for fraction in (0.5, 0.1):
        found = agreement.measure(agreement.Case("dropout", noise, fraction, 1.0, 8), *digits)
        assert found.unexplained < scatter(found) + found.step_size * share
        assert abs(found.measured - found.expected) < scatter(found) + found.step_size * share
        left.append((found.unexplained, scatter(found)))
    assert left[1][0] < left[0][0] + left[1][1]


@pytest.mark.ensemble
def test_dropout_gets_closer_as_its_rate_falls(digits):
    named = digits[0]
    gaps = [
        agreement.measure(agreement.Case("dropout", named.noises["dropout"](rate), 0.5, 2.0, 4), *digits)
        for rate in (0.05, 0.01, 0.002)
    ]
    assert gaps[0].measured > 2 * gaps[1].measured > 4 * gaps[2].measured


@pytest.mark.ensemble
def test_minibatches_with_label_noise_follow_one_over_four_batch_sizes(digits, spectrum):
    """N / B times the drift of label noise; left out is the random Hessian, of order alpha K_ii / B."""
    _, jacobian = spectrum
    batch = 32
    noise = zl.MiniBatch(batch) + zl.LabelNoise(0.3)
    found = agreement.measure(agreement.Case("batch", noise, 0.1, 0.25, 8), *digits)
    random_hessian = found.step_size * float((jacobian**2).sum(axis=1).max()) / batch
    assert found.measured < 0.1 / 2 + random_hessian + scatter(found)
    named, point, _ = digits
    alone, batched = (
        flat(zl.drift(named.problem.with_noise(n), point).second) for n in (zl.LabelNoise(0.3), noise)
    )
    np.testing.assert_allclose(batched, 200 / batch * alone, rtol=1e-9, atol=1e-12)


def test_minibatches_alone_do_not_move(digits):
    named, point, largest = digits
    system = named.problem.with_noise(zl.MiniBatch(32))
    path = zl.descend(
        system, point, 0.5 / largest, zl.Saves(20_000, count=2), key=jax.random.key(0), replicas=2
    )
    start, end = flat(point), np.asarray(jax.vmap(lambda p: flatten(p)[0])(path.final))
    assert np.linalg.norm(end - start, axis=1).max() < 1e-14 * np.linalg.norm(start)


def test_duplicated_digits(digits):
    """Redundant residuals: K is singular, the set is as fine as before."""
    named, point, _ = digits
    problem = named.problem
    repeated = zl.LeastSquares(
        problem.model,
        np.concatenate([problem.inputs, problem.inputs[:50]]),
        np.concatenate([problem.targets, problem.targets[:50]]),
    ).with_noise(zl.LabelNoise(0.1))
    verdict = zl.classify(repeated, point)
    assert verdict.name == "degenerate" and verdict.codimension == 200
    path = zl.limit(repeated, point, zl.Saves(1.0, count=3))
    assert path.loss.max() < 1e-16 and path.hessian_trace[-1] < path.hessian_trace[0]
