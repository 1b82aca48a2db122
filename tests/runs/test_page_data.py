"""What is computed for the page only, against closed forms and the model itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.problems import load, parse_noise
from zeroloss.runs._page_data import FUNCTION, SET, SPECTRUM, page_datasets


def followed(name, noise, t1, **options):
    problem = load(name, **options)
    system = problem.problem.with_noise(parse_noise(problem, noise))
    point = zl.project(system, problem.start)
    more = {"key": jax.random.key(0), "replicas": 7} if noise.startswith("langevin") else {}
    return problem, system, zl.limit(system, point, zl.Saves(t1, count=4), **more)


def test_the_spectrum_of_the_hyperbola():
    """H = grad g grad g^T with g = w_1 w_2 - 1: its only eigenvalue on the normal space is |w|^2."""
    problem, system, path = followed("hyperbola", "weight", 0.1)
    spectrum = page_datasets(problem, system, {"limit": path})[SPECTRUM]
    exact = [np.sum(path.params[time] ** 2) for time in (0, -1)]
    np.testing.assert_allclose(spectrum["eigenvalue"].values[:, 0], exact, rtol=1e-9)
    assert spectrum["where"].values.tolist() == ["start", "end"]


@pytest.fixture(scope="module")
def regression():
    return followed("regression_1d", "weight", 0.01, width=6, examples=4)


def test_the_spectrum_is_that_of_the_whole_hessian(regression):
    problem, system, path = regression
    found = page_datasets(problem, system, {"limit": path})[SPECTRUM]["eigenvalue"].values
    for values, time in zip(found, (0, -1), strict=True):
        params = jax.tree.map(lambda leaf, time=time: jnp.asarray(leaf[time]), path.params)
        w, unravel = jax.flatten_util.ravel_pytree(params)
        whole = jnp.linalg.eigvalsh(
            jax.hessian(lambda w, unravel=unravel: problem.problem.loss(unravel(w)))(w)
        )
        np.testing.assert_allclose(values, whole[::-1][: len(values)], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "noise", "residual"),
    [
        ("hyperbola", "weight", lambda w: w[:, 0] * w[:, 1] - 1),
        ("ellipse", "langevin:0.1", lambda w: w[:, 0] ** 2 / 4 + w[:, 1] ** 2 - 1),
    ],
)
def test_points_all_over_the_zero_loss_set(name, noise, residual):
    problem, system, path = followed(name, noise, 0.2)
    found = page_datasets(problem, system, {"limit": path})[SET]
    points = found["point"].values
    assert len(points) > 50
    assert np.abs(residual(points)).max() < 1e-6
    batched = path.params if path.params.ndim == 3 else path.params[None]
    np.testing.assert_array_equal(found["limit"].values, batched[:5])
    np.testing.assert_array_equal(found["limit_end"].values, batched[:, -1])
    # Every path ends near one of them.
    gaps = np.linalg.norm(found["limit_end"].values[:, None] - points[None], axis=-1).min(axis=1)
    assert gaps.max() < 0.1


def test_the_function_along_the_flow(regression):
    problem, system, path = regression
    found = page_datasets(problem, system, {"limit": path, "prediction": path})[FUNCTION]
    model, x = problem.problem.model, jnp.asarray(found["x"].values)
    for moment, time in enumerate(path.ts):
        params = jax.tree.map(lambda leaf, moment=moment: jnp.asarray(leaf[moment]), path.params)
        np.testing.assert_allclose(found["limit"].values[moment], model(params, x), rtol=1e-10, atol=1e-12)
        assert found["at"].values[moment] == time
    np.testing.assert_array_equal(found["prediction_end"].values, found["limit"].values[-1])
    np.testing.assert_array_equal(found["targets"].values, problem.problem.targets)


def test_where_a_model_has_no_value_nothing_is_drawn(tmp_path):
    """A square root beside the inputs, where they are negative."""
    inputs = jnp.linspace(0.0, 1.0, 5)
    problem = zl.problems.load("hyperbola")._replace(
        problem=zl.LeastSquares(lambda w, x: w[0] * w[1] * jnp.sqrt(x), inputs, jnp.sqrt(inputs)),
        start=jnp.array([2.0, 0.5]),
    )
    system = problem.problem.with_noise(zl.WeightNoise(0.1))
    found = page_datasets(problem, system, {"path": zl.limit(system, problem.start, zl.Saves(0.2, count=3))})[
        FUNCTION
    ]
    x = found["x"].values
    assert x[0] >= 0 and x[-1] > 1 and np.isfinite(found["path"].values).all()


def test_what_there_is_nothing_to_see_of_is_left_out():
    problem, system, path = followed("sparse_regression", "label", 0.01)
    assert set(page_datasets(problem, system, {"limit": path})) == {SPECTRUM}
    assert page_datasets(problem, system, {}) == {}
