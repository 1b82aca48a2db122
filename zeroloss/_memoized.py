"""What was computed for some arrays before need not be computed again."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from zeroloss._pytrees import is_traced

P = ParamSpec("P")
R = TypeVar("R")

_KEPT = 4


def memoized(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which returns its last result where it is called with the same arrays again.

    The arrays must be those of JAX, which cannot change, and the same objects: values are not compared. With
    arrays of NumPy, which can change, and with tracers the function is called each time, and also where it
    raised an error. The last four results are kept, with the arrays that they belong to.
    """
    results: OrderedDict[Any, tuple[list[Any], R]] = OrderedDict()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, structure = jax.tree.flatten((args, kwargs))
        key = _key(leaves, structure)
        if key is None:
            return function(*args, **kwargs)
        found = results.pop(key, None)
        if found is None:
            # The arrays are kept, so that no other array can get their identity.
            found = leaves, function(*args, **kwargs)
        results[key] = found  # as the last
        while len(results) > _KEPT:
            results.popitem(last=False)
        return found[1]

    return call


def _key(leaves: list[Any], structure: Any) -> Any:
    """A key for these leaves; None where they may change, or have no hash."""
    if is_traced(leaves):
        return None
    parts = []
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            parts.append(id(leaf))
        elif isinstance(leaf, bool | int | float | complex | str) or callable(leaf):
            parts.append((type(leaf), leaf))
        else:
            return None
    key = (structure, *parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key
