"""Noise on the data: inputs, labels (theory.md, section 4)."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss._arguments import positive_integer
from zeroloss._pytrees import is_traced
from zeroloss.errors import InputError
from zeroloss.noise._laws import (
    AbstractLaw,
    Coins,
    Correlated,
    Gaussian,
    Independent,
    Matrix,
    OneHot,
    RandomSubset,
    Scale,
    positive_sigma,
    symmetric_root,
)
from zeroloss.noise._noise import AbstractGaussian, AbstractInjection, Forward, Listing


class _AbstractOnTargets(AbstractInjection):
    """Noise that is added to the targets, fresh for every example."""

    per: Literal["example"] = eqx.field(static=True, default="example", init=False)

    @property
    def needs(self) -> str:
        return "targets"

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        return forward.replace(targets=forward.targets + eta)


class LabelNoise(_AbstractOnTargets):
    """Fresh Gaussian noise on every target at every step: y_i -> y_i + sigma * xi_i.

    Its regularizer is constant, so it acts on the slow scale: dW/dt = -1/(4N) P_T grad tr H
    (theory.md, section 4; Blanc et al. 2020; Li, Wang and Arora 2022). With several outputs of unequal
    or correlated noise it is still degenerate, but tr H does not decide the drift.

    **Arguments:**

    - `sigma`: in the units of the targets.
    - `covariance`: for targets `[N, k]`, the k x k covariance between the outputs of one example, in
      units of sigma^2; by default the identity.
    - `examples`: n, if at each step only n of the N labels have noise, drawn without replacement, and the
      gradient stays that of all N examples. By default all labels have noise.

    With `examples=n` and S the set of the n examples drawn, a step is

        w <- w - alpha (grad L(w) - 1/n sum_{i in S} sigma xi_i grad f_i(w)),

    the clean gradient of all examples with the label noise of a batch of n. So dW/dt = -1/(4n) P_T grad tr H,
    with t = alpha^2 sigma^2 k. For n = 1 that is the label noise gradient descent of HaoChen et al. (2021),
    and to second order, so in verdict, drift and limit, `LabelNoise(sigma * N**0.5)` on all labels.
    Another convention puts an error delta on one label inside the mean over N examples. That noise is
    `LabelNoise(delta / N, examples=1)`, to second order `LabelNoise(delta / N**0.5)`.

    `MiniBatch` and `examples` cannot be combined: with minibatches the gradient is not that of all examples.
    """

    listing: ClassVar[Listing] = Listing("label", "label noise", "sigma", 0.3, usual=True)

    sigma: Scale
    root: Float[Array, "outputs outputs"] | None
    examples: int | None = eqx.field(static=True)

    def __init__(self, sigma: float, covariance: Matrix | None = None, examples: int | None = None):
        self.sigma = positive_sigma(sigma)
        self.root = None if covariance is None else symmetric_root(covariance)
        self.examples = None if examples is None else positive_integer("examples of LabelNoise", examples)

    def check_problem(self, number: int, *, batched: bool) -> None:
        if self.examples is None:
            return
        if self.examples > number:
            raise InputError(
                f"LabelNoise(examples={self.examples}) cannot draw {self.examples} different examples from "
                f"{number}."
            )
        if batched:
            raise InputError(
                f"LabelNoise(examples={self.examples}) takes the clean gradient of all {number} examples and "
                "MiniBatch that of a batch, so their sum has no meaning. For noise on every label of a batch "
                "use MiniBatch(size) + LabelNoise(sigma)."
            )

    def law(self, forward: Forward) -> AbstractLaw:
        shape = jnp.shape(_targets(forward))
        if self.root is not None and len(shape) < 2:
            raise InputError(f"a covariance between outputs needs targets of shape [N, k], got {shape}.")
        if self.root is None and self.examples is None:
            return Gaussian(shape, self.sigma)
        one: AbstractLaw = Gaussian(shape[1:], self.sigma)
        if self.root is not None:
            one = Correlated(one, root=self.root)
        if self.examples is None:
            return Independent(one, shape[0])
        return RandomSubset(one, shape[0], self.examples, forward.number)


class SampledLabels(_AbstractOnTargets):
    """Labels drawn afresh from soft targets at every step: y_i -> e_c with probability y_ic.

    Training on one-hot targets that are relabelled at random, or smoothed: label noise of covariance
    diag(y_i) - y_i y_i^T, so it is degenerate (theory.md, section 4). The loss is zero at the soft targets,
    `[N, k]`, whose rows must be probabilities. Targets `[N]`, as of `losses.Logistic`, are the probabilities
    of label 1 instead of 0. sigma is 1, so that the limit holds for alpha lambda_max << 1 only: at 0.1 it is
    some 6 percent off, and `zeroloss.predict` warns.
    """

    listing: ClassVar[Listing] = Listing("sampled-labels", "labels drawn at every step", plural=True)

    def law(self, forward: Forward) -> AbstractLaw:
        targets = _targets(forward)
        if not is_traced(targets):
            _check_probabilities(np.asarray(targets))
        return Coins(targets) if targets.ndim == 1 else OneHot(targets)


class FlippedLabels(SampledLabels):
    """Hard labels, each exchanged for one of the other classes with probability `rate`, afresh at every step.

    The mean label is soft, (1 - rate) for the class and rate / (k - 1) for each other, and that is the target
    of the problem without noise: its loss has a minimum. To train so is to draw labels from these
    probabilities (`SampledLabels`). Under cross-entropy the covariance of the gradient is H / N on the
    zero-loss set, so that training makes tr H smaller on the slow scale. sigma is 1.

    **Arguments:**

    - `rate`: in (0, 1). The targets must be hard: classes, 0 and 1, or rows with a single 1.

    **Raises:** `InputError` for another rate, and for targets that are not hard.
    """

    listing: ClassVar[Listing] = Listing("flipped-labels", "labels flipped at every step", "rate", 0.1, True)

    rate: float = eqx.field(static=True)

    def __init__(self, rate: float):
        self.rate = float(rate)
        if not 0 < self.rate < 1:
            raise InputError(f"the rate of flipped labels must lie in (0, 1), got {rate}.")

    def mean_targets(self, targets: Array) -> Array:
        values = np.asarray(targets)
        if values.ndim == 1 and np.isin(values, (0, 1)).all():
            return (1 - self.rate) * targets + self.rate * (1 - targets)
        if values.ndim != 2 or not (np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()):
            raise InputError(
                "labels can be flipped where they are hard: classes without smoothing, 0 and 1, or rows [k] "
                "with a single 1. Use SampledLabels for labels that are drawn from probabilities."
            )
        return (1 - self.rate) * targets + self.rate / (values.shape[1] - 1) * (1 - targets)


class InputNoise(AbstractGaussian):
    """Gaussian noise on the inputs of every example, fresh at every step: x_i -> x_i + sigma * xi_i.

    Gaussian data augmentation. The regularizer is 1/(2N) sum_i |d f_i / d x_i|^2, so it is non-degenerate in
    general (theory.md, section 4; Bishop 1995). `sigma` is in the units of the inputs; every
    floating-point array of the inputs has noise.
    """

    listing: ClassVar[Listing] = Listing("input", "noise on the inputs", "sigma", 0.05)

    sigma: Scale
    per: Literal["example"] = eqx.field(static=True, default="example", init=False)

    def __init__(self, sigma: float):
        self.sigma = positive_sigma(sigma)

    @property
    def needs(self) -> str:
        return "inputs"

    def law(self, forward: Forward) -> AbstractLaw:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(forward.inputs) if _is_floating(leaf)]
        if not shapes:
            raise InputError("input noise needs floating-point inputs: use it with zeroloss.LeastSquares.")
        return self.of_shapes(shapes)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        noises = iter(eta)
        leaves, structure = jax.tree.flatten(forward.inputs)
        noisy = [leaf + next(noises) if _is_floating(leaf) else leaf for leaf in leaves]
        return forward.replace(inputs=jax.tree.unflatten(structure, noisy))


def _is_floating(leaf: Array) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _targets(forward: Forward) -> Array:
    """The targets. Raises `InputError` if there are none."""
    if forward.targets is None:
        raise InputError("label noise needs targets: use it with zeroloss.LeastSquares.")
    return forward.targets


def _check_probabilities(targets: np.ndarray) -> None:
    """Raise `InputError` unless rows of `targets` are distributions, or targets `[N]` probabilities."""
    if targets.ndim == 1:
        if targets.min() < 0 or targets.max() > 1:
            raise InputError(
                "labels 0 and 1 are drawn from targets that are the probabilities of 1; they lie in "
                f"[{targets.min():.3g}, {targets.max():.3g}]."
            )
        return
    sums = targets.sum(axis=1)
    if targets.min() < 0 or np.abs(sums - 1).max() > 1e-6:
        raise InputError(
            "labels are drawn from targets that are probabilities, >= 0 and summing to 1 for every example; "
            f"the smallest is {targets.min():.3g} and the sums lie in [{sums.min():.6g}, {sums.max():.6g}]."
        )
