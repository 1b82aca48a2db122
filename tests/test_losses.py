"""Losses: their values, their minimum, their curvature, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError, LossError

KEY = jax.random.key(0)
OUTPUTS = jax.random.normal(KEY, (6, 3))
CLASSES = jnp.array([0, 1, 2, 2, 1, 0])
PROBABILITIES = jax.nn.softmax(jax.random.normal(jax.random.key(1), (6, 3)))
NUMBERS = jax.random.normal(jax.random.key(2), (6, 3))
LOSSES = {
    "squares": (zl.losses.Squares(), NUMBERS),
    "huber": (zl.losses.Huber(0.7), NUMBERS),
    "logistic": (zl.losses.Logistic(), PROBABILITIES),
    "logistic, smoothed": (zl.losses.Logistic(0.2), (PROBABILITIES > 0.3).astype(float)),
    "poisson": (zl.losses.Poisson(), jnp.exp(NUMBERS)),
    "cross-entropy, smoothed": (zl.losses.SoftmaxCrossEntropy(0.3), CLASSES),
    "cross-entropy, probabilities": (zl.losses.SoftmaxCrossEntropy(), PROBABILITIES),
    "custom": (zl.losses.Custom(lambda f, y: jnp.sum(2 * jnp.log(jnp.cosh(f - y)) + 1.0)), NUMBERS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_minimum_and_curvature(name):
    """At f* the gradient vanishes; B^T B is the Hessian, there and, where it stays positive, elsewhere."""
    loss, targets = LOSSES[name]
    targets = loss.checked(targets)
    minimum = loss.minimum(targets)

    def total(outputs):
        return loss.values(outputs, targets).sum()

    np.testing.assert_allclose(jax.grad(total)(minimum.outputs), 0, atol=1e-9)
    np.testing.assert_allclose(
        minimum.constant, loss.values(minimum.outputs, targets), rtol=1e-12, atol=1e-14
    )
    near = minimum.outputs + 0.01 * OUTPUTS
    assert (loss.values(near, targets) > minimum.constant).all()
    for outputs in (minimum.outputs, near):
        hessian = jax.vmap(jax.hessian(lambda f, y: loss.values(f[None], y[None])[0]))(outputs, targets)
        whitening = loss.whitening(outputs, targets)
        roots = jnp.stack(
            [whitening.whitened(jnp.tile(unit, (6, 1))) for unit in jnp.eye(3)], axis=2
        )  # [example, row, output]
        np.testing.assert_allclose(jnp.einsum("nri,nrj->nij", roots, roots), hessian, rtol=1e-9, atol=1e-12)
        # B^T u = g for gradients in the range of the Hessian
        gradients = jnp.einsum("nij,nj->ni", hessian, OUTPUTS)
        found = jnp.einsum("nri,nr->ni", roots, whitening.whitened_gradients(gradients))
        np.testing.assert_allclose(found, gradients, rtol=1e-9, atol=1e-12)


def test_softmax_has_a_row_less_than_classes():
    loss = zl.losses.SoftmaxCrossEntropy(0.1)
    targets = loss.checked(CLASSES)
    whitening = loss.whitening(OUTPUTS, targets)
    assert whitening.whitened(OUTPUTS).shape == (6, 2)
    np.testing.assert_allclose(whitening.whitened(jnp.ones((6, 3))), 0, atol=1e-15)


def test_values_are_those_of_pytorch():
    torch = pytest.importorskip("torch")

    def of(array):
        return torch.tensor(np.array(array))

    ours = {
        "smoothed": zl.losses.SoftmaxCrossEntropy(0.3),
        "probabilities": zl.losses.SoftmaxCrossEntropy(),
        "logistic": zl.losses.Logistic(),
        "poisson": zl.losses.Poisson(),
        "huber": zl.losses.Huber(0.7),
    }
    targets = {
        "smoothed": CLASSES, "probabilities": PROBABILITIES, "logistic": PROBABILITIES,
        "poisson": jnp.exp(NUMBERS), "huber": NUMBERS,
    }  # fmt: skip
    theirs = {
        "smoothed": torch.nn.CrossEntropyLoss(label_smoothing=0.3, reduction="none"),
        "probabilities": torch.nn.CrossEntropyLoss(reduction="none"),
        "logistic": torch.nn.BCEWithLogitsLoss(reduction="none"),
        "poisson": torch.nn.PoissonNLLLoss(reduction="none"),
        "huber": torch.nn.HuberLoss(delta=0.7, reduction="none"),
    }
    for name, loss in ours.items():
        found = loss.values(OUTPUTS, loss.checked(targets[name]))
        expected = theirs[name](of(OUTPUTS), of(targets[name]))
        expected = expected if expected.ndim == 1 else expected.sum(axis=1)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-13, err_msg=name)


def test_the_constant_leads_back_to_pytorch():
    torch = pytest.importorskip("torch")
    problem = zl.CrossEntropy(lambda params, inputs: inputs + params, OUTPUTS, CLASSES, smoothing=0.3)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.3)(
        torch.tensor(np.array(OUTPUTS)), torch.tensor(np.array(CLASSES))
    )
    assert float(problem.loss(0.0) + problem.constant) == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize(
    "loss,targets,message",
    [
        (
            zl.losses.SoftmaxCrossEntropy(0.1),
            [0, 1, 2, -1],
            r"classes from 0 to 2; example 3 has -1 \(1 of 4",
        ),
        (zl.losses.SoftmaxCrossEntropy(0.1, classes=2), [0, 1, 2], r"classes from 0 to 1; example 2 has 2"),
        (zl.losses.SoftmaxCrossEntropy(), [[0.5, 0.5], [0.7, 0.7]], r"sum to 1; example 1 has \[0.7, 0.7\]"),
        (zl.losses.SoftmaxCrossEntropy(), [[1.5, -0.5]], r"not negative; example 0 has \[1.5, -0.5\]"),
        (zl.losses.SoftmaxCrossEntropy(), [0.5, 0.5], r"must be classes, integers of shape \[N\]"),
        (zl.losses.Logistic(), [0.5, 1.5], r"lie in \[0, 1\] for the logistic loss; example 1 has 1.5"),
        (zl.losses.Poisson(), [2, -1], r"be >= 0 for the Poisson loss; example 1 has -1"),
    ],
)
def test_wrong_targets_are_named(loss, targets, message):
    with pytest.raises(InputError, match=message):
        loss.checked(jnp.asarray(targets))


def test_wrong_losses():
    with pytest.raises(InputError, match=r"smoothing must lie in \[0, 1\), got 1.0"):
        zl.losses.SoftmaxCrossEntropy(1.0)
    with pytest.raises(InputError, match=r"delta of the Huber loss must be positive, got -1"):
        zl.losses.Huber(-1.0)
    endless = zl.losses.Custom(lambda f, y: jnp.exp(-jnp.sum(f) * y))
    with pytest.raises(LossError, match=r"the loss of example 1 (has no minimum|is not curved)"):
        zl.Supervised(
            lambda w, x: x * w, jnp.ones(2), jnp.array([0.0, 1.0]) + 1e-300, loss=_after_one(endless)
        )


def _after_one(loss):
    """The custom loss, with squares for targets of nearly 0."""
    return zl.losses.Custom(lambda f, y: jnp.where(y > 0.5, loss.function(f, y), jnp.sum((f - y) ** 2)))
