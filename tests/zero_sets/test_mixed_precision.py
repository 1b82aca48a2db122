"""The model in float32 where that is enough: `LeastSquares(..., precision="mixed")`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import flat

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.errors import PrecisionError
from zeroloss.zero_sets import GramZeroSet, zero_set_of


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


def zero_set_and_point(precision):
    problem, params = problem_of(precision)
    w, unravel = flatten(params)
    zero_set = zero_set_of(problem.with_noise(zl.LabelNoise(0.1)), w, unravel).with_rank(20)
    assert isinstance(zero_set, GramZeroSet)
    return zero_set, w


def test_projections():
    """Off by the rounding of J to float32, and no more: the normal part that K of float32 leaves is gone."""
    vector = jax.random.normal(jax.random.key(1), (192,))
    (exact, w), (mixed, _) = (zero_set_and_point(each) for each in ("float64", "mixed"))
    expected, found = exact.spaces(w).tangent(vector), mixed.spaces(w).tangent(vector)
    assert 1e-9 < np.linalg.norm(found - expected) / np.linalg.norm(vector) < 1e-5
    assert float(mixed.left_normal(w)) < 1e-6
    np.testing.assert_allclose(mixed.retract(1.01 * w), exact.retract(1.01 * w), atol=1e-5)
    assert float(exact.relative_residual(mixed.retract(1.01 * w))) < 1e-10


@pytest.mark.parametrize("gap", [0.0, 1e-4])
def test_nearly_dependent_residuals_are_refused(gap):
    problem, params = problem_of("mixed")
    inputs = problem.inputs.at[1].set(problem.inputs[0] + gap)
    near = zl.LeastSquares(network, inputs, network(params, inputs), precision="mixed")
    with pytest.raises(PrecisionError, match="too nearly dependent for float32"):
        zl.drift(near.with_noise(zl.LabelNoise(0.1)), params)


@pytest.mark.parametrize("noise,t1", [(zl.LabelNoise(0.1), 50.0), (zl.Dropout(0.1, at="hidden"), 1.0)])
def test_drift_and_limit(noise, t1):
    drifts, ends = [], []
    for precision in ("float64", "mixed"):
        problem, params = problem_of(precision)
        system = problem.with_noise(noise)
        drift = zl.drift(system, params)
        drifts.append(flat(drift.second if isinstance(noise, zl.LabelNoise) else drift.first))
        path = zl.limit(system, params, zl.Saves(t1, count=2))
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
