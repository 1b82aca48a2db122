import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, hyperbola_loss, network_problem

import zeroloss as zl
from zeroloss.errors import InputError, LossError

KEY = jax.random.key(0)


def test_noisy_loss_must_equal_the_clean_loss_without_noise():
    system = zl.System(
        lambda w, eta: hyperbola_loss(w) + 0.1 + eta @ w, zl.Gaussian((2,)), clean=hyperbola_loss
    )
    with pytest.raises(LossError, match=r"at zero noise is 0.1 but the clean loss is 0"):
        zl.classify(system, HYPERBOLA_POINT)


def test_negative_loss():
    system = zl.Loss(lambda w: w[0] * w[1] - 3).with_noise(zl.WeightNoise(0.1))
    for verb in (zl.project, zl.classify, lambda s, w: zl.descend(s, w, 0.1, 3, key=KEY)):
        with pytest.raises(LossError, match=r"the loss at params is -2; .* must be >= 0"):
            verb(system, HYPERBOLA_POINT)


def test_loss_that_is_not_finite():
    system = zl.Loss(lambda w: jnp.log(w[0])).with_noise(zl.WeightNoise(0.1))
    with pytest.raises(LossError, match="must be finite"):
        zl.project(system, -HYPERBOLA_POINT)


def test_nan_parameters():
    system = zl.Loss(lambda w: hyperbola_loss(w["a"])).with_noise(zl.WeightNoise(0.1))
    with pytest.raises(InputError, match=r"params\['a'\] holds 1 NaN or infinite values of 2, .* \(1,\)"):
        zl.project(system, {"a": jnp.array([1.0, jnp.nan])})


def test_parameters_that_are_no_arrays():
    system = zl.Loss(lambda w: 0.0).with_noise(zl.WeightNoise(0.1))
    with pytest.raises(InputError, match=r"equinox\.partition"):
        zl.project(system, {"a": jnp.ones(2), "activation": jnp.tanh})
    with pytest.raises(InputError, match="floating-point"):
        zl.project(system, {"a": jnp.arange(3)})
    with pytest.raises(InputError, match="no arrays"):
        zl.project(system, {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_data(bad):
    inputs, targets = np.ones((3, 2)), np.ones(3)
    model = network_problem()[0].model
    broken = inputs.copy()
    broken[1, 1] = bad
    with pytest.raises(InputError, match=r"inputs holds 1 NaN or infinite .* index \(1, 1\)"):
        zl.LeastSquares(model, broken, targets)
    broken = targets.copy()
    broken[2] = bad
    with pytest.raises(InputError, match="targets holds 1 NaN or infinite"):
        zl.LeastSquares(model, inputs, broken)


def test_shapes_of_targets():
    problem, params = network_problem()
    with pytest.raises(InputError, match=r"inputs of shape \(4, 3\) and targets of shape \(5, 2\)"):
        zl.LeastSquares(problem.model, problem.inputs, jnp.ones((5, 2)))
    with pytest.raises(InputError, match=r"\[N\] or \[N, k\], got \(4, 2, 1\)"):
        zl.LeastSquares(problem.model, problem.inputs, jnp.ones((4, 2, 1)))
    wrong = zl.LeastSquares(problem.model, problem.inputs, jnp.ones((4, 3))).with_noise(zl.LabelNoise(0.1))
    with pytest.raises(InputError, match=r"outputs have shape \(4, 2\) but the targets \(4, 3\)"):
        zl.project(wrong, params)


def test_integer_targets_become_floats():
    problem = zl.LeastSquares(lambda w, x: w * x, np.ones(2), np.array([1, 1]))
    assert problem.targets.dtype == jnp.float64


def test_examples_that_influence_each_other():
    def batch_normalized(w, x):
        return w[0] * (x - x.mean(axis=0)) + w[1]

    problem = zl.LeastSquares(batch_normalized, jnp.arange(3.0), jnp.ones(3))
    with pytest.raises(InputError, match="couples its examples"):
        zl.project(problem.with_noise(zl.LabelNoise(0.1)), jnp.ones(2))


def test_systems_describe_themselves():
    problem, _ = network_problem()
    noise = zl.MiniBatch(2) + zl.LabelNoise(0.1)
    assert problem.with_noise(noise).describe() == "LabelNoise + MiniBatch"
    assert "Gaussian" in zl.System(lambda w, eta: w @ w, zl.Gaussian((2,))).describe()
