"""Rows of J in the columns of one block, as factors or as they are, and their inner products."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroloss._chunks import over_rows

_STRIPS = 4  # of a symmetric J J^T: of each strip only the part on and right of the diagonal is computed
_WORTH_STRIPS = 512  # rows, below which a symmetric J J^T is computed whole


class AbstractRows(eqx.Module):
    """Rows of J, for n examples and k outputs of each, in the columns of one block."""

    @abc.abstractmethod
    def gram(self, other: Any, max_memory: int) -> Float[Array, "n k m l"]:
        """The inner products of these rows with those of `other`, which belong to the same block."""

    @abc.abstractmethod
    def diagonal(self) -> Float[Array, "n k k"]:
        """The inner products of the rows of each example."""

    @abc.abstractmethod
    def squares(self) -> Float[Array, "n k"]:
        """The squared norms of the rows."""

    @abc.abstractmethod
    def mv(self, elements: Any) -> Float[Array, "n k"]:
        """The inner products of the rows with a vector, its `elements` in the columns of the block."""


class Gradients(AbstractRows):
    """The rows as they are. J J^T costs n^2 k^2 p operations, p the width."""

    rows: Array  # [n, k, p], the axis n perhaps mapped over

    def gram(self, other: Any, max_memory: int) -> Float[Array, "n k m l"]:
        return jnp.einsum("nkp,mlp->nkml", self.rows, other.rows)

    def diagonal(self) -> Float[Array, "n k k"]:
        return jnp.einsum("nkp,nlp->nkl", self.rows, self.rows)

    def squares(self) -> Float[Array, "n k"]:
        return jnp.sum(self.rows**2, axis=-1)

    def mv(self, elements: Array) -> Float[Array, "n k"]:
        return self.rows @ elements.reshape(-1)


class Products(AbstractRows):
    """Rows sum_t A[t, g] (outer) D[t, g], one matrix for every group g, as A and D.

    Between two examples the inner product is sum_g sum_ts (A[t] . A'[s]) (D[t] . D'[s]), with one position
    (A A'^T) o (D D'^T) (theory.md, section 7): n^2 T^2 G (a + k^2 b) operations. For an embedding A holds
    numbers of rows instead of their unit vectors: the first factor is 1 where they are equal, 0 elsewhere.
    """

    layer_inputs: Array  # [n, t, g, a], or numbers [n, t, g, 1]; the axis n may be mapped over
    sensitivities: Array  # [n, k, t, g, b]

    def gram(self, other: Any, max_memory: int) -> Float[Array, "n k m l"]:
        if self._is_single and other._is_single:
            inputs = _inner(self.layer_inputs[:, 0, 0], other.layer_inputs[:, 0, 0], self.sensitivities.dtype)
            left, right = self.sensitivities[:, :, 0, 0], other.sensitivities[:, :, 0, 0]
            return inputs[:, None, :, None] * jnp.einsum("nkb,mlb->nkml", left, right)

        def of_some(rows: "Products") -> Array:
            return jax.vmap(lambda one: one.against(other))(rows)

        _, outputs, positions, groups, _ = self.sensitivities.shape
        pairs = outputs * positions * other.sensitivities[..., 0].size // groups  # of one example's rows
        each = 2 * self.sensitivities.dtype.itemsize * pairs
        return over_rows(of_some, self, max(1, max_memory // max(each, 1)))

    def against(self, others: "Products") -> Float[Array, "k m l"]:
        """The inner products of the rows of one example, without the axis n, with those of `others`."""
        dtype = self.sensitivities.dtype

        def of_group(total: Array, group: tuple[Array, ...]) -> tuple[Array, None]:
            ours, our_sensitivities, theirs, their_sensitivities = group
            inputs = _inner(ours, theirs, dtype)  # [t, m, s]
            outputs = jnp.einsum("ktb,mlsb->ktmls", our_sensitivities, their_sensitivities)
            return total + jnp.einsum("tms,ktmls->kml", inputs, outputs), None

        parts = (self.layer_inputs, self.sensitivities, others.layer_inputs, others.sensitivities)
        by_group = tuple(jnp.moveaxis(part, -2, 0) for part in parts)
        outputs, (number, other_outputs, *_) = self.sensitivities.shape[0], others.sensitivities.shape
        zero = jnp.zeros((outputs, number, other_outputs), dtype)
        if by_group[0].shape[0] == 1:
            return of_group(zero, tuple(part[0] for part in by_group))[0]
        return jax.lax.scan(of_group, zero, by_group)[0]

    @property
    def _is_single(self) -> bool:
        """Whether A and D are one vector each, as for a dense layer without a sequence."""
        _, positions, groups, _ = self.layer_inputs.shape
        return positions == groups == 1 and jnp.issubdtype(self.layer_inputs.dtype, jnp.floating)

    def diagonal(self) -> Float[Array, "n k k"]:
        return jnp.einsum("nktgb,nltgb->nkl", self.sensitivities, self._weighted())

    def squares(self) -> Float[Array, "n k"]:
        if self._is_single:
            return jnp.sum(self.layer_inputs**2, axis=(1, 2, 3))[:, None] * jnp.sum(
                self.sensitivities**2, axis=(2, 3, 4)
            )
        return jnp.sum(self.sensitivities * self._weighted(), axis=(2, 3, 4))

    def mv(self, elements: Float[Array, "g a b"]) -> Float[Array, "n k"]:
        if jnp.issubdtype(self.layer_inputs.dtype, jnp.floating):
            images = jnp.einsum("ntga,gab->ntgb", self.layer_inputs, elements)
        else:
            images = elements[0][jnp.maximum(self.layer_inputs[..., 0], 0)]
            images = jnp.where(self.layer_inputs >= 0, images, 0)
        return jnp.sum(self.sensitivities * images[:, None], axis=(2, 3, 4))

    def _weighted(self) -> Float[Array, "n k t g b"]:
        """Sum_s (A[t] . A[s]) D[s] within each example."""
        if self.layer_inputs.shape[1] == 1 and jnp.issubdtype(self.layer_inputs.dtype, jnp.floating):
            return jnp.sum(self.layer_inputs**2, axis=-1)[:, None, :, :, None] * self.sensitivities
        by_group = jnp.moveaxis(self.layer_inputs, 2, 1)  # [n, g, t, a]
        inner = jax.vmap(jax.vmap(lambda a: _inner(a, a, self.sensitivities.dtype)))(by_group)
        return jnp.einsum("ngts,nksgb->nktgb", inner, self.sensitivities)


def _inner(ours: Array, theirs: Array, dtype: jnp.dtype) -> Array:
    """A A'^T over the last axis; for numbers of rows, 1 where they are equal and in the table, else 0."""
    if jnp.issubdtype(ours.dtype, jnp.floating):
        return jnp.tensordot(ours, theirs, axes=(-1, -1))
    ours = ours.reshape(ours.shape[:-1] + (1,) * (theirs.ndim - 1))
    return ((ours == theirs[..., 0]) & (ours >= 0)).astype(dtype)


def gram(
    left: tuple[AbstractRows, ...], right: tuple[AbstractRows, ...], max_memory: int
) -> Float[Array, "n k m l"]:
    """The inner products of rows in all blocks together."""
    total = left[0].gram(right[0], max_memory)
    for ours, theirs in zip(left[1:], right[1:], strict=True):
        total = total + ours.gram(theirs, max_memory)
    return total


def symmetric_gram(rows: tuple[AbstractRows, ...], max_memory: int) -> Float[Array, "n k n k"]:
    """The inner products of rows with themselves: where there are many, most pairs only once."""
    number, outputs = jax.eval_shape(lambda: rows[0].squares()).shape
    if number * outputs < _WORTH_STRIPS:
        return gram(rows, rows, max_memory)
    size = -(-number // _STRIPS)
    total = None
    for start in range(0, number, size):
        strip, rest = _part(rows, start, start + size), _part(rows, start, number)
        products = gram(strip, rest, max_memory)
        if total is None:
            total = jnp.zeros((number, outputs, number, outputs), products.dtype)
        total = jax.lax.dynamic_update_slice(total, products, (start, 0, start, 0))
        beside = products[:, :, size:].transpose(2, 3, 0, 1)
        if beside.size:
            total = jax.lax.dynamic_update_slice(total, beside, (start + size, 0, start, 0))
    assert total is not None
    return total


def _part(rows: tuple[AbstractRows, ...], start: int, stop: int) -> tuple[AbstractRows, ...]:
    """The rows of the examples from `start` to `stop`."""

    # Cut as matrices: there XLA sees that a layer and its bias have the same D, and multiplies it only once.
    def cut(leaf: Array) -> Array:
        return leaf.reshape(leaf.shape[0], -1)[start:stop].reshape(-1, *leaf.shape[1:])

    return jax.tree.map(cut, rows)
