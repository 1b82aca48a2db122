"""What the noise adds beyond first order: against all masks of small models, one by one."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.drifts._reg_and_sigma import expand
from zeroloss.jacobians import analyse
from zeroloss.prediction._higher_orders import higher_orders
from zeroloss.zero_sets import GramZeroSet

KEY = jax.random.key(0)
RATE, UNITS = 0.2, 3


def network(params, inputs):
    """3 hidden units, behind which units are dropped, and 2 outputs."""
    hidden = zl.site(jnp.tanh(inputs @ params["first"]), "hidden")
    return hidden @ params["second"]


def dropped(params, inputs, mask):
    """The outputs of one example with some of the hidden units left."""
    hidden = jnp.tanh(inputs @ params["first"]) * mask / (1 - RATE)
    return hidden @ params["second"]


def with_probabilities(length):
    """All masks of this length."""
    for mask in itertools.product([0.0, 1.0], repeat=length):
        yield np.array(mask), float(np.prod(np.where(mask, 1 - RATE, RATE)))


@pytest.mark.parametrize("noise,structured", [((zl.MiniBatch(2),), False), ((zl.LabelNoise(0.3),), True)])
def test_excess_is_that_of_all_masks(noise, structured):
    """Cov and E[J^T J] over the masks of each example, away from the set; within five standard errors."""
    keys = jax.random.split(KEY, 4)
    params = {
        "first": jax.random.normal(keys[0], (4, UNITS)),
        "second": jax.random.normal(keys[1], (UNITS, 2)),
    }
    inputs, targets = jax.random.normal(keys[2], (3, 4)), jax.random.normal(keys[3], (3, 2))
    recipe = sum(noise, zl.Dropout(RATE, at="hidden"))
    system = zl.LeastSquares(network, inputs, targets).with_noise(recipe)
    w, unravel = flatten(params)
    structure = analyse(network, params, inputs) if structured else None
    zero_set = GramZeroSet(system.problem, unravel, structure=structure)
    expansion = expand(system, zero_set)
    spectrum = zero_set.spectrum(w)

    def residuals(w, index, mask):
        return dropped(unravel(w), inputs[index], mask) - targets[index]

    jacobian = np.concatenate([jax.jacobian(residuals)(w, i, jnp.ones(3) * (1 - RATE)) for i in range(3)])
    hessian = -jacobian.T @ jacobian / 3
    covariance = np.zeros((len(w), len(w)))
    for index in range(3):
        gradients, chances = [], []
        for mask, chance in with_probabilities(UNITS):
            own = np.asarray(jax.jacobian(residuals)(w, index, mask))
            gradients.append(own.T @ np.asarray(residuals(w, index, mask)) / 3)
            chances.append(chance)
            hessian += chance * own.T @ own / 3
            if zl.LabelNoise in map(
                type, noise
            ):  # its covariance is J_i(eta)^T J_i(eta), averaged over masks
                covariance += chance * 0.3**2 * own.T @ own / 9
        gradients, chances = np.array(gradients), np.array(chances)
        centered = gradients - chances @ gradients
        covariance += centered.T @ (chances[:, None] * centered)
    times = 3 / 2 if zl.MiniBatch in map(type, noise) else 1.0  # E c^2 of batches of 2 out of 3
    first = system.noise_law(params).sigma ** 2 * np.asarray(expansion.normal_covariance(w, spectrum))
    basis = np.asarray(spectrum.embed(jnp.eye(6)))
    exact = times * basis.T @ covariance @ basis - first

    found = higher_orders(expansion, w)
    assert found is not None

    @eqx.filter_jit
    def draws(found, spectrum):
        def one(key):
            excess = found.at(w, spectrum, key)
            return excess.covariance(spectrum), excess.curvatures(spectrum)

        return jax.lax.map(one, jax.random.split(KEY, 60))

    for values, expected in zip(
        draws(found, spectrum), (exact, np.diag(basis.T @ hessian @ basis)), strict=True
    ):
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        assert (np.abs(values.mean(axis=0) - expected) <= 5 * error + 1e-12).all()
    assert np.abs(exact).max() > 0.1 * np.abs(first).max()


@pytest.mark.parametrize(
    "noise", [zl.LabelNoise(0.1), zl.MiniBatch(2) + zl.LabelNoise(0.1), zl.DropConnect(0.1)]
)
def test_nothing_is_drawn_where_nothing_is_added(noise):
    """Noise on labels is affine; noise that examples share is left at first order."""
    params = {"first": jnp.ones((4, UNITS)), "second": jnp.arange(6.0).reshape(UNITS, 2)}
    inputs, targets = jax.random.normal(KEY, (3, 4)), jnp.zeros((3, 2))
    system = zl.LeastSquares(network, inputs, targets).with_noise(noise)
    w, unravel = flatten(params)
    assert higher_orders(expand(system, GramZeroSet(system.problem, unravel)), w) is None


def exact_moments(inputs, targets, start, rate, step_size, steps):
    """E w and E w w^T of linear regression with dropout on its inputs, over all masks of all examples."""
    number, size = inputs.shape
    linear = np.zeros((size * size + size + 1,) * 2)
    linear[-1, -1] = 1
    for mask in itertools.product([0.0, 1.0], repeat=inputs.size):
        chance = np.prod(np.where(mask, 1 - rate, rate))
        kept = inputs * np.reshape(mask, inputs.shape) / (1 - rate)
        turn = np.eye(size) - step_size / number * kept.T @ kept
        push = step_size / number * kept.T @ targets
        both = np.zeros_like(linear)  # of (w w^T, w, 1)
        both[: size**2, : size**2] = np.kron(turn, turn)
        both[: size**2, size**2 : -1] = np.kron(turn, push[:, None]) + np.kron(push[:, None], turn)
        both[: size**2, -1] = np.kron(push, push)
        both[size**2 : -1, size**2 : -1], both[size**2 : -1, -1] = turn, push
        both[-1, -1] = 1
        linear += chance * both
    linear[-1, -1] = 1
    after = np.linalg.matrix_power(linear, steps) @ np.concatenate([np.kron(start, start), start, [1.0]])
    return after[size**2 : -1], after[: size**2].reshape(size, size)


@pytest.mark.parametrize("rate,relative,steps", [(0.05, 0.3, 2000), (0.2, 0.1, 500)])
def test_loss_of_linear_regression_under_dropout(rate, relative, steps):
    """Its fluctuations lie within a tenth of the exact ones; with Sigma to first order four times as high.

    What is left out is of relative order step size: the random Hessian's part in C.
    """
    inputs = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4)))
    targets = jnp.array([1.0, -2.0])
    start = jnp.linalg.pinv(inputs) @ targets
    step_size = relative / float(jnp.linalg.eigvalsh(inputs @ inputs.T / 2)[-1])
    problem = zl.LeastSquares(lambda w, x: zl.site(x, "inputs") @ w, inputs, targets)
    system = problem.with_noise(zl.Dropout(rate, at="inputs"))
    predicted = zl.predict(system, start, step_size, zl.Saves(steps, count=2))
    known = np.asarray(inputs), np.asarray(targets), np.asarray(start)
    mean, square = exact_moments(*known, rate, step_size, steps)
    way = np.linalg.norm(mean - start)
    assert np.linalg.norm(mean - predicted.params[-1]) <= 3 * predicted.uncertainty.total[-1] * way
    fluctuations = np.trace(inputs @ (square - np.outer(mean, mean)) @ inputs.T) / 4
    at_mean = float(problem.loss(jnp.asarray(mean)))
    assert predicted.loss[-1] - at_mean == pytest.approx(fluctuations, rel=0.1)
