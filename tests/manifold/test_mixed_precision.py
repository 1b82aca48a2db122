"""The model in float32 where that is enough: `LeastSquares(..., precision="mixed")`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import flat

import zeroloss as zl
from zeroloss.manifold import GramManifold, manifold_of
from zeroloss.pytrees import flatten


def network(params, inputs):
    hidden = zl.site(jnp.tanh(inputs @ params["in"] + params["shift"]), "hidden")
    return hidden @ params["out"]


def problem_of(precision, **options):
    """20 examples, 6 inputs, 24 tanh units: 20 residuals and 192 parameters, on the zero-loss set."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"in": jax.random.normal(keys[0], (6, 24)), "out": jax.random.normal(keys[1], (24,)) / 4}
    params["shift"] = jnp.zeros(24)
    inputs = jax.random.normal(keys[2], (20, 6))
    return zl.LeastSquares(network, inputs, network(params, inputs), precision=precision, **options), params


def spaces_of(problem, params):
    w, unravel = flatten(params)
    manifold = manifold_of(problem.with_noise(zl.LabelNoise(0.1)), w, unravel).with_rank(20)
    assert isinstance(manifold, GramManifold)
    return manifold.spaces(w), manifold.jacobians.at(w)


def test_projections_are_those_of_float64():
    """K is of float32, as its inverse shows, and refinement makes up for it."""
    vector = jax.random.normal(jax.random.key(1), (192,))
    (exact, _), (mixed, jacobian) = (spaces_of(*problem_of(each)) for each in ("float64", "mixed"))
    once = np.linalg.norm(jacobian.mv(vector - mixed._once(vector))) / np.linalg.norm(jacobian.mv(vector))
    assert 1e-9 < once < 1e-2
    np.testing.assert_allclose(mixed.tangent(vector), exact.tangent(vector), atol=1e-11)
    np.testing.assert_allclose(mixed.normal(vector), exact.normal(vector), atol=1e-11)


def test_nearly_dependent_residuals_are_left_to_float64():
    problem, params = problem_of("mixed")
    inputs = problem.inputs.at[1].set(problem.inputs[0] + 1e-3)
    near = zl.LeastSquares(network, inputs, network(params, inputs), precision="mixed")
    spaces, jacobian = spaces_of(near, params)
    vector = jax.random.normal(jax.random.key(1), (192,))
    once = np.linalg.norm(jacobian.mv(vector - spaces._once(vector))) / np.linalg.norm(jacobian.mv(vector))
    assert once < 1e-10


@pytest.mark.parametrize("noise,t1", [(zl.LabelNoise(0.1), 50.0), (zl.Dropout(0.1, at="hidden"), 1.0)])
def test_drift_and_limit(noise, t1):
    drifts, ends = [], []
    for precision in ("float64", "mixed"):
        problem, params = problem_of(precision)
        system = problem.with_noise(noise)
        drift = zl.drift(system, params)
        drifts.append(flat(drift.second if isinstance(noise, zl.LabelNoise) else drift.first))
        path = zl.limit(system, params, t1=t1, saves=2)
        assert path.loss[-1] < 1e-20
        ends.append(flat(path.final))
    size, way = np.linalg.norm(drifts[0]), np.linalg.norm(ends[0] - flat(params))
    assert way > 0.03 * np.linalg.norm(ends[0])
    assert np.linalg.norm(drifts[1] - drifts[0]) < 1e-5 * size
    assert np.linalg.norm(ends[1] - ends[0]) < 1e-5 * way


def test_preconditions_iteration():
    """Matrix-free, the preconditioner is of float32 and the result of float64."""
    ends = []
    for precision in ("float64", "mixed"):
        problem, params = problem_of(precision, geometry="matrix-free")
        beside = jax.tree.map(lambda leaf: 1.01 * leaf, params)
        point = zl.project(problem.with_noise(zl.LabelNoise(0.1)), beside)
        ends.append(flat(point))
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-8)


def test_bad_input_is_refused():
    problem, params = problem_of("float64")
    with pytest.raises(zl.errors.InputError, match="precision must be one of float64, mixed"):
        problem_of("float16")
    mean = np.asarray(problem.inputs.mean(axis=0))

    def centred(params, inputs):
        return network(params, inputs - mean)

    wide = zl.LeastSquares(centred, problem.inputs, centred(params, problem.inputs), precision="mixed")
    with pytest.raises(zl.errors.InputError, match="still computes in float64"):
        zl.drift(wide.with_noise(zl.LabelNoise(0.1)), params)
