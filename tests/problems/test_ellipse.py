"""The ellipse g = w_1^2 / 4 + w_2^2 - 1 = 0, with w = (2 cos a, sin a).

There |grad g|^2 = cos^2 a + 4 sin^2 a = tr H, and the arc length is ds = sqrt(4 sin^2 a + cos^2 a) da. So
ds = |grad g| da, and a density proportional to 1 / |grad g| in s is uniform in a.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import zeroloss as zl
from zeroloss.zero_sets import largest_eigenvalue

PROBLEM = zl.problems.load("ellipse")


def on_ellipse(a):
    return jnp.array([2 * np.cos(a), np.sin(a)])


def system_with(noise):
    return PROBLEM.problem.with_noise(zl.problems.parse_noise(PROBLEM, noise))


def test_langevin_drift_has_the_invariant_density():
    """In arc length dS = b_T dt + dB has the density p with b_T = 1/2 d log p / ds (detailed balance)."""
    system = system_with("langevin")
    for a in (0.3, 1.2, 2.5, 4.0):
        slope = np.sqrt(4 * np.sin(a) ** 2 + np.cos(a) ** 2)  # ds/da = |grad g|
        tangent = np.array([-2 * np.sin(a), np.cos(a)]) / slope
        expected = -0.5 * (3 * np.sin(a) * np.cos(a) / slope**2) / slope  # -1/2 d log|grad g| / ds
        drift = zl.drift(system, on_ellipse(a))
        assert float(tangent @ drift.second) == pytest.approx(expected, rel=1e-10)
        noise = np.asarray(drift.diffusion.as_matrix())
        np.testing.assert_allclose(noise @ noise.T, np.outer(tangent, tangent), atol=1e-12)


def test_mean_of_the_first_square():
    """E w_1^2 = 2 under det_+(H)^(-1/2) ds, by the package's own Hessian; 1.680 under ds."""
    system = system_with("langevin")
    # the trapezoidal rule on a periodic analytic function converges exponentially: 48 points give 1e-10
    angles = np.arange(48) * 2 * np.pi / 48
    points = [on_ellipse(a) for a in angles]
    arc = np.sqrt(4 * np.sin(angles) ** 2 + np.cos(angles) ** 2)
    density = np.array([largest_eigenvalue(system, point) ** -0.5 for point in points])
    squares = np.array([float(PROBLEM.observables["first_squared"](point)) for point in points])
    assert np.average(squares, weights=arc * density) == pytest.approx(2.0, abs=1e-9)
    assert np.average(squares, weights=arc) == pytest.approx(1.680, abs=1e-3)
    np.testing.assert_allclose([PROBLEM.observables["angle"](p) for p in points[:20]], angles[:20])


def test_weight_noise_drifts_to_the_long_axis():
    """Reg = tr H / 2 gives da/dt = -3 sin a cos a / (cos^2 a + 4 sin^2 a), so sin a / cos^4 a ~ exp(-3 t)."""
    times = [0.0, 0.3, 1.0]
    path = zl.limit(system_with("weight"), PROBLEM.start, zl.Saves(at=times, observables=PROBLEM.observables))
    assert path.time_scale == "1/(alpha sigma^2)"

    def law(a):
        return np.sin(a) / np.cos(a) ** 4

    expected = [brentq(lambda a, t=t: law(a) - law(1.2) * np.exp(-3 * t), 0, 1.3, xtol=1e-13) for t in times]
    np.testing.assert_allclose(path.observables["angle"], expected, atol=1e-7)  # of the order of rtol, 1e-8


def test_dropconnect_drifts_to_the_diagonal():
    """Reg = 2 (cos^4 a + sin^4 a), least at a = pi / 4, near which it is approached at rate 8 / (5/2)."""
    path = zl.limit(system_with("gaussian-dropconnect"), PROBLEM.start, zl.Saves(at=[0.0, 10.0]))
    np.testing.assert_allclose(path.final, on_ellipse(np.pi / 4), atol=1e-7)
