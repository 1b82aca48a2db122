"""Proofs that no parameters bring a least-squares loss to zero: from the data, and from the model."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector
from zeroloss.systems import LeastSquares, Scalar, Supervised, WhitenedLeastSquares
from zeroloss.zero_sets._gram import AbstractLeastSquaresZeroSet, GramSpectrum
from zeroloss.zero_sets._zero_set import AbstractZeroSet, spectrum_at

_NAMED = 3  # groups of examples that a message names, and examples of each
_SHOWN = 4  # numbers of a target that a message shows
_SCALES = (1e-3, 0.1, 1.0, 3.0)  # of random parameters, relative to the parameters reached
_SAME = 1e-12  # relative difference by rounding of outputs that are the same


def number(loss: float, digits: int = 6) -> str:
    """A loss >= 0 for a message. Rounding can make it zero, or negative."""
    return f"{loss:.{digits}g}" if loss > 0 else "0 to rounding"


def listed(words: list[str]) -> str:
    """The words of a list for a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def counts(problem: LeastSquares, w: Vector) -> str:
    """The size of a problem for a message."""
    return f"{problem.targets.size} residuals and {w.size} parameters"


def disagreeing(inputs: PyTree, targets: Any, tolerance: float) -> tuple[list[Int[np.ndarray, " n"]], float]:
    """The groups of rows with equal inputs and unequal targets, and their sum of squared deviations.

    `tolerance`: the largest root of a group's sum of squares that counts as zero, relative to the norm of all
    targets. Reads each row once.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    labels: dict[bytes, int] = {}
    of_rows = []
    for rows in zip(*leaves, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            digest.update((row + np.zeros((), row.dtype)).tobytes())  # -0 is 0
        of_rows.append(labels.setdefault(digest.digest(), len(labels)))
    return _unequal(np.array(of_rows), np.asarray(targets, float), tolerance)


def contradiction(problem: Supervised, tolerance: float) -> str | None:
    """Why equal inputs with unequal targets keep the loss from zero; None where there are none.

    `tolerance`: the largest relative residual that counts as zero. Reads each row of the data once.
    """
    groups, squares = disagreeing(problem.inputs, problem.minimum.outputs, tolerance)
    if not groups:
        return None
    return _disagreement(problem, groups, squares, "have equal inputs") + (
        " Give examples with equal inputs one target, such as the mean of theirs, or keep one of them."
    )


def proof(zero_set: AbstractZeroSet, w: Vector, tolerance: float) -> str | None:
    """Why no parameters bring a least-squares loss to zero, where the model shows it; else None.

    Either examples have the same output whatever the parameters, and unequal targets; or the model is linear
    in its parameters, and no linear combination gives the targets. Costs some ten passes through the model,
    and an eigendecomposition of the Gram matrix for the second.
    """
    if not isinstance(zero_set, AbstractLeastSquaresZeroSet):
        return None
    problem = zero_set.problem
    outputs, nonlinearity = (np.asarray(each) for each in _outputs_and_bends(zero_set, w))
    outputs = outputs[np.isfinite(outputs).all(axis=tuple(range(1, outputs.ndim)))]
    labels = _groups_of_close(np.concatenate(list(outputs.reshape(len(outputs), problem.number, -1)), axis=1))
    groups, squares = _unequal(labels, np.asarray(problem.targets), tolerance)
    if groups:
        which = "all of them" if len(groups[0]) == problem.number else "those"
        return _disagreement(problem, groups, squares, "get equal outputs") + (
            f" The outputs of {which} are equal at the parameters reached and at {len(outputs) - 1} random "
            "ones: the model does not tell these examples apart. Give them one target, or let the model "
            "see more of its inputs."
        )
    found = range_of_jacobian(zero_set, w) if np.max(nonlinearity) <= _SAME else None
    if found is None:
        return None
    rank, outside = found
    if not np.linalg.norm(outside) > tolerance * np.linalg.norm(np.asarray(problem.targets)):
        return None
    least = f" The smallest loss is {number(float(np.sum(outside**2)) / (2 * problem.number))}."
    return (
        "zero loss cannot be reached: the model is linear in its parameters, and no parameters give the "
        f"targets.{least if _is_squares(problem) else ''} There are {counts(problem, w)}, and the Jacobian "
        f"has rank {rank}. Take a model whose Jacobian has rank {problem.targets.size}, fewer examples, or "
        "targets that this model can give."
    )


def range_of_jacobian(
    zero_set: AbstractLeastSquaresZeroSet, w: Vector
) -> tuple[int, Float[np.ndarray, " residuals"]] | None:
    """The rank of J, and the part of the residuals outside of its range; None where J has no spectrum."""
    if not zero_set.has_spectrum:
        return None
    spectrum = spectrum_at(zero_set.with_rank(None), w)
    assert isinstance(spectrum, GramSpectrum)
    basis = np.asarray(spectrum.scaled_rotation) * np.sqrt(np.asarray(spectrum.squares))
    residuals = np.asarray(compiled_once(zero_set.residuals)(w)).reshape(-1)
    return int(spectrum.codimension), residuals - basis @ (basis.T @ residuals)


def _disagreement(problem: Supervised, groups: list[np.ndarray], squares: float, fact: str) -> str:
    """The examples of some groups with their targets, and the smallest loss that they leave."""
    targets = np.asarray(
        problem.original.targets if isinstance(problem, WhitenedLeastSquares) else problem.targets
    )
    named = "; ".join(_one_group(group, targets, fact) for group in groups[:_NAMED])
    more = len(groups) - _NAMED
    rest = f"; and so in {more} more groups" if more > 0 else ""
    text = (
        f"zero loss cannot be reached: {named}{rest} (counted from 0; {sum(map(len, groups))} of "
        f"{problem.number} examples are concerned)."
    )
    if not _is_squares(problem):
        return text
    return f"{text} Whatever the parameters, the loss is at least {number(squares / (2 * problem.number))}."


def _is_squares(problem: Supervised) -> bool:
    """Whether the residuals are those of squares, and do not stand for another loss."""
    return isinstance(problem, LeastSquares) and not isinstance(problem, WhitenedLeastSquares)


def _one_group(group: Int[np.ndarray, " n"], targets: np.ndarray, fact: str) -> str:
    """Some examples of a group with their targets, with examples of unequal targets first."""
    unequal = [group[0], *(each for each in group[1:] if np.any(targets[each] != targets[group[0]]))]
    shown = sorted(list(dict.fromkeys([*unequal[:_NAMED], *group]))[:_NAMED])
    digits = 6 if len({_target(targets[each], 6) for each in shown}) > 1 else 17
    of = f" of {len(group)}" if len(group) > len(shown) else ""
    values = listed([_target(targets[each], digits) for each in shown])
    return f"examples {listed([str(each) for each in shown])}{of} {fact} but the targets {values}"


def _target(target: np.ndarray | np.floating, digits: int) -> str:
    """A target for a message, of several outputs the first."""
    numbers = [f"{value:.{digits}g}" for value in np.ravel(target)[:_SHOWN]]
    if target.ndim == 0:
        return numbers[0]
    return "[" + ", ".join(numbers + ["..."] * (target.size > _SHOWN)) + "]"


def _unequal(
    labels: Int[np.ndarray, " examples"], targets: np.ndarray, tolerance: float
) -> tuple[list[Int[np.ndarray, " n"]], float]:
    """The groups with scattered targets, and the sum of the squares of that scatter."""
    targets = targets.reshape(len(targets), -1).astype(float)
    sizes = np.bincount(labels)
    means = np.zeros((len(sizes), targets.shape[1]))
    np.add.at(means, labels, targets)
    means /= sizes[:, None]
    squares = np.bincount(labels, np.sum((targets - means[labels]) ** 2, axis=1))
    chosen = squares > (tolerance * np.linalg.norm(targets)) ** 2
    order, ends = np.argsort(labels, kind="stable"), np.cumsum(sizes)
    groups = [order[ends[label] - sizes[label] : ends[label]] for label in np.flatnonzero(chosen)]
    return sorted(groups, key=lambda group: group[0]), float(np.sum(squares[chosen]))


def _groups_of_close(values: Float[np.ndarray, "examples columns"]) -> Int[np.ndarray, " examples"]:
    """A label for each row, the same for rows that differ by rounding only."""
    largest = np.max(np.abs(values), axis=0)
    values = values / np.where(largest > 0, largest, 1.0)
    order = np.argsort(values @ np.random.default_rng(0).normal(size=values.shape[1]))
    new = np.max(np.abs(np.diff(values[order], axis=0)), axis=1) > _SAME
    labels = np.zeros(len(values), int)
    labels[order[1:]] = np.cumsum(new)
    return labels


@compiled_once
def _outputs_and_bends(
    zero_set: AbstractLeastSquaresZeroSet, w: Vector
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
