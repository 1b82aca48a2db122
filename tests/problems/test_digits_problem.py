import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise._sites import site_shapes


def test_digits_are_the_real_data():
    problem = zl.problems.load("digits", widths=(7, 5), examples=150, seed=3)
    inputs, targets = problem.problem.inputs, problem.problem.targets
    assert inputs.shape == (150, 64) and set(np.unique(targets)) == {-1.0, 1.0}
    sites = site_shapes(problem.problem.model, problem.start, inputs)
    assert sites == {"hidden_1": (150, 7), "hidden_2": (150, 5)}
    zero = zl.problems.digits(widths=(7,), examples=1).observables["test_error"]
    # a network that says "odd" to everything errs on the even half of the 1796 test digits
    always = [{"weights": jnp.zeros((64, 7)), "biases": jnp.zeros(7)}]
    always.append({"weights": jnp.zeros((7, 1)), "biases": jnp.ones(1)})
    assert float(zero(always)) == pytest.approx(0.496, abs=0.005)


def test_train_and_test_digits_are_disjoint_and_depend_on_the_seed():
    one, two = (zl.problems.digits(examples=200, seed=seed).problem.inputs for seed in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, zl.problems.digits(examples=300, seed=0).problem.inputs[:200])


def test_ten_outputs():
    problem = zl.problems.digits(widths=(7,), examples=150, outputs=10)
    parity = zl.problems.digits(widths=(7,), examples=150)
    targets = np.asarray(problem.problem.targets)
    assert targets.shape == (150, 10) and set(np.unique(targets)) == {0.0, 1.0}
    np.testing.assert_array_equal(2 * (targets.argmax(axis=1) % 2) - 1, parity.problem.targets)
    assert "sampled-labels" not in problem.noises
    # a network that says "3" to everything is right for the 183 threes of the data set, less those trained on
    always = [{"weights": jnp.zeros((64, 7)), "biases": jnp.zeros(7)}]
    always.append({"weights": jnp.zeros((7, 10)), "biases": jnp.eye(10)[3]})
    right = (183 - targets[:, 3].sum()) / (1797 - 150)
    assert float(problem.observables["test_error"](always)) == pytest.approx(1 - right)


def test_smoothed_targets_are_probabilities():
    sharp, soft = (
        np.asarray(zl.problems.digits(outputs=10, smoothing=smoothing).problem.targets)
        for smoothing in (None, 0.2)
    )
    np.testing.assert_allclose(soft.sum(axis=1), 1.0)
    np.testing.assert_allclose(soft, np.where(sharp > 0, 0.82, 0.02))


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (20,), "outputs": 10, "smoothing": 0.1, "examples": 8},
        pytest.param({"widths": (50,), "outputs": 10, "examples": 60}, marks=pytest.mark.ensemble),
        pytest.param({"widths": (40, 30), "examples": 100}, marks=pytest.mark.ensemble),
    ],
)
def test_zero_loss_is_reached_and_noises_are_classified(options):
    problem = zl.problems.digits(**options)
    verdicts = {"label": "degenerate", "dropout": "non-degenerate", "minibatch:4": "trivial"}
    if "sampled-labels" in problem.noises:
        verdicts["sampled-labels"] = "degenerate"
    point = zl.project(problem.problem.with_noise(zl.LabelNoise(0.1)), problem.start)
    for name, verdict in verdicts.items():
        noise = zl.problems.parse_noise(problem, name)
        found = zl.classify(problem.problem.with_noise(noise), point, points=3)
        assert found.name == verdict and not found.stochastic
        assert found.codimension == problem.problem.targets.size


def test_digits_with_cross_entropy():
    """Ten logits with smoothed labels; the observables of a network that knows nothing."""
    problem = zl.problems.digits(loss="cross-entropy", widths=(30,), examples=50)
    assert problem.problem.targets.shape == (50, 10)
    np.testing.assert_allclose(problem.problem.targets.max(axis=1), 0.91)
    assert "sampled-labels" in problem.noises
    assert "cross-entropy with labels smoothed by 0.1" in problem.description
    zero = jax.tree.map(jnp.zeros_like, problem.start)
    found = {name: float(function(zero)) for name, function in problem.observables.items()}
    assert found["test_loss"] == pytest.approx(np.log(10))
    assert found["calibration_error"] == pytest.approx(abs(1 - found["test_error"] - 0.1), abs=1e-7)
    point = zl.project(problem.problem.with_noise(zl.WeightNoise(0.1)), problem.start)
    outputs = problem.problem.model(point, problem.problem.inputs)
    np.testing.assert_allclose(jax.nn.softmax(outputs), problem.problem.targets, rtol=1e-6)


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(loss="hinge"), "loss must be one of squares, cross-entropy, got 'hinge'"),
        (dict(loss="cross-entropy", outputs=1), "cross-entropy needs outputs=10, got 1"),
    ],
)
def test_wrong_losses_of_digits(options, message):
    with pytest.raises(InputError, match=message):
        zl.problems.digits(**options)
