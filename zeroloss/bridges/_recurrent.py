"""LSTM, GRU and plain recurrent layers as PyTorch defines them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Cell = Callable[[Any, Array, Sequence[Array]], tuple[Any, Array]]
"""`cell(state, input, weights) -> state, output` of one step."""


def _lstm(state: Any, x: Array, weights: Sequence[Array]) -> tuple[Any, Array]:
    hidden, cell = state
    gates = _affine(x, weights[0], weights[2:3]) + _affine(hidden, weights[1], weights[3:4])
    entry, forget, new, exit_ = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(entry) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(exit_) * jnp.tanh(cell)
    return (hidden, cell), hidden


def _gru(state: Any, x: Array, weights: Sequence[Array]) -> tuple[Any, Array]:
    (hidden,) = state
    from_x = jnp.split(_affine(x, weights[0], weights[2:3]), 3, axis=-1)
    from_hidden = jnp.split(_affine(hidden, weights[1], weights[3:4]), 3, axis=-1)
    reset = jax.nn.sigmoid(from_x[0] + from_hidden[0])
    update = jax.nn.sigmoid(from_x[1] + from_hidden[1])
    new = jnp.tanh(from_x[2] + reset * from_hidden[2])
    hidden = (1 - update) * new + update * hidden
    return (hidden,), hidden


def _plain(function: Callable[[Array], Array]) -> Cell:
    def cell(state: Any, x: Array, weights: Sequence[Array]) -> tuple[Any, Array]:
        hidden = function(_affine(x, weights[0], weights[2:3]) + _affine(state[0], weights[1], weights[3:4]))
        return (hidden,), hidden

    return cell


CELLS: dict[str, Cell] = {
    "aten.lstm": _lstm,
    "aten.gru": _gru,
    "aten.rnn_tanh": _plain(jnp.tanh),
    "aten.rnn_relu": _plain(jax.nn.relu),
}


def recurrent(
    cell: Cell,
    x: Array,
    states: Sequence[Array],
    weights: Sequence[Array],
    options: tuple[bool, int, bool, bool],
    between: Callable[[Array, int], Array],
) -> tuple[Array, ...]:
    """The outputs of all steps, and the last states of all layers.

    `options`: whether there are biases, the number of layers, whether the layers are bidirectional, and
    whether examples come before steps. `between(x, layer)` acts on the outputs of a layer, examples first,
    before the next.
    """
    has_biases, layers, bidirectional, batch_first = options
    directions, width = 1 + bidirectional, 4 if has_biases else 2
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    last: list[tuple[Array, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * width : (number + 1) * width]
            start = tuple(state[number] for state in states)
            end, output = jax.lax.scan(
                lambda state, step, own=own: cell(state, step, own), start, x, reverse=direction == 1
            )
            last.append(end)
            outputs.append(output)
        x = jnp.concatenate(outputs, axis=-1)
        if layer < layers - 1:
            x = jnp.swapaxes(between(jnp.swapaxes(x, 0, 1), layer), 0, 1)
    ends = tuple(jnp.stack(parts) for parts in zip(*last, strict=True))
    return (jnp.swapaxes(x, 0, 1) if batch_first else x, *ends)


def _affine(x: Array, weight: Array, bias: Sequence[Array]) -> Array:
    return x @ weight.T + (bias[0] if bias else 0.0)
