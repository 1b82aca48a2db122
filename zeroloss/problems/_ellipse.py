"""An ellipse, for random motion along it: L = (w_1^2 / 4 + w_2^2 - 1)^2 / 2 (theory.md, sections 2 and 4)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import Loss


def ellipse() -> Problem:
    """Two parameters on the ellipse (2 cos a, sin a), start at a = 1.2.

    Isotropic Langevin noise makes training wander over it, with a density proportional to
    det_+(H)^(-1/2) = 1 / |grad g| with respect to arc length: the angle a is then uniform, and w_1^2 is 2 on
    average. (Uniform in arc length it would be 1.680.)

    Weight noise drifts to the ends of the long axis, with sin a / cos^4 a decaying as exp(-3 t).
    """
    problem, start = Loss(loss), jnp.array([2 * jnp.cos(1.2), jnp.sin(1.2)])
    return Problem(
        name="ellipse",
        problem=problem,
        start=start,
        observables={"first_squared": first_squared, "angle": angle},
        noises=noises_for(problem, start),
        description="two parameters on an ellipse with half-axes 2 and 1",
    )


def first_squared(w: Float[Array, "2"]) -> Float[Array, ""]:
    """w_1^2."""
    return w[0] ** 2


def angle(w: Float[Array, "2"]) -> Float[Array, ""]:
    """The angle a of (2 cos a, sin a)."""
    return jnp.arctan2(w[1], w[0] / 2)


def loss(w: Float[Array, "2"]) -> Float[Array, ""]:
    """g^2 / 2 with g = w_1^2 / 4 + w_2^2 - 1."""
    return 0.5 * (w[0] ** 2 / 4 + w[1] ** 2 - 1) ** 2
