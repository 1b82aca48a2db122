"""Stochastic limits against exact laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from problems_for_tests import HYPERBOLA_POINT, hyperbola_loss

import zeroloss as zl
from zeroloss.errors import InputError, IntegrationError

HYPERBOLA = zl.Loss(hyperbola_loss)
ELLIPSE = zl.LeastSquares(lambda w, x: (w[0] ** 2 / 4 + w[1] ** 2) * x, jnp.ones(1), jnp.ones(1))
TIP = jnp.array([2.0, 0.0])
LOG_RATIO = {"q": lambda w: jnp.log(w[0] / w[1])}
SQUARE = {"square": lambda w: w[0] ** 2}


def expectation(drift, variance, nodes, function, start, t):
    """E f(X_t) for dX = drift dt + sqrt(variance) dB from `start`, by the backward equation on a grid."""
    h, count = nodes[1] - nodes[0], len(nodes)
    generator = np.zeros((count, count))
    for i in range(1, count - 1):
        generator[i, i - 1 : i + 2] = variance(nodes[i]) / (2 * h**2) * np.array([1, -2, 1]) + drift(
            nodes[i]
        ) / (2 * h) * np.array([-1, 0, 1])
    values = scipy.linalg.expm(t * generator) @ function(nodes)
    return np.interp(start, nodes, values)


def on_the_hyperbola(s, covariance):
    """Drift and variance rate of s on w = (e^s, e^-s) under gradient noise of the given covariance.

    The gradient flow of L keeps w_1^2 - w_2^2 = 2 sinh 2s, so this defines s, the limit of that flow, beside
    the set too; Katzenberger (1991): the drift of s is half its Laplacian with respect to the covariance.
    """
    w = np.array([np.exp(s), np.exp(-s)])
    c, sign = 2 * np.cosh(2 * s), np.array([1.0, -1.0])
    gradient = sign * w / c
    hessian = np.diag(sign) / c - 4 * np.sinh(2 * s) / c * np.outer(gradient, gradient)
    return np.sum(hessian * covariance) / 2, gradient @ covariance @ gradient


@pytest.mark.parametrize("one_dimensional", [True, False])
def test_gradient_noise_on_the_hyperbola(one_dimensional):
    """Mean and standard deviation of log(w_1 / w_2) = 2 s at t = 0.2, from (2, 1/2)."""
    covariance = np.diag([1.0, 0.0]) if one_dimensional else np.eye(2)
    nodes = np.linspace(-2.5, 3.5, 601)
    mean, square = (
        expectation(
            lambda s: on_the_hyperbola(s, covariance)[0],
            lambda s: on_the_hyperbola(s, covariance)[1],
            nodes,
            lambda s, power=power: (2 * s) ** power,
            np.log(2),
            0.2,
        )
        for power in (1, 2)
    )
    spread = np.sqrt(square - mean**2)
    printed = (1.3595, 0.4185) if one_dimensional else (1.3045, 0.4522)  # theory.md, section 6
    assert (mean, spread) == pytest.approx(printed, abs=1e-4)
    system = HYPERBOLA.with_noise(zl.Langevin(0.1, covariance=covariance))
    path = zl.limit(
        system,
        HYPERBOLA_POINT,
        zl.Saves(at=[0.2], observables=LOG_RATIO),
        key=jax.random.key(0),
        replicas=2000,
        dt=0.01,
    )
    q = path.observables["q"][:, 0]
    assert abs(q.mean() - path.step_bias["q"][0] - mean) <= 3 * q.std() / np.sqrt(len(q))
    assert abs(q.std() - spread) <= 3 * q.std() / np.sqrt(2 * len(q))
    assert path.loss.max() <= 1e-16  # on the set to 1e-8


@pytest.mark.ensemble
def test_the_ellipse_has_its_gibbs_law():
    """Langevin noise: E w_1^2 = 2 in the long run; uniform in arc length it would be 1.680."""
    path = zl.limit(
        ELLIPSE.with_noise(zl.Langevin(0.1)),
        TIP,
        zl.Saves(at=np.arange(8.0, 24.1, 4.0), observables=SQUARE),
        key=jax.random.key(0),
        replicas=2000,
        dt=0.01,
    )
    square = path.observables["square"].mean(axis=0)
    unbiased = square - np.mean(path.step_bias["square"])
    error = path.observables["square"].mean(axis=1).std(ddof=1) / np.sqrt(2000)
    assert abs(unbiased.mean() - 2) <= 3 * error
    assert error <= 0.02


@pytest.mark.ensemble
def test_weak_order_one():
    """The bias is what the exact law says, halves with the step, and is what `step_bias` estimates."""
    system = ELLIPSE.with_noise(zl.Langevin(0.1))
    angles = np.linspace(-np.pi, np.pi, 801)  # w = (2 cos, sin): dX = (1/g)'/2 dt + dB / sqrt(g)

    def metric(x):
        return 4 * np.sin(x) ** 2 + np.cos(x) ** 2

    exact = expectation(
        lambda x: -3 * np.sin(2 * x) / metric(x) ** 2 / 2,
        lambda x: 1 / metric(x),
        angles,
        lambda x: 4 * np.cos(x) ** 2,
        0.0,
        1.0,
    )
    means, estimates = {}, {}
    for dt in (1 / 40, 1 / 80):
        runs = [
            zl.limit(
                system,
                TIP,
                zl.Saves(at=[1.0], observables=SQUARE),
                key=jax.random.key(seed),
                replicas=4000,
                dt=dt,
            )
            for seed in range(6)
        ]
        means[dt] = np.array([run.observables["square"].mean() for run in runs])
        estimates[dt] = np.array([run.step_bias["square"][0] for run in runs])

    def error(values):
        return values.std(ddof=1) / np.sqrt(len(values))

    ratio = estimates[1 / 40].mean() / estimates[1 / 80].mean()
    ratio_error = ratio * np.hypot(*(error(each) / each.mean() for each in estimates.values()))
    assert abs(ratio - 2) <= 3 * ratio_error and ratio_error < 0.3
    for dt, values in means.items():
        # one order further, the estimate itself is off by a share of order dt
        unbiased = values - estimates[dt]
        assert abs(unbiased.mean() - exact) <= 3 * error(unbiased) + 0.25 * estimates[dt].mean()
        assert values.mean() - exact > 3 * error(values)  # there is a bias to speak of


def test_replicas_key_and_saves():
    system = HYPERBOLA.with_noise(zl.Langevin(0.1))
    one = zl.limit(
        system, HYPERBOLA_POINT, zl.Saves(0.1, count=4, observables=LOG_RATIO), key=jax.random.key(3)
    )
    assert one.loss.shape == (4,) and one.final.shape == (2,) and one.time_scale == "1/(alpha^2 sigma^2)"
    assert set(one.step_bias) == {"loss", "regularizer", "hessian_trace", "q"}
    several = zl.limit(
        system,
        HYPERBOLA_POINT,
        zl.Saves(0.1, count=4, observables=LOG_RATIO),
        key=jax.random.key(3),
        replicas=5,
    )
    assert several.loss.shape == (5, 4) and several.final.shape == (5, 2)
    mean, error = several.mean("q")
    assert mean.shape == error.shape == (4,)
    bands = several.quantiles("q")
    assert bands.shape == (5, 4) and (np.diff(bands, axis=0) >= 0).all()
    again = zl.limit(system, HYPERBOLA_POINT, zl.Saves(0.1, count=4), key=jax.random.key(3), replicas=5)
    np.testing.assert_array_equal(again.params, several.params)
    other = zl.limit(system, HYPERBOLA_POINT, zl.Saves(0.1, count=4), key=jax.random.key(4), replicas=5)
    assert not np.array_equal(other.params, several.params)
    assert set(several.to_xarray()["q"].dims) == {"replica", "time"}
    with pytest.raises(InputError, match="quantiles need replicas"):
        one.quantiles("q")


def test_least_squares_and_loss_agree():
    """The Gram and the dense geometry give the same paths from the same noise.

    Up to their retractions, which differ by the third power of a step, dt^(3/2) = 4e-6 at each of 40.
    """
    as_loss = HYPERBOLA.with_noise(zl.Langevin(0.1))
    as_squares = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.ones(1)).with_noise(
        zl.Langevin(0.1)
    )
    paths = [
        zl.limit(
            system, HYPERBOLA_POINT, zl.Saves(at=[0.01]), key=jax.random.key(0), replicas=10, dt=2.5e-4
        ).params
        for system in (as_loss, as_squares)
    ]
    np.testing.assert_allclose(*paths, atol=40 * 4e-6)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"dt": 0.0}, "dt must be positive"),
        ({"replicas": 0}, "replicas must be a positive integer"),
    ],
)
def test_bad_arguments(arguments, message):
    system = HYPERBOLA.with_noise(zl.Langevin(0.1))
    with pytest.raises(InputError, match=message):
        zl.limit(system, HYPERBOLA_POINT, key=jax.random.key(0), **arguments)


def test_too_long_a_step_is_noticed():
    system = ELLIPSE.with_noise(zl.Langevin(0.1))
    with pytest.raises(IntegrationError, match="smaller dt") as caught:
        zl.limit(system, TIP, zl.Saves(at=[0.0, 400.0]), key=jax.random.key(0), replicas=50, dt=50.0)
    assert len(caught.value.path.ts) == 1


def test_diffusing_out_of_the_region_of_constant_rank():
    """L = (w_1 w_2)^2 / 2 with noise: the path along an axis comes to the crossing at 0."""
    system = zl.Loss(lambda w: 0.5 * (w[0] * w[1]) ** 2).with_noise(zl.Langevin(0.1))
    with pytest.raises(IntegrationError, match="at t = ") as caught:
        zl.limit(
            system,
            jnp.array([0.3, 0.0]),
            zl.Saves(at=np.linspace(0, 4, 200)),
            key=jax.random.key(0),
            replicas=20,
            dt=1e-3,
        )
    assert 1 < len(caught.value.path.ts) < 200
    assert caught.value.path.params.shape[0] == 20
