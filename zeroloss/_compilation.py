"""How long JAX has been compiling in this process, so that it can be told from computing."""

import time

import jax

_EVENTS = "/jax/core/compile/"  # JAX reports tracing, lowering and compiling under this name

_spans: list[tuple[float, float]] = []
"""Begin and end of every compilation until now, on the clock of `time.perf_counter`, without overlap."""

_total = 0.0


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
