"""A model fitted to targets by least squares: `LeastSquares`, and `LeastSquaresSystem` with noise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._memoized import memoized
from zeroloss._pytrees import check_finite, check_parameters, is_traced
from zeroloss.errors import InputError
from zeroloss.noise import AbstractInjection, AbstractNoise, Forward, Joint, MiniBatch, describe
from zeroloss.systems._injection import AbstractInjectedSystem, split_noise, work_of
from zeroloss.systems._system import Scalar, check_geometry, dtype_of

_PRECISIONS = ("float64", "mixed")


class LeastSquares(eqx.Module):
    """Least squares with a model: L = 1/(2N) sum_i |model(params, inputs)_i - targets_i|^2.

    **Arguments:**

    - `model`: `model(params, inputs) -> outputs`, outputs of shape `[N]` or `[N, k]`. Examples must
      not influence each other, and the model must accept any number of examples. Batch normalization must be
      in evaluation mode; in training mode its loss is one for `zeroloss.Loss` or `zeroloss.System`.
    - `inputs`: an array, or pytree of arrays, with leading axis N.
    - `targets`: shape `[N]` or `[N, k]`, like the outputs.
    - `geometry`: how normal and tangent space of the zero-loss set are found. "factorized" goes through the
      Gram matrix of all m = N k residuals, O(m^2) memory and O(m^3) operations. "matrix-free" iterates, with
      N^2 k memory for a preconditioner (at most 2 GiB), and serves `project`; `classify` and `limit` of white
      label noise and of noise that drifts on the fast scale; `drift` of white label noise. Residuals must
      then be independent. "auto" factorizes up to 20,000 residuals.
    - `precision`: "float64", or "mixed": projections and grad tr H run the model in float32, with m x m
      algebra in float64; residuals stay in float64, so that points lie as exactly on the set. Drifts are good
      to some 1e-6. Where the spectrum is needed, it is computed in float64. Residuals must be independent.
    - `max_memory`: bytes that intermediate results of Jacobians may take, by default 256 MiB, beside the
      model's own forward pass and m x m matrices. Larger results are computed in parts.
    """

    model: Callable[[PyTree, PyTree], Array]
    inputs: PyTree
    targets: Array
    geometry: str = eqx.field(static=True)
    precision: str = eqx.field(static=True)
    max_memory: int | None = eqx.field(static=True)

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
        check_geometry(geometry)
        if precision not in _PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}.")
        if max_memory is not None and not (isinstance(max_memory, int) and max_memory >= 1):
            raise InputError(f"max_memory must be a positive number of bytes, got {max_memory}.")
        self.geometry, self.precision, self.max_memory = geometry, precision, max_memory
        check_finite(inputs, "inputs")
        check_finite(targets, "targets")
        self.model = model
        self.inputs = jax.tree.map(jnp.asarray, inputs)
        targets = jnp.asarray(targets)
        self.targets = targets if jnp.issubdtype(targets.dtype, jnp.floating) else targets.astype(float)
        if self.targets.ndim not in (1, 2) or self.targets.size == 0:
            raise InputError(f"targets must have shape [N] or [N, k], got {self.targets.shape}.")
        for leaf in jax.tree.leaves(self.inputs):
            if leaf.shape[:1] != self.targets.shape[:1]:
                raise InputError(
                    f"inputs of shape {leaf.shape} and targets of shape {self.targets.shape} must "
                    "agree in their first axis, the number of examples."
                )

    @property
    def number(self) -> int:
        """Number of examples N."""
        return self.targets.shape[0]

    def loss(self, params: PyTree) -> Array:
        """L(w)."""
        return _half_mean_square(self.model(params, self.inputs) - self.targets)

    def with_noise(self, noise: AbstractNoise) -> "LeastSquaresSystem":
        """The system that trains this problem under `noise`, which may be a sum of noises."""
        injections, minibatch = split_noise(noise)
        if minibatch is not None:
            minibatch.check(self.number)
        for injection in injections:
            injection.check_problem(self.number, batched=minibatch is not None)
        return LeastSquaresSystem(self, injections, minibatch)


class LeastSquaresSystem(AbstractInjectedSystem):
    """Least squares under noise. Its geometry needs only the Jacobian of the residuals."""

    problem: LeastSquares
    injections: tuple[AbstractInjection, ...]
    minibatch: MiniBatch | None

    @property
    def has_minibatches(self) -> bool:
        return self.minibatch is not None

    def clean_forward(self, params: PyTree) -> Forward:
        return self._clean_forward(params, self.problem.inputs, self.problem.targets)

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        """L_hat(w, eta) over all examples, without minibatch."""
        return self._loss_of(params, self.problem.inputs, self.problem.targets, eta)

    def law_of(self, params: PyTree, inputs: PyTree, targets: Array) -> Joint:
        """The law of eta for some examples."""
        return self.joint_law(self._clean_forward(params, inputs, targets))

    def residuals(self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree) -> Array:
        """Noisy residuals of some examples."""
        return _residuals(self._forward(params, inputs, targets, eta))

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
        def draw(inputs: PyTree, targets: Array) -> PyTree:
            return self.draw(self._clean_forward(params, inputs, targets), self.noise_key(key))

        counts, inputs, targets = None, self.problem.inputs, self.problem.targets
        if self.minibatch is None:
            eta = draw(inputs, targets)
        elif self.minibatch.strength != 1:  # every example has a part in the gradient
            counts = self.minibatch.counts(jax.random.split(key)[0], self.problem.number, dtype_of(params))
            eta = draw(inputs, targets)
        else:
            batch = self.minibatch.indices(jax.random.split(key)[0], self.problem.number)
            if self.minibatch.replace:  # an example drawn twice has one noise: draw it for all
                eta = self.per_example(lambda leaf: leaf[batch], draw(inputs, targets))
                inputs, targets = jax.tree.map(lambda leaf: leaf[batch], (inputs, targets))
            else:
                inputs, targets = jax.tree.map(lambda leaf: leaf[batch], (inputs, targets))
                eta = draw(inputs, targets)
        return jax.grad(lambda p: self._loss_of(p, inputs, targets, eta, counts))(params)

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

    def _forward(self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree) -> Forward:
        return self.apply(self._clean_forward(params, inputs, targets), eta)

    def _loss_of(
        self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree, counts: Array | None = None
    ) -> Scalar:
        """The noisy loss of some examples, each weighted by its count; by default all alike."""
        noisy = self._forward(params, inputs, targets, eta)
        work = work_of(noisy.force, lambda params: self._forward(params, inputs, targets, eta), params)
        return _half_mean_square(_residuals(noisy), counts) + work

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
def _together_and_alone(problem: LeastSquares, params: PyTree) -> tuple[Array, Array]:
    """The outputs for all examples together, and for each example alone."""

    def alone(inputs: PyTree) -> Array:
        return problem.model(params, jax.tree.map(lambda leaf: leaf[None], inputs))[0]

    return problem.model(params, problem.inputs), jax.vmap(alone)(problem.inputs)


def _residuals(forward: Forward) -> Array:
    return forward.model(forward.params, forward.inputs) - forward.targets


def _half_mean_square(residuals: Array, counts: Array | None = None) -> Scalar:
    """1/(2N) sum_i c_i |r_i|^2, by default with all c_i = 1."""
    squares = residuals**2
    if counts is not None:
        squares = counts.reshape(-1, *(1,) * (squares.ndim - 1)) * squares
    return jnp.sum(squares) / (2 * residuals.shape[0])
