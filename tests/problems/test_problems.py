import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise import parts
from zeroloss.noise.sites import site_shapes
from zeroloss.problems import parse_noise


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


def test_noises_by_name():
    problem = zl.problems.load("digits")
    batch, label = parts(parse_noise(problem, "minibatch:16 + label:0.2"))
    assert batch.size == 16 and label.sigma == 0.2
    assert parse_noise(problem, "dropout").rate == 0.01
    assert parse_noise(problem, "dropout", {"dropout": 0.3}).rate == 0.3


def test_unknown_names():
    with pytest.raises(InputError, match="Known: digits, hyperbola"):
        zl.problems.load("cifar")
    with pytest.raises(InputError, match="Known: dropout, label, weight, minibatch"):
        parse_noise(zl.problems.load("digits"), "dropuot")
