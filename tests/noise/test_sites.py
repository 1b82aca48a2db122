import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.noise._sites import inject, site_shapes

INPUTS = jnp.arange(6.0).reshape(3, 2)
PARAMS = jnp.array([[1.0, 2.0], [3.0, 4.0]])


def plain(params, inputs):
    return zl.site(jnp.tanh(inputs @ params / 10), "h").sum(axis=1)


def jitted(params, inputs):
    return jax.jit(plain)(params, inputs)


def mapped(params, inputs):
    return jax.vmap(lambda x: zl.site(jnp.tanh(x @ params / 10), "h").sum())(inputs)


def mapped_and_jitted(params, inputs):
    return jax.vmap(jax.jit(lambda x: zl.site(jnp.tanh(x @ params / 10), "h").sum()))(inputs)


def checkpointed(params, inputs):
    return jax.checkpoint(plain)(params, inputs)


MODELS = [plain, jitted, mapped, mapped_and_jitted, checkpointed]


@pytest.mark.parametrize("model", MODELS)
def test_identity_without_noise(model):
    expected = jnp.tanh(INPUTS @ PARAMS / 10).sum(axis=1)
    np.testing.assert_allclose(model(PARAMS, INPUTS), expected, rtol=1e-15)
    np.testing.assert_allclose(jax.jit(model)(PARAMS, INPUTS), expected, rtol=1e-15)
    gradient = jax.grad(lambda p: model(p, INPUTS).sum())(PARAMS)
    reference = jax.grad(lambda p: jnp.tanh(INPUTS @ p / 10).sum())(PARAMS)
    np.testing.assert_allclose(gradient, reference, rtol=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_found_and_injected(model):
    model(PARAMS, INPUTS)  # a trace cached without noise must not matter
    assert site_shapes(model, PARAMS, INPUTS) == {"h": (3, 2)}
    mask = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    noisy = inject(model, {"h": lambda h: h * mask})

    def by_hand(params):
        return (jnp.tanh(INPUTS @ params / 10) * mask).sum(axis=1)

    np.testing.assert_allclose(noisy(PARAMS, INPUTS), by_hand(PARAMS), rtol=1e-15)
    np.testing.assert_allclose(jax.jit(noisy)(PARAMS, INPUTS), by_hand(PARAMS), rtol=1e-15)
    jacobian = jax.jacrev(lambda p: noisy(p, INPUTS))(PARAMS)
    np.testing.assert_allclose(jacobian, jax.jacrev(by_hand)(PARAMS), rtol=1e-14)


def test_injection_under_vmap():
    masks = jnp.stack([jnp.ones((3, 2)), 2 * jnp.ones((3, 2))])
    outputs = jax.vmap(lambda mask: inject(plain, {"h": lambda h: h * mask})(PARAMS, INPUTS))(masks)
    np.testing.assert_allclose(outputs[1], 2 * outputs[0], rtol=1e-15)


def test_two_noises_at_one_site():
    once = inject(plain, {"h": lambda h: h + 1})
    twice = inject(once, {"h": lambda h: 3 * h})
    np.testing.assert_allclose(twice(PARAMS, INPUTS), 3 * (plain(PARAMS, INPUTS) + 2), rtol=1e-15)


def test_unknown_site_lists_the_known():
    problem = zl.LeastSquares(plain, INPUTS, jnp.zeros(3))
    with pytest.raises(InputError, match=r"no site 'hidden'. Its sites: 'h'"):
        zl.descend(problem.with_noise(zl.Dropout(0.1, at="hidden")), PARAMS, 0.01, 1, key=jax.random.key(0))


def test_model_without_sites():
    problem = zl.LeastSquares(lambda p, x: (x @ p).sum(axis=1), INPUTS, jnp.zeros(3))
    with pytest.raises(InputError, match=r"none; name one with zeroloss.site"):
        zl.project(problem.with_noise(zl.Dropout(0.1, at="h")), PARAMS)


@pytest.mark.parametrize("noise", [zl.Dropout, zl.GaussianDropout])
@pytest.mark.parametrize("per", ["example", "step"])
def test_the_only_site_is_the_default(noise, per):
    problem = zl.LeastSquares(plain, INPUTS, jnp.zeros(3))
    system, named = (problem.with_noise(each) for each in (noise(0.1, per=per), noise(0.1, "h", per=per)))
    (eta,) = system.noise_law(PARAMS).draw(jax.random.key(0))
    assert eta["h"].shape == ((3, 2) if per == "example" else (2,))
    key = jax.random.key(1)
    np.testing.assert_array_equal(system.noisy_gradient(PARAMS, key), named.noisy_gradient(PARAMS, key))


@pytest.mark.parametrize("noise", [zl.Dropout, zl.GaussianDropout])
def test_several_sites_without_a_choice(noise):
    def model(params, inputs):
        return zl.site(zl.site(inputs @ params, "first") @ params, "second").sum(axis=1)

    system = zl.LeastSquares(model, INPUTS, jnp.zeros(3)).with_noise(noise(0.1))
    message = (
        rf"{noise.__name__} without at= .* has 2: 'first', 'second'. Pass at='first' or at=\['first', 's"
    )
    with pytest.raises(InputError, match=message):
        zl.classify(system, PARAMS)


@pytest.mark.parametrize("noise", [zl.Dropout, zl.GaussianDropout])
def test_no_sites_to_choose_from(noise):
    problem = zl.LeastSquares(lambda p, x: (x @ p).sum(axis=1), INPUTS, jnp.zeros(3))
    message = rf'{noise.__name__} .* names none. .* h = zeroloss.site\(h, "hidden"\)'
    with pytest.raises(InputError, match=message):
        zl.descend(problem.with_noise(noise(0.1)), PARAMS, 0.01, 1, key=jax.random.key(0))


def test_name_used_twice():
    def model(params, inputs):
        return zl.site(zl.site(inputs @ params, "h"), "h").sum(axis=1)

    with pytest.raises(InputError, match="more than once"):
        site_shapes(model, PARAMS, INPUTS)


def test_site_inside_a_loop_is_refused():
    def model(params, inputs):
        return jax.lax.scan(lambda h, _: (zl.site(jnp.tanh(h), "h"), None), inputs @ params, length=2)[0]

    with pytest.raises(UnsupportedError, match="scan"):
        inject(model, {"h": lambda h: 2 * h})(PARAMS, INPUTS)


def test_site_inside_a_derivative_taken_by_the_model_is_refused():
    def model(params, inputs):
        return jax.vmap(jax.grad(lambda x: zl.site(jnp.tanh(x @ params), "h").sum()))(inputs).sum(axis=1)

    with pytest.raises(UnsupportedError, match="differentiates through site"):
        inject(model, {"h": lambda h: 2 * h})(PARAMS, INPUTS)


def test_site_not_over_examples():
    def model(params, inputs):
        return inputs @ zl.site(params, "weights").sum(axis=1)

    problem = zl.LeastSquares(model, INPUTS, jnp.zeros(3))
    with pytest.raises(InputError, match="leading axis must run over the 3 examples"):
        zl.project(problem.with_noise(zl.Dropout(0.1, at="weights")), PARAMS)
