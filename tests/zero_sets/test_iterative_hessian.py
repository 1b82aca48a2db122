"""Geometry of a loss by Hessian-vector products, against the Jacobian of the measurements it is made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import flat

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.errors import LossError, NotOnSetError, RankError, UnsupportedError
from zeroloss.zero_sets import DenseZeroSet, IterativeZeroSet, _iterative_hessian, _selection, locate


class Sensing:
    """Half the mean square error of q random measurements <A_i, U V^T> of a matrix, and noise on columns."""

    def __init__(self, size, rank, measurements, noisy=4):
        keys = jax.random.split(jax.random.key(0), 3)
        self.matrices = jax.random.normal(keys[0], (measurements, size, size)) / size
        self.params = {
            "u": jax.random.normal(keys[1], (size, rank)),
            "v": jax.random.normal(keys[2], (size, rank)),
        }
        self.values = self.measure(self.params)
        self.noisy = noisy

    def measure(self, params):
        return jnp.einsum("qij,ij->q", self.matrices, params["u"] @ params["v"].T)

    def loss(self, params, eta):
        """Column c of U is multiplied by 1 + eta_c, for the first few."""
        scaled = params["u"].at[:, : self.noisy].multiply(1 + eta)
        return 0.5 * jnp.mean((self.measure(params | {"u": scaled}) - self.values) ** 2)

    def system(self, geometry):
        return zl.System(self.loss, zl.Gaussian((self.noisy,), sigma=0.1), geometry=geometry)

    def jacobian(self, params):
        w, unravel = flatten(params)
        return jax.jacrev(lambda w: self.measure(unravel(w)))(w)


SMALL = Sensing(size=8, rank=6, measurements=20)  # 96 parameters
WIDE = Sensing(size=8, rank=6, measurements=30)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """96 parameters are too many for a Hessian, and 24 dimensions the most for a basis."""
    monkeypatch.setattr(_selection, "LARGEST_HESSIAN", 90)
    monkeypatch.setattr(_iterative_hessian, "_BASIS_COLUMNS", (8, 24, 80))


def projected(sensing, vector):
    """P_N v from the Jacobian."""
    jacobian = sensing.jacobian(sensing.params)
    return jacobian.T @ jnp.linalg.lstsq(jacobian.T, vector)[0]


def expected_drift(sensing):
    """-P_T grad Reg, from the second derivatives in eta one by one."""
    w, unravel = flatten(sensing.params)

    def regularizer(w):
        hessian = jax.hessian(lambda eta: sensing.loss(unravel(w), eta))(jnp.zeros(sensing.noisy))
        return 0.5 * jnp.trace(hessian)

    slope = jax.grad(regularizer)(w)
    return projected(sensing, slope) - slope


@pytest.mark.parametrize(
    "sensing,geometry,kind",
    [
        (SMALL, "auto", DenseZeroSet),
        (SMALL, "factorized", DenseZeroSet),
        (SMALL, "matrix-free", IterativeZeroSet),
        (WIDE, "auto", IterativeZeroSet),
    ],
)
def test_projections_and_what_is_chosen(sensing, geometry, kind):
    zero_set, w = locate(sensing.system(geometry), sensing.params)
    assert type(zero_set) is kind
    if isinstance(zero_set, DenseZeroSet):
        assert zero_set.columns == (24 if geometry == "auto" else None)
    assert zero_set.rank == (None if kind is IterativeZeroSet else sensing.values.size)
    vectors = jax.random.normal(jax.random.key(1), (w.size, 2))
    spaces = eqx.filter_jit(zero_set.spaces)(w)
    np.testing.assert_allclose(
        spaces.tangent(vectors[:, 0]), vectors[:, 0] - projected(sensing, vectors[:, 0]), atol=1e-8
    )
    np.testing.assert_allclose(spaces.normal(vectors)[:, 1], projected(sensing, vectors[:, 1]), atol=1e-8)


@pytest.mark.parametrize("sensing,geometry", [(SMALL, "auto"), (SMALL, "matrix-free"), (WIDE, "auto")])
def test_trace_and_largest_eigenvalue(sensing, geometry):
    zero_set, w = locate(sensing.system(geometry), sensing.params)
    jacobian = sensing.jacobian(sensing.params)
    exact = float(jnp.sum(jacobian**2)) / sensing.values.size
    trace, error = eqx.filter_jit(zero_set.trace_and_error)(w)
    if error is None:
        assert float(trace) == pytest.approx(exact, rel=1e-10)
        slope = (
            jax.grad(lambda w: jnp.sum(sensing.jacobian(zero_set.unravel(w)) ** 2))(w) / sensing.values.size
        )
        tangent = zero_set.spaces(w).tangent
        expected = tangent(slope)
        np.testing.assert_allclose(
            tangent(jax.grad(zero_set.trace)(w)), expected, atol=1e-8 * jnp.linalg.norm(expected)
        )
    else:
        assert 0 < float(error) < 0.05 * exact  # itself known to a fifth
        assert abs(float(trace) - exact) < 4 * float(error)
    largest = np.linalg.norm(jacobian, 2) ** 2 / sensing.values.size
    assert float(zero_set.largest(w)) == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("sensing,geometry", [(SMALL, "auto"), (SMALL, "matrix-free"), (WIDE, "auto")])
def test_verbs(sensing, geometry):
    """Projected from beside the set, classified, and followed where the field at the start leads."""
    system = sensing.system(geometry)
    start = jax.tree.map(lambda leaf: 1.01 * leaf, sensing.params)
    point = zl.project(system, start)
    assert float(system.clean_loss(point)) < 1e-18 * float(jnp.mean(sensing.values**2))
    verdict = zl.classify(system, sensing.params, points=2)
    assert verdict.name == "non-degenerate"
    known = sensing is SMALL and geometry == "auto"
    assert verdict.codimension == (sensing.values.size if known else None)
    drift = expected_drift(sensing)
    short = 1e-3 * float(jnp.linalg.norm(flat(sensing.params)) / jnp.linalg.norm(drift))
    path = zl.limit(system, sensing.params, zl.Saves(short, count=2), rtol=1e-6)
    # Over a short way w(t) = w + t D + O(t^2); its mean slope is that at half time, to second order.
    moved = flat(path.final) - flat(sensing.params)
    assert np.linalg.norm(moved - short * drift) < 3e-3 * np.linalg.norm(moved)
    assert (path.hessian_trace_error is None) == known
    assert path.loss[-1] < 1e-16


def test_limits_agree():
    """Through Hessian, basis and iteration, over a way as long as the parameters."""
    ends = [
        flat(zl.limit(SMALL.system(geometry), SMALL.params, zl.Saves(2.0, count=2)).final)
        for geometry in ("factorized", "auto", "matrix-free")
    ]
    assert np.linalg.norm(ends[0] - flat(SMALL.params)) > 0.1 * np.linalg.norm(ends[0])
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-6)
    np.testing.assert_allclose(ends[2], ends[0], atol=1e-6)


def test_what_needs_the_spectrum_is_refused():
    system = SMALL.system("matrix-free")
    for verb in (zl.drift, lambda *given: zl.predict(*given, 0.1, 100)):
        with pytest.raises(UnsupportedError, match='geometry="factorized"'):
            verb(system, SMALL.params)
    degenerate = zl.System(
        lambda params, eta: (
            SMALL.loss(params, jnp.zeros(4)) + eta[0] * (SMALL.measure(params)[0] - SMALL.values[0])
        ),
        zl.Gaussian((1,), sigma=0.1),
        geometry="matrix-free",
    )
    with pytest.raises(UnsupportedError, match="does not drift on the fast scale"):
        zl.classify(degenerate, SMALL.params, points=2)


def test_bad_points_are_refused():
    system = SMALL.system("matrix-free")
    with pytest.raises(NotOnSetError):
        zl.classify(system, jax.tree.map(lambda leaf: 1.01 * leaf, SMALL.params))
    flatly = zl.System(
        lambda w, eta: (w[0] * w[1] * (1 + eta[0])) ** 2, zl.Gaussian((1,), sigma=0.1), geometry="matrix-free"
    )
    with pytest.raises(RankError, match="vanishes"):
        zl.classify(flatly, jnp.zeros(2))
    for loss, point, error, words in (
        (lambda w: (w - 1) @ (w - 1), jnp.ones(8), RankError, "isolated point"),
        (
            lambda w: w[0] * w[1] + w[2] ** 2,
            jnp.array([0.0, 0.0, 0.0, 1.0]),
            LossError,
            "negative eigenvalue",
        ),
    ):
        system = zl.Loss(loss, geometry="matrix-free").with_noise(zl.WeightNoise(0.1))
        with pytest.raises(error, match=words):
            zl.classify(system, point)
    with pytest.raises(zl.errors.InputError, match="geometry must be one of"):
        zl.Loss(lambda w: w @ w, geometry="dense")
