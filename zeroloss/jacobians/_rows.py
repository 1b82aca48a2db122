"""From a plan to the rows of J: one tapped forward pass, and a backward pass for each output."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss._chunks import over_rows
from zeroloss.jacobians._blocks import AbstractRows, Gradients, Products, gram
from zeroloss.jacobians._layers import Block, GradientBlock, Plan, View
from zeroloss.jacobians._operations import Convolution


class RowMaker(eqx.Module):
    """Makes the rows of J of any examples and outputs, in the columns of any blocks of a plan."""

    constants: tuple[Any, ...]
    plan: Plan = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    max_memory: int = eqx.field(static=True)

    @property
    def dtype(self) -> Any:
        """The type of the outputs, and of all inner products."""
        output = self.plan.program.outputs[0]
        return self.plan.program.shapes[output].dtype if isinstance(output, int) else output.val.dtype

    def make(
        self, params: PyTree, examples: PyTree, which: tuple[int, ...], basis: Array | None = None
    ) -> tuple[AbstractRows, ...]:
        """The rows of all `examples` and outputs, in the columns of the blocks `which`.

        With a `basis`, q x k, of its combinations of the outputs.
        """
        chosen = self.basis if basis is None else basis

        def of_some(examples: PyTree) -> tuple[AbstractRows, ...]:
            return self.at_once(params, examples, chosen, which)

        return over_rows(of_some, examples, self.examples_at_once(which))

    def gram(
        self,
        params: PyTree,
        other_params: PyTree,
        examples: PyTree,
        which: tuple[int, ...],
        basis: Array | None = None,
    ) -> Float[Array, "n q n q"]:
        """J(w) J(w0)^T in the columns of the blocks `which`; rows are not kept but made for every pair.

        With a `basis`, q x k, of its combinations of the outputs.
        """
        chosen = self.basis if basis is None else basis
        number, outputs = self.examples_at_once(which), self.outputs_at_once(which)

        def for_rows(some: PyTree) -> Array:
            def for_outputs(basis: Array) -> Array:
                left = self.at_once(params, some, basis, which)
                return jnp.moveaxis(against(left), 1, 0)

            return jnp.moveaxis(over_rows(for_outputs, chosen, outputs), 0, 1)

        def against(left: tuple[AbstractRows, ...]) -> Array:
            def for_others(others: PyTree) -> Array:
                def for_outputs(basis: Array) -> Array:
                    right = self.at_once(other_params, others, basis, which)
                    return jnp.moveaxis(gram(left, right, self.max_memory), 3, 0)

                return jnp.moveaxis(over_rows(for_outputs, chosen, outputs), (3, 0), (0, 3))

            return jnp.moveaxis(over_rows(for_others, examples, number), (0, 3), (2, 3))

        return over_rows(for_rows, examples, number)

    def at_once(
        self, params: PyTree, examples: PyTree, basis: Float[Array, "q k"], which: tuple[int, ...]
    ) -> tuple[AbstractRows, ...]:
        """The rows of `examples`, combined over outputs by the rows of `basis`, all at the same time."""
        return jax.vmap(lambda example: self._of_one(params, example, basis, which))(examples)

    @property
    def basis(self) -> Float[Array, "k k"]:
        """Every output by itself."""
        return jnp.eye(self.outputs, dtype=self.dtype)

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
        program = self.plan.program
        blocks = tuple(self.plan.blocks[index] for index in which)
        tapped = tuple(dict.fromkeys(variable for block in blocks for variable in _tapped(block)))
        wanted = tuple(dict.fromkeys(atom for block in blocks for atom in _wanted(block)))

        substitutes = {
            result: operation.result
            for block in self.plan.blocks
            if not isinstance(block, GradientBlock)
            for operation, result in zip(block.operations, block.results, strict=True)
            if isinstance(operation, Convolution)
        }

        def forward(taps: list[Array]) -> tuple[Array, list[Any]]:
            added = dict(zip(tapped, taps, strict=True))
            leaves, inputs = jax.tree.leaves(params), jax.tree.leaves(example)
            outputs, values = program.evaluate(self.constants, leaves, inputs, added, wanted, substitutes)
            return outputs[0].reshape(-1), values

        zeros = [jnp.zeros(program.shapes[each].shape, program.shapes[each].dtype) for each in tapped]
        _, pull, values = jax.vjp(forward, zeros, has_aux=True)
        read = dict(zip(wanted, values, strict=True))
        layer_inputs = [_layer_inputs(block, read) for block in blocks]

        def of_output(row: Array) -> tuple[Array, ...]:
            sensitivities = dict(zip(tapped, pull(row)[0], strict=True))
            return tuple(
                _sensitivities(block, inputs, sensitivities, read)
                for block, inputs in zip(blocks, layer_inputs, strict=True)
            )

        made = over_rows(jax.vmap(of_output), basis, self.outputs_at_once(which))
        return tuple(
            Gradients(each) if _is_gradients(block) or inputs is None else Products(inputs, each)
            for block, inputs, each in zip(blocks, layer_inputs, made, strict=True)
        )


def _is_gradients(block: Block) -> bool:
    return isinstance(block, GradientBlock) or block.contracted


def _tapped(block: Block) -> tuple[int, ...]:
    return (block.view.variable,) if isinstance(block, GradientBlock) else block.results


def _wanted(block: Block) -> tuple[int, ...]:
    views = (block.view,) if isinstance(block, GradientBlock) else block.views
    others = () if isinstance(block, GradientBlock) else block.others
    numbers = (number for view in views for _, number in view.factors if isinstance(number, int))
    return (*others, *numbers)


def _layer_inputs(block: Block, read: dict[int, Any]) -> Array | None:
    """A, one operation's positions after the other's."""
    if isinstance(block, GradientBlock):
        return None
    pairs = zip(block.operations, block.others, strict=True)
    return jnp.concatenate([operation.layer_inputs(read[other]) for operation, other in pairs])


def _sensitivities(
    block: Block, layer_inputs: Array | None, sensitivities: dict[int, Array], read: dict[int, Any]
) -> Array:
    """D of one output, or the gradient of that output."""
    if isinstance(block, GradientBlock) or layer_inputs is None:
        view = block.view if isinstance(block, GradientBlock) else block.views[0]
        return (_factor(view, read) * sensitivities[view.variable]).reshape(-1)
    parts = [
        _factor(view, read) * operation.sensitivities(sensitivities[result])
        for operation, view, result in zip(block.operations, block.views, block.results, strict=True)
    ]
    together = jnp.concatenate(parts)
    if block.contracted:
        return jnp.einsum("tga,tgb->gab", layer_inputs, together).reshape(-1)
    return together


def _factor(view: View, read: dict[int, Any]) -> Any:
    """How many times its leaf a view is."""
    factor = 1
    for name, atom in view.factors:
        number = read[atom] if isinstance(atom, int) else atom.val
        factor = -factor if name == "neg" else factor * number if name == "mul" else factor / number
    return factor
