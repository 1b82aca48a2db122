"""Predictions: against training without noise, exact moments of linear models, and ensembles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT

import zeroloss as zl
from zeroloss.errors import InputError, StabilityError
from zeroloss.zero_sets import largest_eigenvalue

KEY = jax.random.key(0)
HYPERBOLA = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.ones(1))
COPIES = zl.LeastSquares(HYPERBOLA.model, jnp.ones(4), jnp.ones(4))  # of the one example
HYPERBOLA_LOSS = zl.Loss(lambda w: (w[0] * w[1] - 1) ** 2 / 2)
QUIET = zl.LabelNoise(1e-9)


def linear(examples=6, parameters=9):
    """Linear regression with more parameters than examples: every moment has a closed recursion."""
    inputs = jax.random.normal(KEY, (examples, parameters))
    problem = zl.LeastSquares(lambda w, x: x @ w, inputs, jnp.arange(1.0, examples + 1))
    return problem, np.asarray(inputs), jnp.zeros(parameters)


def along_the_gradient(forward, eta):
    """A force that is normal to the zero-loss set on it; beside it, it has a tangential part."""
    w = forward.params
    normal, tangent = jnp.stack([w[1], w[0]]), jnp.stack([w[0], -w[1]])
    return forward.push(eta[0] * (normal + (w[0] * w[1] - 1) * tangent))


RULES = [
    {},
    {"momentum": 0.8},
    {"momentum": 0.8, "nesterov": True},
    {"weight_decay": 0.01},
    {"momentum": 0.5, "weight_decay": 0.01},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_without_noise_a_prediction_is_gradient_descent(rule):
    """From off the set, through the fast phase; 1e-9 of noise moves nothing in 300 steps."""
    start = jnp.array([1.5, 0.2])
    saves, optimizer = zl.Saves(300, count=13), zl.SGD(0.05, **rule)
    trained = zl.descend(HYPERBOLA.with_noise(QUIET), start, optimizer, saves, key=KEY)
    predicted = zl.predict(HYPERBOLA.with_noise(QUIET), start, optimizer, saves, rtol=1e-4)
    np.testing.assert_allclose(predicted.params, trained.params, atol=2e-4)
    np.testing.assert_allclose(predicted.loss, trained.loss, atol=2e-4)
    error, way = (np.linalg.norm(predicted.params[-1] - each) for each in (trained.params[-1], start))
    assert error / 3 <= predicted.uncertainty.total[-1] * way <= 0.01 * way


def test_a_schedule_is_followed():
    def schedule(step):
        return 0.2 * 0.5 * (1 + jnp.cos(jnp.pi * step / 300))

    start = jnp.array([1.5, 0.2])
    system = HYPERBOLA.with_noise(QUIET)
    trained = zl.descend(system, start, schedule, zl.Saves(300, count=5), key=KEY)
    predicted = zl.predict(system, start, schedule, zl.Saves(300, count=5))
    np.testing.assert_allclose(predicted.params, trained.params, atol=1e-3)


@pytest.mark.parametrize(
    "minibatch,examples",
    [
        (None, None),
        (None, 2),
        (zl.MiniBatch(2), None),
        (zl.MiniBatch(2, strength=0.5), None),
        (zl.MiniBatch(4, strength=1.3), None),
        (zl.MiniBatch(4, replace=True), None),
        (zl.MiniBatch(2, replace=True, strength=0.5), None),
    ],
    ids=str,
)
def test_moments_of_a_linear_model_are_exact(minibatch, examples):
    """E L of linear regression under label noise and batches, by the recursion of all second moments."""
    problem, inputs, start = linear()
    sigma, alpha, steps = 0.5, 0.1, 200
    noise = zl.LabelNoise(sigma, examples=examples)
    system = problem.with_noise(noise if minibatch is None else noise + minibatch)
    saves = [1, 2, 5, 20, steps]
    predicted = zl.predict(system, start, alpha, zl.Saves(steps, at=saves))
    number, targets = len(inputs), np.asarray(problem.targets)
    same, different = (1.0, 1.0) if minibatch is None else minibatch.second_moments(number)
    moments = np.where(np.eye(number) > 0, same, different)
    gram, residual = inputs @ inputs.T / number, -targets
    second = np.outer(residual, residual)  # E[r r^T]: r' = r - alpha K diag(c) (r - eta) / N
    for step in range(1, steps + 1):
        variance = sigma**2 * (1 if examples is None else number / examples)
        batch = moments * (second + variance * np.eye(number))
        second = second - alpha * (gram @ second + second @ gram) + alpha**2 * gram @ batch @ gram
        if step in saves:
            at = saves.index(step)
            # Without batches the noise is constant, and nothing is left to integrate.
            tolerance = 1e-6 if minibatch is None else 0.01
            np.testing.assert_allclose(predicted.loss[at], np.trace(second) / (2 * number), rtol=tolerance)
    shrunk = np.linalg.matrix_power(np.eye(len(start)) - alpha * inputs.T @ inputs / number, steps)
    expected = (np.eye(len(start)) - shrunk) @ np.linalg.pinv(inputs) @ targets  # of gradient descent
    np.testing.assert_allclose(predicted.params[-1], expected, atol=1e-6)


@pytest.mark.parametrize("rule", [{"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}], ids=str)
def test_stationary_loss_under_momentum(rule):
    """Each eigenvalue's variance in closed form for heavy ball (theory.md, section 5), else by iterating."""
    problem, inputs, start = linear()
    sigma, alpha, beta, number = 0.5, 0.1, 0.8, len(inputs)
    predicted = zl.predict(
        problem.with_noise(zl.LabelNoise(sigma)), start, zl.SGD(alpha, **rule), zl.Saves(20_000, count=2)
    )
    values = np.linalg.eigvalsh(inputs @ inputs.T / number)
    if "nesterov" in rule:
        variance = []
        for value in values:
            matrix = np.array([[1 - alpha * (1 + beta) * value, -alpha * beta**2], [value, beta]])
            force = np.array([-alpha * (1 + beta), 1.0])
            solved = np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), np.kron(force, force))
            variance.append(solved[0] * sigma**2 * value / number)
    else:
        variance = alpha * sigma**2 / number * (1 + beta) / ((1 - beta) * (2 * (1 + beta) - alpha * values))
    assert predicted.loss[-1] == pytest.approx(np.sum(values * variance) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "problem,noise,rule",
    [
        (HYPERBOLA, zl.LabelNoise(0.2), {}),
        (HYPERBOLA, zl.LabelNoise(0.2), {"momentum": 0.5}),
        (HYPERBOLA, zl.WeightNoise(0.05), {}),
        (COPIES, zl.LabelNoise(0.2, examples=1), {}),
        (COPIES, zl.MiniBatch(1, strength=0.5) + zl.LabelNoise(0.2), {}),
        (HYPERBOLA_LOSS, zl.WeightNoise(0.05), {}),
        (HYPERBOLA_LOSS, zl.AntiCorrelated(0.05), {}),
        (HYPERBOLA, zl.InputNoise(0.2), {"nesterov": True, "momentum": 0.5}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_against_training(problem, noise, rule):
    check_against_training(problem.with_noise(noise), HYPERBOLA_POINT, rule)


@pytest.mark.parametrize(
    "system",
    [
        HYPERBOLA_LOSS.with_noise(zl.WeightNoise(0.05)),
        HYPERBOLA_LOSS.with_noise(zl.AntiCorrelated(0.05)),
        zl.System(lambda w, eta: HYPERBOLA_LOSS.function(w + eta), zl.Gaussian((2,), 0.05)),
        HYPERBOLA.with_noise(zl.CustomNoise(along_the_gradient, zl.Gaussian((1,), 0.05), per="step")),
    ],
    ids=["weight noise", "anti-correlated", "system", "force along the gradient"],
)
def test_from_off_the_set_against_training(system):
    """Beside the set the noise seems to have a part along it; whether it does is decided on the set."""
    check_against_training(system, jnp.array([2.0, 0.55]), {})


def check_against_training(system, start, rule):
    """Within three standard errors of 1000 runs and twice the prediction's own estimate of its error."""
    steps, alpha = 400, 0.08
    optimizer, saves = zl.SGD(alpha, **rule), zl.Saves(steps, count=3)
    trained = zl.descend(system, start, optimizer, saves, key=KEY, replicas=1000)
    predicted = zl.predict(system, start, optimizer, saves)
    runs = trained.params[:, -1]
    error = runs.std(axis=0) / np.sqrt(len(runs))
    way = np.linalg.norm(runs.mean(axis=0) - start)
    own = 2 * predicted.uncertainty.total[-1] * way
    assert (np.abs(runs.mean(axis=0) - predicted.params[-1]) <= 3 * error + own).all()
    mean, loss_error = trained.mean("loss")
    assert abs(mean[-1] - predicted.loss[-1]) <= 3 * loss_error[-1] + 0.1 * mean[-1]


def test_a_valley_that_widens_from_off_the_set():
    """1/2 v^2 |u|^2 under weight noise: on the set v = 0, Reg = |u|^2 / 2, and |u| falls like exp(-t)."""
    direction = np.random.default_rng(0).normal(size=19)
    start = jnp.concatenate([jnp.array([0.3]), jnp.array(direction / np.linalg.norm(direction))])
    system = zl.Loss(lambda w: w[0] ** 2 * jnp.sum(w[1:] ** 2) / 2).with_noise(zl.WeightNoise(0.05))
    observables = {"u": lambda w: jnp.linalg.norm(w[1:])}
    saves = zl.Saves(at=[4000], observables=observables)
    trained = zl.descend(system, start, 0.1, saves, key=KEY, replicas=256)
    predicted = zl.predict(system, start, 0.1, saves)
    mean, error = trained.mean("u")
    own = predicted.uncertainty.measured["u"][-1]
    assert abs(predicted.observables["u"][-1] - mean[-1]) <= 3 * np.hypot(error[-1], own)
    assert own <= 0.02 * mean[-1]
    projected = np.linalg.norm(np.asarray(zl.project(system, start))[1:])
    assert mean[-1] == pytest.approx(projected * np.exp(-1), rel=0.1)  # the limit, at finite alpha and sigma


def test_the_spread_of_runs():
    system = HYPERBOLA.with_noise(zl.LabelNoise(0.2))
    trained = zl.descend(system, HYPERBOLA_POINT, 0.08, zl.Saves(400, count=2), key=KEY, replicas=4000)
    runs = trained.params[:, -1]
    spread = np.sqrt(runs.var(axis=0).sum())
    predicted = zl.predict(system, HYPERBOLA_POINT, 0.08, zl.Saves(400, count=2))
    way = np.linalg.norm(runs.mean(axis=0) - HYPERBOLA_POINT)
    assert predicted.uncertainty.spread[-1] * way == pytest.approx(spread, rel=0.3)  # of 16 runs
    stored = predicted.to_xarray()
    assert {"noisy_loss", "uncertainty_model", "uncertainty_spread"} <= set(stored) and stored.sizes[
        "time"
    ] == 2
    drawn = zl.predict(system, HYPERBOLA_POINT, 0.08, zl.Saves(400, count=2), replicas=2000, key=KEY)
    assert drawn.params.shape == (2000, 2, 2) and drawn.loss.shape == (2000, 2)
    assert np.sqrt(drawn.params[:, -1].var(axis=0).sum()) == pytest.approx(spread, rel=0.15)


def along_one(w, eta):
    """Noise along one coordinate, tangential and normal at once (theory.md, section 6)."""
    return (w[0] * w[1] - 1) ** 2 / 2 + eta[0] * w[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "system,momentum",
    [
        (HYPERBOLA.with_noise(zl.Langevin(0.2)), 0.0),
        (HYPERBOLA_LOSS.with_noise(zl.Langevin(0.2)), 0.0),
        (zl.System(along_one, zl.Gaussian((1,), 0.1)), 0.5),
    ],
    ids=["gram", "dense", "mixed"],
)
def test_noise_along_the_set_gives_an_ensemble(system, momentum):
    measure = {"q": lambda w: jnp.log(w[0] / w[1])}
    optimizer, saves = zl.SGD(0.1, momentum=momentum), zl.Saves(500, count=2, observables=measure)
    trained = zl.descend(system, HYPERBOLA_POINT, optimizer, saves, key=KEY, replicas=2000)
    predicted = zl.predict(system, HYPERBOLA_POINT, optimizer, saves, key=KEY, replicas=1000)
    (mean, error), (expected, own) = trained.mean("q"), predicted.mean("q")
    assert abs(mean[-1] - expected[-1]) <= 3 * np.hypot(error[-1], own[-1])
    spreads = [path.observables["q"][:, -1].std() for path in (trained, predicted)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise,relative,steps,replicas",
    [
        pytest.param(
            zl.MiniBatch(8) + zl.LabelNoise(0.1),
            0.25,
            6_000,
            100,
            id="label and batches",
            marks=pytest.mark.ensemble,
        ),
        pytest.param(zl.Dropout(0.2, at="hidden_1"), 0.5, 1_000, 200, id="dropout"),
    ],
)
def test_digits(noise, relative, steps, replicas):
    """The error that is left once the ensemble's is taken out: within three times its estimate, and 2 %."""
    problem = zl.problems.load("digits", widths=(10,), examples=30)
    system = problem.problem.with_noise(noise)
    point = zl.project(system, problem.start)
    alpha = relative / largest_eigenvalue(system, point)
    trained = zl.descend(system, point, alpha, zl.Saves(steps, count=2), key=KEY, replicas=replicas)
    predicted = zl.predict(system, point, alpha, zl.Saves(steps, count=2))

    def flat(params, lead):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)

    runs, start = flat(trained.params, 2)[:, -1], flat(point, 0)
    way = np.linalg.norm(runs.mean(axis=0) - start)
    own = runs.var(axis=0, ddof=1).sum() / replicas
    gap = np.linalg.norm(runs.mean(axis=0) - flat(predicted.params, 1)[-1])
    error = np.sqrt(max(gap**2 - own, 0)) / way
    assert error <= 3 * predicted.uncertainty.total[-1] + 0.5 * np.sqrt(own) / way
    assert error <= 0.02
    assert way > 0.05 * np.linalg.norm(start)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"step_size": 0.6}, StabilityError, "beyond the stability limit"),
        ({"step_size": lambda step: 0.1 + 0.01 * step}, StabilityError, "beyond the stability limit"),
        ({"step_size": lambda step: -0.1}, InputError, "not negative; at step 0"),
        ({"rtol": 1.0}, InputError, "rtol must lie in"),
        ({"rtol": lambda: zl.Tolerance(max_gradients=0.0)}, InputError, "max_gradients must be positive"),
        ({"replicas": 0}, InputError, "replicas must be"),
        ({"steps": 0}, InputError, "steps must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, error, message):
    given = {"step_size": 0.1, "steps": 100} | arguments
    with pytest.raises(error, match=message):
        if callable(given.get("rtol")):
            given["rtol"] = given["rtol"]()
        zl.predict(HYPERBOLA.with_noise(QUIET), HYPERBOLA_POINT, **given)


def test_noise_along_the_set_needs_replicas():
    with pytest.raises(InputError, match="pass replicas="):
        zl.predict(HYPERBOLA.with_noise(zl.Langevin(0.1)), HYPERBOLA_POINT, 0.1, 10)


@pytest.mark.parametrize("relative", [0.2, 0.5, 1.5])
def test_unstable_minibatches_are_refused_before_anything_is_integrated(relative):
    """In mean square batches of one are unstable long before the full gradient is.

    The factor in the message is the largest eigenvalue of an m^2 x m^2 matrix: what the batches add to the
    covariance of the residuals, relative to what relaxation takes away.
    """
    problem, inputs, start = linear()
    number = len(inputs)
    gram = inputs @ inputs.T / number
    alpha = relative / np.linalg.eigvalsh(gram)[-1]
    one = np.eye(number)
    relaxing = alpha * (np.kron(gram, one) + np.kron(one, gram)) - alpha**2 * np.kron(gram, gram)
    counts = number * np.eye(number) - 1  # covariance of the counts in batches of one
    added = alpha**2 * np.kron(gram, gram) @ np.diag(counts.reshape(-1))
    factor = np.abs(np.linalg.eigvals(np.linalg.solve(relaxing, added))).max()
    system = problem.with_noise(zl.LabelNoise(0.1) + zl.MiniBatch(1))
    if factor < 1:
        assert np.isfinite(zl.predict(system, start, alpha, zl.Saves(100, count=2)).loss).all()
        return
    with pytest.raises(StabilityError, match="mean square") as caught:
        zl.predict(system, start, alpha, 10_000)
    said = float(re.search(r"by ([0-9.e+]+) while", str(caught.value)).group(1))
    assert said == pytest.approx(factor, rel=1e-2)  # of three digits
