"""Operations whose derivative in a parameter is a product of layer input and output sensitivity.

Each operation brings that derivative to one form. With the parameter arranged as groups x inputs x outputs,
the gradient of one output in the parameter is, for every group g, a sum over positions t,

    G[g] = sum_t A[t, g, :] (outer) D[t, g, :]

with A from the operation's other operand and D from the sensitivity of its result. A dense layer has one
group, and one position unless it is applied along a sequence; a convolution has its patches as positions.
"""

import abc
import dataclasses
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode
from jaxtyping import Array, Float, Int

from zeroloss._jaxprs import shape

_LARGEST_KERNEL = 128  # positions of a convolution kernel, beyond which its patches are not worth writing out

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AbstractOperation(abc.ABC):
    """An operation linear in a parameter; `positions`, `groups`, `inputs`, `outputs` are the sizes above."""

    positions: int
    groups: int
    inputs: int
    outputs: int

    @abc.abstractmethod
    def layer_inputs(self, other: Array) -> Array:
        """A, `[positions, groups, inputs]`, from the operation's other operand."""

    @abc.abstractmethod
    def sensitivities(self, result: Array) -> Float[Array, "positions groups outputs"]:
        """D, from the sensitivity to the operation's result, shaped like the result."""

    @abc.abstractmethod
    def layout(self, parameter: Any) -> Any:
        """A parameter, or numbers attached to its elements, as `[groups, inputs, outputs]`."""

    @property
    @abc.abstractmethod
    def kind(self) -> Literal["dense", "convolution", "embedding"]:
        """The name of the operation in `Structure.kinds`."""


@dataclasses.dataclass(frozen=True)
class Contraction(AbstractOperation):
    """A dense layer, as any `dot_general`."""

    other_axes: Shape  # of the other operand: free, batch, contracted
    parameter_axes: Shape  # of the parameter: batch, contracted, free
    result_axes: Shape  # of the result: the other operand's free, batch, the parameter's free

    @property
    def kind(self) -> Literal["dense"]:
        return "dense"

    def layer_inputs(self, other: Array) -> Array:
        return other.transpose(self.other_axes).reshape(self.positions, self.groups, self.inputs)

    def sensitivities(self, result: Array) -> Array:
        return result.transpose(self.result_axes).reshape(self.positions, self.groups, self.outputs)

    def layout(self, parameter: Any) -> Any:
        return parameter.transpose(self.parameter_axes).reshape(self.groups, self.inputs, self.outputs)


@dataclasses.dataclass(frozen=True)
class Convolution(AbstractOperation):
    """A convolution, through its patches; strides, dilations, padding and feature groups of any kind."""

    specification: Any
    padding: tuple[tuple[int, int, int], ...]
    strides: Shape
    kernel_dilation: Shape
    kernel: Shape
    result_shape: Shape  # spatial

    @property
    def kind(self) -> Literal["convolution"]:
        return "convolution"

    def layer_inputs(self, other: Array) -> Array:
        batch, feature, *spatial = self.specification.lhs_spec
        other = other.transpose((batch, *spatial, feature))
        other = jax.lax.pad(other, jnp.zeros((), other.dtype), ((0, 0, 0), *self.padding, (0, 0, 0)))
        patches = [
            self._shifted(other, offset)
            for offset in itertools.product(*(range(size) for size in self.kernel))
        ]
        stacked = jnp.stack(patches, axis=-2)  # [batch, *result_shape, kernel, features]
        stacked = stacked.reshape(self.positions, len(patches), self.groups, -1)
        return stacked.transpose(0, 2, 1, 3).reshape(self.positions, self.groups, self.inputs)

    def result(self, other: Array, parameter: Array) -> Array:
        """The convolution itself, as a product of patches and kernel."""
        product = jnp.einsum("tga,gab->tgb", self.layer_inputs(other), self.layout(parameter))
        batch, feature, *spatial = self.specification.out_spec
        shape = (
            self.positions // math.prod(self.result_shape),
            *self.result_shape,
            self.groups * self.outputs,
        )
        order = sorted(range(len(shape)), key=(batch, *spatial, feature).__getitem__)
        return product.reshape(shape).transpose(order)

    def _shifted(self, padded: Array, offset: Shape) -> Array:
        starts = [each * dilation for each, dilation in zip(offset, self.kernel_dilation, strict=True)]
        limits = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, self.result_shape, self.strides, strict=True)
        ]
        return jax.lax.slice(
            padded, (0, *starts, 0), (padded.shape[0], *limits, padded.shape[-1]), (1, *self.strides, 1)
        )

    def sensitivities(self, result: Array) -> Array:
        batch, feature, *spatial = self.specification.out_spec
        result = result.transpose((batch, *spatial, feature))
        return result.reshape(self.positions, self.groups, self.outputs)

    def layout(self, parameter: Any) -> Any:
        outputs, inputs, *spatial = self.specification.rhs_spec
        parameter = parameter.transpose((*spatial, inputs, outputs))
        parameter = parameter.reshape(self.inputs, self.groups, self.outputs)
        return parameter.transpose(1, 0, 2)


@dataclasses.dataclass(frozen=True)
class Embedding(AbstractOperation):
    """Rows read from a table. A holds the rows' numbers, `[positions, 1, 1]`, in place of unit vectors."""

    axis: int
    offsets: Shape  # the result's axes along the row
    clips: bool

    @property
    def kind(self) -> Literal["embedding"]:
        return "embedding"

    def layer_inputs(self, other: Array) -> Int[Array, "positions groups 1"]:
        rows = other.reshape(self.positions, 1, 1)
        # A row outside the table has the number -1, which equals no other; its result is a constant.
        inside = (rows >= 0) & (rows < self.inputs)
        return jnp.clip(rows, 0, self.inputs - 1) if self.clips else jnp.where(inside, rows, -1)

    def sensitivities(self, result: Array) -> Array:
        batch = [axis for axis in range(result.ndim) if axis not in self.offsets]
        return result.transpose((*batch, *self.offsets)).reshape(self.positions, 1, self.outputs)

    def layout(self, parameter: Any) -> Any:
        return jnp.moveaxis(parameter, self.axis, 0).reshape(1, self.inputs, self.outputs)


def recognize(equation: JaxprEqn, position: int) -> AbstractOperation | str:
    """The operation that `equation` is, with a parameter as its operand at `position`; or why it is none.

    Its other operand must depend on the example.
    """
    name = equation.primitive.name
    reader = _READERS.get(name)
    return f"it enters `{name}`" if reader is None else reader(equation, position)


def _contraction(equation: JaxprEqn, position: int) -> AbstractOperation:
    contracted, batch = equation.params["dimension_numbers"]
    parameter, other = shape(equation.invars[position]), shape(equation.invars[1 - position])
    free = _rest(len(parameter), contracted[position], batch[position])
    other_free = _rest(len(other), contracted[1 - position], batch[1 - position])
    # The result has the batch axes first, then the free axes of the left operand, then of the right one.
    groups = len(batch[0])
    first = groups + (0 if position == 0 else len(other_free))
    other_first = groups + (len(free) if position == 0 else 0)
    return Contraction(
        positions=_product(other, other_free),
        groups=_product(parameter, batch[position]),
        inputs=_product(parameter, contracted[position]),
        outputs=_product(parameter, free),
        other_axes=(*other_free, *batch[1 - position], *contracted[1 - position]),
        parameter_axes=(*batch[position], *contracted[position], *free),
        result_axes=(
            *range(other_first, other_first + len(other_free)),
            *range(groups),
            *range(first, first + len(free)),
        ),
    )


def _convolution(equation: JaxprEqn, position: int) -> AbstractOperation | str:
    params = equation.params
    if position != 1 or params["batch_group_count"] != 1:
        return "it is not the kernel of its convolution, or grouped over the batch"
    specification, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel, result = shape(equation.invars[1]), shape(equation.outvars[0])
    out_features, in_features, *spatial = (kernel[axis] for axis in specification.rhs_spec)
    if math.prod(spatial) > _LARGEST_KERNEL:
        return f"it is a convolution kernel of {math.prod(spatial)} positions"
    batch, _, *result_shape = (result[axis] for axis in specification.out_spec)
    padding = tuple(
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    )
    return Convolution(
        positions=batch * math.prod(result_shape),
        groups=groups,
        inputs=math.prod(spatial) * in_features,
        outputs=out_features // groups,
        specification=specification,
        padding=padding,
        strides=tuple(params["window_strides"]),
        kernel_dilation=tuple(params["rhs_dilation"]),
        kernel=tuple(spatial),
        result_shape=tuple(result_shape),
    )


def _embedding(equation: JaxprEqn, position: int) -> AbstractOperation | str:
    if position != 0:
        return "it is an index"
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    table, indices = map(shape, equation.invars)
    whole = all(size == table[axis] for axis, size in enumerate(sizes) if axis not in numbers.start_index_map)
    if (
        len(numbers.start_index_map) != 1
        or tuple(numbers.collapsed_slice_dims) != tuple(numbers.start_index_map)
        or numbers.operand_batching_dims
        or not whole
    ):
        return "it is indexed in more than one axis"
    mode = GatherScatterMode.from_any(equation.params["mode"])
    if mode not in (
        GatherScatterMode.CLIP,
        GatherScatterMode.FILL_OR_DROP,
        GatherScatterMode.PROMISE_IN_BOUNDS,
    ):
        return f"it is indexed in mode {mode}"
    axis = numbers.start_index_map[0]
    return Embedding(
        positions=math.prod(indices[:-1]),
        groups=1,
        inputs=table[axis],
        outputs=math.prod(table) // max(table[axis], 1),
        axis=axis,
        offsets=tuple(numbers.offset_dims),
        clips=mode == GatherScatterMode.CLIP,
    )


_READERS = {
    "dot_general": _contraction,
    "conv_general_dilated": _convolution,
    "gather": _embedding,
}


def _rest(number: int, *taken: Any) -> Shape:
    """The axes of `number` that are in none of the groups `taken`."""
    used = set(itertools.chain(*taken))
    return tuple(axis for axis in range(number) if axis not in used)


def _product(sizes: Shape, axes: Any) -> int:
    """The product of some of the sizes."""
    return math.prod(sizes[axis] for axis in axes)
