import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from problems_for_tests import flat, flat_noisy_loss, network_problem

import zeroloss as zl
from zeroloss._linalg import inverse_from_gram, inverse_from_jacobian
from zeroloss._pytrees import flatten
from zeroloss.jacobians import analyse, structure_of
from zeroloss.zero_sets import DenseZeroSet, GramZeroSet, _selection, locate, zero_set_of


@pytest.fixture(scope="module")
def located():
    """The same set through both ways of computing it, and the dense reference."""
    problem, params = network_problem()
    system = problem.with_noise(zl.WeightNoise(0.1))
    point = zl.project(system, params)
    w, unravel = flatten(point)
    noisy_loss, _, n = flat_noisy_loss(system, point)
    exact = reference.projectors(noisy_loss, w, n)
    third = reference.third_derivative(noisy_loss, w, n)
    zero_sets = {
        "gram": GramZeroSet(problem, unravel),
        "structured": GramZeroSet(problem, unravel, structure=analyse(problem.model, point, problem.inputs)),
        "dense": DenseZeroSet(problem, unravel),
    }
    return zero_sets, w, exact, third


@pytest.mark.parametrize("way", ["gram", "structured", "dense"])
def test_projections_and_spectrum(located, way):
    zero_sets, w, (hessian, normal, tangent, pseudo_inverse), _ = located
    spectrum = zero_sets[way].spectrum(w)
    v = jax.random.normal(jax.random.key(0), w.shape)
    np.testing.assert_allclose(spectrum.tangent(v), tangent @ v, atol=1e-10)
    np.testing.assert_allclose(spectrum.normal(v), normal @ v, atol=1e-10)
    scale = np.linalg.norm(pseudo_inverse, 2)
    np.testing.assert_allclose(spectrum.pseudo_inverse(v), pseudo_inverse @ v, atol=1e-10 * scale)
    block = jax.random.normal(jax.random.key(1), (w.shape[0], 3))
    np.testing.assert_allclose(spectrum.pseudo_inverse(block), pseudo_inverse @ block, atol=1e-10 * scale)
    assert int(spectrum.codimension) == 8 and int(spectrum.dimension) == w.shape[0] - 8
    kept = np.asarray(spectrum.eigenvalues)[np.asarray(spectrum.is_normal)]
    np.testing.assert_allclose(kept, np.sort(np.linalg.eigvalsh(hessian))[::-1][:8], rtol=1e-9)
    assert float(zero_sets[way].trace(w)) == pytest.approx(np.trace(hessian), rel=1e-10)


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize("way", ["gram", "structured", "dense"])
def test_spaces_are_those_of_the_spectrum(located, way, rank):
    zero_sets, w, (_, normal, tangent, _), _ = located
    spaces = zero_sets[way].with_rank(rank).spaces(w)
    v = jax.random.normal(jax.random.key(0), w.shape)
    np.testing.assert_allclose(spaces.tangent(v), tangent @ v, atol=1e-10)
    np.testing.assert_allclose(spaces.normal(v), normal @ v, atol=1e-10)
    both = jax.vmap(zero_sets[way].with_rank(rank).spaces)(jnp.stack([w, 1.1 * w]))
    np.testing.assert_allclose(jax.vmap(lambda spaces: spaces.tangent(v))(both)[0], tangent @ v, atol=1e-10)


@pytest.mark.parametrize(
    ("smallest", "rank"), [(1.0, None), (1.0, 6), (1e-6, 6), (1e-9, 6), (0.0, None), (1e-9, None)]
)
@pytest.mark.parametrize("through", ["jacobian", "gram"])
def test_inverses_of_any_spectrum(smallest, rank, through):
    """A Cholesky factor while the squares span less than nine orders; else roots, as for redundant rows."""
    left = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    right = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 6)))[0]
    singular = np.array([2.0, 1.5, 1.0, 1.0, 0.5, smallest])
    jacobian = left @ np.diag(singular) @ right.T
    if through == "jacobian":
        inverse = inverse_from_jacobian(rank, 1e-12)(jnp.asarray(jacobian))
    else:
        inverse = inverse_from_gram(rank, 1e-12)(jnp.asarray(jacobian @ jacobian.T))
    assert bool(inverse.is_triangular) == (smallest > 1e-4)
    if rank == 6 and smallest == 1e-9 and through == "gram":
        pytest.skip("K does not hold eigenvalues below 1e-16 of its largest")
    known = np.where(singular > (0 if rank else 1e-6), singular, np.inf)
    u = np.random.default_rng(2).normal(size=6)
    # What matters is the projection J^T K^+ u, known to 1e-16 over the smallest singular value.
    expected = right @ ((left.T @ u) / known)
    computed = jacobian.T @ np.asarray(inverse.mv(jnp.asarray(u)))
    lost = 1e-14 / known[np.isfinite(known)].min() ** (1 if through == "jacobian" else 2)
    np.testing.assert_allclose(computed, expected, atol=max(1e-12, lost) * np.linalg.norm(expected))


def test_the_rank_counts_what_is_above_a_floor(located):
    zero_sets, w, (hessian, _, _, _), _ = located
    values = np.sort(np.linalg.eigvalsh(hessian))[::-1]
    floor = np.sqrt(values[4] * values[5])
    for zero_set in zero_sets.values():
        assert int(zero_set.with_rank(8).rank_above(w, jnp.asarray(floor))) == 5
        assert int(zero_set.with_rank(8).rank_above(w, jnp.asarray(1e-3 * values[7]))) == 8


@pytest.mark.parametrize("way", ["gram", "structured", "dense"])
@pytest.mark.parametrize("step_size", [0.0, 0.1])
def test_lyapunov_equation(located, way, step_size):
    zero_sets, w, (hessian, normal, _, _), _ = located
    factor = jax.random.normal(jax.random.key(0), (w.shape[0], 5))
    spectrum = zero_sets[way].spectrum(w)
    coordinates = spectrum.coordinates(factor)
    inside = spectrum.lyapunov(coordinates @ coordinates.T, step_size)
    solution = spectrum.embed(spectrum.embed(inside).T)
    left = hessian @ solution + solution @ hessian - step_size * hessian @ solution @ hessian
    np.testing.assert_allclose(left, normal @ np.asarray(factor @ factor.T) @ normal, atol=1e-8)


@pytest.mark.parametrize("way", ["gram", "structured", "dense"])
def test_third_derivative(located, way):
    zero_sets, w, (_, _, tangent, _), third = located
    left, right = jax.random.normal(jax.random.key(0), (2, w.shape[0], 3))
    expected = reference.contract(third, np.asarray(left @ right.T + right @ left.T) / 2)
    computed = zero_sets[way].spectrum(w).tangent(zero_sets[way].third_derivative(w, left, right))
    np.testing.assert_allclose(computed, tangent @ expected, atol=1e-9 * np.linalg.norm(expected))


@pytest.mark.parametrize("way", ["gram", "structured", "dense"])
def test_retraction_is_quadratic(located, way):
    zero_sets, w, _, _ = located
    zero_set = zero_sets[way].with_rank(8)
    direction = jax.random.normal(jax.random.key(0), w.shape)
    tangent = zero_set.spectrum(w).tangent(direction)
    tangent = tangent / jnp.linalg.norm(tangent)
    gaps = []
    for distance in (1e-2, 1e-3):
        point = zero_set.retract(w + distance * tangent)
        assert float(zero_set.relative_residual(point)) < 1e-12
        gaps.append(float(jnp.linalg.norm(point - w - distance * tangent)))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.2)  # the curvature of the set: second order


def test_locate_chooses_gram_for_least_squares_and_dense_otherwise():
    problem, params = network_problem()
    system = problem.with_noise(zl.LabelNoise(0.1))
    assert isinstance(locate(system, zl.project(system, params)).zero_set, GramZeroSet)
    plain = zl.Loss(lambda w: (w[0] * w[1] - 1) ** 2).with_noise(zl.WeightNoise(0.1))
    assert isinstance(locate(plain, jnp.array([2.0, 0.5])).zero_set, DenseZeroSet)


@pytest.mark.parametrize("noise", [zl.LabelNoise(0.1), zl.Dropout(0.1, at=["first", "second"])], ids=str)
def test_large_jacobians_are_not_formed(monkeypatch, noise):
    """With nothing small enough to be formed: the same drift, rank and limit, from a remembered structure."""
    problem, params = network_problem()
    system = problem.with_noise(noise)
    point = zl.project(system, params)
    expected, limit = zl.drift(system, point, 0.05), zl.limit(system, point, zl.Saves(0.1, count=2))
    monkeypatch.setattr(_selection, "_LARGEST_JACOBIAN", 0)
    point = jax.tree.map(jnp.copy, point)  # what was found for the same arrays is remembered
    zero_set = locate(system, point).zero_set
    assert isinstance(zero_set, GramZeroSet) and zero_set.structure is not None
    again = structure_of(problem.model, point, problem.inputs)
    assert again.maker.plan is zero_set.structure.maker.plan
    found = zl.drift(system, point, 0.05)
    for each in ("first", "second"):
        there, here = flat(getattr(expected, each)), flat(getattr(found, each))
        np.testing.assert_allclose(here, there, atol=1e-10 * np.linalg.norm(there) + 1e-14)
    assert zl.classify(system, point).codimension == 8
    end = flat(zl.limit(system, point, zl.Saves(0.1, count=2)).final)
    np.testing.assert_allclose(end, flat(limit.final), atol=1e-6)


def test_max_memory_changes_nothing_but_the_parts(monkeypatch):
    monkeypatch.setattr(_selection, "_LARGEST_JACOBIAN", 0)
    problem, params = network_problem()
    w, unravel = flatten(params)
    slopes = []
    for memory in (None, 500):
        bounded = zl.LeastSquares(problem.model, problem.inputs, problem.targets, max_memory=memory)
        zero_set = zero_set_of(bounded.with_noise(zl.LabelNoise(0.1)), w, unravel)
        assert isinstance(zero_set, GramZeroSet) and zero_set.structure is not None
        assert zero_set.structure.maker.max_memory == (memory or 2**28)
        spaces = zero_set.spaces(w)
        slopes.append(spaces.tangent(jax.grad(zero_set.trace)(w)))
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-9, atol=1e-12)
    with pytest.raises(zl.errors.InputError, match="max_memory must be a positive number"):
        zl.LeastSquares(problem.model, problem.inputs, problem.targets, max_memory=0)


def test_duplicated_examples_change_nothing():
    problem, params = network_problem()
    doubled = zl.LeastSquares(
        problem.model, jnp.tile(problem.inputs, (2, 1)), jnp.tile(problem.targets, (2, 1))
    )
    one, two = (p.with_noise(zl.Dropout(0.1, at=["first", "second"])) for p in (problem, doubled))
    point = zl.project(one, params)
    # the loss and the regularizer are means over examples: duplicating all leaves them unchanged
    np.testing.assert_allclose(
        flat(zl.drift(one, point).first), flat(zl.drift(two, point).first), rtol=1e-9, atol=1e-10
    )
    assert zl.classify(two, zl.project(two, params)).codimension == 8
    ends = [flat(zl.limit(s, point, zl.Saves(0.5, count=2)).final) for s in (one, two)]
    np.testing.assert_allclose(*ends, atol=1e-7)
