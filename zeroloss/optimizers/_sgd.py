"""Gradient descent with schedule, momentum and weight decay, as PyTorch and Optax mean them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from zeroloss._arguments import positive_number
from zeroloss._checkpoint import digest
from zeroloss._compilation import compiled_once
from zeroloss.errors import InputError, StabilityError, UnsupportedError
from zeroloss.systems import Scalar

_SAMPLED = 1000  # steps at which a schedule is checked before anything long begins


class SGD(eqx.Module):
    """Gradient descent with a step size or a schedule, momentum and weight decay.

    One step: g = gradient + weight_decay w; v <- momentum v + g; w <- w - step_size v. With `nesterov`,
    w <- w - step_size (g + momentum v), v the new one. This is `torch.optim.SGD` without dampening, and
    `optax.sgd` behind `optax.add_decayed_weights`. The gradient is that of the noisy loss at this step.

    **Arguments:**

    - `step_size`: alpha, positive; or a schedule, a function from the step (an integer array, counted from 0)
      to alpha that JAX can trace, such as those of Optax.
    - `momentum`: in [0, 1).
    - `nesterov`: whether to look ahead along the velocity; needs momentum.
    - `weight_decay`: not negative. It moves the minima off the zero-loss set.

    **Raises:** `InputError` for an argument outside of these bounds.

    ```python
    optimizer = zl.SGD(0.1, momentum=0.9)
    path = zl.predict(system, params, optimizer, steps=1000)
    ```
    """

    step_size: Scalar | Callable[[Int[Array, ""]], Any]
    momentum: Scalar
    weight_decay: Scalar
    nesterov: bool = eqx.field(static=True)
    has_momentum: bool = eqx.field(static=True)
    has_weight_decay: bool = eqx.field(static=True)

    def __init__(
        self,
        step_size: float | Scalar | Callable[[Int[Array, ""]], Any],
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if not callable(step_size):
            positive_number("step_size", step_size)
        if not 0 <= momentum < 1:
            raise InputError(f"momentum must lie in [0, 1), got {momentum}.")
        if nesterov and momentum == 0:
            raise InputError("nesterov=True needs momentum > 0.")
        if not (weight_decay >= 0 and np.isfinite(weight_decay)):
            raise InputError(f"weight_decay must be finite and not negative, got {weight_decay}.")
        self.step_size = step_size if callable(step_size) else jnp.asarray(step_size, float)
        self.momentum = jnp.asarray(momentum, float)
        self.weight_decay = jnp.asarray(weight_decay, float)
        self.nesterov = nesterov
        self.has_momentum = momentum > 0
        self.has_weight_decay = weight_decay > 0

    @classmethod
    def from_torch(cls, optimizer: Any, step_size: Any = None) -> "SGD":
        """The rule of a `torch.optim.SGD`: its learning rate, momentum and weight decay.

        `step_size` takes the place of its learning rate, for a schedule that PyTorch keeps outside of it.
        Raises `UnsupportedError` for another optimizer, dampening, maximizing, and for groups of parameters
        that differ.

        ```python
        zl.SGD.from_torch(torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
        ```
        """
        kind, groups = type(optimizer).__name__, getattr(optimizer, "param_groups", None)
        if kind != "SGD" or not groups:
            raise UnsupportedError(f"SGD.from_torch takes a torch.optim.SGD, got {kind}.")
        rules = [
            (float(group["lr"]), group["momentum"], group["weight_decay"], bool(group["nesterov"]))
            for group in groups
        ]
        differing = [rule for rule in rules if rule != rules[0]]
        if differing:
            raise UnsupportedError(
                "the groups of parameters differ in learning rate, momentum, weight decay or nesterov: "
                f"{rules[0]} and {differing[0]}. All parameters must have one rule."
            )
        if any(group.get("dampening", 0) for group in groups) or any(
            group.get("maximize") for group in groups
        ):
            raise UnsupportedError("dampening and maximize=True of torch.optim.SGD are not supported.")
        size, momentum, decay, nesterov = rules[0]
        return cls(
            size if step_size is None else step_size,
            momentum=float(momentum),
            nesterov=nesterov,
            weight_decay=float(decay),
        )

    def at(self, step: Int[Array, ""]) -> Scalar:
        """The step size at a step, counted from 0."""
        return jnp.asarray(self.step_size(step) if callable(self.step_size) else self.step_size)

    def start(self, params: PyTree) -> PyTree | None:
        """The velocity to begin with; None without momentum."""
        return jax.tree.map(jnp.zeros_like, params) if self.has_momentum else None

    def update(
        self, step: Int[Array, ""], params: PyTree, velocity: PyTree | None, gradient: PyTree
    ) -> tuple[PyTree, PyTree | None]:
        """Parameters and velocity after one step."""
        size = self.at(step)
        if self.has_weight_decay:
            gradient = jax.tree.map(lambda g, w: g + self.weight_decay.astype(w.dtype) * w, gradient, params)
        direction = gradient
        if velocity is not None:
            velocity = jax.tree.map(lambda v, g: self.momentum.astype(g.dtype) * v + g, velocity, gradient)
            direction = velocity
            if self.nesterov:
                direction = jax.tree.map(
                    lambda g, v: g + self.momentum.astype(g.dtype) * v, gradient, velocity
                )
        return jax.tree.map(lambda w, d: w - size.astype(w.dtype) * d, params, direction), velocity

    def effective(self, step_size: Scalar) -> Scalar:
        """The step size of plain gradient descent with the same slow motion: step_size / (1 - momentum)."""
        return step_size / (1 - self.momentum)

    @property
    def stability_limit(self) -> Scalar:
        """The largest stable step_size * (lambda_max + weight_decay): 2 without momentum."""
        beta = self.momentum
        return 2 * (1 + beta) / (1 + 2 * beta) if self.nesterov else 2 * (1 + beta)

    def check_stability(self, largest_eigenvalue: float, steps: int = 1) -> None:
        """Raise `StabilityError` when a step size among the first `steps` is beyond the stability limit."""
        size = self.largest(steps)
        curvature = largest_eigenvalue + float(self.weight_decay)
        limit = float(self.stability_limit)
        if not size * curvature < limit:
            raise StabilityError(
                f"step_size {size:.6g} is beyond the stability limit {limit:.4g} / "
                f"lambda_max = {limit / curvature:.6g}: the largest eigenvalue of the Hessian "
                f"is {curvature:.6g}. Take a smaller step size."
            )

    def largest(self, steps: int) -> float:
        """The largest step size among the first `steps`, from a sample of a thousand."""
        return float(self.sizes(np.unique(np.linspace(0, steps - 1, _SAMPLED).astype(int))).max())

    def size(self, step: int) -> float:
        """The step size at one step, checked as in `sizes`."""
        return float(self.sizes(np.array([step]))[0])

    def sizes(self, steps: Int[np.ndarray, " times"]) -> np.ndarray:
        """The step sizes at some steps, checked to be finite and not negative."""
        if callable(self.step_size):
            sizes = np.asarray(_schedule(self, jnp.asarray(steps)), float)
        else:
            sizes = np.full(len(steps), float(self.step_size))
        bad = ~(np.isfinite(sizes) & (sizes >= 0))
        if bad.any():
            first = int(np.argmax(bad))
            raise InputError(
                f"step_size must be finite and not negative; at step {steps[first]} it is {sizes[first]}."
            )
        return sizes

    def facts(self, steps: Int[np.ndarray, " times"]) -> dict[str, str]:
        """Fingerprints by which a checkpoint recognizes the optimizer and its step sizes."""
        return dict(
            step_sizes=digest(self.sizes(steps)),
            optimizer=digest((self.momentum, self.weight_decay, self.nesterov)),
        )


StepSize = float | Scalar | Callable[[Int[Array, ""]], Any] | SGD
"""A step size, a schedule, or an optimizer."""


@compiled_once
def _schedule(optimizer: SGD, steps: Int[Array, " times"]) -> Array:
    return jax.vmap(optimizer.at)(steps)


def as_optimizer(step_size: StepSize) -> SGD:
    """`step_size` itself if it is an optimizer; otherwise `SGD` with this step size or schedule."""
    return step_size if isinstance(step_size, SGD) else SGD(step_size)
