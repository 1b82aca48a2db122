"""Bernoulli masks of a small rate: rare events that drop a whole unit (theory.md, section 4).

A mask of rate p -> 0 is no small noise. With t = alpha sigma^2 k, sigma^2 = p / (1 - p), training follows

    R(w) = sum_e [L_hat(w, -e) - L(w) + d_e L_hat(w, 0)]

in the place of Reg, and on the slow scale the covariance of the columns grad L_hat(w, -e) - grad L(w) in
the place of Sigma. The sum is over single drops e: of each unit, and for masks per example of each
example. Where the loss is quadratic in each unit of the mask, R = Reg, and the cheaper formulas for small
noise serve.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from zeroloss._chunks import over_rows
from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector, is_traced
from zeroloss._tolerances import ZERO
from zeroloss.drifts._reg_and_sigma import AbstractExpansion, LeastSquaresExpansion, expand, relative
from zeroloss.noise import AbstractLaw, Gaussian, Joint, TwoPoint, is_shape, is_zero
from zeroloss.systems import AbstractInjectedSystem, AbstractSystem, Scalar, SupervisedSystem
from zeroloss.zero_sets import AbstractSpectrum, AbstractZeroSet

EXACT = 256
"""Up to this many units R is computed from all of them, beyond it from `DRAWS` for each example."""

DRAWS = 32

_BLOCK = 8  # units that are dropped side by side
_COLUMNS = 16  # rows of Q^T G that are computed side by side
_PRODUCTS = 200_000  # rows of Q^T G times units, beyond which units are drawn
_TESTED = 8  # units dropped to see whether the loss is quadratic in a mask
_PROBES = 8  # random vectors for the trace of Sigma

Units = Int[Array, "draws rows"]


class Drops(eqx.Module):
    """The single drops of one Bernoulli noise.

    A row is an example, for masks per example; otherwise there is one row, for all examples. A drop is a
    unit of a row; `units` numbers the units of a row through all leaves of the mask.
    """

    system: AbstractSystem
    zero_set: AbstractZeroSet
    part: int = eqx.field(static=True)
    """Which of the laws of a joint law it is; 0 for a law that is not joint."""

    @property
    def rows(self) -> int:
        """N for masks per example, 1 for masks that all examples share."""
        return self.system.problem.number if self._is_per_example else 1  # pyright: ignore

    def units(self, w: Vector) -> int:
        """How many units a row has."""
        return sum(math.prod(shape) for shape in self._shapes(w))

    def weight(self, w: Vector) -> Scalar | float:
        """The squared ratio of this noise's sigma to the sigma of reference."""
        law = self._law(w)
        return (_laws(law)[self.part].sigma / law.sigma) ** 2

    def loss(self, w: Vector, units: Int[Array, " rows"] | None, counts: Float[Array, " rows"]) -> Scalar:
        """The loss with one unit of each row dropped, each row times its count; None drops nothing."""
        zero = self._law(w).zeros(jnp.float64)
        return self._loss(w, zero if units is None else self._mask(w, units), counts)

    def excess(self, w: Vector, units: Units, counts: Float[Array, "draws rows"]) -> Scalar:
        """The sum over drops of counts times L_hat(w, -e) - L(w)."""

        def dropped(rows: tuple[Array, Array]) -> Array:
            return jax.vmap(lambda units, counts: self.loss(w, units, counts))(*rows)

        total = jnp.sum(over_rows(dropped, (units, counts), _BLOCK))
        return total - self.loss(w, None, jnp.sum(counts, axis=0))

    def all_units(self, w: Vector) -> Units:
        """Every unit of every row."""
        return jnp.tile(jnp.arange(self.units(w))[:, None], (1, self.rows))

    def exact(self, w: Vector) -> Scalar:
        """R of this noise, at sigma = 1 of it. One gradient for each unit of a row."""
        units = self.all_units(w)
        zero = self._law(w).zeros(jnp.float64)
        ones = self._replaced(w, jax.tree.map(jnp.ones_like, self._leaves(w)))
        row = jnp.ones(self.rows)
        slope = jax.jvp(lambda eta: self._loss(w, eta, row), (zero,), (ones,))[1]
        return self.excess(w, units, jnp.ones(units.shape)) + slope

    def beyond_second_order(self, w: Vector, units: Units, small: AbstractExpansion) -> Scalar:
        """An estimate of R - Reg from drawn units, unbiased for units drawn uniformly.

        `small` is the expansion of all noise as if small. Where it is that of a supervised problem, the
        second derivatives are known from Reg, and terms whose gradient is normal to the zero-loss set are
        left out: one gradient for each drawn unit of a row.
        """
        row = jnp.ones(self.rows)
        if isinstance(small, LeastSquaresExpansion):
            losses = over_rows(jax.vmap(lambda units: self.loss(w, units, row)), units, _BLOCK)
            squares = small.squared_sensitivities(w, self.part) / self.weight(w)  # [N, n]
            seconds = squares if self._is_per_example else jnp.sum(squares, axis=0, keepdims=True)
            drawn = jnp.sum(jnp.take_along_axis(seconds.T, units, axis=0), axis=1)
            return self.units(w) * jnp.mean(losses - drawn / 2 / small.system.problem.number)
        zero = self._law(w).zeros(jnp.float64)

        def one(units: Int[Array, " rows"]) -> Scalar:
            mask = self._mask(w, units)

            def slope(eta: PyTree) -> tuple[Scalar, Scalar]:
                return jax.jvp(lambda eta: self._loss(w, eta, row), (eta,), (mask,))

            (before, first), (_, second) = jax.jvp(slope, (zero,), (mask,))
            return self._loss(w, mask, row) - before - first - second / 2

        return self.units(w) * jnp.mean(over_rows(jax.vmap(one), units, _BLOCK))

    def columns_times(self, w: Vector, units: Units, counts: Float[Array, "draws rows"]) -> Vector:
        """The sum over drops of counts times grad L_hat(w, -e) - grad L(w)."""
        return jax.grad(lambda w: self.excess(w, units, counts))(w)

    def second_moment(self) -> float:
        """E[c^2] of the counts of minibatches, which multiply the masks of single examples."""
        minibatch = getattr(self.system, "minibatch", None)
        if minibatch is None or not self._is_per_example:
            return 1.0
        return minibatch.second_moments(self.rows)[0]

    def errors(self, w: Vector, key: Key[Array, ""]) -> tuple[Scalar, Scalar]:
        """The largest relative errors of the loss to second, and of its gradient to first, order; 8 drops."""
        row = jnp.ones(self.rows)
        zero = self._law(w).zeros(jnp.float64)

        def both(w: Vector, mask: PyTree) -> tuple[Scalar, Vector]:
            return jax.value_and_grad(lambda w: self._loss(w, mask, row))(w)

        def gaps(units: Int[Array, " rows"]) -> tuple[Scalar, Scalar]:
            mask = self._mask(w, units)

            def slopes(eta: PyTree) -> tuple[Scalar, Vector]:
                return jax.jvp(lambda eta: both(w, eta), (eta,), (mask,))[1]

            (first, gradient_slope), (second, _) = jax.jvp(slopes, (zero,), (mask,))
            (before, gradient_before), (after, gradient_after) = both(w, zero), both(w, mask)
            exact, gradient = after - before, gradient_after - gradient_before
            size = jnp.linalg.norm(gradient) + jnp.linalg.norm(gradient_slope)
            return (
                relative(jnp.abs(exact - first - second / 2), jnp.abs(exact) + jnp.abs(second / 2)),
                relative(jnp.linalg.norm(gradient - gradient_slope), size),
            )

        drawn = jax.random.randint(key, (_TESTED, self.rows), 0, self.units(w))
        loss_errors, gradient_errors = jax.lax.map(gaps, drawn)
        return jnp.max(loss_errors), jnp.max(gradient_errors)

    @property
    def _is_per_example(self) -> bool:
        system = self.system
        return isinstance(system, SupervisedSystem) and system.injections[self.part].per == "example"

    def _law(self, w: Vector) -> AbstractLaw:
        return self.system.noise_law(self.zero_set.unravel(w))

    def _leaves(self, w: Vector) -> PyTree:
        """The zero mask."""
        return _laws(self._law(w))[self.part].zeros(jnp.float64)

    def _replaced(self, w: Vector, mask: PyTree) -> PyTree:
        """Eta with this mask, and no other noise."""
        law = self._law(w)
        if not isinstance(law, Joint):
            return mask
        zero = law.zeros(jnp.float64)
        return tuple(mask if index == self.part else other for index, other in enumerate(zero))

    def _shapes(self, w: Vector) -> list[tuple[int, ...]]:
        """The shapes of the leaves of the mask of one row."""
        shapes = jax.tree.leaves(_laws(self._law(w))[self.part].shape, is_leaf=is_shape)
        return [shape[1:] for shape in shapes] if self._is_per_example else shapes

    def _mask(self, w: Vector, units: Int[Array, " rows"]) -> PyTree:
        """Eta that drops one unit of each row."""
        leaves, structure = jax.tree.flatten(self._leaves(w))
        masks, offset = [], 0
        for leaf, shape in zip(leaves, self._shapes(w), strict=True):
            size = math.prod(shape)
            masks.append(-jax.nn.one_hot(units - offset, size, dtype=leaf.dtype).reshape(leaf.shape))
            offset += size
        return self._replaced(w, jax.tree.unflatten(structure, masks))

    def _loss(self, w: Vector, eta: PyTree, counts: Float[Array, " rows"]) -> Scalar:
        params = self.zero_set.unravel(w)
        if self._is_per_example:
            return self.system.weighted_loss(params, eta, counts)  # pyright: ignore
        return counts[0] * self.system.noisy_loss(params, eta)


class RareMaskExpansion(AbstractExpansion):
    """The expansion of a noise with Bernoulli masks in which the loss is not quadratic.

    `others` expands the noises beside them, and is None without any; `small` expands all as if small. With
    `units`, of each of the masks, the regularizer is an estimate from these.
    """

    system: AbstractSystem
    zero_set: AbstractZeroSet
    small: AbstractExpansion
    others: AbstractExpansion | None
    masks: tuple[Drops, ...]
    units: tuple[Units, ...] | None = None

    def largest_row(self, w: Vector) -> int:
        """The largest number of units that a row of one of the masks has."""
        return max(drops.units(w) for drops in self.masks)

    def sampled(self, w: Vector, units: tuple[Units, ...]) -> "RareMaskExpansion":
        """The same with a regularizer that is estimated from these units."""
        return eqx.tree_at(lambda each: each.units, self, units, is_leaf=lambda leaf: leaf is None)

    def regularizer(self, w: Vector) -> Scalar:
        """R. One gradient for each unit; with `units`, one for each of them beside those of Reg."""
        if self.units is not None:
            pairs = zip(self.masks, self.units, strict=True)
            added = [
                drops.weight(w) * drops.beyond_second_order(w, units, self.small) for drops, units in pairs
            ]
            return self.small.regularizer(w) + sum(added)
        rare = [drops.weight(w) * drops.exact(w) for drops in self.masks]
        return sum(rare, self._of_others(w, lambda others: others.regularizer(w)))

    def magnitude(self, w: Vector) -> Scalar:
        return jnp.abs(self.regularizer(w)) + self.small.magnitude(w)

    def normal_covariance(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q q"]:
        rare = self._normal_factor_of_masks(w, spectrum)
        return self._of_others(w, lambda others: others.normal_covariance(w, spectrum)) + rare @ rare.T

    def tangential_law(self, w: Vector) -> Joint:
        gaussians = tuple(Gaussian(self._drawn(w, drops).shape) for drops in self.masks)
        law = None if self.others is None else self.others.tangential_law(w)
        return Joint(gaussians if law is None else (*gaussians, law))

    def factor(self, w: Vector) -> lx.AbstractLinearOperator:
        zero, unravel = ravel_pytree(self.tangential_law(w).zeros(jnp.float64))
        law = None if self.others is None else self.others.tangential_law(w)

        def times(xi: Array) -> Vector:
            parts = unravel(xi)
            total = self._factor_of_masks(w, parts[: len(self.masks)])
            if law is None or self.others is None:
                return total
            return total + self._ratio(w) * self.others.factor(w).mv(ravel_pytree(parts[-1])[0])

        return lx.FunctionLinearOperator(times, jax.eval_shape(lambda: zero))

    def normal_factor(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q noise"]:
        rare = self._normal_factor_of_masks(w, spectrum)
        if self.others is None or self.others.tangential_law(w) is None:
            return rare
        return jnp.concatenate([rare, self._ratio(w) * self.others.normal_factor(w, spectrum)], axis=1)

    def total_variance(self, w: Vector) -> Scalar:
        """Tr Sigma; of the masks an estimate from 8 random vectors, as the measure of a size."""
        shapes = [self._drawn(w, drops).shape for drops in self.masks]

        def square(key: Key[Array, ""]) -> Scalar:
            keys = jax.random.split(key, len(shapes))
            signs = [jax.random.rademacher(k, s, float) for k, s in zip(keys, shapes, strict=True)]
            return jnp.sum(self._factor_of_masks(w, signs) ** 2)

        rare = jnp.mean(jax.lax.map(square, jax.random.split(jax.random.key(0), _PROBES)))
        return self._of_others(w, lambda others: others.total_variance(w)) + rare

    def _drawn(self, w: Vector, drops: Drops) -> Units:
        """The units from which Sigma is computed: all, or as many drawn ones as are affordable."""
        units, products = drops.all_units(w), _PRODUCTS // (self.zero_set.rank or w.shape[0])
        if len(units) <= max(products, 1):
            return units
        keys = jax.random.split(jax.random.key(0), drops.rows)
        return jax.vmap(jax.random.permutation, out_axes=1)(keys, units.T)[: max(products, 1)]

    def _factor_of_masks(self, w: Vector, parts: Any) -> Vector:
        total = jnp.zeros_like(w)
        for drops, part in zip(self.masks, parts, strict=True):
            units = self._drawn(w, drops)
            scale = (drops.weight(w) * drops.second_moment() * drops.units(w) / len(units)) ** 0.5
            total = total + scale * drops.columns_times(w, units, part)
        return total

    def _normal_factor_of_masks(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q noise"]:
        shapes = tuple(jnp.zeros(self._drawn(w, drops).shape) for drops in self.masks)
        zero, unravel = ravel_pytree(shapes)
        transposed = jax.linear_transpose(lambda xi: self._factor_of_masks(w, unravel(xi)), zero)
        return over_rows(jax.vmap(lambda row: transposed(row)[0]), spectrum.basis.T, _COLUMNS)

    def _ratio(self, w: Vector) -> Scalar | float:
        """The sigma of the other noises over the sigma of reference."""
        if self.others is None:
            return 0.0
        params = self.zero_set.unravel(w)
        return self.others.system.noise_law(params).sigma / self.system.noise_law(params).sigma

    def _of_others(self, w: Vector, function: Any) -> Any:
        return 0.0 if self.others is None else self._ratio(w) ** 2 * function(self.others)


def expand_at(system: AbstractSystem, zero_set: AbstractZeroSet, w: Vector) -> AbstractExpansion:
    """The expansion of a system's noise for the limits along its zero-loss set.

    It is decided near `w` for which Bernoulli masks the loss is quadratic: 8 drops of each noise. Where
    `w` is traced, the loss counts as not quadratic, which is right at a higher cost.
    """
    small = expand(system, zero_set)
    masks = tuple(drops for drops in all_drops(small, w) if _is_beyond_second_order(drops, w))
    if not masks:
        return small
    law = small.system.noise_law(zero_set.unravel(w))
    rare = {drops.part for drops in masks}
    kept = [index for index, part in enumerate(_laws(law)) if index not in rare and not is_zero(part.sigma)]
    others = expand(_without(small.system, rare), zero_set) if kept else None
    return RareMaskExpansion(small.system, zero_set, small, others, masks)


def all_drops(expansion: AbstractExpansion, w: Vector) -> list[Drops]:
    """The drops of every Bernoulli noise of a system."""
    laws = _laws(expansion.system.noise_law(expansion.zero_set.unravel(w)))
    return [
        Drops(expansion.system, expansion.zero_set, index)
        for index, law in enumerate(laws)
        if isinstance(law, TwoPoint) and not is_zero(law.rate)
    ]


def draw_units(expansion: RareMaskExpansion, w: Vector, key: Key[Array, ""], draws: int) -> tuple[Units, ...]:
    """`draws` units of each row of each mask, drawn with replacement."""
    keys = jax.random.split(key, len(expansion.masks))
    return tuple(
        jax.random.randint(each, (draws, drops.rows), 0, drops.units(w))
        for each, drops in zip(keys, expansion.masks, strict=True)
    )


def _is_beyond_second_order(drops: Drops, w: Vector) -> bool:
    if is_traced((drops, w)):
        return True
    return float(errors_of_drops(drops, w, jax.random.key(0))[0]) > ZERO


@compiled_once
def errors_of_drops(drops: Drops, w: Vector, key: Key[Array, ""]) -> tuple[Scalar, Scalar]:
    """`Drops.errors`."""
    return drops.errors(w, key)


def _laws(law: AbstractLaw) -> tuple[AbstractLaw, ...]:
    return law.laws if isinstance(law, Joint) else (law,)


def _without(system: AbstractSystem, parts: set[int]) -> AbstractSystem:
    """The system with the rates of these noises at 0."""
    if isinstance(system, AbstractInjectedSystem):
        return eqx.tree_at(
            lambda each: [each.injections[part].rate for part in parts], system, [0.0] * len(parts)
        )
    laws = enumerate(_laws(system.law))  # pyright: ignore
    off = tuple(TwoPoint(law.shape, 0.0) if index in parts else law for index, law in laws)
    return dataclasses.replace(system, law=Joint(off))  # pyright: ignore
