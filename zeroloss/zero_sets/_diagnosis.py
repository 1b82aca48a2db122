"""Why a zero-loss set was not reached: what the data prove, and what the point that was reached shows.

Everything but `contradiction` runs where an error is likely, or certain, to be raised.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zeroloss._linalg import power_iteration
from zeroloss._pytrees import Vector
from zeroloss.systems import LeastSquares, Scalar
from zeroloss.zero_sets._gram import GramSpectrum, GramZeroSet
from zeroloss.zero_sets._zero_set import AbstractZeroSet, length, spectrum_at

_NAMED = 3  # groups of examples that a message names, and examples of each
_SHOWN = 4  # numbers of a target that a message shows

_SCALES = (1e-3, 0.1, 1.0, 3.0)  # of random parameters, relative to those reached
_SAME = 1e-12  # relative difference of outputs that are the same but for rounding

_OCTAVE = 32  # points on a line while the distance doubles
_BELOW, _ABOVE = 10, 6  # octaves looked at before and beyond a point
_FACTORS = 2.0 ** (np.arange((_BELOW + _ABOVE) * _OCTAVE + 1) / _OCTAVE - _BELOW)
_FALL = 0.9  # of the loss in an octave, at most, where it falls for ever
_VANISHED = 1e-12  # of the largest loss on the line, where rounding can hide a loss
_EVEN = 0.6  # of the way that the loss takes for half as many digits, at least, where it falls for ever

_GROWTH = 0.9  # of the growth of |w| before, at least, where it goes on
_LEAST_GROWTH = 1e-2  # of |w|
_STANDS_STILL = 1e-9  # relative fall of the loss over the last steps
_FLAT, _LEVEL = 1e-8, 1e-2  # |w| |grad L| / L of a stationary point, and of one as far as can be known
_SADDLE = 1e-4  # of the largest eigenvalue
_SATURATED = 1e-2  # |w| |d output / dw| relative to the residual


class Visit(NamedTuple):
    """What gradient descent had come to after some steps: the loss and |w|."""

    steps: int
    loss: float
    size: float


def number(loss: float, digits: int = 6) -> str:
    """A loss >= 0 for a message. Rounding can make it zero, or negative."""
    return f"{loss:.{digits}g}" if loss > 0 else "0 to rounding"


def disagreeing(inputs: PyTree, targets: Any, tolerance: float) -> tuple[list[Int[np.ndarray, " n"]], float]:
    """The groups of rows with equal inputs and unequal targets, and the sum of squares that these leave.

    `tolerance`: how large the latter's root may be, relative to the norm of all targets. Reads each row once.
    """
    return _unequal(_groups_of_equal(inputs), np.asarray(targets, float), tolerance)


def contradiction(problem: LeastSquares, tolerance: float) -> str | None:
    """Why equal inputs with unequal targets keep the loss from zero; None where there are none.

    `tolerance`: the largest relative residual that counts as zero. Reads each row of the data once.
    """
    groups, squares = disagreeing(problem.inputs, problem.targets, tolerance)
    if not groups:
        return None
    return _disagreement(problem, groups, squares, "have equal inputs") + (
        " Give examples with equal inputs one target, such as the mean of theirs, or keep one of them."
    )


def proof(zero_set: AbstractZeroSet, w: Vector, tolerance: float) -> str | None:
    """Why no parameters bring a least-squares loss to zero, where the model shows it; None elsewhere.

    Either examples have the same output whatever the parameters, and unequal targets; or the model is linear
    in its parameters, and no linear combination gives the targets. Costs some ten passes through the model,
    and an eigendecomposition of the Gram matrix for the latter.
    """
    if not isinstance(zero_set, GramZeroSet):
        return None
    problem = zero_set.problem
    outputs, bends = (np.asarray(each) for each in _outputs_and_bends(zero_set, w))
    outputs = outputs[np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))]
    labels = _groups_of_close(np.concatenate(list(outputs.reshape(len(outputs), problem.number, -1)), axis=1))
    groups, squares = _unequal(labels, np.asarray(problem.targets), tolerance)
    if groups:
        who = "all of them" if len(groups[0]) == problem.number else "those"
        return _disagreement(problem, groups, squares, "get equal outputs") + (
            f" The outputs of {who} are equal at the parameters reached and at {len(outputs) - 1} random "
            "ones: the model does not tell these examples apart. Give them one target, or let the model "
            "see more of its inputs."
        )
    if not np.max(bends) <= _SAME:
        return None
    found = _range_of_jacobian(zero_set, w)
    if found is None:
        return None
    rank, outside = found
    if not np.linalg.norm(outside) > tolerance * np.linalg.norm(np.asarray(problem.targets)):
        return None
    least = float(np.sum(outside**2)) / (2 * problem.number)
    return (
        "zero loss cannot be reached: the model is linear in its parameters, and no parameters give the "
        f"targets. The smallest loss is {number(least)}. There are {_counts(problem, w)}, and the Jacobian "
        f"has rank {rank}. Take a model whose Jacobian has rank {problem.targets.size}, fewer examples, or "
        "targets that this model can give."
    )


def endless_fall(zero_set: AbstractZeroSet, w: Vector, before: Vector, visits: Sequence[Visit]) -> str | None:
    """What to say where the loss falls as far as one can go along a straight line; None elsewhere.

    Tries the ray from the origin through w, and the line through w away from `before`, where descent came
    from, each to 64 times |w|. Costs 1000 losses.
    """
    moved = float(jnp.linalg.norm(w - before))
    lost = _VANISHED**2 if isinstance(zero_set.problem, LeastSquares) else _VANISHED  # residuals are squared
    lines = [("the ray from the origin through this point", jnp.zeros_like(w), w)]
    if moved > 0:
        away = (w - before) * (length(w) / moved)
        lines.append(("the straight line on through this point", w, away))
    for name, base, direction in lines:
        losses, sizes = (np.asarray(each) for each in _along(zero_set, base, direction))
        shown = _places_of_endless_fall(losses, lost)
        if shown is None:
            continue
        places = _listed([f"{number(losses[place], 3)} at |w| = {sizes[place]:.4g}" for place in shown])
        return (
            "zero loss cannot be reached: the loss falls as long as the parameters grow, so that its infimum "
            f"is at infinity and there is no zero-loss set. {_descent(visits)} On {name} the loss is "
            f"{places}. More steps or more parameters do not help. {_remedy(zero_set)}"
        )
    return None


def diagnosis(zero_set: AbstractZeroSet, w: Vector, visits: Sequence[Visit], max_steps: int) -> str:
    """What the point that gradient descent got to shows, where nothing proves that zero cannot be reached.

    Costs up to 2000 Hessian-vector products where descent stands still, and a Gram matrix.
    """
    problem, last = zero_set.problem, visits[-1]
    earlier = visits[-2] if len(visits) > 1 else last
    gradient = float(jnp.linalg.norm(_gradient(zero_set, w)))
    slope = gradient * last.size / last.loss if last.loss > 0 else np.inf
    fell = len(visits) == 1 or earlier.loss - last.loss > _STANDS_STILL * last.loss
    if not fell and slope > _LEVEL and last.loss > 0:
        return no_descent(zero_set, w, earlier.loss, last.loss)
    still = slope <= _FLAT or not fell
    grows = _grows_on(visits)
    few = isinstance(problem, LeastSquares) and w.size < problem.targets.size
    sentences = [f"zero loss was not reached: {_where(earlier, last, gradient, slope, still)}"]
    is_saddle = False
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
    if isinstance(zero_set, GramZeroSet):
        sentences += _facts(zero_set, w)
    if is_saddle and not grows:
        sentences.append("Take another start.")
    elif few and isinstance(problem, LeastSquares):
        sentences.append(
            "Fewer parameters than residuals reach zero loss by coincidence only: take "
            f"{problem.targets.size} parameters or more, or fewer examples."
        )
    elif grows and isinstance(problem, LeastSquares):
        sentences.append("Take targets strictly inside of the range of the outputs.")
    elif still and isinstance(problem, LeastSquares):
        sentences.append("Take another start, a wider model, or targets that the model can give.")
    elif still:
        sentences.append(
            "If this is the minimum of the loss, as the entropy of smoothed labels is of a cross-entropy, "
            "subtract it, for the loss must be zero on the set. Otherwise take another start."
        )
    else:
        sentences.append(f"More steps may help (max_steps, now {max_steps}).")
    return " ".join(sentences)


def _where(earlier: Visit, last: Visit, gradient: float, slope: float, still: bool) -> str:
    """Where gradient descent is, and how fast the loss falls there."""
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
    """What to say where steps along the gradient do not lower the loss, though it is not zero."""
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


def _counts(problem: LeastSquares, w: Vector) -> str:
    return f"{problem.targets.size} residuals and {w.size} parameters"


def _facts(zero_set: GramZeroSet, w: Vector) -> list[str]:
    """The rank of the Jacobian, and the largest residual."""
    problem = zero_set.problem
    assert isinstance(problem, LeastSquares)
    found = _range_of_jacobian(zero_set, w)
    residuals = np.asarray(eqx.filter_jit(zero_set.residuals)(w))
    fact = f"There are {_counts(problem, w)}"
    if found is not None:
        rank, outside = found
        fact += f"; the Jacobian has rank {rank} there"
        if rank < problem.targets.size:
            share = np.linalg.norm(outside) / np.linalg.norm(residuals)
            fact += f", and {100 * share:.3g} % of the residual lies outside of its range"
    worst = np.unravel_index(np.argmax(np.abs(residuals)), residuals.shape)
    target = float(problem.targets[worst])
    residual = float(residuals[worst])
    slope = float(length(w) * jnp.linalg.norm(_slope_of_output(zero_set, w, worst)))
    where = f"example {worst[0]}" + (f", output {worst[1]}" if len(worst) > 1 else "")
    words = f"The largest residual is that of {where}: {target + residual:.6g} for a target of {target:.6g}"
    if slope < _SATURATED * abs(residual):
        words += f"; that output hardly depends on the parameters (|w| |d output / dw| = {slope:.2g})"
    return [fact + ".", words + "."]


def _range_of_jacobian(
    zero_set: GramZeroSet, w: Vector
) -> tuple[int, Float[np.ndarray, " residuals"]] | None:
    """The rank of J, and the part of the residuals outside of its range; None where J has no spectrum."""
    if not zero_set.has_spectrum:
        return None
    spectrum = spectrum_at(zero_set.with_rank(None), w)
    assert isinstance(spectrum, GramSpectrum)
    basis = np.asarray(spectrum.scaled_rotation) * np.sqrt(np.asarray(spectrum.squares))
    residuals = np.asarray(eqx.filter_jit(zero_set.residuals)(w)).reshape(-1)
    return int(spectrum.codimension), residuals - basis @ (basis.T @ residuals)


def _slope_of_output(zero_set: GramZeroSet, w: Vector, place: tuple[Any, ...]) -> Vector:
    problem = zero_set.problem
    assert isinstance(problem, LeastSquares)
    inputs = jax.tree.map(lambda leaf: leaf[place[0]][None], problem.inputs)
    return jax.grad(lambda w: problem.model(zero_set.unravel(w), inputs)[(0, *place[1:])])(w)


def _disagreement(problem: LeastSquares, groups: list[np.ndarray], squares: float, what: str) -> str:
    """The examples of some groups with their targets, and the smallest loss that they leave."""
    targets = np.asarray(problem.targets)
    named = "; ".join(_one_group(group, targets, what) for group in groups[:_NAMED])
    more = len(groups) - _NAMED
    rest = f"; and so in {more} more groups" if more > 0 else ""
    count = sum(map(len, groups))
    return (
        f"zero loss cannot be reached: {named}{rest} (counted from 0; {count} of {problem.number} examples "
        "are concerned). Whatever the parameters, the loss is at least "
        f"{number(squares / (2 * problem.number))}."
    )


def _one_group(group: Int[np.ndarray, " n"], targets: np.ndarray, what: str) -> str:
    """Say which examples of a group have which targets, each target once."""
    first = [group[0], *(each for each in group[1:] if np.any(targets[each] != targets[group[0]]))]
    shown = [*first[:_NAMED]]
    shown += [each for each in group if each not in shown][: _NAMED - len(shown)]
    shown.sort()
    digits = 6 if len({_target(targets[each], 6) for each in shown}) > 1 else 17
    who = _listed([str(each) for each in shown])
    of = f" of {len(group)}" if len(group) > len(shown) else ""
    values = _listed([_target(targets[each], digits) for each in shown])
    return f"examples {who}{of} {what} but the targets {values}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _target(target: np.ndarray | np.floating, digits: int) -> str:
    numbers = [f"{value:.{digits}g}" for value in np.ravel(target)[:_SHOWN]]
    if target.ndim == 0:
        return numbers[0]
    return "[" + ", ".join(numbers + ["..."] * (target.size > _SHOWN)) + "]"


def _unequal(
    labels: Int[np.ndarray, " examples"], targets: np.ndarray, tolerance: float
) -> tuple[list[Int[np.ndarray, " n"]], float]:
    """The groups whose targets scatter, and the sum of the squares of that scatter."""
    targets = targets.reshape(len(targets), -1).astype(float)
    counts = np.bincount(labels)
    means = np.zeros((len(counts), targets.shape[1]))
    np.add.at(means, labels, targets)
    means /= counts[:, None]
    squares = np.bincount(labels, np.sum((targets - means[labels]) ** 2, axis=1))
    chosen = np.flatnonzero(squares > (tolerance * np.linalg.norm(targets)) ** 2)
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups = [order[starts[label] : starts[label + 1]] for label in chosen]
    return sorted(groups, key=lambda group: group[0]), float(np.sum(squares[chosen]))


def _groups_of_equal(inputs: PyTree) -> Int[np.ndarray, " examples"]:
    """A label for each example, the same for equal inputs."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    hashes = [hashlib.blake2b(digest_size=16) for _ in leaves[0]]
    for values in leaves:
        if not np.issubdtype(values.dtype, np.integer):
            values = values.astype(complex if np.iscomplexobj(values) else float, copy=False)
        for row, of_row in zip(values, hashes, strict=True):
            of_row.update((row + np.zeros((), row.dtype)).tobytes())  # -0 is 0
    labels: dict[bytes, int] = {}
    return np.array([labels.setdefault(each.digest(), len(labels)) for each in hashes])


def _groups_of_close(values: Float[np.ndarray, "examples columns"]) -> Int[np.ndarray, " examples"]:
    """A label for each row, the same for rows that differ by rounding only."""
    largest = np.max(np.abs(values), axis=0)
    values = values / np.where(largest > 0, largest, 1.0)
    shadow = values @ np.random.default_rng(0).normal(size=values.shape[1])
    order = np.argsort(shadow)
    new = np.max(np.abs(np.diff(values[order], axis=0)), axis=1) > _SAME
    labels = np.zeros(len(values), int)
    labels[order[1:]] = np.cumsum(new)
    return labels


@eqx.filter_jit
def _outputs_and_bends(
    zero_set: GramZeroSet, w: Vector
) -> tuple[Float[Array, "points ..."], Float[Array, " draws"]]:
    """The outputs at w and at random parameters, and how far they are from linear along random lines."""
    problem = zero_set.problem
    unit = jnp.linalg.norm(w) / jnp.sqrt(w.size)
    unit = jnp.where(unit > 0, unit, 1.0)
    draws = unit * jax.random.normal(jax.random.key(0), (len(_SCALES), w.size), w.dtype)
    draws = draws * jnp.asarray(_SCALES)[:, None]

    def outputs(w: Vector) -> Array:
        return problem.model(zero_set.unravel(w), problem.inputs)

    def bend(draw: Vector) -> Scalar:
        there, back, here = outputs(w + draw), outputs(w - draw), outputs(w)
        slope = jnp.linalg.norm(there - back)
        rounding = 1e-3 * (jnp.linalg.norm(there) + jnp.linalg.norm(here))
        scale = jnp.maximum(slope, rounding)
        return jnp.linalg.norm(there - 2 * here + back) / jnp.where(scale > 0, scale, 1.0)

    points = jnp.concatenate([w[None], draws])
    return jax.lax.map(outputs, points), jax.lax.map(bend, draws[1:])


@eqx.filter_jit
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

    From factor 1 on, or from before where little is left of the loss there, it falls by a tenth or more each
    time that the distance doubles, until it is `lost` to rounding, relative to the largest. An exponential
    loses the second half of its digits on a way as long, as a factor, as the quarter before; beside a region
    of zero loss the last digits go at once.
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
        if not whole - half >= max(2.0, _EVEN * (half - quarter)):
            return None
    elif end - start <= _ABOVE * _OCTAVE // 2:
        return None
    last = min(end + _OCTAVE, len(losses) - 1)
    return start, min(start + _OCTAVE, (start + last) // 2), last


def _descent(visits: Sequence[Visit]) -> str:
    """How far the loss fell, and how |w| grew."""
    first, last = visits[0], visits[-1]
    if len(visits) == 1:
        return f"At the start the loss is {number(first.loss)}, and |w| = {first.size:.4g}."
    words = (
        f"In {last.steps} steps of gradient descent the loss went from {number(first.loss, 3)} to "
        f"{number(last.loss, 3)} and |w| from {first.size:.4g} to {last.size:.4g}"
    )
    if len(visits) > 2:
        before = visits[-2]
        words += (
            f", in the last {last.steps - before.steps} of them from {number(before.loss, 3)} and "
            f"{before.size:.4g}"
        )
    return words + "."


def _remedy(zero_set: AbstractZeroSet) -> str:
    if isinstance(zero_set.problem, LeastSquares):
        change = (
            "Take targets strictly inside of the range of the outputs, for a sigmoid 0.05 and 0.95 instead "
            "of 0 and 1."
        )
    else:
        change = (
            "Cross-entropies with hard labels are such losses: smooth the labels (targets (1 - e) y + e / k, "
            "k classes) and subtract their entropy from the loss, so that it is zero at finite parameters."
        )
    return (
        f"{change} Or train the loss as it is, in Python with zeroloss.descend, which needs no zero-loss "
        "set; there weight_decay keeps the parameters finite."
    )


def _grows_on(visits: Sequence[Visit]) -> bool:
    """Whether |w| grows with the logarithm of the steps, or faster."""
    if len(visits) < 5:
        return False
    growths = [
        (after.size - before.size) / np.log(after.steps / before.steps)
        for before, after in itertools.pairwise(visits[-4:])
    ]
    steady = all(later >= _GROWTH * earlier for earlier, later in itertools.pairwise(growths))
    rise = visits[-1].size - visits[-2].size
    return bool(growths[0] > 0 and steady and rise >= _LEAST_GROWTH * visits[-1].size)


@eqx.filter_jit
def _gradient(zero_set: AbstractZeroSet, w: Vector) -> Vector:
    return jax.grad(zero_set.loss)(w)


@eqx.filter_jit
def _ends_of_spectrum(zero_set: AbstractZeroSet, w: Vector) -> tuple[Scalar, Scalar]:
    """The smallest eigenvalue of the Hessian, and the largest in size."""
    product = zero_set.product(w)
    largest = power_iteration(product, w.size)
    return largest - power_iteration(lambda v: largest * v - product(v), w.size), largest
