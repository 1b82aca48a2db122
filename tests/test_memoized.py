"""Results that are kept for a second call."""

import jax.numpy as jnp
import numpy as np
import pytest

from zeroloss._memoized import memoized


def test_the_same_arrays_are_computed_once():
    calls = []

    @memoized
    def total(tree, factor=1):
        calls.append(factor)
        return factor * float(tree["a"].sum())

    one, other = jnp.ones(3), jnp.ones(3)
    assert [total({"a": one}), total({"a": one}), total({"a": one}, factor=2)] == [3, 3, 6]
    assert calls == [1, 2]
    total({"a": other})  # equal values in another array
    assert calls == [1, 2, 1]


def test_what_can_change_is_computed_anew():
    array = np.ones(3)
    total = memoized(lambda tree: float(tree.sum()))
    assert total(array) == 3
    array[0] = 5
    assert total(array) == 7


def test_few_results_are_kept_and_no_errors():
    calls = []

    @memoized
    def first(array):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return float(array[0])

    arrays = [jnp.full(2, float(value)) for value in range(6)]
    with pytest.raises(ValueError):
        first(arrays[0])
    assert [first(array) for array in arrays] == [0, 1, 2, 3, 4, 5]
    assert len(calls) == 7
    first(arrays[5])
    assert len(calls) == 7
    first(arrays[0])
    assert len(calls) == 8
