"""What each noise does to the loss, against formulas written out by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import network_problem

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise._activations import names_of_sites
from zeroloss.noise._parameters import picker

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


def images(params, inputs):
    return jnp.sum(zl.site(inputs * params, "image"), axis=(1, 2))


@pytest.mark.parametrize(
    "noise,shape",
    [
        (zl.Dropout(0.5, shared=(1, 2)), (3, 1, 1, 2)),
        (zl.Dropout(0.5, shared=-1), (3, 4, 5, 1)),
        (zl.GaussianDropout(0.5, shared=(1,), per="step"), (1, 5, 2)),
        (zl.DropPath(0.5), (3, 1, 1, 1)),
    ],
    ids=["channels", "positions", "shared rows in a step", "branches"],
)
def test_units_share_a_mask(noise, shape):
    """An image `[N, 4, 5, 2]` is multiplied by a mask that is broadcast over the shared axes."""
    inputs = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    system = zl.LeastSquares(images, inputs, jnp.zeros((3, 2))).with_noise(noise)
    eta = system.noise_law(jnp.ones(2)).draw(jax.random.key(1))
    assert eta[0]["image"].shape == shape
    expected = jnp.sum(jnp.sum(inputs * (1 + eta[0]["image"]), axis=(1, 2)) ** 2) / 6
    np.testing.assert_allclose(system.noisy_loss(jnp.ones(2), eta), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shared,message",
    [
        (0, 'pass per="step"'),
        (4, "shape .3, 4, 5, 2.: axes from 1 to 3"),
        (-4, "axes from 1"),
    ],
)
def test_axes_that_cannot_be_shared(shared, message):
    system = zl.LeastSquares(images, jnp.ones((3, 4, 5, 2)), jnp.zeros((3, 2)))
    with pytest.raises(InputError, match=message):
        system.with_noise(zl.Dropout(0.5, shared=shared)).noise_law(jnp.ones(2))


def test_label_and_weight_noise_add_up():
    system = PROBLEM.with_noise(zl.LabelNoise(0.3) + zl.WeightNoise(0.2))
    label, weights = system.noise_law(PARAMS).draw(jax.random.key(2))
    shifted = {name: PARAMS[name] + noise for name, noise in zip("abc", weights, strict=True)}
    residual = hidden(shifted)[1] @ shifted["c"] - TARGETS - label
    value = system.noisy_loss(PARAMS, (label, weights))
    np.testing.assert_allclose(value, (residual**2).sum() / 8, rtol=1e-14)


@pytest.mark.parametrize("strength", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_minibatch_moments(size, replace, strength):
    number, draws = 5, 20_000
    batch = zl.MiniBatch(size, replace=replace, strength=strength)
    keys = jax.random.split(jax.random.key(0), draws)
    indices = jax.vmap(lambda key: batch.indices(key, number))(keys)
    counts = 1 + strength * (number / size * jax.nn.one_hot(indices, number).sum(axis=1) - 1)
    drawn = jax.vmap(lambda key: batch.counts(key, number))(keys)
    np.testing.assert_allclose(drawn, counts, rtol=1e-12, atol=1e-12)
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


@pytest.mark.parametrize("replace", [False, True])
def test_strength_multiplies_the_noise_of_a_batch(replace):
    """Grad L + s (grad L_B - grad L), B the batch that the same key draws for plain training."""
    exact = jax.grad(PROBLEM.loss)(PARAMS)
    plain = PROBLEM.with_noise(zl.MiniBatch(2, replace=replace))
    for strength in (0.5, 3.0):
        system = PROBLEM.with_noise(zl.MiniBatch(2, replace=replace, strength=strength))
        for key in jax.random.split(jax.random.key(0), 5):
            batch = plain.noisy_gradient(PARAMS, key)
            gradient = system.noisy_gradient(PARAMS, key)
            for name in PARAMS:
                expected = exact[name] + strength * (batch[name] - exact[name])
                np.testing.assert_allclose(gradient[name], expected, rtol=1e-12, atol=1e-15)


def test_strength_one_is_plain_training_to_the_bit():
    plain = PROBLEM.with_noise(zl.MiniBatch(2) + zl.LabelNoise(0.1))
    same = PROBLEM.with_noise(zl.MiniBatch(2, strength=1) + zl.LabelNoise(0.1))
    for key in jax.random.split(jax.random.key(0), 3):
        for one, other in zip(
            jax.tree.leaves(plain.noisy_gradient(PARAMS, key)),
            jax.tree.leaves(same.noisy_gradient(PARAMS, key)),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    assert zl.MiniBatch(2).second_moments(5) == zl.MiniBatch(2, strength=1).second_moments(5)


def test_counts_multiply_noisy_losses():
    """L_hat = 1/N sum c_i l_i(w, eta_i): one scalar model on its zero-loss set, noise on each label."""
    inputs = jnp.arange(1.0, 5.0)
    problem = zl.LeastSquares(lambda w, x: w * x, inputs, inputs)
    batch = zl.MiniBatch(2, strength=1.5)
    system = problem.with_noise(batch + zl.LabelNoise(0.3))
    keys = jax.random.split(jax.random.key(0), 20_000)
    gradients = np.asarray(jax.vmap(lambda key: system.noisy_gradient(jnp.array(1.0), key))(keys))
    expected = batch.second_moments(4)[0] * 0.3**2 * float(jnp.sum(inputs**2)) / 4**2
    squares = gradients**2
    assert abs(squares.mean() - expected) <= 4 * squares.std() / 20_000**0.5
    assert abs(gradients.mean()) <= 4 * gradients.std() / 20_000**0.5


@pytest.mark.parametrize("size", [1, 2])
def test_a_difference_of_batches_is_a_strength(size):
    """Grad L + delta (grad L_B - grad L_B'), B and B' independent: the mean over all pairs, exactly."""
    number, delta = 4, 0.7
    batches = [
        np.isin(range(number), chosen) * number / size
        for chosen in itertools.combinations(range(number), size)
    ]
    counts = np.array([1 + delta * (one - other) for one in batches for other in batches])
    same, different = zl.MiniBatch(size, strength=delta * 2**0.5).second_moments(number)
    np.testing.assert_allclose(
        counts.T @ counts / len(counts), np.where(np.eye(number) > 0, same, different), rtol=1e-12
    )


def test_a_difference_of_two_different_examples_is_a_strength():
    """Grad L + delta (grad l_i - grad l_j), i != j."""
    number, delta = 5, 0.7
    counts = np.array(
        [
            1 + number * delta * (np.eye(number)[i] - np.eye(number)[j])
            for i, j in itertools.permutations(range(5), 2)
        ]
    )
    strength = delta * (2 * number / (number - 1)) ** 0.5
    same, different = zl.MiniBatch(1, strength=strength).second_moments(number)
    np.testing.assert_allclose(
        counts.T @ counts / len(counts), np.where(np.eye(number) > 0, same, different), rtol=1e-12
    )


@pytest.mark.parametrize("strength", [0, -1.0, float("nan"), float("inf")])
def test_strength_must_be_positive(strength):
    with pytest.raises(InputError, match="strength of a minibatch must be positive and finite"):
        zl.MiniBatch(2, strength=strength)


@pytest.mark.parametrize("examples", [1, 3, 4])
def test_label_noise_on_some_examples(examples):
    """w - alpha (grad L - 1/n sum_S sigma xi_i grad f_i): the gradient of all examples stays clean."""
    sigma, number = 0.3, 4
    system = PROBLEM.with_noise(zl.LabelNoise(sigma, examples=examples))
    key = jax.random.key(5)
    (eta,) = system.noise_law(PARAMS).draw(key)
    noise = examples / number * eta  # sigma xi_i
    assert np.count_nonzero(np.abs(noise).sum(axis=1)) == examples
    jacobian = jax.jacrev(lambda params: PROBLEM.model(params, INPUTS))(PARAMS)
    exact, gradient = jax.grad(PROBLEM.loss)(PARAMS), system.noisy_gradient(PARAMS, key)
    for name in PARAMS:
        pushed = jnp.einsum("ik,ikab->ab", noise, jacobian[name]) / examples
        np.testing.assert_allclose(gradient[name], exact[name] - pushed, rtol=1e-10, atol=1e-14)
    draws = jax.vmap(lambda key: system.noise_law(PARAMS).draw(key)[0])(jax.random.split(key, 20_000))
    drawn = examples / number * np.asarray(draws[draws != 0])
    assert abs(drawn.var() / sigma**2 - 1) <= 4 * (2 / drawn.size) ** 0.5


def test_how_many_labels_have_noise():
    for wrong in (0, -1, True):
        with pytest.raises(InputError, match="examples of LabelNoise must be a positive integer"):
            zl.LabelNoise(0.1, examples=wrong)
    with pytest.raises(InputError, match="cannot draw 5 different examples from 4"):
        PROBLEM.with_noise(zl.LabelNoise(0.1, examples=5))
    with pytest.raises(InputError, match=r"no meaning. .* use MiniBatch\(size\) \+ LabelNoise"):
        PROBLEM.with_noise(zl.MiniBatch(2) + zl.LabelNoise(0.1, examples=2))
    assert zl.LabelNoise(0.1, examples=2).scaled(3.0).examples == 2


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


def brighter(forward, eta):
    return forward.replace(inputs=forward.inputs * (1 + eta))


@pytest.mark.parametrize(
    "noise,needs",
    [
        (zl.MiniBatch(2), "examples"),
        (zl.LabelNoise(0.1), "targets"),
        (zl.SampledLabels(), "targets"),
        (zl.InputNoise(0.1), "inputs"),
        (zl.Dropout(0.1), "a model with sites"),
        (zl.Dropout(0.1, at="hidden", per="step"), "a model with sites"),
        (zl.GaussianDropout(0.1, at="hidden"), "a model with sites"),
        (zl.CustomNoise(brighter, zl.Gaussian((), 0.1)), "examples"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_loss_refuses_noise_that_needs_more_at_once(noise, needs):
    """Also as a part of a sum; the message says what takes it, and what a loss takes."""
    loss = zl.Loss(lambda w: w @ w)
    message = (
        rf"{type(noise).__name__} needs {needs}, and zeroloss.Loss has none: use zeroloss.LeastSquares\(.*"
    )
    for given in (noise, zl.WeightNoise(0.1) + noise):
        with pytest.raises(InputError, match=message + r"WeightNoise.*Langevin.*per=.step"):
            loss.with_noise(given)


@pytest.mark.parametrize(
    "noise",
    [
        zl.WeightNoise(0.1),
        zl.AntiCorrelated(0.1),
        zl.DropConnect(0.1),
        zl.GaussianDropConnect(0.1),
        zl.Langevin(0.1),
        zl.CustomNoise(
            lambda forward, eta: forward.replace(params=forward.params + eta), zl.Gaussian((2,), 0.1), "step"
        ),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_a_loss_takes_noise_on_parameters(noise):
    zl.Loss(lambda w: w @ w).with_noise(noise).check(jnp.ones(2))


def test_a_custom_noise_that_looks_at_the_data_of_a_loss_that_has_none():
    system = zl.Loss(lambda w: w @ w).with_noise(zl.CustomNoise(brighter, zl.Gaussian((), 0.1), per="step"))
    with pytest.raises(InputError, match=r"forward.inputs .* are None \(TypeError: .*LeastSquares"):
        zl.classify(system, jnp.ones(2))


def test_bad_arguments():
    for sites in (["h", "h"], [], 3, [1], ""):
        with pytest.raises(InputError, match="one or several different sites"):
            names_of_sites(sites)
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
    path = zl.descend(system, PARAMS, size, zl.Saves(40, count=41), key=key)
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


@pytest.mark.parametrize("noise", [zl.WeightNoise, zl.DropConnect, zl.Langevin])
def test_where_must_pick_parameters(noise):
    with pytest.raises(InputError, match=r"where must be a function .* got 'a'"):
        picker("a")
    with pytest.raises(InputError, match=r"KeyError: 'd'. The parameters: params\['a'\], params\['b'\], "):
        PROBLEM.with_noise(noise(0.1, where=lambda params: params["d"])).check(PARAMS)
    with pytest.raises(InputError, match="parts of the parameters as they are"):
        PROBLEM.with_noise(noise(0.1, where=lambda params: 2 * params["a"])).check(PARAMS)


def test_every_noise_has_a_name_and_a_label():
    """But for noise that needs a model of one's own, and a sum, which has the names of its parts."""
    classes = [each for each in vars(zl.noise).values() if isinstance(each, type)]
    noises = [each for each in classes if issubclass(each, zl.noise.AbstractNoise)]
    listed = [each for each in noises if each.listing is not None]
    without = {"AbstractInjection", "AbstractNoise", "CustomNoise", "DropPath", "Noises"}
    assert {each.__name__ for each in noises} - {each.__name__ for each in listed} == without
    assert {each.listing.name: each.listing for each in listed} == zl.noise.LISTINGS
    for listing in zl.noise.LISTINGS.values():
        assert (listing.strength is None) == (listing.default is None)
        assert (listing.strength is None) != ("0.5" in listing.with_strength(0.5))
