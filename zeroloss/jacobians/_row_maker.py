"""From a plan to the rows of J: one forward pass with taps, and a backward pass for each output."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array, Float, PyTree

from zeroloss._chunks import over_rows
from zeroloss._jaxprs import dtype, shape
from zeroloss.jacobians._operations import Convolution
from zeroloss.jacobians._plan import Plan, ProductBlock
from zeroloss.jacobians._rows import AbstractRows, gram


class RowMaker(eqx.Module):
    """Makes rows of J in the columns of some blocks of a plan.

    A row belongs to an example and to a row of `basis`, q x k, that combines the k outputs. `which` are the
    indices of the blocks.
    """

    constants: tuple[Any, ...]
    plan: Plan = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    max_memory: int = eqx.field(static=True)

    @property
    def dtype(self) -> Any:
        """The type of the outputs, and of all inner products."""
        return dtype(self.plan.program.output)

    @property
    def basis(self) -> Float[Array, "k k"]:
        """Every output by itself."""
        return jnp.eye(self.outputs, dtype=self.dtype)

    def make(
        self, params: PyTree, examples: PyTree, basis: Float[Array, "q k"], which: tuple[int, ...]
    ) -> tuple[AbstractRows, ...]:
        """The rows of all `examples`, on as many at a time as fit in `max_memory`."""

        def of_some(examples: PyTree) -> tuple[AbstractRows, ...]:
            return self.at_once(params, examples, basis, which)

        return over_rows(of_some, examples, self.examples_at_once(which))

    def gram(
        self,
        params: PyTree,
        other_params: PyTree,
        examples: PyTree,
        basis: Float[Array, "q k"],
        which: tuple[int, ...],
    ) -> Float[Array, "n q n q"]:
        """J(w) J(w0)^T in the columns of the blocks `which`; rows are not stored but made for every pair."""
        number, outputs = self.examples_at_once(which), self.outputs_at_once(which)

        def for_rows(some: PyTree) -> Array:
            def for_outputs(basis: Array) -> Array:
                left = self.at_once(params, some, basis, which)
                return jnp.moveaxis(against(left), 1, 0)

            return jnp.moveaxis(over_rows(for_outputs, basis, outputs), 0, 1)

        def against(left: tuple[AbstractRows, ...]) -> Array:
            def for_others(others: PyTree) -> Array:
                def for_outputs(basis: Array) -> Array:
                    right = self.at_once(other_params, others, basis, which)
                    return jnp.moveaxis(gram(left, right, self.max_memory), 3, 0)

                return jnp.moveaxis(over_rows(for_outputs, basis, outputs), (3, 0), (0, 3))

            return jnp.moveaxis(over_rows(for_others, examples, number), (0, 3), (2, 3))

        return over_rows(for_rows, examples, number)

    def at_once(
        self, params: PyTree, examples: PyTree, basis: Float[Array, "q k"], which: tuple[int, ...]
    ) -> tuple[AbstractRows, ...]:
        """The rows of all `examples` at the same time."""
        return jax.vmap(lambda example: self._of_one(params, example, basis, which))(examples)

    def examples_at_once(self, which: tuple[int, ...]) -> int:
        """How many examples fit in `max_memory` while their rows are made."""
        made = sum(self.plan.blocks[index].floats(self.outputs) for index in which)
        numbers = (1 + self.outputs_at_once(which)) * self.plan.program.size + made
        return max(1, self.max_memory // (2 * numbers * self.dtype.itemsize))

    def outputs_at_once(self, which: tuple[int, ...]) -> int:
        """How many outputs' sensitivities of a single example fit in `max_memory`."""
        made = sum(self.plan.blocks[index].floats(1) for index in which)
        each = 2 * (self.plan.program.size + made) * self.dtype.itemsize
        return min(self.outputs, max(1, self.max_memory // each))

    def _of_one(
        self, params: PyTree, example: PyTree, basis: Array, which: tuple[int, ...]
    ) -> tuple[AbstractRows, ...]:
        """The rows of one example."""
        program = self.plan.program
        blocks = tuple(self.plan.blocks[index] for index in which)
        tapped = tuple(dict.fromkeys(variable for block in blocks for variable in block.tapped))
        wanted = tuple(dict.fromkeys(variable for block in blocks for variable in block.wanted))

        def forward(taps: list[Array]) -> tuple[Array, list[Any]]:
            added = dict(zip(tapped, taps, strict=True))
            arguments = jax.tree.leaves((params, example))
            output, values = program.evaluate(self.constants, arguments, added, wanted, self._by_patches())
            return output.reshape(-1), values

        zeros = [jnp.zeros(shape(variable), dtype(variable)) for variable in tapped]
        _, pull, found = jax.vjp(forward, zeros, has_aux=True)
        values = dict(zip(wanted, found, strict=True))
        layer_inputs = [block.layer_inputs(values) for block in blocks]

        def of_output(row: Array) -> tuple[Array, ...]:
            sensitivities = dict(zip(tapped, pull(row)[0], strict=True))
            pairs = zip(blocks, layer_inputs, strict=True)
            return tuple(block.of_output(inputs, sensitivities, values) for block, inputs in pairs)

        made = over_rows(jax.vmap(of_output), basis, self.outputs_at_once(which))
        parts = zip(blocks, layer_inputs, made, strict=True)
        return tuple(block.rows(inputs, of_outputs) for block, inputs, of_outputs in parts)

    def _by_patches(self) -> dict[Var, Any]:
        """Convolutions as products of patches and kernel: A is these patches, which are then made once."""
        return {
            product.result: product.operation.result
            for block in self.plan.blocks
            if isinstance(block, ProductBlock)
            for product in block.products
            if isinstance(product.operation, Convolution)
        }
