"""How programs are compiled, and how long JAX has been compiling in this process.

Before a first answer XLA spends most time on optimizing machine code. On a CPU its older code generator
with fewer passes of LLVM compiles a program 2 to 5 times faster (docs/speed.md). So two decorators replace
`equinox.filter_jit`: `compiled` for loops that run long, `compiled_once` for programs that run a few times.
On other devices both are `equinox.filter_jit`.

Compiled programs are also kept on disk, so that the next process need not compile them: `keep_programs`.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax
import platformdirs

from zeroloss._pytrees import is_traced

P = ParamSpec("P")
R = TypeVar("R")

_EVENTS = "/jax/core/compile/"  # JAX reports tracing, lowering and compiling under this name

_LARGEST_CACHE = 512 * 2**20  # bytes
_WORTH_KEEPING = 0.05  # seconds of compiling; reading a program takes some 0.01

_spans: list[tuple[float, float]] = []
"""Begin and end of every compilation until now, on the clock of `time.perf_counter`, without overlap."""

_total = 0.0


class Compiled(Generic[P, R]):
    """A function, compiled for the shapes and static values of its arguments as by `equinox.filter_jit`.

    Called with tracers it is the function itself: XLA options belong to the outermost program.
    """

    def __init__(self, function: Callable[P, R], level: int):
        functools.update_wrapper(self, function, updated=())
        self._function, self._level = function, level

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if is_traced((self._function, args, kwargs)):
            return self._function(*args, **kwargs)
        return self._program(*args, **kwargs)

    @functools.cached_property
    def _program(self) -> Callable[P, R]:
        # Not made at import: asking for the device starts JAX.
        options: Any = {"compiler_options": _options(self._level)}  # handed on to `jax.jit`
        return eqx.filter_jit(self._function, **options)


def compiled(function: Callable[P, R]) -> Compiled[P, R]:
    """`function`, compiled to run fast."""
    return Compiled(function, 1)


def compiled_once(function: Callable[P, R]) -> Compiled[P, R]:
    """`function`, compiled quickly. Its loops run two to three times slower."""
    return Compiled(function, 0)


@functools.cache
def _options(level: int) -> dict[str, Any] | None:
    """XLA options of a level of optimization on a CPU; None on other devices and where XLA lacks them."""
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_backend_optimization_level": level, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # no such option
        return None
    return options


def keep_programs() -> None:
    """Keep compiled programs in a folder of this user's cache, for later processes.

    Leaves JAX alone where a folder is set already, by `JAX_COMPILATION_CACHE_DIR` or `jax.config`. The
    variable `ZEROLOSS_CACHE` names another folder, or is `off`. The folder holds at most 512 MiB: programs
    that were not used for longest are removed. Several processes can share it, because JAX locks it.
    """
    wish = os.environ.get("ZEROLOSS_CACHE", "")
    if wish == "off" or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = wish or str(platformdirs.user_cache_path("zeroloss") / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def seconds_compiling() -> float:
    """The seconds that JAX has spent on tracing, lowering and compiling since this module was imported.

    Only differences of this number have a meaning. Functions that are traced within others count once.
    """
    return _total


def _ended(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """Add a compilation that ends now; those within it ended before, and were added then."""
    global _total
    if not event.startswith(_EVENTS):
        return
    end = time.perf_counter()
    begin = end - duration_secs
    while _spans and _spans[-1][0] >= begin:
        inner_begin, inner_end = _spans.pop()
        _total -= inner_end - inner_begin
    if _spans:
        begin = max(begin, _spans[-1][1])
    _spans.append((begin, end))
    _total += end - begin


jax.monitoring.register_event_duration_secs_listener(_ended)
keep_programs()
