import jax.numpy as jnp
import known_answers
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, flat, hyperbola_loss, network_problem
from scipy.optimize import linprog

import zeroloss as zl
from zeroloss.errors import InputError, IntegrationError

TIMES = [0.1, 0.3, 1.0]


def product(w, inputs):
    return w[0] * w[1] * inputs


LEAST_SQUARES = zl.LeastSquares(product, jnp.ones(1), jnp.ones(1))

WEIGHT_NOISE = {
    "System": zl.System(lambda w, eta: hyperbola_loss(w + eta), zl.Gaussian((2,), 0.05)),
    "Loss": zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.05)),
    "LeastSquares": LEAST_SQUARES.with_noise(zl.WeightNoise(0.05)),
}
LABEL_NOISE = {
    "System": zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta) ** 2, zl.Gaussian((), 0.05)),
    "System, clean given": zl.System(
        lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta) ** 2, zl.Rademacher((), 0.05), clean=hyperbola_loss
    ),
    "LeastSquares": LEAST_SQUARES.with_noise(zl.LabelNoise(0.05)),
    "LeastSquares, one of four copies": zl.LeastSquares(product, jnp.ones(4), jnp.ones(4)).with_noise(
        zl.LabelNoise(0.05, examples=1)
    ),
}


@pytest.mark.parametrize("system", WEIGHT_NOISE.values(), ids=WEIGHT_NOISE.keys())
def test_weight_noise_on_the_hyperbola(system):
    path = zl.limit(system, HYPERBOLA_POINT, zl.Saves(at=TIMES))
    assert path.time_scale == "1/(alpha sigma^2)"
    np.testing.assert_allclose(path.params, [known_answers.hyperbola(t, 2.0) for t in TIMES], atol=1e-6)


@pytest.mark.parametrize("system", LABEL_NOISE.values(), ids=LABEL_NOISE.keys())
def test_label_noise_on_the_hyperbola(system):
    path = zl.limit(system, HYPERBOLA_POINT, zl.Saves(at=TIMES))
    assert path.time_scale == "1/(alpha^2 sigma^2)"
    np.testing.assert_allclose(path.params, [known_answers.hyperbola(t, 1.0) for t in TIMES], atol=1e-6)


def test_dropconnect_on_the_hyperbola():
    system = zl.System(lambda w, eta: hyperbola_loss(w * (1 + eta)), zl.Gaussian((2,), 0.05))
    path = zl.limit(system, HYPERBOLA_POINT, zl.Saves(at=TIMES))
    expected = [known_answers.hyperbola_dropconnect(t) for t in TIMES]
    np.testing.assert_allclose(path.params, expected, atol=1e-6)


@pytest.mark.parametrize("rtol,bound", [(1e-5, 3e-4), (1e-8, 1e-6), (1e-11, 1e-9)])
def test_tolerance_is_kept(rtol, bound):
    path = zl.limit(WEIGHT_NOISE["Loss"], HYPERBOLA_POINT, zl.Saves(1.0, count=23), rtol=rtol)
    exact = np.array([known_answers.hyperbola(t, 2.0) for t in path.ts])
    assert np.abs(path.params - exact).max() < bound


def test_stays_on_the_set():
    problem, params = network_problem()
    for noise in (zl.Dropout(0.1, at=["first", "second"]), zl.LabelNoise(0.1)):
        system = problem.with_noise(noise)
        path = zl.limit(system, zl.project(system, params), t1=3.0)
        assert np.sqrt(2 * path.loss.max()) < 1e-8
        assert path.loss.shape == path.regularizer.shape == (50,)


def test_regularizer_falls_along_a_non_degenerate_flow():
    problem, params = network_problem()
    system = problem.with_noise(zl.Dropout(0.1, at="second"))
    path = zl.limit(system, zl.project(system, params), t1=3.0)
    assert (np.diff(path.regularizer) < 0).all()
    assert path.hessian_trace.shape == (50,)


def test_trivial_noise_stays():
    problem, params = network_problem()
    system = problem.with_noise(zl.MiniBatch(2))
    point = zl.project(system, params)
    path = zl.limit(system, point, zl.Saves(5.0, count=4))
    assert path.time_scale is None
    np.testing.assert_array_equal(flat(path.final), flat(point))


def diagonal_network(targets_from):
    """Label noise on <u^2 - v^2, x>, with the linear program that its limit must solve.

    tr H = 4/N sum_j (u_j^2 + v_j^2) sum_i x_ij^2, and u_j^2 + v_j^2 >= |beta_j| with equality where
    u_j v_j = 0: a weighted l1 norm, minimal among interpolators (theory.md, section 6).
    """
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 12))
    targets = targets_from(rng, inputs)
    problem = zl.LeastSquares(
        lambda params, x: x @ (params["u"] ** 2 - params["v"] ** 2), jnp.asarray(inputs), jnp.asarray(targets)
    )
    weights = (inputs**2).sum(axis=0)
    program = linprog(np.tile(weights, 2), A_eq=np.hstack([inputs, -inputs]), b_eq=targets, bounds=(0, None))
    assert program.success
    system = problem.with_noise(zl.LabelNoise(0.1))
    return system, zl.project(system, {"u": jnp.ones(12), "v": jnp.ones(12)}), weights, program


SPARSE = np.where(np.arange(12) < 2, [1.5, -1.0] * 6, 0.0)


def sparse_truth(rng, inputs):
    return inputs @ SPARSE


def any_targets(rng, inputs):
    return rng.normal(size=6)


@pytest.mark.parametrize("targets_from,t1", [(sparse_truth, 150.0), (any_targets, 1500.0)])
def test_diagonal_linear_network_solves_the_linear_program(targets_from, t1):
    system, start, weights, program = diagonal_network(targets_from)
    end = zl.limit(system, start, zl.Saves(at=[t1])).final
    reached = np.asarray(end["u"] ** 2 - end["v"] ** 2)
    optimum = program.x[:12] - program.x[12:]
    assert float(weights @ (end["u"] ** 2 + end["v"] ** 2)) == pytest.approx(program.fun, rel=1e-6)
    np.testing.assert_allclose(reached, optimum, atol=1e-6 * np.abs(optimum).max())


def test_falling_rank_is_said():
    """On the cross u v = 0, along v = 0: tr H = u^2 and du/dt = -u/2, towards the origin, where J is 0."""
    cross = zl.LeastSquares(lambda w, x: x * w[0] * w[1], jnp.ones(1), jnp.zeros(1))
    system = cross.with_noise(zl.LabelNoise(0.1))
    with pytest.raises(IntegrationError, match=r"rank 0, having begun with 1") as caught:
        zl.limit(system, jnp.array([1.0, 0.0]), zl.Saves(100.0, count=51))
    path = caught.value.path
    assert path.ts[-1] == pytest.approx(-np.log(1e-20), abs=5.0)
    np.testing.assert_allclose(path.params[:, 0], np.exp(-path.ts / 2), rtol=1e-5)


def test_going_on_into_a_sparser_solution():
    """Two non-zeros for six equations: there the residuals become redundant, in infinite time.

    How far the eigenvalues fall is up to rounding, which decides whether a fallen rank ends the path.
    """
    system, start, _, _ = diagonal_network(sparse_truth)
    try:
        path = zl.limit(system, start, zl.Saves(800.0, count=41))
    except IntegrationError as error:
        assert "sparser solution" in str(error)
        path = error.path
    assert path.ts[-1] > 200.0
    assert np.isfinite(path.hessian_trace).all() and path.loss.max() < 1e-20
    np.testing.assert_allclose(path.final["u"] ** 2 - path.final["v"] ** 2, SPARSE, atol=1e-8)


def test_observables():
    path = zl.limit(
        WEIGHT_NOISE["Loss"],
        HYPERBOLA_POINT,
        zl.Saves(1.0, count=5, observables={"ratio": lambda w: w[0] / w[1]}),
    )
    np.testing.assert_allclose(path.observables["ratio"], path.params[:, 0] / path.params[:, 1])
    dataset = path.to_xarray()
    assert dataset["ratio"].dims == ("time",) and dataset.attrs["time_scale"] == "1/(alpha sigma^2)"
    with pytest.raises(InputError, match="taken"):
        zl.limit(WEIGHT_NOISE["Loss"], HYPERBOLA_POINT, zl.Saves(1.0, observables={"loss": lambda w: w[0]}))


def test_stochastic_limits_need_a_key():
    system = zl.System(lambda w, eta: hyperbola_loss(w) + eta @ w, zl.Gaussian((2,)))
    with pytest.raises(InputError, match=r"is stochastic .* pass key="):
        zl.limit(system, HYPERBOLA_POINT, replicas=10)


def test_leaving_the_region_of_constant_rank():
    """Weight noise on g = w_1 w_2: Reg = |w|^2 / 2 pulls along the axis into the crossing at 0."""
    system = zl.Loss(lambda w: 0.5 * (w[0] * w[1]) ** 2).with_noise(zl.WeightNoise(0.1))
    with pytest.raises(IntegrationError, match="t = ") as caught:
        zl.limit(system, jnp.array([1.0, 0.0]), t1=60.0)
    kept = caught.value.path
    assert 1 < len(kept.ts) < 50
    np.testing.assert_allclose(kept.params[:, 0], np.exp(-kept.ts), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"t1": -1.0}, "t1 must be positive"),
        ({"at": [1.0, 0.5]}, "increasing"),
        ({"at": [-1.0, 0.5]}, "not negative"),
        ({"at": []}, "non-empty"),
        ({"count": 1, "end": 1.0}, "between 2"),
        ({"replicas": 3}, "deterministic"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        if {"at", "count"} & set(arguments):
            arguments = {"t1": zl.Saves(**arguments)}
        zl.limit(WEIGHT_NOISE["Loss"], HYPERBOLA_POINT, **arguments)


def kinked(w):
    """1/2 v^2 (1 + |a| + b^2 / 2): under weight noise Reg = (1 + |a| + b^2 / 2) / 2 on the set v = 0."""
    return w[2] ** 2 * (1 + jnp.abs(w[0]) + w[1] ** 2 / 2) / 2


def test_a_path_slides_along_a_kink():
    """a falls at the rate 1/2 until it meets the kink at t = 2, and stays there; b falls like exp(-t / 2)."""
    system = zl.Loss(kinked).with_noise(zl.WeightNoise(0.1))
    path = zl.limit(system, jnp.array([1.0, 1.0, 0.0]), zl.Saves(4.0, count=9))
    step = 4 / 2000  # the shortest: the path overshoots the kink by half of it
    np.testing.assert_allclose(path.params[:, 0], np.maximum(1 - path.ts / 2, 0), atol=step)
    np.testing.assert_allclose(path.params[:, 1], np.exp(-path.ts / 2), atol=step)
