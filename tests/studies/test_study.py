"""The convergence study: fits on synthetic data, and whole studies of small problems."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.studies import _measurement, _planner, _study
from zeroloss.studies._fits import approach, jackknife, power_law

HYPERBOLA = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.ones(1))
KEY = jax.random.key(0)


def test_power_law_finds_the_exponent_and_its_interval():
    """Of many synthetic ladders the interval holds the truth in 95 %, given corrections as expected."""
    rng = np.random.default_rng(0)
    x = np.geomspace(0.4, 0.05, 5)
    errors, inside = np.full(5, 0.01), []
    for _ in range(400):
        c = rng.normal(size=2)
        logs = 3 - 2 * np.log(x) + c[0] * x + c[1] * x**2 + errors * rng.normal(size=5)
        fitted = power_law(x, logs, errors, corrections=(x, x**2), theory=2.0, sign=-1)
        inside.append(fitted.agrees)
    assert 0.93 <= np.mean(inside) <= 1.0  # larger where the scatter enlarges the interval
    assert fitted.half_width < 0.5 and fitted.points == 5


def test_power_law_without_corrections_is_weighted_least_squares():
    x, logs, errors = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0]), np.full(3, 0.1)
    fitted = power_law(x, logs, errors)
    assert fitted.value == pytest.approx(1 / np.log(2))
    assert fitted.half_width == pytest.approx(1.96 * 0.1 / np.log(2) / np.sqrt(2))


def test_approach_finds_order_and_remainder():
    x = np.geomspace(1, 1 / 16, 5)
    errors = np.full(5, 1e-4)
    fitted = approach(x, 0.03 + 0.2 * x**1.5, errors)
    assert fitted.order.value == pytest.approx(1.5, abs=0.02)
    assert fitted.remainder == pytest.approx(0.03, abs=1e-3)
    assert approach(x, np.full(5, 0.03), errors) is None  # nothing falls: no order
    assert approach(x[:3], x[:3], errors[:3]) is None


def test_jackknife_of_a_mean_is_the_standard_error():
    samples = np.random.default_rng(0).normal(size=(50, 1))
    value, error = jackknife(samples, lambda mean: float(mean[0]))
    assert value == pytest.approx(samples.mean())
    assert error == pytest.approx(samples.std(ddof=1) / np.sqrt(50))


def test_jackknife_covers_nonlinear_statistics():
    samples = 5 + np.random.default_rng(1).normal(size=(200, 1))
    _, error = jackknife(samples, lambda mean: float(np.log(mean[0])))
    assert error == pytest.approx(samples.std(ddof=1) / np.sqrt(200) / 5, rel=0.1)


@pytest.fixture
def even_clock(monkeypatch):
    """A clock that goes by 50 ms a look, so that what a study chooses does not hang on the machine."""
    ticks = itertools.count()
    for module in (_study, _planner, _measurement):
        monkeypatch.setattr(module, "perf_counter", lambda: next(ticks) / 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise,power",
    [
        pytest.param(zl.WeightNoise(0.1), 1, id="weight"),
        pytest.param(zl.Langevin(0.2), 2, id="Langevin", marks=pytest.mark.ensemble),
    ],
)
def test_exponents_on_the_hyperbola(noise, power, even_clock):
    """A 95 % interval misses one time in twenty, so theory may lie half a width outside: 1 in 300."""
    study = zl.study(HYPERBOLA.with_noise(noise), HYPERBOLA_POINT, key=KEY, budget=0.5)
    for exponent, theory in ((study.step_size_exponent, power), (study.sigma_exponent, 2)):
        assert exponent.theory == theory
        assert abs(exponent.value - theory) <= 1.5 * exponent.half_width
        assert exponent.half_width <= 0.4
    rows = study.rows()
    assert len(rows) >= 8 and {row["ladder"] for row in rows} == {"step size", "sigma"}
    steps = [measurement.steps for measurement in study.by_step_size]
    assert all(np.diff(steps) > 0)
    text = str(study)
    assert "theory" in text and "runs each" in text
    dataset = study.to_xarray()
    assert dataset.sizes["measurement"] == len(rows)
    assert dataset.attrs["step_size_exponent_theory"] == power


def test_a_trivial_noise_has_a_bound():
    batches = HYPERBOLA.with_noise(zl.MiniBatch(1, replace=True))
    study = zl.study(batches, HYPERBOLA_POINT, key=KEY, budget=0.05)
    assert study.bound.distance <= 1e-12 and study.bound.largest <= 1e-12
    assert study.step_size_exponent is None and study.rows() == []
    assert "95 % confidence" in str(study)
    assert study.to_xarray().attrs["bound_steps"] == study.bound.steps


def test_labels_have_no_ladder_of_sigmas():
    with pytest.raises(zl.errors.UnsupportedError, match="no scale"):
        zl.SampledLabels().scaled(0.5)


@pytest.mark.parametrize(
    "noise",
    [zl.Dropout(0.2, at="x"), zl.DropConnect(0.2), zl.LabelNoise(0.4), zl.Langevin(0.4), zl.InputNoise(0.4)],
    ids=lambda noise: type(noise).__name__,
)
def test_scaled_noises(noise):
    """`scaled` multiplies sigma; for masks sigma^2 = rate / (1 - rate)."""
    model = HYPERBOLA if not isinstance(noise, zl.Dropout) else zl.LeastSquares(
        lambda w, x: zl.site(w[0] * x, "x") * w[1], jnp.ones(1), jnp.ones(1)
    )  # fmt: skip
    before, after = model.with_noise(noise), model.with_noise(noise).scaled(0.5)
    sigmas = [system.noise_law(HYPERBOLA_POINT).sigma for system in (before, after)]
    assert sigmas[1] == pytest.approx(sigmas[0] / 2)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"budget": 0.0}, "budget must be a positive number of minutes"),
        ({"drift": 2.0}, "drift must lie in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        zl.study(HYPERBOLA.with_noise(zl.LabelNoise(0.1)), HYPERBOLA_POINT, key=KEY, **arguments)


def test_a_stationary_start():
    with pytest.raises(InputError, match="stationary point"):
        zl.study(HYPERBOLA.with_noise(zl.LabelNoise(0.1)), jnp.array([1.0, 1.0]), key=KEY, budget=0.1)
