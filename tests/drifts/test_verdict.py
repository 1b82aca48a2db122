import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, hyperbola_loss, network_problem

import zeroloss as zl
from zeroloss.errors import InputError

FAST, SLOW = "1/(alpha sigma^2)", "1/(alpha^2 sigma^2)"


@pytest.fixture(scope="module")
def network():
    problem, params = network_problem()
    return problem, zl.project(problem.with_noise(zl.LabelNoise(0.1)), params)


def circle(w):
    return 0.5 * (w @ w - 1) ** 2


def unequal_labels(w, eta):
    return 0.5 * (w[0] * w[1] - 1 - eta[0]) ** 2 + 0.5 * (w[2] * w[3] - 1 - 3 * eta[1]) ** 2


def skewed(key, shape):
    return jax.random.exponential(key, shape) - 1


def constant_on_the_set(w, eta):
    """Reg = w_1 w_2: it varies in the plane, not on the hyperbola."""
    return hyperbola_loss(w) * (1 + eta[0]) + 0.5 * w[0] * w[1] * eta[1] ** 2


SMALL = {
    "weight noise on the hyperbola": (
        zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1)), [2.0, 0.5], "non-degenerate", False,
    ),
    "a stationary point of a non-degenerate noise": (
        zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1)), [1.0, 1.0], "non-degenerate", False,
    ),
    "weight noise on the circle": (
        zl.Loss(circle).with_noise(zl.WeightNoise(0.1)), [0.6, 0.8], "trivial", False,
    ),
    "dropconnect on the hyperbola": (
        zl.System(lambda w, eta: hyperbola_loss(w * (1 + eta)), zl.Gaussian((2,), 0.1)),
        [2.0, 0.5], "degenerate", False,
    ),
    "label noise on the hyperbola": (
        zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta) ** 2, zl.Gaussian((), 0.1)),
        [2.0, 0.5], "degenerate", False,
    ),
    "gradient noise on the hyperbola": (
        zl.System(lambda w, eta: hyperbola_loss(w) + eta @ w, zl.Gaussian((2,), 0.1)),
        [2.0, 0.5], "degenerate", True,
    ),
    "regularizer constant on the set alone": (
        zl.System(constant_on_the_set, zl.Gaussian((2,), 0.1)), [2.0, 0.5], "trivial", False,
    ),
    "minibatches written as weights": (
        zl.System(
            lambda w, eta: jnp.mean((1 + eta) * (jnp.array([w[0] * w[1] - 1, w[0] * w[1] ** 2 - w[1]])) ** 2),
            zl.Rademacher((2,), 0.1),
        ),
        [2.0, 0.5], "trivial", False,
    ),
    "masks on a single unit, whose output the targets fix": (
        zl.LeastSquares(lambda w, x: zl.site(w[0] * x, "unit") * w[1], jnp.ones(1), jnp.ones(1)).with_noise(
            zl.Dropout(0.1, at="unit")
        ),
        [2.0, 0.5], "degenerate", False,
    ),
    "labels of unequal noise": (zl.System(unequal_labels, zl.Gaussian((2,), 0.1)), [2.0, 0.5, 1.5, 1 / 1.5],
        "degenerate", False,
    ),
    "quadratic in the noise, inside the residual": (
        zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta**2) ** 2, zl.Gaussian((), 0.1)),
        [2.0, 0.5], "trivial", False,
    ),
    "quadratic in the noise, beside the residual": (
        zl.System(lambda w, eta: hyperbola_loss(w) + eta**2 * w[0] ** 2, zl.Gaussian((), 0.1)),
        [2.0, 0.5], "non-degenerate", False,
    ),
    "skewed label noise": (
        zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta) ** 2, zl.Law(skewed, (), 0.1)),
        [2.0, 0.5], "degenerate", False,
    ),
    "skewed noise on the weights": (
        zl.System(lambda w, eta: hyperbola_loss(w + eta), zl.Law(skewed, (2,), 0.1)),
        [2.0, 0.5], "non-degenerate", False,
    ),
    "gradient noise along the normal alone": (
        zl.System(
            lambda w, eta: hyperbola_loss(w) + eta * (w[0] * w[1] - 1), zl.Gaussian((), 0.1)
        ),
        [2.0, 0.5], "degenerate", False,
    ),
    "noise that multiplies the whole loss": (
        zl.System(lambda w, eta: hyperbola_loss(w) * (1 + eta), zl.Uniform((), 0.1)),
        [2.0, 0.5], "trivial", False,
    ),
    "a drift much weaker than the regularizer": (
        zl.System(lambda w, eta: hyperbola_loss(w) + 0.5 * eta**2 * (1e3 + 0.1 * w[0]), zl.Gaussian((), 0.1)),
        [2.0, 0.5], "non-degenerate", False,
    ),
    "a stationary point of a stochastic limit": (
        zl.Loss(hyperbola_loss).with_noise(zl.Langevin(0.1)), [1.0, 1.0], "degenerate", True,
    ),
    "Gaussian DropConnect on the hyperbola": (
        zl.Loss(hyperbola_loss).with_noise(zl.GaussianDropConnect(0.1)), [2.0, 0.5], "degenerate", False,
    ),
    "anti-correlated noise on the circle": (
        zl.Loss(circle).with_noise(zl.AntiCorrelated(0.1)), [0.6, 0.8], "trivial", False,
    ),
    "codimension d - 1: a curve in three dimensions": (
        zl.Loss(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2 + 0.5 * (w[1] * w[2] - 2) ** 2).with_noise(
            zl.WeightNoise(0.1)
        ),
        [1.0, 1.0, 2.0], "non-degenerate", False,
    ),
    "a dictionary with a matrix, two components": (
        zl.Loss(lambda p: 0.5 * (jnp.linalg.det(p["m"]) ** 2 - p["c"]) ** 2).with_noise(zl.WeightNoise(0.1)),
        {"m": jnp.array([[2.0, 0.3], [0.1, -0.5]]), "c": jnp.array(1.03**2)}, "non-degenerate", False,
    ),
}  # fmt: skip


def assert_verdict(verdict, name, stochastic):
    assert verdict.name == name
    assert verdict.stochastic is stochastic
    assert verdict.time_scale == {"non-degenerate": FAST, "degenerate": SLOW, "trivial": None}[name]
    assert verdict.margin > 100


@pytest.mark.parametrize("case", SMALL)
def test_small_losses(case):
    system, point, name, stochastic = SMALL[case]
    point = point if isinstance(point, dict) else jnp.array(point)
    assert_verdict(zl.classify(system, point), name, stochastic)


@pytest.mark.parametrize(
    "noise,name",
    [
        (zl.LabelNoise(0.1), "degenerate"),
        (zl.Dropout(0.1, at="second"), "non-degenerate"),
        (zl.Dropout(0.1, at=["first", "second"], per="step"), "non-degenerate"),
        (zl.WeightNoise(0.1), "non-degenerate"),
        (zl.MiniBatch(2), "trivial"),
        (zl.MiniBatch(2) + zl.LabelNoise(0.1), "degenerate"),
        (zl.MiniBatch(2) + zl.Dropout(0.1, at="second"), "non-degenerate"),
        (zl.MiniBatch(2) + zl.WeightNoise(0.1), "non-degenerate"),
        (zl.LabelNoise(0.1) + zl.Dropout(0.1, at="second"), "non-degenerate"),
        (zl.Dropout(0.0, at="second"), "trivial"),
    ],
    ids=str,
)
def test_noises_of_least_squares(network, noise, name):
    problem, point = network
    assert_verdict(zl.classify(problem.with_noise(noise), point), name, False)


@pytest.mark.parametrize("loss_scale", [1e-8, 1e8])
@pytest.mark.parametrize("weight_scale", [1e-4, 1e4])
@pytest.mark.parametrize("noise_scale", [1e-5, 1e5])
@pytest.mark.parametrize(
    "case", ["weight noise on the hyperbola", "dropconnect on the hyperbola", "weight noise on the circle"]
)
def test_units_do_not_matter(case, loss_scale, weight_scale, noise_scale):
    """Rescaling loss, weights or noise changes neither the verdict nor, beyond rounding, the measures."""
    system, point, name, stochastic = SMALL[case]
    law = system.noise_law(jnp.array(point))

    def rescaled(w, eta):
        return loss_scale * system.noisy_loss(w / weight_scale, _as_eta(system, noise_scale * eta))

    other = zl.System(rescaled, zl.Gaussian((2,), law.sigma))
    verdict = zl.classify(other, weight_scale * jnp.array(point))
    assert_verdict(verdict, name, stochastic)
    original = _original(case)
    if original.first > 1e-6:
        assert verdict.first == pytest.approx(original.first, rel=1e-6)
    if original.second > 1e-6:
        assert verdict.second == pytest.approx(original.second, rel=1e-6)


@functools.cache
def _original(case):
    system, point, *_ = SMALL[case]
    return zl.classify(system, jnp.array(point))


def _as_eta(system, eta):
    # one noise, weight noise, whose eta lists the leaves of the parameters
    return eta if isinstance(system, zl.System) else ([eta],)


def test_what_the_limit_minimizes():
    label = zl.classify(SMALL["label noise on the hyperbola"][0], HYPERBOLA_POINT)
    assert "tr H" in label.towards
    verdict = zl.classify(SMALL["labels of unequal noise"][0], jnp.array([2.0, 0.5, 1.5, 1 / 1.5]))
    assert verdict.name == "degenerate" and "no known potential" in verdict.towards


def test_caveats():
    dropconnect = zl.classify(SMALL["dropconnect on the hyperbola"][0], HYPERBOLA_POINT)
    assert not dropconnect.affine and "sigma^2 << alpha" in str(dropconnect)
    label = zl.classify(SMALL["label noise on the hyperbola"][0], HYPERBOLA_POINT)
    assert label.affine and label.caveat == ""


def test_dimensions_and_key(network):
    problem, point = network
    system = problem.with_noise(zl.LabelNoise(0.1))
    verdict = zl.classify(system, point, key=jax.random.key(7), points=3)
    assert (verdict.dimension, verdict.codimension, verdict.points) == (30 - 8, 8, 3)
    with pytest.raises(InputError, match="at least 2"):
        zl.classify(system, point, points=1)


def test_verdict_in_words():
    text = str(zl.classify(SMALL["weight noise on the hyperbola"][0], HYPERBOLA_POINT))
    assert text.startswith("non-degenerate, deterministic: drift on 1/(alpha sigma^2) steps")
    assert np.isfinite(float(text.split("margin ")[1].rstrip(")")))
