import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise import Joint

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
