"""The operations of PyTorch that exported models consist of, in JAX: one table, `OPERATIONS`.

Each function takes the arguments of the ATen operation in their order and with their names. Types of
numbers are JAX's: floating-point types are those of the parameters, whatever the model was written for.
"""

import builtins
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

OPERATIONS: dict[str, Callable[..., Any]] = {}
"""By the name of the operation, such as "aten.linear", or of one overload, such as "aten.max.dim"."""


def _of(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS.update({f"aten.{name}": function for name in names})
        return function

    return enter


def _elementwise(table: dict[str, Callable[..., Any]]) -> None:
    """Functions of one array; those that PyTorch applies in place have the same result."""
    for name, function in table.items():
        OPERATIONS[f"aten.{name}"] = OPERATIONS[f"aten.{name}_"] = function


def _identity(value: Any, *_: Any, **__: Any) -> Any:
    return value


_elementwise(
    {
        "abs": jnp.abs,
        "neg": jnp.negative,
        "exp": jnp.exp,
        "expm1": jnp.expm1,
        "log": jnp.log,
        "log1p": jnp.log1p,
        "log2": jnp.log2,
        "sqrt": jnp.sqrt,
        "rsqrt": lax.rsqrt,
        "square": jnp.square,
        "reciprocal": jnp.reciprocal,
        "sin": jnp.sin,
        "cos": jnp.cos,
        "tan": jnp.tan,
        "atan": jnp.arctan,
        "tanh": jnp.tanh,
        "sinh": jnp.sinh,
        "cosh": jnp.cosh,
        "erf": jax.scipy.special.erf,
        "sign": jnp.sign,
        "floor": jnp.floor,
        "ceil": jnp.ceil,
        "round": jnp.round,
        "sigmoid": jax.nn.sigmoid,
        "log_sigmoid": jax.nn.log_sigmoid,
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "silu": jax.nn.silu,
        "mish": jax.nn.mish,
        "selu": jax.nn.selu,
        "hardsigmoid": lambda x: jnp.clip(x / 6 + 0.5, 0, 1),
        "hardswish": lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
        "logical_not": jnp.logical_not,
        "bitwise_not": jnp.bitwise_not,
        "isnan": jnp.isnan,
        "elu": lambda x, alpha=1.0, scale=1.0, input_scale=1.0: (
            scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * jnp.where(x > 0, 0.0, x)))
        ),
        "celu": lambda x, alpha=1.0: jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0.0, x) / alpha)),
        "leaky_relu": lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
        "hardtanh": lambda x, least=-1.0, most=1.0: jnp.clip(x, least, most),
        "hardshrink": lambda x, bound=0.5: jnp.where(jnp.abs(x) > bound, x, 0.0),
        "softshrink": lambda x, bound=0.5: jnp.sign(x) * jnp.maximum(jnp.abs(x) - bound, 0.0),
        "threshold": lambda x, threshold, value: jnp.where(x > threshold, x, value),
        "clamp_min": jnp.maximum,
        "clamp_max": jnp.minimum,
        "add": lambda x, y, alpha=1: x + (y if alpha == 1 else alpha * y),
        "sub": lambda x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
        "rsub": lambda x, y, alpha=1: y - (x if alpha == 1 else alpha * x),
        "mul": lambda x, y: x * y,
        "pow": lambda x, y: x**y,
        "remainder": jnp.remainder,
        "addcmul": lambda x, y, z, value=1: x + value * y * z,
        "masked_fill": lambda x, mask, value: jnp.where(mask, value, x),
        "logical_and": jnp.logical_and,
        "logical_or": jnp.logical_or,
        "bitwise_and": jnp.bitwise_and,
        "bitwise_or": jnp.bitwise_or,
    }
)


@_of("div", "div_", "true_divide")
def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    quotient = x / y
    return {None: lambda q: q, "floor": jnp.floor, "trunc": jnp.trunc}[rounding_mode](quotient)


@_of("clamp", "clamp_", "clip")
def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    return jnp.clip(x, min, max)


@_of("gelu")
def _gelu(x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@_of("softplus")
def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(jnp.minimum(beta * x, threshold)) / beta)


@_of("prelu")
def _prelu(x: Array, weight: Array) -> Array:
    slope = weight if weight.size == 1 else weight.reshape(-1, *(1,) * (x.ndim - 2))
    return jnp.where(x > 0, x, slope * x)


@_of("glu")
def _glu(x: Array, dim: int = -1) -> Array:
    first, second = jnp.split(x, 2, axis=dim)
    return first * jax.nn.sigmoid(second)


for _name, _function in {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "where": jnp.where,
    "floor_divide": jnp.floor_divide,
    "matmul": jnp.matmul,
    "mm": jnp.matmul,
    "bmm": jnp.matmul,
    "mv": jnp.matmul,
    "dot": jnp.dot,
    "tril": jnp.tril,
    "triu": jnp.triu,
    "flip": jnp.flip,
    "t": jnp.transpose,
    "numpy_T": jnp.transpose,
    "swapaxes": jnp.swapaxes,
    "outer": jnp.outer,
    "cumsum": lambda x, dim, dtype=None: jnp.cumsum(x, axis=dim),
}.items():
    OPERATIONS[f"aten.{_name}"] = _function

for _name in (
    *("contiguous", "clone", "detach_", "alias", "lift_fresh_copy", "positive", "dropout_eval"),
    *("type_as", "_assert_tensor_metadata", "_conj", "resolve_conj", "resolve_neg"),
):
    OPERATIONS[f"aten.{_name}"] = _identity
OPERATIONS["aten.detach"] = lax.stop_gradient


def _axes(dim: Any) -> Any:
    """PyTorch's dim as the axis of JAX: all where it is None or empty."""
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduced(x: Array, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        return function(x if dtype is None else x.astype(dtype), axis=_axes(dim), keepdims=keepdim)

    return reduced


for _name, _function in {
    "mean": jnp.mean,
    "sum": jnp.sum,
    "prod": jnp.prod,
    "amax": jnp.max,
    "amin": jnp.min,
    "any": jnp.any,
    "all": jnp.all,
    "logsumexp": jax.scipy.special.logsumexp,
    "argmax": jnp.argmax,
    "argmin": jnp.argmin,
}.items():
    OPERATIONS[f"aten.{_name}"] = _reduction(_function)


@_of("max", "max.other")
def _max(x: Array, other: Any = None) -> Array:
    return jnp.max(x) if other is None else jnp.maximum(x, other)


@_of("min", "min.other")
def _min(x: Array, other: Any = None) -> Array:
    return jnp.min(x) if other is None else jnp.minimum(x, other)


@_of("max.dim")
def _max_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    return jnp.max(x, axis=dim, keepdims=keepdim), jnp.argmax(x, axis=dim, keepdims=keepdim)


@_of("min.dim")
def _min_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    return jnp.min(x, axis=dim, keepdims=keepdim), jnp.argmin(x, axis=dim, keepdims=keepdim)


def _variance(x: Array, dim: Any, correction: float, keepdim: bool) -> Array:
    axes = _axes(dim)
    count = x.size if axes is None else math.prod(x.shape[axis] for axis in np.atleast_1d(axes))
    return jnp.var(x, axis=axes, keepdims=keepdim) * count / (count - correction)


@_of("var", "var.correction", "var.dim")
def _var(x: Array, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return _variance(x, dim, float(unbiased) if correction is None else correction, keepdim)


@_of("std", "std.correction", "std.dim")
def _std(x: Array, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None):
    return jnp.sqrt(_var(x, dim, unbiased, keepdim, correction=correction))


@_of("linalg_vector_norm", "norm.ScalarOpt_dim")
def _norm(x: Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    if ord == 2:
        return jnp.sqrt(jnp.sum(x**2, axis=_axes(dim), keepdims=keepdim))
    return jnp.linalg.norm(x, ord, axis=_axes(dim), keepdims=keepdim)


@_of("softmax", "_softmax")
def _softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    return jax.nn.softmax(x, axis=dim)


@_of("log_softmax", "_log_softmax")
def _log_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    return jax.nn.log_softmax(x, axis=dim)


# Shapes


@_of("view", "reshape", "_unsafe_view")
def _view(x: Array, size: Any) -> Array:
    return x.reshape(tuple(size))


@_of("view_as", "reshape_as")
def _view_as(x: Array, other: Array) -> Array:
    return x.reshape(other.shape)


@_of("flatten")
def _flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


@_of("unflatten")
def _unflatten(x: Array, dim: int, sizes: Sequence[int]) -> Array:
    axis = dim % x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


@_of("unsqueeze")
def _unsqueeze(x: Array, dim: int) -> Array:
    return jnp.expand_dims(x, dim)


@_of("squeeze.dim", "squeeze.dims")
def _squeeze(x: Array, dim: Any) -> Array:
    axes = [axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim)]
    return jnp.squeeze(x, axis=tuple(axis for axis in axes if x.shape[axis] == 1))


@_of("transpose")
def _transpose(x: Array, dim0: int, dim1: int) -> Array:
    return jnp.swapaxes(x, dim0, dim1)


@_of("permute")
def _permute(x: Array, dims: Sequence[int]) -> Array:
    return jnp.transpose(x, dims)


@_of("movedim")
def _movedim(x: Array, source: Any, destination: Any) -> Array:
    return jnp.moveaxis(x, source, destination)


@_of("expand")
def _expand(x: Array, size: Sequence[int], *, implicit: bool = False) -> Array:
    new = len(size) - x.ndim
    shape = [x.shape[axis - new] if length == -1 else length for axis, length in enumerate(size)]
    return jnp.broadcast_to(x, shape)


@_of("expand_as")
def _expand_as(x: Array, other: Array) -> Array:
    return jnp.broadcast_to(x, other.shape)


@_of("repeat")
def _repeat(x: Array, repeats: Sequence[int]) -> Array:
    return jnp.tile(x, tuple(repeats))


@_of("repeat_interleave.self_int")
def _repeat_interleave(x: Array, repeats: int, dim: int | None = None, *, output_size: Any = None) -> Array:
    return jnp.repeat(x, repeats, axis=dim)


@_of("cat", "concat", "concatenate")
def _cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    return jnp.concatenate(tensors, axis=dim)


@_of("stack")
def _stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    return jnp.stack(tensors, axis=dim)


@_of("split", "split_with_sizes")
def _split(x: Array, sizes: Any, dim: int = 0) -> list[Array]:
    length = x.shape[dim]
    sizes = (
        [sizes] * (length // sizes) + [length % sizes] * (length % sizes > 0)
        if isinstance(sizes, int)
        else sizes
    )
    return jnp.split(x, np.cumsum(sizes)[:-1], axis=dim)


@_of("chunk")
def _chunk(x: Array, chunks: int, dim: int = 0) -> list[Array]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


@_of("unbind")
def _unbind(x: Array, dim: int = 0) -> list[Array]:
    return [jnp.take(x, index, axis=dim) for index in range(x.shape[dim])]


@_of("select")
def _select(x: Array, dim: int, index: int) -> Array:
    return lax.index_in_dim(x, index, axis=dim % x.ndim, keepdims=False)


@_of("slice")
def _slice(x: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
    chosen = [slice(None)] * x.ndim
    chosen[dim] = slice(start, end, step)
    return x[tuple(chosen)]


@_of("narrow")
def _narrow(x: Array, dim: int, start: int, length: int) -> Array:
    return lax.slice_in_dim(x, start, start + length, axis=dim)


@_of("index_select")
def _index_select(x: Array, dim: int, index: Array) -> Array:
    return jnp.take(x, index, axis=dim)


@_of("index")
def _index(x: Array, indices: Sequence[Any]) -> Array:
    return x[tuple(slice(None) if index is None else index for index in indices)]


@_of("gather")
def _gather(x: Array, dim: int, index: Array, *, sparse_grad: bool = False) -> Array:
    return jnp.take_along_axis(x, index, axis=dim)


@_of("roll")
def _roll(x: Array, shifts: Any, dims: Any = ()) -> Array:
    return jnp.roll(x, tuple(shifts) if isinstance(shifts, Sequence) else shifts, axis=_axes(dims))


@_of("pad")
def _pad(x: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    widths = [(0, 0)] * x.ndim
    for number in range(len(pad) // 2):  # PyTorch begins with the last axis
        widths[x.ndim - 1 - number] = (pad[2 * number], pad[2 * number + 1])
    if mode == "constant":
        negative = [(builtins.min(low, 0), builtins.min(high, 0)) for low, high in widths]
        x = x[
            tuple(slice(-low, length + high) for length, (low, high) in zip(x.shape, negative, strict=True))
        ]
        widths = [(builtins.max(low, 0), builtins.max(high, 0)) for low, high in widths]
        return jnp.pad(x, widths, constant_values=0.0 if value is None else value)
    return jnp.pad(x, widths, mode={"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])


@_of("constant_pad_nd")
def _constant_pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    return _pad(x, pad, "constant", value)


@_of("pixel_shuffle")
def _pixel_shuffle(x: Array, factor: int) -> Array:
    *lead, channels, height, width = x.shape
    new = channels // factor**2
    split = x.reshape(-1, new, factor, factor, height, width)
    moved = jnp.transpose(split, (0, 1, 4, 2, 5, 3))
    return moved.reshape(*lead, new, height * factor, width * factor)


# New arrays


@_of("zeros", "new_zeros")
def _zeros(*arguments: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.zeros(tuple(arguments[-1]), dtype)


@_of("ones", "new_ones")
def _ones(*arguments: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.ones(tuple(arguments[-1]), dtype)


@_of("full")
def _full(size: Any, value: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.full(tuple(size), value, dtype)


@_of("new_full")
def _new_full(x: Array, size: Any, value: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.full(tuple(size), value, x.dtype if dtype is None else dtype)


@_of("zeros_like")
def _zeros_like(x: Array, dtype: Any = None, **_: Any) -> Array:
    return jnp.zeros_like(x, dtype)


@_of("ones_like")
def _ones_like(x: Array, dtype: Any = None, **_: Any) -> Array:
    return jnp.ones_like(x, dtype)


@_of("full_like")
def _full_like(x: Array, value: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.full_like(x, value, dtype)


@_of("arange")
def _arange(end: Any, **_: Any) -> Array:
    return jnp.arange(end)


@_of("arange.start", "arange.start_step")
def _arange_from(start: Any, end: Any, step: Any = 1, **_: Any) -> Array:
    return jnp.arange(start, end, step)


@_of("scalar_tensor")
def _scalar(value: Any, dtype: Any = None, **_: Any) -> Array:
    return jnp.asarray(value, dtype)


@_of("to", "_to_copy")
def _to(x: Array, *arguments: Any, **options: Any) -> Array:
    types = [each for each in (*arguments, *options.values()) if isinstance(each, np.dtype)]
    return x.astype(types[0]) if types else x


@_of("one_hot")
def _one_hot(x: Array, classes: int = -1) -> Array:
    return jax.nn.one_hot(x, classes, dtype=int)


# Layers


@_of("linear")
def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    product = x @ weight.T
    return product if bias is None else product + bias


@_of("addmm", "baddbmm", "addmv")
def _addmm(x: Array, first: Array, second: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    return beta * x + alpha * (first @ second)


@_of("bilinear")
def _bilinear(x: Array, y: Array, weight: Array, bias: Array | None = None) -> Array:
    product = jnp.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


@_of("einsum")
def _einsum(equation: str, operands: Sequence[Array], *, path: Any = None) -> Array:
    return jnp.einsum(equation, *operands)


@_of("embedding")
def _embedding(
    weight: Array,
    indices: Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    return weight[indices]


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number for each of `count` axes."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _convolution(dims: int) -> Callable[..., Array]:
    def convolve(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Array:
        dilations = _each(dilation, dims)
        if padding == "same":
            totals = [d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True)]
            widths = [(total // 2, total - total // 2) for total in totals]
        else:
            widths = [(width, width) for width in _each(0 if padding == "valid" else padding, dims)]
        result = lax.conv_general_dilated(
            x, weight, _each(stride, dims), widths, rhs_dilation=dilations, feature_group_count=groups
        )
        return _scaled(result, None, bias, (-1, *(1,) * dims))

    return convolve


def _transposed_convolution(dims: int) -> Callable[..., Array]:
    def convolve(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Array:
        strides, paddings = _each(stride, dims), _each(padding, dims)
        more, dilations = _each(output_padding, dims), _each(dilation, dims)
        into, out = weight.shape[0], weight.shape[1] * groups
        kernel = weight.reshape(groups, into // groups, weight.shape[1], *weight.shape[2:])
        kernel = jnp.flip(jnp.swapaxes(kernel, 1, 2), axis=tuple(range(3, 3 + dims)))
        kernel = kernel.reshape(out, into // groups, *weight.shape[2:])
        reach = [d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True)]
        widths = [(r - p, r - p + m) for r, p, m in zip(reach, paddings, more, strict=True)]
        result = lax.conv_general_dilated(
            x,
            kernel,
            (1,) * dims,
            widths,
            lhs_dilation=strides,
            rhs_dilation=dilations,
            feature_group_count=groups,
        )
        return _scaled(result, None, bias, (-1, *(1,) * dims))

    return convolve


for _dims in (1, 2, 3):
    OPERATIONS[f"aten.conv{_dims}d"] = _convolution(_dims)
    OPERATIONS[f"aten.conv_transpose{_dims}d"] = _transposed_convolution(_dims)


def _windows(
    x: Array, dims: int, size: Any, stride: Any, padding: Any, ceil: bool
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    """Window, strides and padding over all axes. With `ceil` a window may end beyond the end."""
    sizes, widths = _each(size, dims), _each(padding, dims)
    strides = sizes if stride is None or stride == [] else _each(stride, dims)
    pads = []
    for length, window, step, width in zip(x.shape[-dims:], sizes, strides, widths, strict=True):
        free = length + 2 * width - window
        count = (-(-free // step) if ceil else free // step) + 1
        if ceil and (count - 1) * step >= length + width:
            count -= 1
        pads.append((width, builtins.max((count - 1) * step + window - length - width, 0)))
    lead = (1,) * (x.ndim - dims)
    return (*lead, *sizes), (*lead, *strides), [(0, 0)] * (x.ndim - dims) + pads


def _max_pool(dims: int) -> Callable[..., Array]:
    def pool(
        x: Array, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Array:
        window, strides, pads = _windows(x, dims, size, stride, padding, ceil_mode)
        dilations = (1,) * (x.ndim - dims) + _each(dilation, dims)
        if any(each != 1 for each in dilations):
            raise NotImplementedError("max pooling with dilation")
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)

    return pool


def _avg_pool(dims: int) -> Callable[..., Array]:
    def pool(
        x: Array,
        size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        window, strides, pads = _windows(x, dims, size, stride, padding, ceil_mode)
        total = lax.reduce_window(x, 0.0, lax.add, window, strides, pads)
        if divisor_override is not None:
            return total / divisor_override
        ones = jnp.ones(x.shape[-dims:], x.dtype)
        widths = _each(padding, dims)
        if count_include_pad:  # what ceil_mode adds beyond the padding does not count
            ones = jnp.pad(ones, [(width, width) for width in widths], constant_values=1.0)
            excess = [(0, high - width) for (_, high), width in zip(pads[-dims:], widths, strict=True)]
        else:
            excess = pads[-dims:]
        counts = lax.reduce_window(ones, 0.0, lax.add, window[-dims:], strides[-dims:], excess)
        return total / counts

    return pool


def _bins(length: int, count: int) -> list[tuple[int, int]]:
    """The bins of adaptive pooling: where each begins and ends."""
    return [(index * length // count, -(-(index + 1) * length // count)) for index in range(count)]


def _adaptive_pool(dims: int, reduce: Callable[..., Array]) -> Callable[..., Array]:
    def pool(x: Array, size: Any) -> Array:
        for axis, count in zip(range(x.ndim - dims, x.ndim), _each(size, dims), strict=True):
            if count is not None:
                bins = _bins(x.shape[axis], count)
                parts = [
                    reduce(lax.slice_in_dim(x, *bin, axis=axis), axis=axis, keepdims=True) for bin in bins
                ]
                x = jnp.concatenate(parts, axis=axis)
        return x

    return pool


for _dims in (1, 2, 3):
    OPERATIONS[f"aten.max_pool{_dims}d"] = _max_pool(_dims)
    OPERATIONS[f"aten.avg_pool{_dims}d"] = _avg_pool(_dims)
    OPERATIONS[f"aten.adaptive_avg_pool{_dims}d"] = _adaptive_pool(_dims, jnp.mean)


def _scaled(x: Array, weight: Array | None, bias: Array | None, shape: Sequence[int]) -> Array:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _normalized(x: Array, axes: Any, eps: float) -> Array:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=axes, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + eps)


@_of("layer_norm")
def _layer_norm(
    x: Array,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Array:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    return _scaled(_normalized(x, axes, eps), weight, bias, tuple(shape))


@_of("rms_norm")
def _rms_norm(x: Array, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Array:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    scaled = x * lax.rsqrt(jnp.mean(x**2, axis=axes, keepdims=True) + eps)
    return _scaled(scaled, weight, None, tuple(shape))


@_of("group_norm")
def _group_norm(
    x: Array, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Array:
    grouped = x.reshape(x.shape[0], groups, -1)
    normalized = _normalized(grouped, 2, eps).reshape(x.shape)
    return _scaled(normalized, weight, bias, (-1, *(1,) * (x.ndim - 2)))


@_of("instance_norm")
def _instance_norm(x: Array, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Array:
    use_input_stats, _, eps, _ = options
    if not use_input_stats:
        return _batch_norm(x, weight, bias, mean, var, *options)
    return _scaled(_normalized(x, tuple(range(2, x.ndim)), eps), weight, bias, (-1, *(1,) * (x.ndim - 2)))


@_of("batch_norm")
def _batch_norm(x: Array, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Array:
    _, _, eps, _ = options  # training is refused before
    shape = (-1, *(1,) * (x.ndim - 2))
    normalized = (x - mean.reshape(shape)) * lax.rsqrt(var.reshape(shape) + eps)
    return _scaled(normalized, weight, bias, shape)


def _resized(x: Array, size: Any, scales: Any) -> Sequence[int]:
    """The lengths of the axes behind the channels, given as such or by factors."""
    if size is not None:
        return size
    factors = scales[0] if isinstance(scales[0], Sequence) else scales
    return [math.floor(n * s) for n, s in zip(x.shape[2:], factors, strict=True)]


@_of("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(x: Array, size: Any = None, *scales: Any) -> Array:
    for axis, count in enumerate(_resized(x, size, scales), start=2):
        index = np.floor(np.arange(count) * (x.shape[axis] / count)).astype(int)
        x = jnp.take(x, index, axis=axis)
    return x


def _interpolated(x: Array, size: Any, align_corners: bool, *scales: Any) -> Array:
    """Linear interpolation along each axis behind the channels."""
    for axis, count in enumerate(_resized(x, size, scales), start=2):
        length = x.shape[axis]
        if align_corners:
            places = np.arange(count) * ((length - 1) / builtins.max(count - 1, 1))
        else:
            places = np.maximum((np.arange(count) + 0.5) * (length / count) - 0.5, 0)
        low = np.minimum(np.floor(places).astype(int), length - 1)
        high, share = np.minimum(low + 1, length - 1), places - low
        matrix = np.zeros((count, length))
        np.add.at(matrix, (np.arange(count), low), 1 - share)
        np.add.at(matrix, (np.arange(count), high), share)
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), axes=(axis, 1)), -1, axis)
    return x


for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    OPERATIONS[f"aten.{_name}"] = _interpolated
