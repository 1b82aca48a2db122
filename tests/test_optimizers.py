"""Optimizers as objects: one argument for step size, momentum and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT

import zeroloss as zl
from zeroloss.errors import InputError, StabilityError

HYPERBOLA = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.ones(1))
SYSTEM = HYPERBOLA.with_noise(zl.LabelNoise(0.3))
PARTS = dict(momentum=0.5, nesterov=True, weight_decay=1e-3)


def schedule(step):
    return 0.05 / (1 + step / 100)


def test_a_number_and_a_schedule_are_gradient_descent():
    key = jax.random.key(0)
    for step_size in (0.05, schedule):
        whole = zl.descend(SYSTEM, HYPERBOLA_POINT, zl.SGD(step_size), 50, key=key)
        np.testing.assert_array_equal(
            whole.params, zl.descend(SYSTEM, HYPERBOLA_POINT, step_size, 50, key=key).params
        )
        other = zl.descend(SYSTEM, HYPERBOLA_POINT, zl.SGD(step_size, **PARTS), 50, key=key)
        assert not np.array_equal(whole.params, other.params)


def test_momentum_in_how_long():
    steps = [zl.how_long(SYSTEM, HYPERBOLA_POINT, zl.SGD(0.05, momentum=beta)).steps for beta in (0.0, 0.5)]
    # Momentum multiplies the slow scale of label noise by 1 / (1 - beta)^2 (theory.md, section 5): here to
    # the 1 % to which a quantity is said to have settled, and to the order alpha beyond the limit, some 2 %.
    assert steps[0] / steps[1] == pytest.approx(4, rel=0.05)


def test_one_step_by_hand():
    """g = grad + decay w; v = g at first; with Nesterov's momentum w <- w - alpha (g + beta v)."""
    loss = zl.Loss(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2).with_noise(zl.WeightNoise(1e-300))
    w = np.array([2.0, 0.6])
    gradient = (w[0] * w[1] - 1) * w[::-1] + 1e-3 * w
    path = zl.descend(loss, jnp.asarray(w), zl.SGD(0.05, **PARTS), 1, key=jax.random.key(0))
    np.testing.assert_allclose(path.final, w - 0.05 * (1 + 0.5) * gradient, rtol=1e-14)


def test_refusals():
    for arguments, message in [
        (dict(step_size=0.0), "step_size must be positive"),
        (dict(step_size=0.1, momentum=1.0), "momentum must lie"),
        (dict(step_size=0.1, nesterov=True), "needs momentum"),
        (dict(step_size=0.1, weight_decay=-1.0), "weight_decay must be"),
    ]:
        with pytest.raises(InputError, match=message):
            zl.SGD(**arguments)
    with pytest.raises(StabilityError, match="stability limit"):
        zl.predict(SYSTEM, HYPERBOLA_POINT, zl.SGD(0.9, momentum=0.5), 10)
