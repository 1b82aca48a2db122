"""When a trajectory is saved, and what is measured on it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from zeroloss._arguments import integer_between, positive_integer, positive_number
from zeroloss.errors import InputError

Observables = Mapping[str, Callable[[PyTree], Array]]

_COUNT, _LARGEST_COUNT = 50, 10**7
_LONGEST_NAME = 200  # bytes, which fit into the name of a file
_RESERVED = (
    "params",
    "loss",
    "noisy_loss",
    "regularizer",
    "hessian_trace",
    "hessian_trace_error",
    "time",
    "steps",
    "slow_time",
    "distance",
    "distance_error",
    "seconds",
    "replica",
    "spectrum",
    "function",
    "zero_loss_set",
)
_RESERVED_PREFIXES = ("params", "uncertainty_", "seconds_")


@dataclasses.dataclass(frozen=True, eq=False)
class Saves:
    """How far to go, when to save, and what to measure at the times saved.

    Every verb that returns a `Trajectory` takes a number in its place: `zl.Saves(1000)` and 1000 are the
    same. Times are training steps for `zeroloss.descend`, `zeroloss.predict` and `zeroloss.compare`, and slow
    time for `zeroloss.limit`.

    **Arguments:**

    - `end`: the last time. It is always saved. By default the last of `at`.
    - `count`: the number of evenly spaced times, from 0 to `end`; 50 by default (26 for `zeroloss.compare`).
    - `at`: increasing times to save at, in place of `count`. 0 is the start.
    - `observables`: functions of the parameters to measure, by name, besides the loss, Reg and tr H.

    **Raises:** `InputError` for times that do not increase, are negative or lie beyond `end`, and for a name
    that an observable cannot have.

    ```python
    saves = zl.Saves(10_000, count=100, observables={"norm": lambda params: jnp.linalg.norm(params["w"])})
    path = zl.predict(system, params, 0.1, saves)
    path = zl.limit(system, point, zl.Saves(at=[0.1, 1.0, 10.0]))
    ```
    """

    end: float | None = None
    count: int | None = None
    at: Sequence[float] | np.ndarray | None = None
    observables: Observables = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at is None and self.end is None:
            raise InputError("Saves needs `end`, the last time, or `at`, the times to save at.")
        if self.at is not None and self.count is not None:
            raise InputError("Saves takes `count` or `at`, not both.")
        if self.count is not None:
            integer_between("count", self.count, 2, _LARGEST_COUNT)
        for name in self.observables:
            _check_name(name)

    def steps(self) -> np.ndarray:
        """The training steps to save at, as integers."""
        end = None if self.end is None else positive_integer("steps", self.end)
        if self.at is None:
            assert end is not None
            return np.unique(np.linspace(0, end, self.count or _COUNT).round().astype(int))
        times = np.asarray(self.at)
        if times.size and not np.issubdtype(times.dtype, np.integer):
            raise InputError(f"training steps to save at must be integers, got {times.dtype} {times}.")
        return self._checked(times)

    def times(self) -> np.ndarray:
        """The slow times to save at."""
        end = None if self.end is None else positive_number("t1", self.end)
        if self.at is None:
            assert end is not None
            return np.linspace(0.0, end, self.count or _COUNT)
        return self._checked(np.asarray(self.at, float))

    def _checked(self, times: np.ndarray) -> np.ndarray:
        """The times `at`, with `end` behind them where that is later."""
        if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
            raise InputError(
                "times to save at must be a non-empty one-dimensional sequence of finite numbers."
            )
        if times[0] < 0 or (np.diff(times) <= 0).any():
            raise InputError(f"times to save at must be increasing and not negative, got {times}.")
        if self.end is None or times[-1] == self.end:
            return times
        if times[-1] > self.end:
            raise InputError(f"times to save at must not lie beyond the end, {self.end}, got {times}.")
        return np.append(times, self.end)


def as_saves(value: Any) -> Saves:
    """`value` itself if it is a `Saves`; otherwise the saves of a verb that ends at the number `value`."""
    return value if isinstance(value, Saves) else Saves(value)


def _check_name(name: str) -> None:
    """Raise `InputError` for a name of an observable that is reserved, or that no file can have."""
    reason = ""
    if name in _RESERVED:
        reason = f"these names are taken: {', '.join(_RESERVED)}"
    elif name.startswith(_RESERVED_PREFIXES):
        reason = f"names that begin with {' or '.join(_RESERVED_PREFIXES)} are reserved"
    # Each name becomes a folder of a Zarr store.
    elif not name.strip(".") or name.startswith("__") or {"/", "\0"} & set(name):
        reason = "a name needs more than dots, has no slash, and does not begin with two underscores"
    elif len(name.encode(errors="surrogatepass")) > _LONGEST_NAME:
        reason = f"it has {len(name)} characters, and at most {_LONGEST_NAME} bytes fit into a file's name"
    if reason:
        shown = name if len(name) <= 40 else name[:40] + "..."
        raise InputError(f"an observable cannot be called {shown!r}: {reason}.")
