"""What each noise does to the loss, against formulas written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import network_problem

import zeroloss as zl
from zeroloss.errors import InputError

PROBLEM, PARAMS = network_problem()
INPUTS, TARGETS = PROBLEM.inputs, PROBLEM.targets


def hidden(params):
    first = jnp.tanh(INPUTS @ params["a"])
    return first, jnp.tanh(first @ params["b"])


def test_dropout_multiplies_the_activation():
    system = PROBLEM.with_noise(zl.Dropout(0.3, at="second"))
    (eta,) = system.noise_law(PARAMS).draw(jax.random.key(0))
    assert eta["second"].shape == (4, 3)
    residual = (hidden(PARAMS)[1] * (1 + eta["second"])) @ PARAMS["c"] - TARGETS
    np.testing.assert_allclose(system.noisy_loss(PARAMS, (eta,)), (residual**2).sum() / 8, rtol=1e-14)


def test_dropout_per_step_shares_the_mask():
    system = PROBLEM.with_noise(zl.Dropout(0.3, at=["first", "second"], per="step"))
    (eta,) = system.noise_law(PARAMS).draw(jax.random.key(1))
    assert eta["first"].shape == (4,) and eta["second"].shape == (3,)
    first = hidden(PARAMS)[0] * (1 + eta["first"])
    residual = (jnp.tanh(first @ PARAMS["b"]) * (1 + eta["second"])) @ PARAMS["c"] - TARGETS
    np.testing.assert_allclose(system.noisy_loss(PARAMS, (eta,)), (residual**2).sum() / 8, rtol=1e-14)


def test_label_and_weight_noise_add_up():
    system = PROBLEM.with_noise(zl.LabelNoise(0.3) + zl.WeightNoise(0.2))
    label, weights = system.noise_law(PARAMS).draw(jax.random.key(2))
    shifted = {name: PARAMS[name] + noise for name, noise in zip("abc", weights, strict=True)}
    residual = hidden(shifted)[1] @ shifted["c"] - TARGETS - label
    value = system.noisy_loss(PARAMS, (label, weights))
    np.testing.assert_allclose(value, (residual**2).sum() / 8, rtol=1e-14)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_minibatch_moments(size, replace):
    number, draws = 5, 20_000
    batch = zl.MiniBatch(size, replace=replace)
    keys = jax.random.split(jax.random.key(0), draws)
    indices = jax.vmap(lambda key: batch.indices(key, number))(keys)
    counts = number / size * jax.nn.one_hot(indices, number).sum(axis=1)
    same, different = batch.second_moments(number)
    second = np.asarray(counts[:, :, None] * counts[:, None, :])
    errors = 4 * second.std(axis=0) / draws**0.5 + 1e-12
    exact = np.where(np.eye(number) > 0, same, different)
    assert (abs(second.mean(axis=0) - exact) <= errors).all()
    assert (abs(counts.mean(axis=0) - 1) <= 4 * np.asarray(counts).std(axis=0) / draws**0.5 + 1e-12).all()


@pytest.mark.parametrize("replace", [False, True])
def test_gradient_of_a_batch_is_unbiased(replace):
    system = PROBLEM.with_noise(zl.MiniBatch(2, replace=replace))
    keys = jax.random.split(jax.random.key(0), 5000)
    gradients = jax.vmap(lambda key: system.noisy_gradient(PARAMS, key)["c"])(keys)
    exact = jax.grad(PROBLEM.loss)(PARAMS)["c"]
    error = np.asarray(gradients).std(axis=0) / 5000**0.5
    assert (abs(gradients.mean(axis=0) - exact) < 4.5 * error).all()


def test_an_example_drawn_twice_keeps_one_noise():
    problem = zl.LeastSquares(lambda w, x: w * x, jnp.ones(1), jnp.ones(1))
    system = problem.with_noise(zl.MiniBatch(8, replace=True) + zl.LabelNoise(1.0))
    keys = jax.random.split(jax.random.key(0), 4000)
    gradients = jax.vmap(lambda key: system.noisy_gradient(jnp.array(1.0), key))(keys)
    # eight independent noises would have variance 1/8
    assert float(gradients.var()) == pytest.approx(1.0, abs=4 * (2 / 4000) ** 0.5)


def test_sums_are_flat():
    total = zl.MiniBatch(2) + zl.LabelNoise(0.1) + zl.WeightNoise(0.2)
    assert [type(part).__name__ for part in total.noises] == ["MiniBatch", "LabelNoise", "WeightNoise"]


@pytest.mark.parametrize("size", [0, -3, 2.5, float("nan")])
def test_batch_size_must_be_a_positive_integer(size):
    with pytest.raises(InputError, match="positive integer"):
        zl.MiniBatch(size)


def test_batch_larger_than_the_data():
    with pytest.raises(InputError, match="a minibatch of 5 cannot be drawn without replacement from 4"):
        PROBLEM.with_noise(zl.MiniBatch(5))
    PROBLEM.with_noise(zl.MiniBatch(5, replace=True))


def test_two_minibatches():
    with pytest.raises(InputError, match="one MiniBatch"):
        PROBLEM.with_noise(zl.MiniBatch(2) + zl.MiniBatch(2))


@pytest.mark.parametrize("noise", [zl.MiniBatch(2), zl.LabelNoise(0.1), zl.Dropout(0.1, at="h")])
def test_noise_that_needs_examples(noise):
    with pytest.raises(InputError, match=r"use .*LeastSquares"):
        zl.project(zl.Loss(lambda w: w @ w).with_noise(noise), jnp.ones(2))


def test_bad_arguments():
    with pytest.raises(InputError, match="different sites"):
        zl.Dropout(0.1, at=["h", "h"])
    with pytest.raises(InputError, match="sigma must be positive"):
        zl.LabelNoise(-0.1)


def test_gaussian_masks_inputs_and_weights():
    system = PROBLEM.with_noise(
        zl.GaussianDropout(0.3, at="second") + zl.InputNoise(0.2) + zl.GaussianDropConnect(0.1, where=only_c)
    )
    masks, (inputs,), (weights,) = system.noise_law(PARAMS).draw(jax.random.key(0))
    first = jnp.tanh((INPUTS + inputs) @ PARAMS["a"])
    second = jnp.tanh(first @ PARAMS["b"]) * (1 + masks["second"])
    residual = second @ (PARAMS["c"] * (1 + weights)) - TARGETS
    value = system.noisy_loss(PARAMS, (masks, [inputs], [weights]))
    np.testing.assert_allclose(value, (residual**2).sum() / 8, rtol=1e-14)


def only_c(params):
    return params["c"]


def test_dropconnect_drops():
    system = PROBLEM.with_noise(zl.DropConnect(0.5, where=lambda params: (params["a"], params["c"])))
    (eta,) = system.noise_law(PARAMS).draw(jax.random.key(0))
    assert [leaf.shape for leaf in eta] == [(3, 4), (3, 2)]
    assert {float(value) for value in np.unique(np.concatenate([leaf.ravel() for leaf in eta]))} == {-1, 1}
    dropped = PARAMS | {"a": PARAMS["a"] * (1 + eta[0]), "c": PARAMS["c"] * (1 + eta[1])}
    residual = hidden(dropped)[1] @ dropped["c"] - TARGETS
    np.testing.assert_allclose(system.noisy_loss(PARAMS, (eta,)), (residual**2).sum() / 8, rtol=1e-14)


def test_langevin_adds_to_the_gradient():
    system = PROBLEM.with_noise(zl.Langevin(0.5, where=only_c))
    eta = system.noise_law(PARAMS).draw(jax.random.key(0))
    clean = jax.grad(PROBLEM.loss)(PARAMS)
    noisy = jax.grad(system.noisy_loss)(PARAMS, eta)
    np.testing.assert_allclose(noisy["c"] - clean["c"], eta[0][0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(noisy["a"], clean["a"])
    assert zl.Langevin.from_temperature(0.02, 0.01).sigma == pytest.approx(2.0)
    with pytest.raises(InputError, match="must be positive"):
        zl.Langevin.from_temperature(-1.0, 0.1)


def test_anti_correlated_training_is_weight_noise_in_other_variables():
    """z_k = w_k - eta_k takes its gradients at z_k + eta_k: an identity at every step."""
    key, size = jax.random.key(3), 0.05
    system = PROBLEM.with_noise(zl.AntiCorrelated(0.2))
    path = zl.descend(system, PARAMS, size, 40, key=key, saves=41)
    run_key = jax.random.split(key, 1)[0]
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    z = PARAMS
    for step in range(41):
        eta = system.perturbation(PARAMS, jax.random.fold_in(run_key, step)) if step > 0 else still
        w = jax.tree.map(jnp.add, z, eta)
        for name in PARAMS:
            np.testing.assert_allclose(path.params[name][step], w[name], atol=1e-12)
        z = jax.tree.map(lambda leaf, slope: leaf - size * slope, z, jax.grad(PROBLEM.loss)(w))
    assert np.std(np.diff(path.params["a"], axis=0)) > 0.2  # increments of two independent noises


def test_where_may_choose_nothing():
    with pytest.raises(InputError, match="chose no parameters"):
        PROBLEM.with_noise(zl.WeightNoise(0.1, where=lambda params: ())).noise_law(PARAMS)


def test_noise_per_example_needs_examples():
    noise = zl.CustomNoise(lambda forward, eta: forward, zl.Gaussian((), 0.1))
    with pytest.raises(InputError, match="per step only"):
        zl.Loss(lambda w: w @ w).with_noise(noise).noise_law(jnp.ones(2))
