import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise import Joint, with_scales_as_arrays
from zeroloss.noise._checks import check_draws
from zeroloss.noise._laws import RandomSubset

LAWS = [zl.Gaussian, zl.Rademacher, zl.Uniform, lambda shape: zl.TwoPoint(shape, rate=0.2)]


@pytest.mark.parametrize("law", LAWS)
def test_standardized(law):
    xi = law((50_000,)).sample(jax.random.key(0))
    # standard errors: of the mean n^-1/2, of the variance (kurtosis - 1)^1/2 n^-1/2
    kurtosis = float(jnp.mean(xi**4))
    assert abs(float(xi.mean())) < 4 / 50_000**0.5
    assert abs(float(jnp.mean(xi**2)) - 1) < 4 * ((kurtosis - 1) / 50_000) ** 0.5 + 1e-12


@pytest.mark.parametrize("law", LAWS)
def test_samples_pytrees(law):
    shape = {"a": (2, 3), "b": [(), (4,)]}
    xi = law(shape).sample(jax.random.key(0), jnp.float32)
    assert jax.tree.map(jnp.shape, xi) == shape
    assert {leaf.dtype for leaf in jax.tree.leaves(xi)} == {jnp.dtype("float32")}
    assert law(shape).size == 2 * 3 + 1 + 4
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(xi)])
    if law in (zl.Gaussian, zl.Uniform):
        assert len(set(values.tolist())) == len(values)  # leaves are independent, not copies


def test_two_point_values():
    law = zl.TwoPoint((1000,), rate=0.25)
    eta = law.draw(jax.random.key(0))
    assert set(np.unique(eta)) == {-1.0, 0.25 / 0.75}  # exactly off, or exactly rescaled
    assert law.sigma == pytest.approx((0.25 / 0.75) ** 0.5)
    np.testing.assert_allclose(law.sigma * law.sample(jax.random.key(0)), eta, rtol=1e-14)


def test_rate_zero_is_no_noise():
    law = zl.TwoPoint((3,), rate=0.0)
    assert law.sigma == 0
    assert not np.any(law.draw(jax.random.key(0)))


def test_joint_takes_its_sigma_from_the_first_that_has_one():
    law = Joint((zl.TwoPoint((2,), 0.0), zl.Gaussian((2,), 0.5), zl.Gaussian((2,), 0.1)))
    assert law.sigma == 0.5
    off, one, other = law.unit(tuple(jnp.ones(2) for _ in range(3)))
    np.testing.assert_allclose(np.stack([off, one, other]), [[0, 0], [1, 1], [0.2, 0.2]])


def test_law_passes_through_jit():
    law = zl.Gaussian({"a": (2,)}, sigma=0.5)
    system = zl.System(lambda w, eta: (w["a"] @ w["a"] - 1) ** 2 + eta["a"] @ w["a"], law)
    zl.descend(system, {"a": jnp.array([1.0, 0.0])}, 0.01, 3, key=jax.random.key(0))


@pytest.mark.parametrize("law", [zl.Gaussian, zl.Rademacher, zl.Uniform])
@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_must_be_positive(law, sigma):
    with pytest.raises(InputError, match="sigma must be positive"):
        law((2,), sigma=sigma)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rate_must_lie_in_the_unit_interval(rate):
    with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
        zl.TwoPoint((2,), rate)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
        zl.Dropout(rate, at="hidden")


def test_shape_must_be_a_shape():
    with pytest.raises(InputError, match="shape must be"):
        zl.Gaussian("two")


def normal(key, shape):
    return jax.random.normal(key, shape)


def two_gaussians(sampler):
    return zl.System(lambda w, eta: 0.5 * (w[0] * w[1] - 1 - eta.sum()) ** 2, zl.Law(sampler, (2,), 0.1))


@pytest.mark.parametrize(
    "sampler,message",
    [
        (lambda key, shape: jax.random.exponential(key, shape), "mean of xi must be 0"),
        (lambda key, shape: 2 * normal(key, shape), "variance of xi must be 1"),
        (lambda key, shape: jnp.zeros(shape), "zero variance"),
        (lambda key, shape: jax.random.cauchy(key, shape), "infinite variance"),
        (lambda key, shape: jax.random.t(key, 2.0, shape), "infinite variance|variance of xi"),
        (lambda key, shape: jnp.broadcast_to(normal(key, ()), shape), "covariance of two components"),
        (lambda key, shape: normal(key, shape) / 0.0, "not finite"),
    ],
    ids=["mean", "variance", "zero", "Cauchy", "Student", "dependent", "infinite"],
)
def test_laws_of_ones_own_are_checked(sampler, message):
    """Before anything long: classify, limit and descend all check the system first."""
    with pytest.raises(InputError, match=message):
        zl.classify(two_gaussians(sampler), jnp.array([2.0, 0.5]))


@pytest.mark.parametrize(
    "sampler",
    [
        normal,
        lambda key, shape: jax.random.exponential(key, shape) - 1,
        lambda key, shape: jax.random.laplace(key, shape) / 2**0.5,
        lambda key, shape: jnp.where(jax.random.bernoulli(key, 0.01, shape), -(99**0.5), 1 / 99**0.5),
    ],
    ids=["normal", "exponential", "Laplace", "rare"],
)
def test_good_laws_of_ones_own_pass(sampler):
    zl.Law(sampler, (2,), 0.1).check()


def test_covariance():
    covariance = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    law = zl.Correlated(zl.Gaussian((3,), 0.1), covariance)
    assert law.sigma == 0.1 and law.size == 3
    draws = jax.vmap(lambda key: law.draw(key))(jax.random.split(jax.random.key(0), 100_000))
    np.testing.assert_allclose(np.cov(draws.T), 0.01 * covariance, atol=4 * 0.01 * 2 * (2 / 1e5) ** 0.5)
    columns = jax.vmap(law.unit)(jnp.eye(3))
    np.testing.assert_allclose(columns.T @ columns, covariance, atol=1e-12)
    for wrong, message in (
        (np.eye(2), "must be 3 x 3"),
        (np.diag([1.0, 1.0, -1.0]), "positive semidefinite"),
        (np.triu(np.ones((3, 3))), "symmetric"),
        (np.zeros((3, 3)), "not be zero"),
    ):
        with pytest.raises(InputError, match=message):
            zl.Correlated(zl.Gaussian((3,), 0.1), wrong)


@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_noise_on_a_random_subset(chosen):
    """So many of 5 examples at a time, standardized; the covariance is 5 / chosen times that of one."""
    one = zl.Correlated(zl.Gaussian((2,), 0.1), [[1.0, 0.5], [0.5, 2.0]])
    law = RandomSubset(one, 5, chosen)
    check_draws(law)
    draws, sigma = 50_000, 0.1
    eta = np.asarray(jax.vmap(law.draw)(jax.random.split(jax.random.key(0), draws)))
    assert (np.count_nonzero(np.abs(eta).sum(axis=2), axis=1) == chosen).all()
    flat = eta.reshape(draws, -1)
    products = flat[:, :, None] * flat[:, None, :]
    expected = sigma**2 * 5 / chosen * np.kron(np.eye(5), [[1.0, 0.5], [0.5, 2.0]])
    errors = products.std(axis=0) / draws**0.5
    assert (np.abs(products.mean(axis=0) - expected) <= 4.5 * errors + 1e-12).all()  # 100 of them
    columns = jax.vmap(lambda xi: law.unit(xi.reshape(5, 2)).ravel())(jnp.eye(10))
    np.testing.assert_allclose(sigma**2 * columns.T @ columns, expected, atol=1e-12)
    assert law.sigma == sigma and law.scaled(2.0).sigma == pytest.approx(2 * sigma)
    # Of a part of the examples the noise is the same as for all of them.
    part = RandomSubset(one, 1, chosen, total=5)
    np.testing.assert_allclose(part.unit(jnp.ones((1, 2))), law.unit(jnp.ones((5, 2)))[:1], rtol=1e-15)
    assert law.draw(jax.random.key(0), jnp.float32).dtype == jnp.float32


def test_labels_drawn_from_probabilities():
    from zeroloss.noise._laws import OneHot

    q = jnp.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    law = OneHot(q)
    keys = jax.random.split(jax.random.key(0), 50_000)
    eta = jax.vmap(law.draw)(keys)
    labels = np.asarray(eta + q)
    np.testing.assert_allclose(
        np.sort(labels, axis=-1), np.broadcast_to([0, 0, 1.0], labels.shape), atol=1e-12
    )
    covariance = np.diag(q[0]) - np.outer(q[0], q[0])
    np.testing.assert_allclose(np.cov(eta[:, 0].T), covariance, atol=4 * 0.5 / 50_000**0.5)
    xi = jax.vmap(law.sample)(keys)[:, 0]
    np.testing.assert_allclose(np.cov(xi.T), np.eye(3), atol=0.05)
    columns = jax.vmap(lambda e: law.unit(jnp.stack([e, 0 * e]))[0])(jnp.eye(3))
    np.testing.assert_allclose(columns.T @ columns, covariance, atol=1e-12)


@pytest.mark.parametrize(
    "law",
    [
        zl.Gaussian((3,), 0.3),
        zl.TwoPoint((3,), rate=0.2),
        zl.TwoPoint((3,), rate=0.0),
        RandomSubset(zl.Gaussian((2,), 0.3), 4, 2),
        Joint((zl.TwoPoint((3,), rate=0.0), zl.Gaussian((2,), 0.5), zl.TwoPoint((4,), rate=0.3))),
    ],
)
def test_scales_as_arrays_change_nothing(law):
    """But that compiled code takes them as arguments; 0, which is no noise, stays a number."""
    arrays = with_scales_as_arrays(law)
    draw = eqx.filter_jit(
        lambda law, key: (law.draw(key), law.sample(key), law.unit(law.sample(key)), law.sigma)
    )
    for ours, theirs in zip(
        jax.tree.leaves(draw(arrays, jax.random.key(0))),
        jax.tree.leaves((law.draw(jax.random.key(0)), *_standardized(law), law.sigma)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    draws = arrays.draw(jax.random.key(0), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {jnp.dtype("float32")}


def _standardized(law):
    xi = law.sample(jax.random.key(0))
    return xi, law.unit(xi)
