import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, flat, hyperbola_loss, network_problem
from scipy.integrate import solve_ivp

import zeroloss as zl
from zeroloss.errors import NotOnSetError, RankError
from zeroloss.zero_sets import largest_eigenvalue


def weight(loss):
    return zl.Loss(loss).with_noise(zl.WeightNoise(0.1))


@pytest.mark.parametrize("start", [(3.0, 0.1), (0.3, 0.2), (-2.0, -3.0)])
def test_project_follows_gradient_flow(start):
    """On the hyperbola gradient flow conserves w_1^2 - w_2^2."""
    start = np.array(start)
    reached = np.asarray(zl.project(weight(hyperbola_loss), jnp.asarray(start)))
    assert abs(reached.prod() - 1) < 1e-12
    flow = solve_ivp(lambda t, w: -(w[0] * w[1] - 1) * w[::-1], (0, 200), start, rtol=1e-10, atol=1e-12).y[
        :, -1
    ]
    # the descent takes steps of 1 / lambda_max and the last jump is at most 2 % of |w|
    np.testing.assert_allclose(reached, flow, atol=0.1 * np.linalg.norm(flow - start))


def test_project_reaches_a_relative_residual_of_1e_10():
    problem, params = network_problem()
    for system in (problem.with_noise(zl.LabelNoise(0.1)), weight(problem.loss)):
        point = zl.project(system, params)
        residual = problem.model(point, problem.inputs) - problem.targets
        assert np.linalg.norm(residual) < 1e-10 * np.linalg.norm(problem.targets)


def test_project_leaves_a_point_of_the_set_alone():
    np.testing.assert_allclose(
        zl.project(weight(hyperbola_loss), HYPERBOLA_POINT), HYPERBOLA_POINT, rtol=1e-14
    )


def test_float32_parameters_are_raised_to_float64():
    point = zl.project(weight(hyperbola_loss), jnp.array([3.0, 0.1], jnp.float32))
    assert point.dtype == jnp.float64 and abs(float(point[0] * point[1]) - 1) < 1e-14


@pytest.mark.parametrize(
    "verb", [zl.limit, zl.classify, zl.drift, zl.regularizer], ids=lambda verb: verb.__name__
)
def test_point_off_the_set(verb):
    with pytest.raises(NotOnSetError, match=r"its loss is 0.02, .* Call zeroloss.project"):
        verb(weight(hyperbola_loss), jnp.array([2.0, 0.6]))


SINGULAR = [
    ("crossing", lambda w: 0.5 * (w[0] * w[1]) ** 2, [0.0, 0.0], r"vanishes .* \[0, 0\]"),
    (
        "crossing in space",
        lambda w: 0.5 * (w[0] * w[1]) ** 2 + 0.5 * w[2] ** 2,
        [0.0, 0.0, 0.0],
        r"\[1, 0, 0\]",
    ),
    ("flat valley", lambda w: 0.25 * w[0] ** 4 + 0 * w[1], [0.0, 1.0], "vanishes"),
    ("cone", lambda w: 0.5 * (w[0] ** 2 + w[1] ** 2 - w[2] ** 2) ** 2, [0.0, 0.0, 0.0], "vanishes"),
    ("isolated", lambda w: 0.5 * w @ w, [0.0, 0.0], "isolated point: the Hessian has full rank 2"),
    ("quartic beside", lambda w: 0.5 * w[0] ** 2 + w[1] ** 4, [0.0, 0.0], "leaves the zero-loss set"),
]


@pytest.mark.parametrize("loss,point,message", [case[1:] for case in SINGULAR], ids=[c[0] for c in SINGULAR])
def test_no_manifold_of_constant_rank(loss, point, message):
    with pytest.raises(RankError, match=message):
        zl.classify(weight(loss), jnp.array(point))


def test_crossing_as_least_squares():
    problem = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.zeros(1))
    with pytest.raises(RankError, match="vanishes"):
        zl.limit(problem.with_noise(zl.WeightNoise(0.1)), jnp.zeros(2))


def test_regular_points_of_a_singular_set_are_fine():
    verdict = zl.classify(weight(lambda w: 0.5 * (w[0] * w[1]) ** 2), jnp.array([1.0, 0.0]))
    assert verdict.dimension == 1


def test_residuals_redundant_on_the_set_only():
    """r = (g, g h): rank 1 on the set, 2 beside it."""

    def model(w, x):
        g, h = w[0] * w[1] - 1, w[0] + w[2]
        return x[:, 0] * g + x[:, 1] * g * h

    problem = zl.LeastSquares(model, jnp.eye(2), jnp.zeros(2))
    point = zl.project(problem.with_noise(zl.WeightNoise(0.1)), jnp.array([2.0, 0.7, 0.3]))
    assert zl.classify(problem.with_noise(zl.WeightNoise(0.1)), point).codimension == 1


def test_largest_eigenvalue():
    assert largest_eigenvalue(weight(hyperbola_loss), HYPERBOLA_POINT) == 4.25
    big = weight(lambda w: 0.5 * (w @ (2001 / jnp.arange(1.0, 2002.0) * w)))
    assert largest_eigenvalue(big, jnp.ones(2001)) == pytest.approx(2001, rel=1e-4)  # by products alone


def test_float64_off():
    code = (
        "import jax.numpy as jnp, zeroloss as zl\n"
        "system = zl.Loss(lambda w: (w[0] * w[1] - 1) ** 2).with_noise(zl.WeightNoise(0.1))\n"
        "for verb in (zl.project, zl.classify, zl.limit, zl.drift, zl.regularizer):\n"
        "    try:\n"
        "        verb(system, jnp.array([2.0, 0.5]))\n"
        "    except zl.errors.PrecisionError as error:\n"
        "        assert 'jax_enable_x64' in str(error)\n"
        "        print('refused')\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["refused"] * 5


def test_training_needs_no_float64():
    code = (
        "import jax, jax.numpy as jnp, zeroloss as zl\n"
        "system = zl.Loss(lambda w: (w[0] * w[1] - 1) ** 2).with_noise(zl.WeightNoise(0.1))\n"
        "path = zl.descend(system, jnp.array([2.0, 0.5]), 0.01, 10, key=jax.random.key(0))\n"
        "print(path.final.dtype)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "float32"


def test_matrix_parameters():
    """Pytrees go in and come out; the set {A B = 1} for 2 x 2 matrices has dimension 4."""

    def loss(params):
        return jnp.sum((params["a"] @ params["b"] - jnp.eye(2)) ** 2)

    start = {"a": jnp.array([[1.0, 0.2], [0.1, 0.9]]), "b": jnp.eye(2)}
    point = zl.project(weight(loss), start)
    assert point.keys() == start.keys() and flat(point).shape == (8,)
    assert zl.classify(weight(loss), point).dimension == 4
