"""Why gradient descent did not reach a zero-loss set, from its course and from the point that it reached.

Everything here runs where an error is likely, or certain, to be raised.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zeroloss._compilation import compiled_once
from zeroloss._linalg import power_iteration
from zeroloss._pytrees import Vector
from zeroloss.systems import Scalar
from zeroloss.zero_sets._contradictions import counts, listed, number, range_of_jacobian
from zeroloss.zero_sets._gram import AbstractLeastSquaresZeroSet
from zeroloss.zero_sets._zero_set import AbstractZeroSet, norm_or_one

_OCTAVE = 32  # points on a line while the distance doubles
_BELOW, _ABOVE = 10, 6  # octaves of a line before and beyond a point
_FACTORS = 2.0 ** (np.arange((_BELOW + _ABOVE) * _OCTAVE + 1) / _OCTAVE - _BELOW)
_FALL = 0.9  # a loss that falls without end falls below this share of itself in an octave
_ROUNDED_SHARE = 1e-12  # of the largest loss on the line: a smaller loss may be rounding
_EVEN_SHARE = (
    0.6  # the last half of the digits takes at least this share of the octaves of the quarter before
)
_GROWTH_RATIO = 0.9  # |w| keeps growing if each growth is at least this share of the one before
_LEAST_GROWTH = 1e-2  # of |w|
_SMALLEST_FALL = 1e-9  # relative fall of the loss over the last steps
_STATIONARY_SLOPE, _NEARLY_STATIONARY_SLOPE = (
    1e-8,
    1e-2,
)  # |w| |grad L| / L of a stationary point, and of a point that may be stationary
_SADDLE = 1e-4  # of the largest eigenvalue
_SATURATED = 1e-2  # |w| |d output / dw| relative to the residual


class DescentPoint(NamedTuple):
    """The state of gradient descent after some steps: the loss and |w|."""

    steps: int
    loss: float
    size: float


def endless_fall(
    zero_set: AbstractZeroSet, w: Vector, before: Vector, descent_history: Sequence[DescentPoint]
) -> str | None:
    """The message where the loss falls along a straight line as far as floating point reaches; else None.

    Tries the ray from the origin through w, and the line from `before`, an earlier point of the descent,
    through w, each to 64 times |w|. Costs 1000 losses.
    """
    moved = float(jnp.linalg.norm(w - before))
    lost = _ROUNDED_SHARE**2 if zero_set.has_residuals else _ROUNDED_SHARE  # residuals are squared
    lines = [("the ray from the origin through this point", jnp.zeros_like(w), w)]
    if moved > 0:
        away = (w - before) * (norm_or_one(w) / moved)
        lines.append(("the straight line on through this point", w, away))
    for name, base, direction in lines:
        losses, sizes = (np.asarray(each) for each in _along(zero_set, base, direction))
        shown = _places_of_endless_fall(losses, lost)
        if shown is not None:
            places = listed([f"{number(losses[place], 3)} at |w| = {sizes[place]:.4g}" for place in shown])
            return (
                "zero loss cannot be reached: the loss falls as long as the parameters grow, so that its "
                f"infimum is at infinity and there is no zero-loss set. "
                f"{_descent(descent_history)} On {name} the loss is {places}. More steps or more parameters "
                "do not help. "
                f"{_REMEDIES[zero_set.has_residuals]} Or train the loss as it is, in Python with "
                "zeroloss.descend, which needs no zero-loss set; there weight_decay keeps the parameters "
                "finite."
            )
    return None


_REMEDIES = {  # by whether there are residuals
    True: (
        "Take targets strictly inside of the range of the outputs, for a sigmoid 0.05 and 0.95 instead of "
        "0 and 1."
    ),
    False: (
        "Cross-entropies with hard labels are such losses: smooth the labels (targets (1 - e) y + e / k, "
        "k classes) and subtract their entropy from the loss, so that it is zero at finite parameters."
    ),
}


def diagnosis(
    zero_set: AbstractZeroSet, w: Vector, descent_history: Sequence[DescentPoint], max_steps: int
) -> str:
    """The facts about the point that gradient descent reached, and a remedy.

    For the case where nothing proves that zero cannot be reached. Costs up to 2000 Hessian-vector products
    where descent stands still, and a Gram matrix.
    """
    last = descent_history[-1]
    earlier = descent_history[-2] if len(descent_history) > 1 else last
    gradient = float(jnp.linalg.norm(_gradient(zero_set, w)))
    slope = gradient * last.size / last.loss if last.loss > 0 else np.inf
    fell = len(descent_history) == 1 or earlier.loss - last.loss > _SMALLEST_FALL * last.loss
    if not fell and slope > _NEARLY_STATIONARY_SLOPE and last.loss > 0:
        return no_descent(zero_set, w, earlier.loss, last.loss)
    still, grows, is_saddle = slope <= _STATIONARY_SLOPE or not fell, _grows_on(descent_history), False
    sentences = [f"zero loss was not reached: {_place(earlier, last, gradient, slope, still)}"]
    if still:
        lowest, largest = (float(each) for each in _ends_of_spectrum(zero_set, w))
        is_saddle = lowest < -_SADDLE * largest
        kind = (
            f"reach down to {lowest:.3g}: a saddle" if is_saddle else "are not negative: a minimum, or flat"
        )
        sentences.append(
            f"The largest eigenvalue of the Hessian there is {largest:.3g}, and its others {kind}."
        )
    if grows:
        sentences.append(
            f"|w| goes on growing, from {earlier.size:.4g} to {last.size:.4g} in the last "
            f"{last.steps - earlier.steps} steps: the infimum may be at infinity."
        )
    remedy = (
        "If this is the minimum of the loss, as the entropy of smoothed labels is of a cross-entropy, "
        "subtract it, for the loss must be zero on the set. Otherwise take another start."
        if still
        else f"More steps may help (max_steps, now {max_steps})."
    )
    if isinstance(zero_set, AbstractLeastSquaresZeroSet):
        residuals = zero_set.problem.targets.size
        sentences += _facts_of_residuals(zero_set, w)
        if w.size < residuals:
            remedy = (
                "Fewer parameters than residuals reach zero loss by coincidence only: take "
                f"{residuals} parameters or more, or fewer examples."
            )
        elif grows:
            remedy = "Take targets strictly inside of the range of the outputs."
        elif still:
            remedy = "Take another start, a wider model, or targets that the model can give."
    sentences.append("Take another start." if is_saddle and not grows else remedy)
    return " ".join(sentences)


def _place(earlier: DescentPoint, last: DescentPoint, gradient: float, slope: float, still: bool) -> str:
    """The point of gradient descent, and how fast the loss falls there."""
    place = f"{number(last.loss)} with |grad L| = {gradient:.3g} (|w| |grad L| / L = {slope:.3g})"
    newton = "and Newton's method does not bring it to zero."
    if last.steps == 0:
        return f"the loss at the start is {place}, {newton}"
    if still:
        return f"gradient descent stands still after {last.steps} steps, where the loss is {place}, {newton}"
    return (
        f"after {last.steps} steps of gradient descent the loss is {place}, from {number(earlier.loss)} "
        f"{last.steps - earlier.steps} steps before, {newton}"
    )


def no_descent(
    zero_set: AbstractZeroSet, w: Vector, before: float, after: float, caution: float = 1.0
) -> str:
    """The message where steps along the gradient do not lower the loss, though it is not zero."""
    gradient = float(jnp.linalg.norm(_gradient(zero_set, w)))
    how = "" if caution == 1 else f", even with the step size {caution:.3g} / (largest eigenvalue)"
    why = (
        "The loss has a jump or a kink there, or its gradient is not its derivative."
        if np.isfinite(after)
        else "Write the loss so that it stays finite (jax.nn.log_softmax and jax.nn.log_sigmoid do)."
    )
    return (
        f"zero loss was not reached: gradient descent does not lower the loss{how}. It goes from "
        f"{number(before)} to {after:.6g}, and |grad L| is {gradient:.3g}. {why}"
    )


def _facts_of_residuals(zero_set: AbstractLeastSquaresZeroSet, w: Vector) -> list[str]:
    """The rank of the Jacobian, and the largest residual."""
    problem = zero_set.problem
    found = range_of_jacobian(zero_set, w)
    residuals = np.asarray(compiled_once(zero_set.residuals)(w))
    fact = f"There are {counts(problem, w)}"
    if found is not None:
        rank, outside = found
        fact += f"; the Jacobian has rank {rank} there"
        if rank < problem.targets.size:
            share = np.linalg.norm(outside) / np.linalg.norm(residuals)
            fact += f", and {100 * share:.3g} % of the residual lies outside of its range"
    worst = np.unravel_index(np.argmax(np.abs(residuals)), residuals.shape)
    target, residual = float(problem.targets[worst]), float(residuals[worst])
    slope = float(norm_or_one(w) * jnp.linalg.norm(_slope_of_output(zero_set, w, worst)))
    place = f"example {worst[0]}" + (f", output {worst[1]}" if len(worst) > 1 else "")
    text = f"The largest residual is that of {place}: {target + residual:.6g} for a target of {target:.6g}"
    if slope < _SATURATED * abs(residual):
        text += f"; that output hardly depends on the parameters (|w| |d output / dw| = {slope:.2g})"
    return [fact + ".", text + "."]


def _slope_of_output(zero_set: AbstractLeastSquaresZeroSet, w: Vector, place: tuple[Any, ...]) -> Vector:
    problem = zero_set.problem
    inputs = jax.tree.map(lambda leaf: leaf[place[0]][None], problem.inputs)
    return jax.grad(lambda w: problem.model(zero_set.unravel(w), inputs)[(0, *place[1:])])(w)


@compiled_once
def _along(
    zero_set: AbstractZeroSet, base: Vector, direction: Vector
) -> tuple[Float[Array, " places"], Float[Array, " places"]]:
    """The losses and |w| on a line, at _FACTORS of the direction."""

    def one(factor: Scalar) -> tuple[Scalar, Scalar]:
        point = base + factor * direction
        return zero_set.loss(point), jnp.linalg.norm(point)

    return jax.lax.map(one, jnp.asarray(_FACTORS))


def _places_of_endless_fall(losses: Float[np.ndarray, " places"], lost: float) -> tuple[int, ...] | None:
    """Three places on a line along which the loss falls without end; None where it does not.

    Two tests decide. First, the loss falls by at least a tenth each time the distance doubles, until it is
    `lost` to rounding, relative to the largest; this begins at factor 1, or before it where the loss is small
    there already. Second, the digits vanish at an even rate in log distance, as those of an exponential do.
    Beside a set of zero loss the last digits vanish at once, and the second test fails.
    """
    finite = np.isfinite(losses)
    losses = losses[: len(losses) if finite.all() else int(np.argmin(finite))]
    here = _BELOW * _OCTAVE
    largest = np.max(losses, initial=0.0)
    if not (len(losses) > here and largest > 0):
        return None
    last_above = [int(np.flatnonzero(losses > lost**power * largest)[-1]) for power in (0.25, 0.5, 1.0)]
    start = min(here, last_above[1])
    end = last_above[2] + 1
    falling = losses[start:end]
    if not (np.all(falling[_OCTAVE:] <= _FALL * falling[:-_OCTAVE]) and np.all(np.diff(falling) < 0)):
        return None
    if end < len(losses):
        quarter, half, whole = last_above
        if not whole - half >= max(2.0, _EVEN_SHARE * (half - quarter)):
            return None
    elif end - start <= _ABOVE * _OCTAVE // 2:
        return None
    last = min(end + _OCTAVE, len(losses) - 1)
    return start, min(start + _OCTAVE, (start + last) // 2), last


def _descent(descent_history: Sequence[DescentPoint]) -> str:
    """How far the loss fell, and how |w| grew."""
    first, last = descent_history[0], descent_history[-1]
    if len(descent_history) == 1:
        return f"At the start the loss is {number(first.loss)}, and |w| = {first.size:.4g}."
    words = (
        f"In {last.steps} steps of gradient descent the loss went from {number(first.loss, 3)} to "
        f"{number(last.loss, 3)} and |w| from {first.size:.4g} to {last.size:.4g}"
    )
    if len(descent_history) > 2:
        before = descent_history[-2]
        words += (
            f", in the last {last.steps - before.steps} of them from {number(before.loss, 3)} and "
            f"{before.size:.4g}"
        )
    return words + "."


def _grows_on(descent_history: Sequence[DescentPoint]) -> bool:
    """Whether |w| grows with the logarithm of the steps, or faster."""
    if len(descent_history) < 5:
        return False
    growths = [
        (after.size - before.size) / np.log(after.steps / before.steps)
        for before, after in itertools.pairwise(descent_history[-4:])
    ]
    steady = all(later >= _GROWTH_RATIO * earlier for earlier, later in itertools.pairwise(growths))
    rise = descent_history[-1].size - descent_history[-2].size
    return bool(growths[0] > 0 and steady and rise >= _LEAST_GROWTH * descent_history[-1].size)


@compiled_once
def _gradient(zero_set: AbstractZeroSet, w: Vector) -> Vector:
    return jax.grad(zero_set.loss)(w)


@compiled_once
def _ends_of_spectrum(zero_set: AbstractZeroSet, w: Vector) -> tuple[Scalar, Scalar]:
    """The smallest eigenvalue of the Hessian, and the largest in size."""
    product = zero_set.product(w)
    largest = power_iteration(product, w.size)
    return largest - power_iteration(lambda v: largest * v - product(v), w.size), largest
