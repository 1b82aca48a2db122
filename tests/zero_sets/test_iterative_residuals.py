"""Matrix-free geometry against the factorized one, which tests of its own hold against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import flat

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.errors import RankError, UnsupportedError
from zeroloss.jacobians import analyse
from zeroloss.zero_sets import GramZeroSet, IterativeGramZeroSet, zero_set_of
from zeroloss.zero_sets._iterative_residuals import ResidualSpaces, output_blocks


def two_outputs(geometry):
    """30 examples, 5 inputs, 20 tanh units, 2 outputs: 60 residuals and 160 parameters."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"in": jax.random.normal(keys[0], (5, 20)), "out": jax.random.normal(keys[1], (20, 2)) / 4}
    params["shift"] = jnp.zeros(20)
    inputs, targets = jax.random.normal(keys[2], (30, 5)), jax.random.normal(keys[3], (30, 2)) / 2
    return zl.LeastSquares(network, inputs, targets, geometry=geometry), params


def network(params, inputs):
    return jnp.tanh(inputs @ params["in"] + params["shift"]) @ params["out"]


@pytest.mark.parametrize("memory", [2**31, 8 * 2 * 30 * 7])
def test_projections_and_lifts(memory):
    """In one group of examples, and in five of at most seven."""
    problem, params = two_outputs("factorized")
    w, unravel = flatten(params)
    structure = analyse(problem.model, params, problem.inputs)
    exact = GramZeroSet(problem, unravel, structure=structure).spectrum(w)
    blocks = output_blocks(exact.jacobian, memory)
    assert blocks.lower.shape[1] == (1 if memory == 2**31 else 5)
    spaces = ResidualSpaces(exact.jacobian, blocks)
    vectors = jax.random.normal(jax.random.key(1), (w.size, 3))
    np.testing.assert_allclose(spaces.tangent(vectors), exact.tangent(vectors), atol=1e-7)
    np.testing.assert_allclose(spaces.normal(vectors), exact.normal(vectors), atol=1e-7)
    residuals = jax.random.normal(jax.random.key(2), (problem.targets.size,))
    lifted = exact.lift(residuals)
    np.testing.assert_allclose(spaces.lift(residuals), lifted, atol=1e-7 * jnp.linalg.norm(lifted))


def test_preconditioner_is_the_inverse_where_outputs_do_not_interact():
    """Of outputs with weights of their own K is diagonal in them, and one iteration is enough."""
    problem, params = two_outputs("factorized")
    separate = {"a": {k: v for k, v in params.items()}, "b": {k: v + 0.1 for k, v in params.items()}}

    def model(params, inputs):
        first, second = network(params["a"], inputs)[:, 0], network(params["b"], inputs)[:, 1]
        return jnp.stack([first, second], axis=1)

    w, unravel = flatten(separate)
    problem = zl.LeastSquares(model, problem.inputs, problem.targets)
    structure = analyse(model, separate, problem.inputs)
    zero_set = IterativeGramZeroSet(problem, unravel, structure=structure)
    spaces = zero_set.spaces(w)
    assert int(spaces.iterations(jax.random.normal(jax.random.key(1), w.shape))) <= 3
    assert float(zero_set.largest(w)) == pytest.approx(
        float(GramZeroSet(problem, unravel, structure=structure).largest(w)), rel=1e-4
    )


@pytest.mark.parametrize("noise", [zl.LabelNoise(0.1), zl.Dropout(0.1, at="hidden")])
def test_verbs_agree_with_the_factorized_ones(noise):
    ends, verdicts = [], []
    for geometry in ("factorized", "matrix-free"):
        problem, params = two_outputs(geometry)
        if isinstance(noise, zl.Dropout):
            problem = zl.LeastSquares(with_site, problem.inputs, problem.targets, geometry=geometry)
        system = problem.with_noise(noise)
        start = zl.project(system, params)
        verdicts.append(zl.classify(system, start))
        ends.append(flat(zl.limit(system, start, zl.Saves(0.5, count=3)).final))
    assert np.linalg.norm(ends[0] - flat(params)) > 0.1
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-6)
    assert verdicts[0].name == verdicts[1].name and verdicts[0].codimension == verdicts[1].codimension == 60


def with_site(params, inputs):
    hidden = zl.site(jnp.tanh(inputs @ params["in"] + params["shift"]), "hidden")
    return hidden @ params["out"]


@pytest.mark.parametrize(
    "geometry,examples,expected", [("auto", 10_000, 0), ("auto", 10_001, 1), ("factorized", 10_001, 0)]
)
def test_chosen_by_the_number_of_residuals(geometry, examples, expected):
    _, params = two_outputs("auto")
    problem = zl.LeastSquares(network, jnp.ones((examples, 5)), jnp.ones((examples, 2)), geometry=geometry)
    w, unravel = flatten(params)
    zero_set = zero_set_of(problem.with_noise(zl.LabelNoise(0.1)), w, unravel)
    assert type(zero_set) is (IterativeGramZeroSet if expected else GramZeroSet)


def test_what_needs_the_spectrum_is_refused():
    problem, params = two_outputs("matrix-free")
    system = problem.with_noise(zl.MiniBatch(8))
    start = zl.project(system, params)
    with pytest.raises(UnsupportedError, match="does not drift on the fast scale"):
        zl.classify(system, start)
    with pytest.raises(UnsupportedError, match="spectrum of the 60 x 60"):
        zl.predict(problem.with_noise(zl.LabelNoise(0.1)), start, 0.1, 100)


def test_redundant_residuals_are_refused():
    problem, params = two_outputs("matrix-free")
    twice = zl.LeastSquares(
        network,
        jnp.concatenate([problem.inputs, problem.inputs[:1]]),
        jnp.concatenate([problem.targets, problem.targets[:1]]),
        geometry="matrix-free",
    )
    with pytest.raises(RankError, match="copes with a lower rank"):
        zl.project(twice.with_noise(zl.LabelNoise(0.1)), params)


def test_geometry_is_checked():
    problem, _ = two_outputs("auto")
    with pytest.raises(zl.errors.InputError, match="geometry must be one of"):
        zl.LeastSquares(network, problem.inputs, problem.targets, geometry="sparse")
