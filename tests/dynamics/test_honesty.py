"""What must be refused or said, rather than computed quietly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, hyperbola_loss

import zeroloss as zl
from zeroloss.errors import InputError, LossError, UnsupportedError
from zeroloss.zero_sets import largest_eigenvalue

KEY = jax.random.key(0)
WEIGHT = zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1))


def test_a_domain_that_ends_nearby_does_not_hide_the_drift():
    system = zl.Loss(lambda w: 0.5 * (jnp.log(w[0]) + jnp.log(w[1])) ** 2).with_noise(zl.WeightNoise(0.01))
    try:
        assert zl.classify(system, jnp.array([20.0, 0.05])).name == "non-degenerate"
    except LossError as error:
        assert "not finite" in str(error)


def test_derivatives_that_are_not_finite():
    system = zl.System(
        lambda w, eta: hyperbola_loss(w) + 0.5 * w[0] ** 2 * jnp.linalg.norm(eta) ** 2, zl.Gaussian((2,))
    )
    for verb in (zl.regularizer, zl.drift, zl.classify, zl.limit):
        with pytest.raises(LossError, match="not finite"):
            verb(system, HYPERBOLA_POINT)


@pytest.mark.parametrize(
    "loss,point",
    [
        (lambda w: -0.5 * (w[0] * w[1] - 1) ** 2, [2.0, 0.5]),
        (lambda w: 0.5 * w[0] ** 2 - 0.5 * (w[0] + w[1]) ** 2 + 0 * w[2], [0.0, 0.0, 1.0]),
    ],
)
def test_losses_negative_beside_their_zeros(loss, point):
    with pytest.raises(LossError, match="must be >= 0"):
        zl.classify(zl.Loss(loss).with_noise(zl.WeightNoise(0.1)), jnp.array(point))


def test_a_loss_that_descends_below_zero():
    with pytest.raises(LossError, match=r"falls to -.* must be >= 0"):
        zl.project(zl.Loss(lambda w: w[0] * w[1]).with_noise(zl.WeightNoise(0.1)), jnp.array([1.0, 0.5]))


def test_a_loss_that_is_no_scalar():
    with pytest.raises(LossError, match=r"scalar, but it has shape \(1,\)"):
        zl.project(zl.Loss(lambda w: w[:1] ** 2).with_noise(zl.WeightNoise(0.1)), jnp.ones(2))


def test_largest_eigenvalue_of_a_big_loss_of_rank_one():
    sphere = zl.Loss(lambda w: 0.5 * (w @ w - 1) ** 2).with_noise(zl.WeightNoise(0.1))
    for point in (jnp.ones(1500) / 1500**0.5, jax.random.normal(KEY, (1500,))):
        point = point / jnp.linalg.norm(point)
        assert largest_eigenvalue(sphere, point) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("verb", [zl.project, zl.classify, zl.limit])
def test_verbs_that_decide_refuse_to_be_traced(verb):
    with pytest.raises(UnsupportedError, match=r"cannot run inside jax\.jit"):
        jax.jit(lambda w: verb(WEIGHT, w).first if verb is zl.classify else verb(WEIGHT, w))(HYPERBOLA_POINT)


def test_drift_under_jit_checks_the_step_size():
    compiled = jax.jit(lambda w, alpha: zl.drift(WEIGHT, w, alpha).second)
    assert np.isfinite(compiled(HYPERBOLA_POINT, 0.1)).all()
    with pytest.raises(Exception, match="stability limit"):
        compiled(HYPERBOLA_POINT, 1.0).block_until_ready()


def test_data_may_be_traced():
    def second(targets):
        problem = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), targets)
        return zl.drift(problem.with_noise(zl.LabelNoise(0.1)), HYPERBOLA_POINT).second

    together = jax.vmap(second)(jnp.ones((2, 1)))
    np.testing.assert_allclose(together[0], second(jnp.ones(1)), rtol=1e-12)


def test_parameters_with_empty_parts_and_slashes():
    start = {"layer/w": (jnp.array(2.0),), "none": (), "layer/v": jnp.array(0.5)}
    system = zl.Loss(lambda p: 0.5 * (p["layer/w"][0] * p["layer/v"] - 1) ** 2).with_noise(
        zl.WeightNoise(0.1)
    )
    path = zl.limit(system, start, zl.Saves(at=[0.3]))
    np.testing.assert_allclose(path.final["layer/w"][0], 1.5696827, rtol=1e-6)
    assert not any("/" in str(name) for name in path.to_xarray().variables)


def test_rate_zero_is_trivial():
    system = zl.System(lambda w, eta: hyperbola_loss(w * (1 + eta)), zl.TwoPoint((2,), 0.0))
    assert zl.classify(system, HYPERBOLA_POINT).name == "trivial"


def test_masks_before_a_nonlinearity_are_rare():
    problem = zl.problems.digits(widths=(4, 4), examples=6).problem
    start = zl.problems.digits(widths=(4, 4), examples=6).start
    verdicts = {}
    for site in ("hidden_1", "hidden_2"):
        system = problem.with_noise(zl.Dropout(0.01, at=site))
        verdicts[site] = zl.classify(system, zl.project(system, start))
    assert verdicts["hidden_1"].rare and not verdicts["hidden_2"].rare
    assert all(verdict.caveat == "" for verdict in verdicts.values())


@pytest.mark.parametrize("rtol", [-1.0, 0.0, 1.0])
def test_tolerance_of_the_limit(rtol):
    with pytest.raises(InputError, match="rtol must lie in"):
        zl.limit(WEIGHT, HYPERBOLA_POINT, rtol=rtol)


def test_training_goes_on_to_the_last_step():
    path = zl.descend(WEIGHT, HYPERBOLA_POINT, 0.1, zl.Saves(100, at=[0, 10]), key=KEY)
    np.testing.assert_array_equal(path.steps, [0, 10, 100])


@pytest.mark.parametrize(
    "loss,point",
    [
        (lambda w: jnp.abs(w[0] * w[1] - 1), [2.0, 0.5]),
        (lambda w: 0.5 * (jnp.maximum(w[0], 0) * w[1] + jax.nn.relu(w[2]) - 1) ** 2, [2.0, 0.5, 0.0]),
    ],
    ids=["absolute value", "ReLU at zero"],
)
def test_a_kink_at_the_point(loss, point):
    with pytest.raises(LossError, match=r"not twice differentiable|not finite"):
        zl.classify(zl.Loss(loss).with_noise(zl.WeightNoise(0.1)), jnp.array(point))


def small_network(activation):
    def model(params, inputs):
        return activation(inputs @ params["in"] + params["bias"]) @ params["out"]

    keys = jax.random.split(KEY, 3)
    inputs = jax.random.normal(keys[0], (20, 5))
    params = {
        "in": jax.random.normal(keys[1], (5, 40)) / 2,
        "bias": jnp.zeros(40),
        "out": jax.random.normal(keys[2], (40,)) / 6,
    }
    system = zl.LeastSquares(model, inputs, jnp.sign(inputs[:, 0] * inputs[:, 1])).with_noise(
        zl.LabelNoise(0.1)
    )
    return system, zl.project(system, params)


@pytest.mark.parametrize("name,smooth", [("relu", False), ("tanh", True), ("gelu", True), ("softplus", True)])
def test_kinks_nearby_are_said(name, smooth):
    verdict = zl.classify(*small_network({"tanh": jnp.tanh}.get(name) or getattr(jax.nn, name)))
    assert verdict.smooth is smooth
    assert ("kinks" in str(verdict)) is not smooth


def test_rare_masks_on_the_slow_scale_carry_a_caveat():
    """Dropping w_1 or w_2 on the hyperbola leaves no gradient, so Sigma is not that of Gaussian masks."""
    bernoulli, gaussian = (
        zl.classify(zl.Loss(hyperbola_loss).with_noise(noise), HYPERBOLA_POINT)
        for noise in (zl.DropConnect(0.01), zl.GaussianDropConnect(0.1))
    )
    assert bernoulli.name == gaussian.name == "degenerate"
    assert bernoulli.gaussian_sigma and not gaussian.gaussian_sigma
    assert "rare full drops" in str(bernoulli) and not bernoulli.rare
