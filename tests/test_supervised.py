"""Supervised problems with losses beyond squares, against the same loss without any structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems_for_tests import flat

import zeroloss as zl
from zeroloss.errors import InputError, LossError, NoMinimumError, NotReachedError
from zeroloss.zero_sets import locate

N, K = 8, 3
INPUTS = jax.random.normal(jax.random.key(0), (N, 3))
LABELS = jnp.arange(N) % K
PARAMS = {
    "in": jax.random.normal(jax.random.key(1), (3, 8)),
    "out": jax.random.normal(jax.random.key(2), (8, K)),
}


def masked(params, inputs, mask=1.0):
    return (jnp.tanh(inputs @ params["in"]) * mask) @ params["out"]


def network(params, inputs):
    return zl.site(jnp.tanh(inputs @ params["in"]), "hidden") @ params["out"]


def first_output(params, inputs):
    return network(params, inputs)[:, 0]


WEIGHTS = jnp.arange(N) / 3 + 0.5
PROBLEMS = {
    "cross-entropy": zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.3),
    "weighted": zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.3, weights=WEIGHTS),
    "logistic": zl.Supervised(first_output, INPUTS, (LABELS > 0) * 1.0, loss=zl.losses.Logistic(0.2)),
    "poisson": zl.Supervised(first_output, INPUTS, LABELS + 1, loss=zl.losses.Poisson(), weights=WEIGHTS),
    "huber": zl.Supervised(first_output, INPUTS, jnp.sin(1.0 * LABELS), loss=zl.losses.Huber(0.7)),
    "custom": zl.Supervised(
        first_output,
        INPUTS,
        jnp.sin(1.0 * LABELS),
        loss=zl.losses.Custom(lambda f, y: 2 * jnp.log(jnp.cosh(f - y))),
        weights=WEIGHTS,
    ),
}


def plain_loss(problem, params, mask=1.0, shift=0.0):
    """The loss written out, with a mask on hidden units and a shift of the targets."""
    outputs = masked(params, INPUTS, mask)
    outputs = outputs[:, 0] if problem.targets.ndim == 1 else outputs
    values = problem.loss_function.values(outputs, problem.targets + shift) - problem.minimum.constant
    return jnp.mean(values if problem.weights is None else problem.weights * values)


@pytest.fixture(scope="module")
def points():
    noise = zl.WeightNoise(0.1)
    return {name: zl.project(problem.with_noise(noise), PARAMS) for name, problem in PROBLEMS.items()}


def assert_same_drift(system, plain, point):
    found, expected = zl.drift(system, point), zl.drift(plain, point)
    for each in ("first", "second"):
        wanted = flat(getattr(expected, each))
        np.testing.assert_allclose(flat(getattr(found, each)), wanted, atol=1e-10 * (1 + abs(wanted).max()))
    regularizers = zl.regularizer(system, point), zl.regularizer(plain, point)
    np.testing.assert_allclose(*regularizers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_drifts_are_those_of_the_loss_written_out(name, points):
    """Weight noise, and Gaussian dropout before the last layer, whose Reg needs the curvature of the loss."""
    problem, point = PROBLEMS[name], points[name]
    assert float(plain_loss(problem, point)) == pytest.approx(0, abs=1e-12)
    assert float(problem.loss(PARAMS)) == pytest.approx(float(plain_loss(problem, PARAMS)), rel=1e-12)
    plain = zl.Loss(lambda params: plain_loss(problem, params)).with_noise(zl.WeightNoise(0.1))
    assert_same_drift(problem.with_noise(zl.WeightNoise(0.1)), plain, point)
    dropped = zl.System(lambda params, eta: plain_loss(problem, params, 1 + eta), zl.Gaussian((N, 8), 0.1))
    assert_same_drift(problem.with_noise(zl.GaussianDropout(0.1, at="hidden")), dropped, point)


def test_noise_on_labels_of_cross_entropy(points):
    """Added noise is linear in the loss, so that Reg is 0. Labels that are drawn have Sigma = H / N."""
    problem, point = PROBLEMS["cross-entropy"], points["cross-entropy"]
    added = zl.System(lambda params, eta: plain_loss(problem, params, shift=eta), zl.Gaussian((N, K), 0.1))
    assert_same_drift(problem.with_noise(zl.LabelNoise(0.1)), added, point)
    p = np.asarray(problem.targets)
    values, vectors = np.linalg.eigh(np.stack([np.diag(each) - np.outer(each, each) for each in p]))
    roots = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0))[:, None, :])
    drawn = zl.System(
        lambda params, eta: plain_loss(problem, params, shift=jnp.einsum("nij,nj->ni", roots, eta)),
        zl.Gaussian((N, K), 1.0),
    )
    system = problem.with_noise(zl.SampledLabels())
    assert_same_drift(system, drawn, point)
    verdict = zl.classify(system, point)
    assert verdict.name == "degenerate" and verdict.towards == "towards smaller tr H"


def test_flipped_labels_make_soft_targets(points):
    """Flips at rate r are labels drawn from soft ones, which smoothing by r k / (k - 1) makes too."""
    hard = zl.CrossEntropy(network, INPUTS, LABELS)
    flipped = hard.with_noise(zl.FlippedLabels(0.2))
    np.testing.assert_allclose(flipped.problem.targets, PROBLEMS["cross-entropy"].targets, rtol=1e-12)
    point = points["cross-entropy"]
    drawn = PROBLEMS["cross-entropy"].with_noise(zl.SampledLabels())
    np.testing.assert_allclose(
        flat(zl.drift(flipped, point).second), flat(zl.drift(drawn, point).second), rtol=1e-9, atol=1e-14
    )
    with pytest.raises(InputError, match=r"labels can be flipped where they are hard"):
        PROBLEMS["cross-entropy"].with_noise(zl.FlippedLabels(0.2))


def test_structured_and_matrix_free_geometry_agree(points, monkeypatch):
    """Through the layers of the model, and by iteration, as through J as a matrix."""
    from zeroloss.zero_sets import _selection

    problem, point = PROBLEMS["cross-entropy"], points["cross-entropy"]
    system = problem.with_noise(zl.SampledLabels())
    expected = flat(zl.drift(system, point).second)
    iterative = zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.3, geometry="matrix-free")
    found = flat(zl.drift(iterative.with_noise(zl.SampledLabels()), point).second)
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())
    monkeypatch.setattr(_selection, "_LARGEST_JACOBIAN", 0)
    point = jax.tree.map(jnp.copy, point)
    assert locate(system, point).zero_set.structure is not None
    np.testing.assert_allclose(flat(zl.drift(system, point).second), expected, atol=1e-10)


@pytest.mark.parametrize(
    "noise,alpha,steps",
    [
        (zl.GaussianDropout(0.1, at="hidden"), 0.5, 2000),
        (zl.Dropout(0.1, at="hidden"), 0.5, 500),
        (zl.Dropout(0.5, at="hidden"), 0.3, 300),
        (zl.LabelNoise(0.05), 0.2, 10_000),
        (zl.MiniBatch(4) + zl.GaussianDropout(0.2, at="hidden"), 0.3, 1000),
    ],
    ids=str,
)
def test_predictions_of_cross_entropy_agree_with_training(noise, alpha, steps, points):
    """To 4 percent of the way, beside the error of the ensemble."""
    problem, point = PROBLEMS["cross-entropy"], points["cross-entropy"]
    system = problem.with_noise(noise)
    step_size = alpha / zl.zero_sets.largest_eigenvalue(system, point)
    saves = zl.Saves(steps, count=2)
    predicted = zl.predict(system, point, step_size, saves)
    trained = zl.descend(system, point, step_size, saves, key=jax.random.key(5), replicas=256)
    runs = np.concatenate(
        [np.asarray(leaf)[:, -1].reshape(256, -1) for leaf in jax.tree.leaves(trained.params)], 1
    )
    mean, start = runs.mean(axis=0), flat(point)
    end = flat(jax.tree.map(lambda leaf: leaf[-1], predicted.params))
    way = np.linalg.norm(mean - start)
    error_of_ensemble = np.sqrt(runs.var(axis=0).sum() / 256) / way
    assert np.linalg.norm(end - mean) / way < 0.04 + 2 * error_of_ensemble
    assert float(predicted.loss[-1]) == pytest.approx(float(np.mean(trained.loss[:, -1])), rel=0.1)


def test_hard_labels_have_no_zero_loss_set():
    """Verbs about the set say so; training works, and is measured with the curvature at its outputs."""
    system = zl.CrossEntropy(network, INPUTS, LABELS).with_noise(zl.GaussianDropout(0.1, at="hidden"))
    for verb in (zl.project, zl.classify, zl.drift):
        with pytest.raises(LossError, match=r"no zero-loss set: .* of hard labels .*8 of 8 examples"):
            verb(system, PARAMS)
    path = zl.descend(system, PARAMS, 0.1, zl.Saves(20, count=2), key=jax.random.key(0))
    end = jax.tree.map(lambda leaf: jnp.asarray(leaf[-1]), path.params)
    outputs = network(end, INPUTS)
    assert path.loss[-1] == pytest.approx(
        float(-jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(N), LABELS])), rel=1e-12
    )
    jacobian = jax.jacrev(lambda params: network(params, INPUTS))(end)
    rows = np.concatenate([np.asarray(leaf).reshape(N, K, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
    p = np.asarray(jax.nn.softmax(outputs))
    curvature = np.stack([np.diag(each) - np.outer(each, each) for each in p])
    expected = np.einsum("nkd,nkl,nld->", rows, curvature, rows) / N
    assert path.hessian_trace[-1] == pytest.approx(expected, rel=1e-10)


def test_classify_says_how_much_noise_does_under_hard_labels():
    """Ratios of the noise to the loss at the point; outputs are linear in these masks."""
    system = zl.CrossEntropy(network, INPUTS, LABELS).with_noise(zl.GaussianDropout(0.3, at="hidden"))
    with pytest.raises(NoMinimumError, match=r"The two time scales do not separate") as raised:
        zl.classify(system, PARAMS)
    w, unravel = ravel_pytree(PARAMS)

    def regularizer(w):
        def loss(mask):  # of each example, whose masks do not mix
            outputs = masked(unravel(w), INPUTS, mask)
            return -jax.nn.log_softmax(outputs)[jnp.arange(N), LABELS]

        return jnp.trace(jax.hessian(lambda mask: jnp.mean(loss(mask)))(jnp.ones(8))) / 2

    def differences(w):  # what softmax sees of the outputs
        outputs = network(unravel(w), INPUTS)
        return (outputs[:, 1:] - outputs[:, :1]).reshape(-1)

    rows = np.linalg.qr(np.asarray(jax.jacrev(differences)(w)).T)[0]
    slope = np.asarray(jax.grad(regularizer)(w))
    along = np.linalg.norm(slope - rows @ (rows.T @ slope))
    pull = np.linalg.norm(jax.grad(lambda w: system.clean_loss(unravel(w)))(w))
    loss = float(system.clean_loss(PARAMS))
    assert raised.value.regularizer_ratio == pytest.approx(0.09 * float(regularizer(w)) / loss, rel=1e-10)
    assert raised.value.drift_ratio == pytest.approx(0.09 * along / pull, rel=1e-8)


def test_wrong_weights_and_contradictions():
    with pytest.raises(InputError, match=r"that of example 2 is -1"):
        zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.1, weights=[1, 1, -1, 1, 1, 1, 1, 1])
    with pytest.raises(InputError, match=r"weights must have shape \[8\]"):
        zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.1, weights=[1, 1])
    with pytest.raises(InputError, match=r"outputs have shape \(8, 3\) but the targets \(8, 4\)"):
        problem = zl.CrossEntropy(network, INPUTS, LABELS, smoothing=0.1, classes=4)
        zl.project(problem.with_noise(zl.WeightNoise(0.1)), PARAMS)
    same = zl.CrossEntropy(network, INPUTS.at[1].set(INPUTS[0]), LABELS, smoothing=0.1)
    with pytest.raises(NotReachedError, match=r"examples 0 and 1 have equal inputs"):
        zl.project(same.with_noise(zl.WeightNoise(0.1)), PARAMS)
