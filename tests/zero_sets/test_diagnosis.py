"""Why zero loss is not reached: each cause by its name, with the numbers that a closed form gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import hyperbola_loss

import zeroloss as zl
from zeroloss._pytrees import flatten
from zeroloss.errors import NotOnSetError, NotReachedError
from zeroloss.zero_sets import _projection, locate, zero_set_of
from zeroloss.zero_sets._contradictions import disagreeing, number
from zeroloss.zero_sets._diagnosis import _FACTORS, DescentPoint, _grows_on, _places_of_endless_fall

RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(6, 10)))
LABELS = jnp.asarray([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
CLASSES = jnp.asarray([0, 1, 2, 0, 1, 2])


def weight(loss, geometry="auto"):
    return zl.Loss(loss, geometry).with_noise(zl.WeightNoise(0.1))


def fit(model, inputs, targets, **options):
    return zl.LeastSquares(model, inputs, jnp.asarray(targets), **options).with_noise(zl.LabelNoise(0.1))


def linear(w, x):
    return x @ w


def sigmoid(w, x):
    return jax.nn.sigmoid(x @ w)


def two_layers(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


def layers(into, width, outputs=()):
    keys = jax.random.split(jax.random.key(0))
    return {
        "a": jax.random.normal(keys[0], (into, width)),
        "b": jax.random.normal(keys[1], (width, *outputs)) / 4,
    }


def logistic(w):
    return jnp.mean(jnp.logaddexp(0.0, -(2 * LABELS - 1) * (ROWS @ w)))


def softmax(targets, w):
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(ROWS @ w), axis=1))


def hard(w):
    return softmax(jax.nn.one_hot(CLASSES, 3), w)


def network(params):
    return jnp.mean(jax.nn.softplus(-(2 * LABELS - 1) * two_layers(params, ROWS)))


def exponential(w):
    return jnp.mean(jnp.exp(-jnp.abs(ROWS) @ w))


def reason(system, start, **options):
    with pytest.raises(NotReachedError) as caught:
        zl.project(system, start, **options)
    message = str(caught.value)
    assert "-0 " not in message and "nan" not in message and "\n" not in message
    return message


# A loss whose infimum is at infinity.

SMALL = jnp.asarray(0.1 * RNG.normal(size=10))
APART = jnp.linalg.lstsq(ROWS, 2 * LABELS - 1)[0]  # outputs of +-1
ENDLESS = [
    ("logistic", weight(logistic), SMALL),
    ("logistic from far, lost to rounding", weight(logistic), 3e3 * APART),
    ("softmax", weight(hard), jnp.zeros((10, 3))),
    ("network", weight(network), layers(10, 8)),
    ("exponential", weight(exponential), SMALL),
    ("matrix-free, lost to rounding", weight(exponential, "matrix-free"), jnp.full(10, 1e3)),
    ("sigmoid with hard targets", fit(sigmoid, ROWS, LABELS), SMALL),
]


@pytest.mark.parametrize("system,start", [case[1:] for case in ENDLESS], ids=[case[0] for case in ENDLESS])
def test_infimum_at_infinity(system, start):
    message = reason(system, start)
    assert "its infimum is at infinity" in message
    assert "more parameters do not help" in message and "max_steps" not in message
    assert "zeroloss.descend" in message
    places = re.findall(r"([\d.e+-]+|0 to rounding) at \|w\| = ([\d.e+]*\d)", message)
    assert len(places) == 3
    losses = [0.0 if loss.startswith("0 ") else float(loss) for loss, _ in places]
    sizes = [float(size) for _, size in places]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-9 and sizes == sorted(sizes)


def test_infimum_at_infinity_with_numbers_of_the_descent():
    """The loss and |w| that the message gives are those of gradient descent, and it stops early."""
    message = reason(weight(logistic), SMALL)
    found = re.search(
        r"In (\d+) steps .* from ([\d.e-]+) to ([\d.e-]+) and \|w\| from ([\d.]+) to ([\d.]+)", message
    )
    steps, first, last, shorter, longer = map(float, found.groups())
    assert steps < 20_000 and last < 1e-6 * first and longer > 10 * shorter
    assert first == pytest.approx(float(logistic(SMALL)), rel=5e-3)
    assert shorter == pytest.approx(float(jnp.linalg.norm(SMALL)), rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.2, 1e-3, 1e-6])
def test_smoothed_labels_less_their_entropy_reach_zero(epsilon):
    """The advice that the message gives: zero loss where the softmax is the smoothed label."""
    targets = (1 - epsilon) * jax.nn.one_hot(CLASSES, 3) + epsilon / 3
    entropy = -jnp.mean(jnp.sum(targets * jnp.log(targets), axis=1))
    point = zl.project(weight(lambda w: softmax(targets, w) - entropy), jnp.zeros((10, 3)))
    np.testing.assert_allclose(jax.nn.softmax(ROWS @ point), targets, rtol=1e-6)


def test_smoothed_labels_with_their_entropy():
    targets = 0.8 * jax.nn.one_hot(CLASSES, 3) + 0.2 / 3
    entropy = float(-jnp.mean(jnp.sum(targets * jnp.log(targets), axis=1)))
    message = reason(weight(lambda w: softmax(targets, w)), jnp.zeros((10, 3)), max_steps=3000)
    assert f"the loss is {entropy:.6g} " in message and "subtract it" in message


def test_targets_inside_of_the_range_reach_zero():
    """The advice for least squares, however close to the edge of the range the targets are."""
    for edge in (0.05, 1e-4):
        targets = edge + (1 - 2 * edge) * LABELS
        point = zl.project(fit(sigmoid, ROWS, targets), SMALL)
        np.testing.assert_allclose(ROWS @ point, jnp.log(targets / (1 - targets)), rtol=1e-6)


def test_saturated_outputs_are_not_zero_loss():
    """From here on the sigmoid is 1 in floating point, or 0 but for 1e-17, and the residuals vanish."""
    system = fit(sigmoid, ROWS, LABELS)
    for logit in (20.0, 30.0, 40.0, 60.0):
        assert float(system.clean_loss(logit * APART)) < 1e-17
        with pytest.raises(NotOnSetError):
            zl.classify(system, logit * APART)
        assert "infimum is at infinity" in reason(system, logit * APART)


def test_flat_valley_of_a_hinge_is_no_infimum_at_infinity():
    """A loss of exactly zero beyond some distance, reached through its powers, not through an exponential."""
    factors = np.asarray(_FACTORS)
    for power in (1, 2, 3, 4, 6):
        for edge in (0.05, 0.3, 0.7, 1.03, 1.9, 30.0):
            assert _places_of_endless_fall(np.maximum(0.0, 1 - factors / edge) ** power, 1e-12) is None


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("lost,squared", [(1e-12, 1), (1e-24, 2)])
def test_exponentials_of_any_degree_fall_for_ever(depth, lost, squared):
    for margin in (0.3, 1.0, 5.0, 40.0, 400.0):
        with np.errstate(under="ignore"):
            losses = np.log1p(np.exp(-margin * np.asarray(_FACTORS) ** depth)) ** squared
        assert _places_of_endless_fall(losses, lost) is not None


@pytest.mark.parametrize(
    "curve",
    [
        lambda x: 0.25 + 1 / (1 + x**2),
        lambda x: (1 - x / 1.5) ** 2,
        lambda x: (1 - x**4 / 1e6) ** 2,
        lambda x: np.log1p(np.exp(-x)) + np.log1p(np.exp(-1e-3 * x)),
        lambda x: np.full_like(x, 0.3),
        lambda x: np.zeros_like(x),
        lambda x: np.where(x < 3, np.exp(-x), np.nan),
    ],
)
def test_no_endless_fall(curve):
    assert _places_of_endless_fall(curve(np.asarray(_FACTORS)), 1e-12) is None


def test_loss_that_becomes_nan():
    """Cross-entropy by hand: 0 * log(0) once the sigmoid is 1."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)))

    def loss(w):
        output = jax.nn.sigmoid(rows @ w)
        return -jnp.mean(LABELS * jnp.log(output) + (1 - LABELS) * jnp.log(1 - output))

    with pytest.raises(NotReachedError, match=r"goes from \S+ to nan.*log_softmax"):
        zl.project(weight(loss), jnp.zeros(8))


# Causes that the data show.


@pytest.mark.parametrize("steps", [0, 20_000])
def test_equal_inputs_with_unequal_targets(steps, monkeypatch):
    """Refused before any step, with the within-group scatter, (1/2N) sum (y - mean)^2, as the bound."""
    monkeypatch.setattr(_projection, "_attempt", None)
    inputs = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [3.0, 1.0]])
    message = reason(fit(two_layers, inputs, [1.0, 2.0, 3.0, 4.0]), layers(2, 30), max_steps=steps)
    assert "examples 0 and 2 have equal inputs but the targets 1 and 3" in message
    assert "2 of 4 examples" in message
    assert f"at least {(1 + 1) / (2 * 4):g}." in message


def test_equal_inputs_as_pytrees_of_several_outputs():
    inputs = {"x": jnp.array([[0.0], [1], [-0.0], [1], [1], [2]]), "kind": jnp.array([0, 1, 0, 1, 1, 3])}
    targets = np.array(
        [[1.0, 0, 0, 0, 7], [2, 0, 0, 0, 0], [1, 0, 0, 0, 9], [2, 0, 0, 0, 0], [2, 3, 0, 0, 0], [0] * 5]
    )

    def model(params, inputs):
        return jnp.tanh(inputs["x"] + inputs["kind"][:, None]) @ params["b"]

    message = reason(fit(model, inputs, targets), {"b": jnp.ones((1, 5))})
    assert "examples 0 and 2 have equal inputs but the targets [1, 0, 0, 0, ...] and" in message
    assert "examples 1, 3 and 4 have equal inputs" in message and "5 of 6 examples" in message
    scatter = sum(np.sum((targets[rows] - targets[rows].mean(0)) ** 2) for rows in ([0, 2], [1, 3, 4]))
    assert f"at least {scatter / 12:.6g}." in message


def test_targets_that_differ_in_late_digits_are_told_apart():
    inputs = jnp.array([[1.0], [1.0], [2.0]])
    message = reason(fit(linear, inputs, [1.0, 1.0 + 1e-8, 0.5]), jnp.ones(1))
    assert "the targets 1 and 1.00000001" in message.replace("1.0000000099999999", "1.00000001")


def test_many_groups_are_counted():
    inputs = np.repeat(np.arange(10.0), 4)[:, None]
    groups, squares = disagreeing(inputs, np.tile([0.0, 1.0, 0.0, 1.0], 10), 1e-10)
    assert len(groups) == 10 and squares == pytest.approx(10.0)
    message = reason(fit(linear, jnp.asarray(inputs), np.tile([0.0, 1.0, 0.0, 1.0], 10)), jnp.ones(1))
    assert message.count("have equal inputs") == 3 and "in 7 more groups" in message
    assert "examples 0, 1 and 3 of 4 have equal inputs" in message and "40 of 40 examples" in message


def test_equal_inputs_with_equal_targets_are_fine():
    """As are such whose targets the remedy, a mean, made equal but for rounding."""
    inputs = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    system = fit(two_layers, inputs, [0.3, 0.5, 0.3, 0.1 + 0.2])
    np.testing.assert_allclose(two_layers(zl.project(system, layers(2, 30)), inputs)[0], 0.3, rtol=1e-9)
    assert disagreeing(inputs, [0.3, 0.5, 0.3, 0.1 + 0.2], 1e-10) == ([], 0.0)


def test_examples_that_the_model_does_not_tell_apart():
    """It sees the size of its input alone."""

    def model(w, x):
        return jnp.cos(x * w[0]) * w[1] + w[2] * x**2 + w[3]

    message = reason(
        fit(model, jnp.array([1.0, -1.0, 0.5, 2.0]), [1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 2, 3, 0.4])
    )
    assert "examples 0 and 1 get equal outputs but the targets 1 and 2" in message
    assert f"at least {0.5 / (2 * 4):.6g}." in message and "does not tell these examples apart" in message


def test_model_that_does_not_see_its_inputs():
    message = reason(fit(lambda w, x: jnp.mean(w) + 0 * x[:, 0], ROWS, LABELS), jnp.ones(5))
    assert "get equal outputs" in message and "outputs of all of them are equal" in message
    assert f"at least {float(jnp.var(LABELS)) / 2:.6g}." in message


@pytest.mark.parametrize(
    "rows,rank",
    [(RNG.normal(size=(12, 5)), 5), (RNG.normal(size=(6, 3)) @ RNG.normal(size=(3, 20)), 3)],
    ids=["5 parameters against 12 examples", "20 dependent parameters against 6"],
)
def test_linear_model_without_a_solution(rows, rank):
    """The smallest loss is that of numpy's least squares."""
    targets = RNG.normal(size=len(rows))
    message = reason(fit(linear, jnp.asarray(rows), targets), jnp.ones(rows.shape[1]))
    residual = rows @ np.linalg.lstsq(rows, targets, rcond=1e-12)[0] - targets
    assert f"The smallest loss is {residual @ residual / (2 * len(rows)):.6g}. " in message
    assert (
        f"{len(rows)} residuals and {rows.shape[1]} parameters, and the Jacobian has rank {rank}." in message
    )
    assert "linear in its parameters" in message and "max_steps" not in message


@pytest.mark.parametrize("geometry", ["factorized", "matrix-free"])
def test_fewer_parameters_than_residuals(geometry):
    inputs = jnp.linspace(-1, 1, 20)[:, None]
    system = fit(two_layers, inputs, jnp.sin(9 * inputs[:, 0]), geometry=geometry)
    message = reason(system, layers(1, 2), max_steps=1000)
    assert "There are 20 residuals and 4 parameters" in message and "take 20 parameters or more" in message
    assert ("the Jacobian has rank 4" in message) == (geometry == "factorized")


def test_target_beyond_the_range_of_the_output():
    message = reason(fit(lambda w, x: jnp.tanh(x @ w), ROWS, [2.0, 0.5, -0.1, 0.2, 0.3, 0.1]), SMALL)
    assert re.search(r"largest residual is that of example 0: 0\.99\d+ for a target of 2\.", message)
    assert "|w| goes on growing" in message and "inside of the range" in message


# What the point reached shows.


def test_start_at_a_saddle():
    start = {"a": jnp.zeros((10, 8)), "b": jnp.zeros(8)}
    message = reason(fit(two_layers, ROWS, LABELS), start)
    assert "stands still" in message and "|grad L| = 0 " in message and ": a saddle. " in message
    assert "rank 0" in message and message.endswith("Take another start.")


def test_minimum_that_is_not_zero():
    message = reason(weight(lambda w: (w[0] ** 2 - w[1]) ** 2 + 0.25), jnp.array([1.0, 3.0]))
    assert "stands still" in message and "the loss is 0.25 " in message and "subtract it" in message
    assert float(re.search(r"\|grad L\| = (\S+)", message)[1]) < 1e-12


def test_descent_that_is_cut_short():
    message = reason(
        weight(lambda w: (hyperbola_loss(w) - 2) ** 2 + 0 * w[0] + 1e-3 * w[0] ** 2),
        jnp.array([0.1, 9.0]),
        max_steps=30,
    )
    assert "after 30 steps" in message and "max_steps, now 30" in message


def test_loss_with_a_kink():
    message = reason(weight(lambda w: jnp.abs(w[0] - 1) + 0 * w[1]), jnp.array([0.3, 0.4]))
    assert "gradient descent does not lower the loss" in message and "|grad L| is 1" in message


def test_no_steps_at_all():
    assert "the loss at the start is 0.25" in reason(
        weight(lambda w: jnp.sum(w**2) + 0.25), jnp.zeros(2), max_steps=0
    )


def test_growth_with_the_logarithm_of_the_steps():
    steps = [0, 200, 600, 1400, 3000, 6200, 12600, 20000]
    logarithmic = [DescentPoint(k, 1 / (1 + k), np.log(1 + k)) for k in steps]
    settling = [DescentPoint(k, 1 / (1 + k), 3 - (1 + k) ** -0.25) for k in steps]
    assert _grows_on(logarithmic) and not _grows_on(settling) and not _grows_on(logarithmic[:4])


def test_numbers_of_losses():
    assert [number(loss) for loss in (-0.0, 0.0, -3e-17)] == ["0 to rounding"] * 3
    assert number(4.5e-21) == "4.5e-21" and number(1 / 3) == "0.333333"


def test_point_far_out_is_not_on_the_set():
    with pytest.raises(NotOnSetError, match="its loss is 0 to rounding"):
        locate(weight(hard), 45 * jnp.linalg.lstsq(ROWS, jax.nn.one_hot(CLASSES, 3) - 1 / 3)[0])


def test_relative_residual_of_a_small_output_beside_a_large_constant():
    """An output 1 + 1e-5 g(w): the set is where g is right, though outputs are nearly right anywhere."""
    system = fit(lambda w, x: 1 + 1e-5 * jnp.tanh(x @ w), ROWS, 1 + 1e-5 * (LABELS - 0.4))
    point = zl.project(system, SMALL)
    np.testing.assert_allclose(jnp.tanh(ROWS @ point), LABELS - 0.4, atol=1e-6)
    w, unravel = flatten(point)
    assert float(zero_set_of(system, w, unravel).relative_residual(w)) < 1e-10
