import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from problems_for_tests import HYPERBOLA_POINT, flat, flat_noisy_loss, hyperbola_loss, network_problem

import zeroloss as zl
from zeroloss._checkpoint import facts_of
from zeroloss.errors import InputError, LossError
from zeroloss.zero_sets import largest_eigenvalue

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

    def divided(w, x):  # alone, an example is 0 / 0
        return batch_normalized(w, x) / x.std(axis=0)

    def of_three(w, x):
        return w[0] * x * jnp.arange(3.0) + w[1]

    def reshaped(w, x):
        return w[0] * x.reshape(3) + w[1]

    for model, message in (
        (batch_normalized, "couples its examples: an example's output changes by up to"),
        (divided, "couples its examples: an example's output is not finite"),
        (of_three, "couples its examples"),
        (reshaped, "fails on one example alone"),
    ):
        problem = zl.LeastSquares(model, jnp.arange(3.0), jnp.ones(3))
        with pytest.raises(InputError, match=message + r".*zeroloss.Loss\(loss\).*zeroloss.System\(loss, "):
            zl.project(problem.with_noise(zl.LabelNoise(0.1)), jnp.ones(2))


NORMALIZED_INPUTS = jax.random.normal(jax.random.key(0), (3, 2))
NORMALIZED_TARGETS = jnp.array([0.6, -0.4, 0.5])


def normalized(params, inputs):
    """A network with batch normalization in training mode."""
    hidden = inputs @ params["in"]
    hidden = (hidden - hidden.mean(axis=0)) / jnp.sqrt(hidden.var(axis=0) + 1e-5)
    return jnp.tanh(hidden) @ params["out"] + params["bias"]


def normalized_loss(params, eta=0.0):
    """The way out that the message for such models names."""
    residuals = normalized(params, NORMALIZED_INPUTS) - NORMALIZED_TARGETS - eta
    return (residuals**2).sum() / (2 * len(NORMALIZED_TARGETS))


NORMALIZED = {
    "weight noise": (zl.Loss(normalized_loss).with_noise(zl.WeightNoise(0.02)), "non-degenerate"),
    "label noise": (zl.System(normalized_loss, zl.Gaussian((3,), 0.2)), "degenerate"),
}


@functools.cache
def normalized_point():
    """On the zero-loss set, which does not depend on the noise: found once for all tests."""
    params = {
        "in": jnp.array([[0.6, -1.2], [0.3, 0.9]]),
        "out": jnp.array([0.5, -0.3]),
        "bias": jnp.zeros(()),
    }
    return zl.project(NORMALIZED["label noise"][0], params)


@pytest.mark.parametrize("name", NORMALIZED)
def test_batch_normalization_as_a_loss_without_examples(name):
    system, verdict = NORMALIZED[name]
    point = normalized_point()
    assert zl.classify(system, point).name == verdict
    noisy_loss, w, n = flat_noisy_loss(system, point)
    drift = zl.drift(system, point)
    second = reference.second_drift(noisy_loss, w, n)
    assert np.linalg.norm(flat(drift.second) - second) <= 1e-8 * np.linalg.norm(second)
    if verdict == "non-degenerate":
        first = reference.first_drift(noisy_loss, w, n)
        assert np.linalg.norm(flat(drift.first) - first) <= 1e-8 * np.linalg.norm(first)


@pytest.mark.ensemble
def test_training_with_batch_normalization_makes_the_drift():
    """Label noise, at two step sizes and extrapolated to 0, against the limit."""
    system, _ = NORMALIZED["label noise"]
    point = normalized_point()
    w, drift = flat(point), flat(zl.drift(system, point).second)
    t1 = 0.05 * np.linalg.norm(w) / np.linalg.norm(drift)
    end = flat(zl.limit(system, point, zl.Saves(at=[t1])).final) - w
    means, errors = [], []
    for relative in (0.2, 0.1):
        steps = round(t1 / (relative / float(largest_eigenvalue(system, point)) * 0.2) ** 2)
        trained = zl.descend(
            system, point, (t1 / steps) ** 0.5 / 0.2, zl.Saves(steps, at=[steps]), key=KEY, replicas=256
        )
        leaves = [leaf[:, -1].reshape(256, -1) for leaf in jax.tree.leaves(trained.params)]
        progress = (np.concatenate(leaves, axis=1) - w) @ end / (end @ end)
        means.append(progress.mean())
        errors.append(progress.std(ddof=1) / 16)
    error = np.hypot(2 * errors[1], errors[0])
    assert abs(2 * means[1] - means[0] - 1) <= 3 * error
    assert error < 0.02


def test_systems_describe_themselves():
    problem, _ = network_problem()
    assert (
        problem.with_noise(zl.MiniBatch(2) + zl.LabelNoise(0.1)).describe()
        == "LabelNoise + MiniBatch(size=2)"
    )
    assert "Gaussian" in zl.System(lambda w, eta: w @ w, zl.Gaussian((2,))).describe()
    assert zl.Loss(hyperbola_loss).with_noise(zl.WeightNoise(0.1)).describe() == "WeightNoise"


def test_a_checkpoint_knows_the_options_of_the_noise():
    """They are not arrays, but another size, strength, site or number of examples is another run."""
    problem, params = network_problem()
    noises = [
        zl.MiniBatch(2),
        zl.MiniBatch(3),
        zl.MiniBatch(2, replace=True),
        zl.MiniBatch(2, strength=2.0),
        zl.LabelNoise(0.1),
        zl.LabelNoise(0.1, examples=2),
        zl.LabelNoise(0.2),
        zl.Dropout(0.1, at="first"),
        zl.Dropout(0.1, at="second"),
        zl.Dropout(0.1, at="first", per="step"),
        zl.GaussianDropout(0.1, at=["first", "second"]),
        zl.CustomNoise(lambda forward, eta: forward, zl.Gaussian((), 0.1)),
        zl.CustomNoise(lambda forward, eta: forward, zl.Gaussian((), 0.1), per="step"),
    ]
    facts = [facts_of(problem.with_noise(noise), params, np.arange(2)) for noise in noises]
    assert all(one != other for index, one in enumerate(facts) for other in facts[:index])
