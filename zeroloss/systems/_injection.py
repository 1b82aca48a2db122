"""Several injections as one noise: their joint law, and what they do to a forward pass and a step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import (
    AbstractInjection,
    AbstractLaw,
    AbstractNoise,
    Forward,
    Joint,
    MiniBatch,
    describe,
    parts,
)
from zeroloss.systems._system import Scalar


def split_noise(noise: AbstractNoise) -> tuple[tuple[AbstractInjection, ...], MiniBatch | None]:
    batches = [part for part in parts(noise) if isinstance(part, MiniBatch)]
    if len(batches) > 1:
        raise InputError(f"a sum of noises may hold one MiniBatch, got {len(batches)}.")
    injections = tuple(part for part in parts(noise) if not isinstance(part, MiniBatch))
    for part in injections:
        if not isinstance(part, AbstractInjection):
            raise InputError(f"cannot inject {part!r}; it must be an AbstractInjection or MiniBatch.")
    return injections, batches[0] if batches else None  # pyright: ignore[reportReturnType]


def joint_law(injections: tuple[AbstractInjection, ...], forward: Forward) -> Joint:
    return Joint(tuple(injection.law(forward) for injection in injections))


def apply_all(injections: tuple[AbstractInjection, ...], forward: Forward, eta: PyTree) -> Forward:
    for injection, noise in zip(injections, eta, strict=True):
        forward = injection.apply(forward, noise)
    return forward


def residuals_of(forward: Forward) -> Array:
    return forward.model(forward.params, forward.inputs) - forward.targets


def check_only_pushes(injection: AbstractInjection, before: Forward, after: Forward) -> None:
    pieces = ("model", "params", "inputs", "targets")
    changed = [piece for piece in pieces if getattr(before, piece) is not getattr(after, piece)]
    if changed or injection.per == "example":
        what = f"also changes its {', '.join(changed)}" if changed else "does so per example"
        raise InputError(
            f"{type(injection).__name__} puts a force on the parameters and {what}; a noise with a force "
            'must have per="step" and nothing else. Split it into two noises and add them.'
        )


def work_of(force: PyTree | None, forward: Callable[[PyTree], Forward], params: PyTree) -> Scalar | float:
    """<force, params>. Its gradient is the force, also where `forward` makes that of the parameters."""
    if force is None:
        return 0.0
    fixed = forward(jax.lax.stop_gradient(params)).force
    return sum(jax.tree.leaves(jax.tree.map(lambda one, other: jnp.sum(one * other), fixed, params)))


def draw_eta(
    injections: tuple[AbstractInjection, ...], law: AbstractLaw, params: PyTree, key: Key[Array, ""]
) -> PyTree:
    """The noise that the gradient of one step sees; anti-correlated noise enters elsewhere."""
    eta = law.draw(key, jnp.result_type(*jax.tree.leaves(params)))
    return tuple(
        jax.tree.map(jnp.zeros_like, part) if injection.as_increments else part
        for injection, part in zip(injections, eta, strict=True)
    )


def perturbation_of(
    injections: tuple[AbstractInjection, ...], forward: Forward, key: Key[Array, ""]
) -> PyTree | None:
    """How far the anti-correlated noises shift the parameters; they are drawn as `_draw` would."""
    if not any(injection.as_increments for injection in injections):
        return None
    dtype = jnp.result_type(*jax.tree.leaves(forward.params))
    eta = joint_law(injections, forward).draw(key, dtype)
    shifted = forward
    for injection, part in zip(injections, eta, strict=True):
        if injection.as_increments:
            shifted = injection.apply(shifted, part)
    return jax.tree.map(jnp.subtract, shifted.params, forward.params)


def describe_all(noises: tuple[AbstractNoise, ...]) -> str:
    return " + ".join(describe(noise) for noise in noises)
