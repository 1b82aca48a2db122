"""The Jacobian of a model's outputs, without forming it: `Structure` (theory.md, sections 3 and 7)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from zeroloss._chunks import over_rows
from zeroloss._jaxprs import shape, trace
from zeroloss._pytrees import check_parameters, is_traced
from zeroloss.errors import InputError
from zeroloss.jacobians._plan import make_plan
from zeroloss.jacobians._row_maker import RowMaker
from zeroloss.jacobians._rows import AbstractRows, gram, symmetric_gram

MAX_MEMORY = 2**28
"""Bytes that intermediate results may take, by default. Larger parts than this allows are not faster."""


class Factors(eqx.Module):
    """J at some parameters, block by block: the rows that fit in memory, and the parameters for all others.

    `rows[b]` is None for a block that is computed in parts, each time that it is used.
    """

    params: PyTree
    rows: tuple[AbstractRows | None, ...]

    @property
    def kept(self) -> tuple[AbstractRows, ...]:
        """The rows in memory."""
        return tuple(rows for rows in self.rows if rows is not None)

    @property
    def missing(self) -> tuple[int, ...]:
        """The indices of the blocks that are not in memory."""
        return tuple(index for index, rows in enumerate(self.rows) if rows is None)


class Structure(eqx.Module):
    """J = d model(params, inputs).reshape(-1) / d params, m x d, through the structure of the model.

    m = examples N times outputs k; d the parameters in the order of `jax.flatten_util.ravel_pytree`.
    Made by `analyse`, once. Every method is pure, can be differentiated in the parameters in reverse mode,
    and can be compiled with `equinox.filter_jit`. All results are exact, to rounding. The unit of cost is the
    gradient of one scalar, a sum over all N examples.
    """

    arrays: PyTree  # of the model, which is a function, or a module with arrays and functions in it
    functions: Any = eqx.field(static=True)
    inputs: PyTree
    maker: RowMaker
    number: int = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def model(self) -> Callable[[PyTree, PyTree], Array]:
        """The model, as `analyse` took it."""
        return eqx.combine(self.arrays, self.functions)

    @property
    def kinds(self) -> dict[str, str]:
        """How the model uses each leaf of the parameters, by the leaf's path.

        "dense", "convolution", "embedding", "elementwise" (biases, scales), several joined by " + ",
        "unused", or "fallback (why)". A leaf that falls back costs its per-example
        Jacobian, N x k x its size.
        """
        return dict(zip(self.names, self.maker.plan.kinds, strict=True))

    @property
    def fits(self) -> bool:
        """Whether all blocks fit in memory. Then `gram` may join factors of different inputs."""
        return not self._split(self.maker.outputs, self.number)[1]

    def factors(self, params: PyTree) -> Factors:
        """The layers' inputs A and output sensitivities D at `params`, or per-example gradients.

        One forward pass and k backward passes over all examples, without the part of a backward pass that
        makes weight gradients. The smallest blocks are stored, up to `max_memory`; the others are computed
        again wherever they are needed.
        """
        stored, _ = self._split(self.maker.outputs, self.number)
        rows: list[AbstractRows | None] = [None] * len(self.maker.plan.blocks)
        if stored:
            made = self.maker.make(params, self.inputs, self.maker.basis, stored)
            for index, of_block in zip(stored, made, strict=True):
                rows[index] = of_block
        return Factors(params, tuple(rows))

    def _split(self, outputs: int, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The blocks whose rows fit in memory, the smallest first; and the others, in their order."""
        budget = self.maker.max_memory
        costs = [
            block.floats(outputs) * number * self.maker.dtype.itemsize for block in self.maker.plan.blocks
        ]
        stored: list[int] = []
        for index in sorted(range(len(costs)), key=costs.__getitem__):
            if costs[index] <= budget:
                stored.append(index)
                budget -= costs[index]
        return tuple(stored), tuple(index for index in range(len(costs)) if index not in stored)

    def gram(self, factors: Factors, other: Factors | None = None) -> Float[Array, "residuals residuals"]:
        """K(w, w0) = J(w) J(w0)^T; without `other`, J(w) J(w)^T.

        A dense layer from a to b on T positions costs N^2 T^2 (a + k^2 b) operations, or where that is less
        N^2 k^2 a b; m x m memory. d_w <B, K(w, w0)>, by `jax.grad` with B and the factors at w0 constant, is
        exact and costs some three times as much.
        """
        number, outputs, max_memory = self.number, self.maker.outputs, self.maker.max_memory
        total = jnp.zeros((number, outputs, number, outputs), self.maker.dtype)
        if factors.kept and other is None:
            total = symmetric_gram(factors.kept, max_memory)
        elif factors.kept and other is not None:
            total = gram(factors.kept, other.kept, max_memory)
        if factors.missing:
            other_params = factors.params if other is None else other.params
            made = self.maker.gram(
                factors.params, other_params, self.inputs, self.maker.basis, factors.missing
            )
            total = total + made
        return total.reshape(number * outputs, number * outputs)

    def gram_of_combination(
        self, params: PyTree, combination: Float[Array, " outputs"], examples: PyTree
    ) -> Float[Array, "examples examples"]:
        """K of the scalar v^T f of the outputs f, for some examples. As `gram` for a single output."""
        number = jax.tree.leaves(examples)[0].shape[0]
        basis = combination[None].astype(self.maker.dtype)
        stored, missing = self._split(1, number)
        total = jnp.zeros((number, 1, number, 1), self.maker.dtype)
        if stored:
            total = symmetric_gram(self.maker.make(params, examples, basis, stored), self.maker.max_memory)
        if missing:
            total = total + self.maker.gram(params, params, examples, basis, missing)
        return total.reshape(number, number)

    def block_diagonal(self, factors: Factors) -> Float[Array, "examples outputs outputs"]:
        """J_i J_i^T for every example i."""
        shape = (self.maker.outputs, self.maker.outputs)
        return self._sum(factors, lambda rows: rows.diagonal(), shape)

    def squared_norms(self, factors: Factors) -> Float[Array, "examples outputs"]:
        """The squared norms of the rows of J."""
        return self._sum(factors, lambda rows: rows.squares(), (self.maker.outputs,))

    def squared_norm(self, factors: Factors) -> Float[Array, ""]:
        """||J||_F^2. Its gradient, by `jax.grad` through `factors`, costs some two gradients for k = 1."""
        return jnp.sum(self.squared_norms(factors))

    def mv(
        self, factors: Factors, vector: Float[Array, " parameters *columns"]
    ) -> Float[Array, " residuals *columns"]:
        """J v, for one vector or for the columns of a matrix.

        A third of a gradient each where all blocks are stored, otherwise one forward derivative.
        """
        push = self._push(factors.params) if factors.missing else self._product(factors)
        return self._by_column(push, vector)

    def rmv(
        self, factors: Factors, cotangent: Float[Array, " residuals *columns"]
    ) -> Float[Array, " parameters *columns"]:
        """J^T u, for one vector or for the columns of a matrix.

        A third of a gradient each where all blocks are stored, otherwise one gradient.
        """
        flat, outputs_of = self._flat(factors.params)
        if factors.missing:
            _, pull = jax.vjp(outputs_of, flat)
        else:
            pull = jax.linear_transpose(self._product(factors), flat)
        return self._by_column(lambda column: pull(column.astype(self.maker.dtype))[0], cotangent)

    def slope(
        self,
        params: PyTree,
        cotangents: Float[Array, " residuals *columns"],
        vectors: Float[Array, " parameters *columns"],
    ) -> Float[Array, " parameters"]:
        """d_w sum_c u_c^T J(w) v_c, with u_c and v_c constant. Some two gradients for each c."""
        flat, unravel = ravel_pytree(params)
        pairs = cotangents.reshape(cotangents.shape[0], -1).T, vectors.reshape(vectors.shape[0], -1).T

        def total(flat: Array) -> Array:
            push = self._push(unravel(flat))

            def of_some(pairs: tuple[Array, Array]) -> Array:
                return jax.vmap(lambda u, v: jnp.vdot(u, push(v)))(*pairs)

            return jnp.sum(over_rows(of_some, pairs, self._columns_at_once))

        return jax.grad(total)(flat)

    def _product(self, factors: Factors) -> Callable[[Array], Array]:
        """The function v -> J v, from rows that are all stored."""
        flat, unravel = ravel_pytree(factors.params)
        pairs = list(zip(self.maker.plan.blocks, factors.kept, strict=True))

        def product(vector: Array) -> Array:
            leaves = jax.tree.leaves(unravel(vector.astype(flat.dtype)))
            total = jnp.zeros((self.number, self.maker.outputs), self.maker.dtype)
            for block, rows in pairs:
                total = total + rows.mv(block.elements(leaves[block.leaf]))
            return total.reshape(-1)

        return product

    def _sum(
        self, factors: Factors, function: Callable[[AbstractRows], Array], shape: tuple[int, ...]
    ) -> Array:
        """The sum over all blocks of a `function` of their rows; it must treat examples one by one."""
        total = jnp.zeros((self.number, *shape), self.maker.dtype)
        for rows in factors.kept:
            total = total + function(rows)
        if missing := factors.missing:

            def of_some(examples: PyTree) -> Array:
                rows = self.maker.at_once(factors.params, examples, self.maker.basis, missing)
                return functools.reduce(jnp.add, map(function, rows))

            total = total + over_rows(of_some, self.inputs, self.maker.examples_at_once(missing))
        return total

    @property
    def _columns_at_once(self) -> int:
        """How many products with J fit in memory at the same time."""
        numbers = 2 * self.number * self.maker.plan.program.size + 1
        return max(1, self.maker.max_memory // (numbers * self.maker.dtype.itemsize))

    def _flat(self, params: PyTree) -> tuple[Array, Callable[[Array], Array]]:
        """The parameters as a vector, and the outputs, flat, as a function of it."""
        flat, unravel = ravel_pytree(params)
        return flat, lambda flat: self.model(unravel(flat), self.inputs).reshape(-1)

    def _push(self, params: PyTree) -> Callable[[Array], Array]:
        """The function v -> J v, through the model."""
        flat, outputs_of = self._flat(params)
        if not self.maker.plan.program.reverse_only:
            return lambda vector: jax.jvp(outputs_of, (flat,), (vector.astype(flat.dtype),))[1]
        # A jax.custom_vjp has no forward derivative; J v is the transpose of the linear u -> J^T u.
        outputs, pull = jax.vjp(outputs_of, flat)
        transpose = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(outputs))[1]
        return lambda vector: transpose(vector.astype(flat.dtype))[0]

    def _by_column(self, function: Callable[[Array], Array], matrix: Array) -> Array:
        """`function` of a vector, or of each column of a matrix."""
        if matrix.ndim == 1:
            return function(matrix)
        return over_rows(jax.vmap(function), matrix.T, self._columns_at_once).T


def structure_of(
    model: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    max_memory: int = MAX_MEMORY,
) -> Structure:
    """`analyse` with a cache: the same model and shapes give the same plan, so that nothing compiles twice.

    As under `jax.jit`, arrays that the model closes over must not change. A model that cannot be hashed is
    analysed every time.
    """
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves((params, inputs)))
    key = (model, jax.tree.structure((params, inputs)), shapes, max_memory)
    if is_traced((params, inputs)) or not _is_hashable(model):
        return analyse(model, params, inputs, max_memory)
    if key not in _CACHE:
        if len(_CACHE) >= _CACHED:
            _CACHE.pop(next(iter(_CACHE)))
        # Without the inputs, which may be large and are not part of the plan.
        _CACHE[key] = dataclasses.replace(analyse(model, params, inputs, max_memory), inputs=None)
    return dataclasses.replace(_CACHE[key], inputs=jax.tree.map(jnp.asarray, inputs))


def _is_hashable(model: Any) -> bool:
    try:
        hash(model)
    except TypeError:
        return False
    return True


_CACHED = 8  # structures; the oldest goes first
_CACHE: dict[Any, Structure] = {}


def analyse(
    model: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    max_memory: int = MAX_MEMORY,
) -> Structure:
    """The structure of `model`. Only traces the model: no outputs are computed.

    **Arguments:**

    - `model`: `model(params, inputs) -> outputs`, outputs of shape `[N]` or `[N, k]`. Examples must not
      influence each other, which is not checked here.
    - `params`: a pytree of floating-point arrays; only shapes and types are read.
    - `inputs`: an array, or pytree of arrays, with leading axis N.
    - `max_memory`: bytes that intermediate results may take, beside the results, the model's own forward pass
      and a single example. Larger results are computed in parts, and are the same to rounding.

    Raises `InputError` for parameters that are not floating-point arrays, inputs that do not agree in their
    number of examples, and a model that does not return one array of floating-point numbers.
    """
    check_parameters(params)
    inputs = jax.tree.map(jnp.asarray, inputs)
    numbers = {leaf.shape[:1] for leaf in jax.tree.leaves(inputs)}
    if len(numbers) != 1 or () in numbers or (0,) in numbers:
        raise InputError(
            f"inputs must be arrays with one leading axis of examples, got leading axes {sorted(numbers)}."
        )
    if max_memory < 1:
        raise InputError(f"max_memory must be a positive number of bytes, got {max_memory}.")
    number = numbers.pop()[0]
    params = jax.tree.map(jnp.asarray, params)
    program, constants = trace(model, params, inputs)
    outputs = math.prod(shape(program.output))
    names = tuple(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    plan = make_plan(program, names, number, outputs)
    maker = RowMaker(constants, plan, outputs, max_memory)
    arrays, functions = eqx.partition(model, eqx.is_array)
    return Structure(arrays, functions, inputs, maker, number, names)
