"""A model fitted to targets: `Supervised` and its short forms; `SupervisedSystem` adds noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._memoized import memoized
from zeroloss._pytrees import check_finite, check_parameters, is_traced
from zeroloss.errors import InputError, NoMinimumError
from zeroloss.losses import AbstractLoss, AbstractWhitening, Minimum, SoftmaxCrossEntropy, Squares
from zeroloss.noise import AbstractInjection, AbstractNoise, Forward, Joint, MiniBatch, describe
from zeroloss.systems._injection import AbstractInjectedSystem, split_noise, work_of
from zeroloss.systems._system import Scalar, check_geometry, dtype_of

_PRECISIONS = ("float64", "mixed")


class Examples(NamedTuple):
    """Some examples of a supervised problem; all arrays have a leading axis over them.

    - `minimum`: of the loss of each example over its outputs.
    - `whitening`: B of each example; at the minimum, unless it was replaced.
    - `weights`: of each example, or None where all are 1.
    """

    inputs: PyTree
    targets: Array
    minimum: Minimum
    whitening: AbstractWhitening
    weights: Array | None

    def whitened(self, vectors: Array) -> Array:
        """B v, times the root of the weight, for directions v in the space of outputs."""
        return _times_root(self.weights, self.whitening.whitened(vectors))

    def whitened_gradients(self, gradients: Array) -> Array:
        """The residuals that pull at the parameters as the gradients g of the losses by the outputs do."""
        return _times_root(self.weights, self.whitening.whitened_gradients(gradients))


class Supervised(eqx.Module):
    """A model, data and a loss: L = 1/N sum_i c_i (loss(model(params, inputs)_i, targets_i) - its minimum).

    Its zero-loss set is where the outputs of all examples have the least loss (theory.md, section 8). That
    needs a loss with a minimum at finite outputs, such as cross-entropy with smoothed labels.

    **Arguments:**

    - `model`: `model(params, inputs) -> outputs`, outputs of shape `[N]` or `[N, k]`. Examples must
      not influence each other, and the model must accept any number of examples. Batch normalization must be
      in evaluation mode; in training mode its loss is one for `zeroloss.Loss` or `zeroloss.System`.
    - `inputs`: an array, or pytree of arrays, with leading axis N.
    - `targets`: as the loss takes them: numbers of shape `[N]` or `[N, k]`, or classes.
    - `loss`: one of `zeroloss.losses`; by default `Squares()`. `problem.constant` is the mean minimum that is
      subtracted, and `problem.minimum.constant` that of each example, `[N]`.
    - `weights`: c, of shape `[N]`, none negative; by default 1. An example without a target has weight 0.
    - `geometry`: how normal and tangent space of the zero-loss set are found. "factorized" goes through the
      Gram matrix of all m residuals, O(m^2) memory and O(m^3) operations; an example has a residual for each
      output, and for k classes k - 1. "matrix-free" iterates, with
      N m memory for a preconditioner (at most 2 GiB), and serves `project`; `classify` and `limit` of white
      label noise and of noise that drifts on the fast scale; `drift` of white label noise. Residuals must
      then be independent. "auto" factorizes up to 20,000 residuals.
    - `precision`: "float64", or "mixed": projections and grad tr H run the model in float32, with m x m
      algebra in float64; residuals stay in float64, so that points lie as exactly on the set. Drifts are good
      to some 1e-6. Where the spectrum is needed, it is computed in float64. Residuals must be independent.
    - `max_memory`: bytes that intermediate results of Jacobians may take, by default 256 MiB, beside the
      model's own forward pass and m x m matrices. Larger results are computed in parts.

    **Raises:** `InputError` for targets that do not suit the loss, and for negative weights, with the number
    of the example; `LossError` where a custom loss has no minimum.

    ```python
    loss = zl.losses.SoftmaxCrossEntropy(smoothing=0.1)
    system = zl.Supervised(model, inputs, labels, loss=loss).with_noise(zl.Dropout(0.1))
    ```
    """

    model: Callable[[PyTree, PyTree], Array]
    inputs: PyTree
    targets: Array
    loss_function: AbstractLoss
    minimum: Minimum
    whitening: AbstractWhitening
    weights: Array | None
    geometry: str = eqx.field(static=True)
    precision: str = eqx.field(static=True)
    max_memory: int | None = eqx.field(static=True)

    def __init__(
        self,
        model: Callable[[PyTree, PyTree], Array],
        inputs: PyTree,
        targets: Any,
        *,
        loss: AbstractLoss | None = None,
        weights: Any = None,
        geometry: str = "auto",
        precision: str = "float64",
        max_memory: int | None = None,
    ):
        check_geometry(geometry)
        if precision not in _PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}.")
        if max_memory is not None and not (isinstance(max_memory, int) and max_memory >= 1):
            raise InputError(f"max_memory must be a positive number of bytes, got {max_memory}.")
        self.geometry, self.precision, self.max_memory = geometry, precision, max_memory
        self.loss_function = Squares() if loss is None else loss
        check_finite(inputs, "inputs")
        check_finite(targets, "targets")
        self.model = model
        self.inputs = jax.tree.map(jnp.asarray, inputs)
        targets = jnp.asarray(targets)
        if targets.ndim not in (1, 2) or targets.size == 0:
            raise InputError(f"targets must have shape [N] or [N, k], got {targets.shape}.")
        self.targets = targets = self.loss_function.checked(targets)
        for leaf in jax.tree.leaves(self.inputs):
            if leaf.shape[:1] != targets.shape[:1]:
                raise InputError(
                    f"inputs of shape {leaf.shape} and targets of shape {targets.shape} must "
                    "agree in their first axis, the number of examples."
                )
        self.weights = None if weights is None else _weights(weights, targets.shape[0])
        self.minimum, self.whitening = _minimum_and_whitening(self.loss_function, targets)

    @property
    def number(self) -> int:
        """Number of examples N."""
        return self.targets.shape[0]

    @property
    def examples(self) -> Examples:
        """All examples."""
        return Examples(self.inputs, self.targets, self.minimum, self.whitening, self.weights)

    @property
    def constant(self) -> Scalar:
        """What L leaves out: L + constant is the mean loss as PyTorch and Optax define it."""
        constants = self.minimum.constant
        return jnp.mean(constants if self.weights is None else self.weights * constants)

    def loss(self, params: PyTree) -> Array:
        """L(w)."""
        return self.loss_of(self.model(params, self.inputs), self.targets, self.examples)

    def loss_of(
        self, outputs: Array, targets: Array, examples: Examples, counts: Array | None = None
    ) -> Scalar:
        """The mean loss of `examples` with these outputs and targets, each times its count; by default 1."""
        values = self.loss_function.values(outputs, targets) - examples.minimum.constant
        for factor in (examples.weights, counts):
            values = values if factor is None else factor * values
        return jnp.sum(values) / outputs.shape[0]

    @property
    def residual_problem(self) -> "LeastSquares":
        """The least-squares problem with the same zero-loss set, and the same Hessian on it.

        Its residuals are B (f - f*), times the root of the weight of the example. Where an example has no
        outputs of least loss, its residuals mean nothing, but their Jacobian does (`AbstractZeroSet.around`).
        """
        if isinstance(self.loss_function, Squares) and self.weights is None:  # B = 1
            return LeastSquares(
                self.model,
                self.inputs,
                self.targets,
                geometry=self.geometry,
                precision=self.precision,
                max_memory=self.max_memory,
            )
        return WhitenedLeastSquares(self)

    def check_minimum(self) -> None:
        """Raise `NoMinimumError` where the loss of an example falls for ever while its outputs grow."""
        if is_traced(self.targets):
            return
        endless = ~np.asarray(self.loss_function.has_minimum(self.targets))
        if self.weights is not None:
            endless &= np.asarray(self.weights) > 0
        if endless.any():
            first = int(np.argmax(endless))
            raise NoMinimumError(
                f"there is no zero-loss set: {self.loss_function.name} of hard labels has no minimum. It "
                f"falls for ever while outputs grow ({int(endless.sum())} of {self.number} examples; the "
                f"first is {first} with {np.asarray(self.targets[first]).tolist()}). More parameters or more "
                "steps do not help. zeroloss.predict follows the mean of training from any "
                "start, and zeroloss.descend trains. There is a minimum for labels with "
                "smoothing=, for probabilities strictly between 0 and 1, and under FlippedLabels. With "
                "weight decay, training comes to rest too."
            )

    def with_noise(self, noise: AbstractNoise) -> "SupervisedSystem":
        """The system that trains this problem under `noise`, which may be a sum of noises."""
        injections, minibatch = split_noise(noise)
        if minibatch is not None:
            minibatch.check(self.number)
        for injection in injections:
            injection.check_problem(self.number, batched=minibatch is not None)
        targets = self.targets
        for injection in injections:
            targets = injection.mean_targets(targets)
        problem = self if targets is self.targets else self._with_targets(targets)
        return SupervisedSystem(problem, injections, minibatch)

    def _with_targets(self, targets: Array) -> "Supervised":
        """The same problem with other targets, which are checked already."""
        return eqx.tree_at(
            lambda problem: (problem.targets, problem.minimum, problem.whitening),
            self,
            (targets, *_minimum_and_whitening(self.loss_function, targets)),
        )


class LeastSquares(Supervised):
    """Least squares with a model: L = 1/(2N) sum_i |model(params, inputs)_i - targets_i|^2.

    Short for `Supervised` with `losses.Squares()`. Its arguments, all but `loss` and `weights`, are the same.
    """

    def __init__(
        self,
        model: Callable[[PyTree, PyTree], Array],
        inputs: PyTree,
        targets: Any,
        *,
        geometry: str = "auto",
        precision: str = "float64",
        max_memory: int | None = None,
    ):
        super().__init__(
            model, inputs, targets, geometry=geometry, precision=precision, max_memory=max_memory
        )

    def loss_of(
        self, outputs: Array, targets: Array, examples: Examples, counts: Array | None = None
    ) -> Scalar:
        squares = (outputs - targets) ** 2
        if counts is not None:
            squares = counts.reshape(-1, *(1,) * (squares.ndim - 1)) * squares
        return jnp.sum(squares) / (2 * squares.shape[0])

    @property
    def residual_problem(self) -> "LeastSquares":
        return self


class WhitenedLeastSquares(LeastSquares):
    """The least-squares problem that stands for another loss near its zero-loss set; `loss` is the true one.

    Its inputs are `Examples`, its residuals B (f - f*).
    """

    original: Supervised

    def __init__(self, original: Supervised):
        examples = original.examples
        super().__init__(
            _WhitenedModel(original.model),
            examples,
            examples.whitened(examples.minimum.outputs),
            geometry=original.geometry,
            precision=original.precision,
            max_memory=original.max_memory,
        )
        self.original = original

    def loss(self, params: PyTree) -> Array:
        return self.original.loss(params)


def _minimum_and_whitening(loss: AbstractLoss, targets: Array) -> tuple[Minimum, AbstractWhitening]:
    """The minimum and B there; f* = 0 and B = 0 for examples without outputs of least loss."""
    minimum, finite = loss.minimum(targets), loss.has_minimum(targets)
    whitening = loss.whitening(minimum.outputs, targets)

    def kept(leaf: Array) -> Array:
        return jnp.where(finite.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0.0)

    return Minimum(kept(minimum.outputs), minimum.constant), jax.tree.map(kept, whitening)


class _WhitenedModel(eqx.Module):
    """B f of examples, for the outputs f of a model."""

    model: Callable[[PyTree, PyTree], Array]

    def __call__(self, params: PyTree, examples: Examples) -> Array:
        return examples.whitened(self.model(params, examples.inputs))


def CrossEntropy(  # noqa: N802  # beside LeastSquares
    model: Callable[[PyTree, PyTree], Array],
    inputs: PyTree,
    labels: Any,
    *,
    smoothing: float = 0.0,
    classes: int | None = None,
    **options: Any,
) -> Supervised:
    """Short for `Supervised` with `losses.SoftmaxCrossEntropy(smoothing, classes)` and other `options`."""
    return Supervised(model, inputs, labels, loss=SoftmaxCrossEntropy(smoothing, classes), **options)


def _weights(weights: Any, number: int) -> Array:
    """The weights of the examples as an array. Raises `InputError` for negative ones."""
    found = np.asarray(weights, float)
    if found.shape != (number,):
        raise InputError(f"weights must have shape [{number}], one for each example, got {found.shape}.")
    wrong = ~(found >= 0) | ~np.isfinite(found)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(f"weights must be finite and >= 0; that of example {first} is {found[first]:g}.")
    if not found.any():
        raise InputError("all weights are 0.")
    return jnp.asarray(found)


def _times_root(weights: Array | None, values: Array) -> Array:
    if weights is None:
        return values
    return jnp.sqrt(weights).reshape(-1, *(1,) * (values.ndim - 1)) * values


class SupervisedSystem(AbstractInjectedSystem):
    """A supervised problem under noise. Its geometry needs only the Jacobian of the outputs."""

    problem: Supervised
    injections: tuple[AbstractInjection, ...]
    minibatch: MiniBatch | None

    @property
    def has_minibatches(self) -> bool:
        return self.minibatch is not None

    def clean_forward(self, params: PyTree) -> Forward:
        return self._clean_forward(params, self.problem.inputs, self.problem.targets)

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        """L_hat(w, eta) over all examples, without minibatch."""
        return self._loss_of(params, self.problem.examples, eta)

    def weighted_loss(self, params: PyTree, eta: PyTree, counts: Array) -> Scalar:
        """L_hat(w, eta) with the loss of each example times its count."""
        return self._loss_of(params, self.problem.examples, eta, counts)

    def law_of(self, params: PyTree, examples: Examples) -> Joint:
        """The law of eta for some examples."""
        return self.joint_law(self._clean_forward(params, examples.inputs, examples.targets))

    def outputs(self, params: PyTree, examples: Examples, eta: PyTree) -> Array:
        """Noisy outputs of some examples, whitened: B f."""
        noisy = self._forward(params, examples, eta)
        return examples.whitened(noisy.model(noisy.params, noisy.inputs))

    def whitened_at(self, params: PyTree, examples: Examples, eta: PyTree) -> Examples:
        """The examples with B at their noisy outputs."""
        if self.problem.loss_function.is_isotropic:
            return examples
        noisy = self._forward(params, examples, eta)
        outputs = noisy.model(noisy.params, noisy.inputs)
        return examples._replace(whitening=self.problem.loss_function.whitening(outputs, examples.targets))

    def residuals(self, params: PyTree, examples: Examples, eta: PyTree) -> Array:
        """Noisy residuals r of some examples: the gradient of N times their mean loss is d(B f)/dw^T r.

        Near the zero-loss set they are B (f - f*), and linear in noise on the targets.
        """
        noisy = self._forward(params, examples, eta)
        outputs, targets = noisy.model(noisy.params, noisy.inputs), jnp.asarray(noisy.targets)

        def total(outputs: Array) -> Scalar:
            return jnp.sum(self.problem.loss_function.values(outputs, targets))

        return examples.whitened_gradients(jax.grad(total)(outputs))

    def force(self, params: PyTree, eta: PyTree) -> PyTree | None:
        """The force that the noise adds to the gradient beside the residuals; None if it adds none."""
        return self.apply(self.clean_forward(params), eta).force

    def force_injections(self, params: PyTree) -> tuple[int, ...]:
        """The indices of the injections that put a force on the parameters.

        Raises `InputError` for one that does anything else beside.
        """
        found: list[int] = []

        def trace(eta: PyTree) -> None:
            forward = self.clean_forward(params)
            for index, (injection, part) in enumerate(zip(self.injections, eta, strict=True)):
                before, forward = forward, injection.apply(forward, part)
                if forward.force is not before.force:
                    _check_only_pushes(injection, before, forward)
                    found.append(index)

        jax.eval_shape(trace, self.noise_law(params).zeros())
        return tuple(found)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        def draw(examples: Examples) -> PyTree:
            forward = self._clean_forward(params, examples.inputs, examples.targets)
            return self.draw(forward, self.noise_key(key))

        counts, examples = None, self.problem.examples
        if self.minibatch is None:
            eta = draw(examples)
        elif self.minibatch.strength != 1:  # every example has a part in the gradient
            counts = self.minibatch.counts(jax.random.split(key)[0], self.problem.number, dtype_of(params))
            eta = draw(examples)
        else:
            batch = self.minibatch.indices(jax.random.split(key)[0], self.problem.number)
            in_batch = jax.tree.map(lambda leaf: leaf[batch], examples)
            if self.minibatch.replace:  # an example drawn twice has one noise: draw it for all
                eta = self.per_example(lambda leaf: leaf[batch], draw(examples))
            else:
                eta = draw(in_batch)
            examples = in_batch
        return jax.grad(lambda p: self._loss_of(p, examples, eta, counts))(params)

    def noise_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        # The other half of the key draws the batch. Splitting costs as much as drawing two numbers.
        return key if self.minibatch is None else jax.random.split(key)[1]

    def per_example(self, function: Callable[[Array], Array], eta: PyTree) -> PyTree:
        """`eta` with `function` applied where it has an axis over examples, the rest untouched."""
        return tuple(
            jax.tree.map(function, part) if injection.per == "example" else part
            for injection, part in zip(self.injections, eta, strict=True)
        )

    def describe(self) -> str:
        batch = [] if self.minibatch is None else [self.minibatch]
        return " + ".join(map(describe, (*self.injections, *batch)))

    @memoized
    def check(self, params: PyTree) -> None:
        if is_traced((self, params)):
            return
        check_parameters(params)
        self._check_model(params)
        super().check(params)

    def _clean_forward(self, params: PyTree, inputs: PyTree, targets: Array) -> Forward:
        return Forward(self.problem.model, params, inputs, targets, number=self.problem.number)

    def _forward(self, params: PyTree, examples: Examples, eta: PyTree) -> Forward:
        return self.apply(self._clean_forward(params, examples.inputs, examples.targets), eta)

    def _loss_of(
        self, params: PyTree, examples: Examples, eta: PyTree, counts: Array | None = None
    ) -> Scalar:
        """The noisy loss of some examples, each weighted by its count; by default all alike."""
        noisy = self._forward(params, examples, eta)
        work = work_of(noisy.force, lambda params: self._forward(params, examples, eta), params)
        outputs = noisy.model(noisy.params, noisy.inputs)
        return self.problem.loss_of(outputs, jnp.asarray(noisy.targets), examples, counts) + work

    def _check_model(self, params: PyTree) -> None:
        """Raise `InputError` unless outputs have the shape of the targets and examples are independent."""
        problem = self.problem
        outputs = jax.eval_shape(problem.model, params, problem.inputs)
        shape = getattr(outputs, "shape", None)
        if shape != problem.targets.shape:
            raise InputError(
                f"the model's outputs have shape {shape} but the targets {problem.targets.shape}; "
                "they must be equal."
            )
        try:
            together, alone = _together_and_alone(problem, params)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise InputError(
                f"the model fails on one example alone, inputs with a leading axis of length 1: {error} "
                f"It must accept any number of examples. {_WITHOUT_EXAMPLES}"
            ) from error
        scale = float(jnp.max(jnp.abs(together)))
        difference = float(jnp.max(jnp.abs(together - alone)))
        rounding = 1e4 * float(jnp.finfo(together.dtype).eps)
        if np.isfinite(scale) and not difference <= rounding * max(scale, 1e-30):
            changes = f"changes by up to {difference:.3g}" if np.isfinite(difference) else "is not finite"
            raise InputError(
                f"the model couples its examples: an example's output {changes} when it is evaluated alone "
                f"(outputs are of size {scale:.3g}). Batch normalization in training mode does that; in "
                f"evaluation mode, with fixed statistics, it does not. {_WITHOUT_EXAMPLES}"
            )


_WITHOUT_EXAMPLES = (
    "Such a model can be trained as a loss without examples. With loss = lambda params, eta=0.0: "
    "((model(params, inputs) - targets - eta) ** 2).sum() / (2 * len(targets)), zeroloss.Loss(loss) takes "
    "noise on parameters and their gradient, and zeroloss.System(loss, "
    "zeroloss.Gaussian(targets.shape, sigma)) is label noise; zeroloss.System takes any other noise that you "
    "write into its loss."
)
"""The advice for a model that is not a function of one example at a time."""


def _check_only_pushes(injection: AbstractInjection, before: Forward, after: Forward) -> None:
    """Raise `InputError` if an injection that puts a force on the parameters changes anything else."""
    pieces = ("model", "params", "inputs", "targets")
    changed = [piece for piece in pieces if getattr(before, piece) is not getattr(after, piece)]
    if changed or injection.per == "example":
        also = f"also changes its {', '.join(changed)}" if changed else "does so per example"
        raise InputError(
            f"{type(injection).__name__} puts a force on the parameters and {also}; a noise with a force "
            'must have per="step" and nothing else. Split it into two noises and add them.'
        )


@compiled_once
def _together_and_alone(problem: Supervised, params: PyTree) -> tuple[Array, Array]:
    """The outputs for all examples together, and for each example alone."""

    def alone(inputs: PyTree) -> Array:
        return problem.model(params, jax.tree.map(lambda leaf: leaf[None], inputs))[0]

    return problem.model(params, problem.inputs), jax.vmap(alone)(problem.inputs)
