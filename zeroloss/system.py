"""What is being trained, and where the noise enters: `System`, `Loss`, `LeastSquares`.

A system is a noisy loss L_hat(w, eta) with a law for eta (theory.md, section 1). It comes from the
user whole (`System`), or from a clean problem and a noise (`Loss` or `LeastSquares`, `.with_noise`).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from zeroloss.errors import InputError, LossError
from zeroloss.noise import (
    AbstractInjection,
    AbstractLaw,
    AbstractNoise,
    Forward,
    Joint,
    MiniBatch,
    describe,
    parts,
    with_scales_as_arrays,
)
from zeroloss.pytrees import check_finite, check_parameters, is_traced

Scalar = Float[Array, ""]


class AbstractSystem(eqx.Module):
    """A noisy loss `loss(params, eta)` with a law for eta; `loss(params, 0)` is the clean loss >= 0."""

    @abc.abstractmethod
    def noise_law(self, params: PyTree) -> AbstractLaw:
        """The law of eta; only the shapes of `params` are looked at."""

    @abc.abstractmethod
    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        """L_hat(w, eta)."""

    @abc.abstractmethod
    def clean_problem(self) -> "Loss | LeastSquares":
        """The problem without its noise. All geometry is in terms of it."""

    @abc.abstractmethod
    def with_scales_as_arrays(self) -> "AbstractSystem":
        """The same system, with sigmas and rates that compiled code takes as arguments."""

    @abc.abstractmethod
    def scaled(self, factor: float) -> "AbstractSystem":
        """The same system with every sigma of its noise multiplied by `factor`; minibatches stay."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The noise in a few words, for tables and messages."""

    def clean_loss(self, params: PyTree) -> Array:
        """L(w)."""
        return self.clean_problem().loss(params)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        """The gradient that one step of training uses. One gradient."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        eta = self.noise_law(params).draw(key, dtype)
        return jax.grad(self.noisy_loss)(params, eta)

    def perturbation(self, params: PyTree, key: Key[Array, ""]) -> PyTree | None:
        """What anti-correlated noise adds to the parameters at the step with this key; None without it."""
        return None

    def check(self, params: PyTree) -> None:
        """Raise an error of ours when `params` does not suit the system. Does nothing under tracing."""
        if is_traced((self, params)):
            return
        check_parameters(params)
        shape = getattr(jax.eval_shape(self.clean_loss, params), "shape", None)
        if shape != ():
            raise LossError(f"the loss must be a scalar, but it has shape {shape}.")
        self.noise_law(params).check()
        clean, at_zero = _clean_and_at_zero_noise(self.with_scales_as_arrays(), params)
        clean, at_zero = float(clean), float(at_zero)
        if not np.isfinite(clean):
            raise LossError(f"the loss at params is {clean}; it must be finite.")
        rounding = 1e3 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
        if clean < -rounding:
            raise LossError(
                f"the loss at params is {clean:.6g}; a loss with a zero-loss set must be >= 0. "
                "Subtract its minimum first."
            )
        if not abs(at_zero - clean) <= rounding * max(1.0, abs(clean)):
            raise LossError(
                f"the noisy loss at zero noise is {at_zero:.10g} but the clean loss is {clean:.10g}; "
                "L_hat(w, 0) = L(w) must hold."
            )


@eqx.filter_jit
def _clean_and_at_zero_noise(system: AbstractSystem, params: PyTree) -> tuple[Scalar, Scalar]:
    zero = system.noise_law(params).zeros()
    return jnp.asarray(system.clean_loss(params)), jnp.asarray(system.noisy_loss(params, zero))


class System(AbstractSystem):
    """Any noisy loss, with the law of its noise.

    **Arguments:**

    - `loss`: `loss(params, eta) -> scalar`, with `loss(params, 0) >= 0` and twice differentiable in
      both arguments near the points of interest.
    - `law`: the law of eta, such as `zeroloss.Gaussian((2,), sigma=0.05)`.
    - `clean`: optionally the noise-free `clean(params) -> scalar`, checked against `loss(params, 0)`.
    - `geometry`: as in `zeroloss.Loss`.
    """

    loss: Callable[[PyTree, PyTree], Scalar]
    law: AbstractLaw
    clean: Callable[[PyTree], Scalar] | None = None
    geometry: str = eqx.field(static=True, default="auto")

    def __check_init__(self):
        _check_geometry(self.geometry)

    def noise_law(self, params: PyTree) -> AbstractLaw:
        return self.law

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        return self.loss(params, eta)

    def clean_problem(self) -> "Loss":
        clean = _WithoutNoise(self.loss, self.law) if self.clean is None else self.clean
        return Loss(clean, self.geometry)

    def with_scales_as_arrays(self) -> "System":
        return dataclasses.replace(self, law=with_scales_as_arrays(self.law))

    def scaled(self, factor: float) -> "System":
        return dataclasses.replace(self, law=self.law.scaled(factor))

    def describe(self) -> str:
        return f"custom noise, {type(self.law).__name__} law"


class _WithoutNoise(eqx.Module):
    """params -> loss(params, 0)."""

    loss: Callable[[PyTree, PyTree], Scalar]
    law: AbstractLaw

    def __call__(self, params: PyTree) -> Array:
        return self.loss(params, self.law.zeros(jnp.result_type(*jax.tree.leaves(params))))


class LossSystem(AbstractSystem):
    """A plain loss with noise on what it is given."""

    problem: "Loss"
    injections: tuple[AbstractInjection, ...]

    def noise_law(self, params: PyTree) -> AbstractLaw:
        return _joint_law(self.injections, Forward(self.problem.function, params))

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        def forward(params: PyTree) -> Forward:
            return _apply_all(self.injections, Forward(self.problem.function, params), eta)

        noisy = forward(params)
        return noisy.model(noisy.params) + _work(noisy.force, forward, params)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        eta = _draw(self.injections, self.noise_law(params), params, key)
        return jax.grad(self.noisy_loss)(params, eta)

    def perturbation(self, params: PyTree, key: Key[Array, ""]) -> PyTree | None:
        return _perturbation(self.injections, Forward(self.problem.function, params), key)

    def clean_problem(self) -> "Loss":
        return self.problem

    def with_scales_as_arrays(self) -> "LossSystem":
        return LossSystem(self.problem, with_scales_as_arrays(self.injections))

    def scaled(self, factor: float) -> "LossSystem":
        return LossSystem(self.problem, tuple(each.scaled(factor) for each in self.injections))

    def describe(self) -> str:
        return _describe(self.injections)


class Loss(eqx.Module):
    """A clean loss without examples.

    **Arguments:**

    - `function`: `function(params) -> scalar >= 0`, twice differentiable.
    - `geometry`: how normal and tangent space of the zero-loss set are found. "factorized" takes the whole
      Hessian up to 2000 parameters, beyond that a basis of its range, and serves everything. "matrix-free"
      iterates with Hessian-vector products, whatever the dimension of the normal space, and serves `project`;
      `classify` and `limit` of noise that drifts on the fast scale. "auto" does the former while the basis
      takes at most 1 GiB.
    """

    function: Callable[[PyTree], Scalar]
    geometry: str = eqx.field(static=True, default="auto")

    def __check_init__(self):
        _check_geometry(self.geometry)

    def loss(self, params: PyTree) -> Array:
        """L(w)."""
        return self.function(params)

    def with_noise(self, noise: AbstractNoise) -> LossSystem:
        """The system that trains this loss under `noise`, a noise that enters at the parameters."""
        injections, minibatch = _split(noise)
        for part in (*injections, *([] if minibatch is None else [minibatch])):
            if part.needs is not None:
                raise InputError(
                    f"{type(part).__name__} needs {part.needs}, and zeroloss.Loss has none: use "
                    "zeroloss.LeastSquares(model, inputs, targets). zeroloss.Loss takes noise on parameters "
                    "and their gradient: WeightNoise, AntiCorrelated, DropConnect, GaussianDropConnect, "
                    'Langevin, and CustomNoise with per="step".'
                )
        return LossSystem(self, injections)


_GEOMETRIES = ("auto", "factorized", "matrix-free")
_PRECISIONS = ("float64", "mixed")


def _check_geometry(geometry: str) -> None:
    if geometry not in _GEOMETRIES:
        raise InputError(f"geometry must be one of {', '.join(_GEOMETRIES)}, got {geometry!r}.")


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
      label noise and of noise that drifts on the fast scale; `drift` of the former. Residuals must then be
      independent. "auto" factorizes up to 20,000 residuals.
    - `precision`: "float64", or "mixed": projections and grad tr H run the model in float32, with m x m
      algebra in float64; residuals stay in float64, so that points lie as exactly on the set. Drifts are good
      to some 1e-6. Where the spectrum is needed, it is computed in float64. Residuals must be independent.
    - `max_memory`: bytes that intermediate results of Jacobians may take, by default 256 MiB, beside the
      model's own forward pass and m x m matrices. What would take more is computed in parts.
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
        _check_geometry(geometry)
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
        injections, minibatch = _split(noise)
        if minibatch is not None:
            minibatch.check(self.number)
        for injection in injections:
            injection.check_problem(self.number, batched=minibatch is not None)
        return LeastSquaresSystem(self, injections, minibatch)


class LeastSquaresSystem(AbstractSystem):
    """Least squares under noise. Its geometry needs only the Jacobian of the residuals."""

    problem: LeastSquares
    injections: tuple[AbstractInjection, ...]
    minibatch: MiniBatch | None

    def noise_law(self, params: PyTree) -> Joint:
        return self.law_of(params, self.problem.inputs, self.problem.targets)

    def noisy_loss(self, params: PyTree, eta: PyTree) -> Scalar:
        """L_hat(w, eta) over all examples, without minibatch."""
        return self._loss_of(params, self.problem.inputs, self.problem.targets, eta)

    def clean_problem(self) -> LeastSquares:
        return self.problem

    def with_scales_as_arrays(self) -> "LeastSquaresSystem":
        return LeastSquaresSystem(self.problem, with_scales_as_arrays(self.injections), self.minibatch)

    def scaled(self, factor: float) -> "LeastSquaresSystem":
        injections = tuple(each.scaled(factor) for each in self.injections)
        return LeastSquaresSystem(self.problem, injections, self.minibatch)

    def residuals(self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree) -> Array:
        """Noisy residuals of some examples. `eta` is a tuple with one entry per injection."""
        return _residuals(self._forward(params, inputs, targets, eta))

    def force(self, params: PyTree, eta: PyTree) -> PyTree | None:
        """What the noise adds to the gradient beside the residuals; None if it adds nothing."""
        return self._forward(params, self.problem.inputs, self.problem.targets, eta).force

    def pushing(self, params: PyTree) -> tuple[int, ...]:
        """Which of the injections put a force on the parameters. Those do nothing else."""
        found: list[int] = []

        def trace(eta: PyTree) -> None:
            forward = self._clean_forward(params, self.problem.inputs, self.problem.targets)
            for index, (injection, part) in enumerate(zip(self.injections, eta, strict=True)):
                before, forward = forward, injection.apply(forward, part)
                if forward.force is not before.force:
                    _check_only_pushes(injection, before, forward)
                    found.append(index)

        jax.eval_shape(trace, self.noise_law(params).zeros())
        return tuple(found)

    def noisy_gradient(self, params: PyTree, key: Key[Array, ""]) -> PyTree:
        inputs, targets = self.problem.inputs, self.problem.targets

        def draw(inputs: PyTree, targets: Array) -> PyTree:
            return _draw(self.injections, self.law_of(params, inputs, targets), params, self._noise_key(key))

        counts = None
        if self.minibatch is None:
            eta = draw(inputs, targets)
        elif self.minibatch.strength != 1:  # every example has a part in the gradient
            dtype = jnp.result_type(*jax.tree.leaves(params))
            counts = self.minibatch.counts(jax.random.split(key)[0], self.problem.number, dtype)
            eta = draw(inputs, targets)
        else:
            batch = self.minibatch.indices(jax.random.split(key)[0], self.problem.number)
            if self.minibatch.replace:  # an example drawn twice keeps one noise: draw it for all
                eta = self.per_example(lambda leaf: leaf[batch], draw(inputs, targets))
                inputs, targets = jax.tree.map(lambda leaf: leaf[batch], (inputs, targets))
            else:
                inputs, targets = jax.tree.map(lambda leaf: leaf[batch], (inputs, targets))
                eta = draw(inputs, targets)
        return jax.grad(lambda p: self._loss_of(p, inputs, targets, eta, counts))(params)

    def perturbation(self, params: PyTree, key: Key[Array, ""]) -> PyTree | None:
        forward = self._clean_forward(params, self.problem.inputs, self.problem.targets)
        return _perturbation(self.injections, forward, self._noise_key(key))

    def describe(self) -> str:
        return _describe((*self.injections, *([self.minibatch] if self.minibatch else [])))

    def check(self, params: PyTree) -> None:
        if is_traced((self, params)):
            return
        check_parameters(params)
        self._check_model(params)
        super().check(params)

    def law_of(self, params: PyTree, inputs: PyTree, targets: Array) -> Joint:
        """The law of eta for some examples."""
        return _joint_law(self.injections, self._clean_forward(params, inputs, targets))

    def per_example(self, function: Callable[[Array], Array], eta: PyTree) -> PyTree:
        """`eta` with `function` applied where it has an axis over examples, the rest untouched."""
        return tuple(
            jax.tree.map(function, part) if injection.per == "example" else part
            for injection, part in zip(self.injections, eta, strict=True)
        )

    def _noise_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """The key for the noise of one step; splitting costs as much as drawing two numbers."""
        return key if self.minibatch is None else jax.random.split(key)[1]

    def _clean_forward(self, params: PyTree, inputs: PyTree, targets: Array) -> Forward:
        return Forward(self.problem.model, params, inputs, targets, number=self.problem.number)

    def _forward(self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree) -> Forward:
        return _apply_all(self.injections, self._clean_forward(params, inputs, targets), eta)

    def _loss_of(
        self, params: PyTree, inputs: PyTree, targets: Array, eta: PyTree, counts: Array | None = None
    ) -> Scalar:
        """The noisy loss of some examples, each weighted by its count; by default all alike."""
        noisy = self._forward(params, inputs, targets, eta)
        work = _work(noisy.force, lambda params: self._forward(params, inputs, targets, eta), params)
        return _half_mean_square(_residuals(noisy), counts) + work

    def _check_model(self, params: PyTree) -> None:
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
"""Said of models that are not functions of one example at a time."""


@eqx.filter_jit
def _together_and_alone(problem: LeastSquares, params: PyTree) -> tuple[Array, Array]:
    def alone(inputs: PyTree) -> Array:
        return problem.model(params, jax.tree.map(lambda leaf: leaf[None], inputs))[0]

    return problem.model(params, problem.inputs), jax.vmap(alone)(problem.inputs)


def _half_mean_square(residuals: Array, counts: Array | None = None) -> Scalar:
    squares = residuals**2
    if counts is not None:
        squares = counts.reshape(-1, *(1,) * (squares.ndim - 1)) * squares
    return jnp.sum(squares) / (2 * residuals.shape[0])


def _split(noise: AbstractNoise) -> tuple[tuple[AbstractInjection, ...], MiniBatch | None]:
    batches = [part for part in parts(noise) if isinstance(part, MiniBatch)]
    if len(batches) > 1:
        raise InputError(f"a sum of noises may hold one MiniBatch, got {len(batches)}.")
    injections = tuple(part for part in parts(noise) if not isinstance(part, MiniBatch))
    for part in injections:
        if not isinstance(part, AbstractInjection):
            raise InputError(f"cannot inject {part!r}; it must be an AbstractInjection or MiniBatch.")
    return injections, batches[0] if batches else None  # pyright: ignore[reportReturnType]


def _joint_law(injections: tuple[AbstractInjection, ...], forward: Forward) -> Joint:
    return Joint(tuple(injection.law(forward) for injection in injections))


def _apply_all(injections: tuple[AbstractInjection, ...], forward: Forward, eta: PyTree) -> Forward:
    for injection, noise in zip(injections, eta, strict=True):
        forward = injection.apply(forward, noise)
    return forward


def _residuals(forward: Forward) -> Array:
    return forward.model(forward.params, forward.inputs) - forward.targets


def _check_only_pushes(injection: AbstractInjection, before: Forward, after: Forward) -> None:
    pieces = ("model", "params", "inputs", "targets")
    changed = [piece for piece in pieces if getattr(before, piece) is not getattr(after, piece)]
    if changed or injection.per == "example":
        what = f"also changes its {', '.join(changed)}" if changed else "does so per example"
        raise InputError(
            f"{type(injection).__name__} puts a force on the parameters and {what}; a noise with a force "
            'must have per="step" and nothing else. Split it into two noises and add them.'
        )


def _work(force: PyTree | None, forward: Callable[[PyTree], Forward], params: PyTree) -> Scalar | float:
    """<force, params>. Its gradient is the force, also where `forward` makes that of the parameters."""
    if force is None:
        return 0.0
    fixed = forward(jax.lax.stop_gradient(params)).force
    return sum(jax.tree.leaves(jax.tree.map(lambda one, other: jnp.sum(one * other), fixed, params)))


def _draw(
    injections: tuple[AbstractInjection, ...], law: AbstractLaw, params: PyTree, key: Key[Array, ""]
) -> PyTree:
    """The noise that the gradient of one step sees; anti-correlated noise enters elsewhere."""
    eta = law.draw(key, jnp.result_type(*jax.tree.leaves(params)))
    return tuple(
        jax.tree.map(jnp.zeros_like, part) if injection.as_increments else part
        for injection, part in zip(injections, eta, strict=True)
    )


def _perturbation(
    injections: tuple[AbstractInjection, ...], forward: Forward, key: Key[Array, ""]
) -> PyTree | None:
    """How far the anti-correlated noises shift the parameters; they are drawn as `_draw` would."""
    if not any(injection.as_increments for injection in injections):
        return None
    dtype = jnp.result_type(*jax.tree.leaves(forward.params))
    eta = _joint_law(injections, forward).draw(key, dtype)
    shifted = forward
    for injection, part in zip(injections, eta, strict=True):
        if injection.as_increments:
            shifted = injection.apply(shifted, part)
    return jax.tree.map(jnp.subtract, shifted.params, forward.params)


def _describe(noises: tuple[AbstractNoise, ...]) -> str:
    return " + ".join(describe(noise) for noise in noises)
