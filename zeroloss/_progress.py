"""Progress for people, on standard error: bars in a terminal, plain lines elsewhere."""

import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Tell = Callable[[str], object]
"""Takes a message for people, with Rich's markup."""


def silent(message: str) -> None:
    """Take no notice of a message."""


messages = Console(stderr=True)
"""The console with the progress bars; messages printed on it come out above them."""

_SECONDS_PER_LINE = 30.0
_WINDOW = 60.0  # seconds: a rate is that of the last minute, for integrators become faster
# There is no estimate of the time that is left before this many seconds and this share.
_LEAST_SECONDS, _LEAST_SHARE = 5.0, 0.02
_PATIENCE = 3.0  # seconds before the first message
_REFRESH = 0.2


_shown = contextvars.ContextVar("shown", default=False)


@contextlib.contextmanager
def show_progress(shown: bool = True) -> Iterator[None]:
    """Show the progress of everything computed inside the `with` block, on standard error.

    Bars in a terminal; a line every half minute elsewhere. It holds for the thread that opens it.

    **Arguments:**

    - `shown`: False hides the progress again, inside of another block.

    ```python
    with zl.show_progress():
        path = zl.predict(system, params, 0.1, 10_000)
    ```
    """
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def announce(text: str) -> None:
    """Print a line on standard error, inside of `show_progress`."""
    if _shown.get():
        messages.print(text, highlight=False)


@contextlib.contextmanager
def progress_bar(description: str, total: float, unit: str = "steps") -> Iterator[Callable[[float], None]]:
    """Yield a function that takes how much of `total` is done, in `unit`, and shows it.

    Nothing is shown outside of `show_progress`.
    """
    if not _shown.get():
        yield lambda done: None
        return
    pace = Pace(total, unit)
    if not messages.is_terminal:
        yield _Lines(description, pace)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(description, total=total, said="")

        def show(done: float) -> None:
            pace.add(done)
            progress.update(task, completed=done, said=pace.words)

        yield show


class Pace:
    """The progress of a computation, its rate, and an estimate of the time that is left.

    - `total`: the amount to do, in `unit`.

    Seconds in which JAX compiles do not count as time spent on the computation.
    """

    def __init__(self, total: float, unit: str):
        self._total, self._unit = total, unit
        self._first: tuple[float, float] | None = None
        self._recent: deque[tuple[float, float]] = deque()

    def add(self, done: float) -> None:
        """Record that so much of the total is done by now."""
        from zeroloss._compilation import seconds_compiling  # imports JAX, which printing need not wait for

        now = (time.perf_counter() - seconds_compiling(), float(done))
        if self._first is None:  # a computation that goes on does not begin at 0
            self._first = now
        self._recent.append(now)
        while len(self._recent) > 2 and now[0] - self._recent[1][0] >= _WINDOW:
            self._recent.popleft()

    @property
    def advanced(self) -> bool:
        """Whether anything was done since the first report."""
        return self._first is not None and self._recent[-1][1] > self._first[1]

    @property
    def rate(self) -> float | None:
        """The amount done in a second, recently; None before anything was measured."""
        if len(self._recent) < 2:
            return None
        (began, before), (now, done) = self._recent[0], self._recent[-1]
        return (done - before) / (now - began) if now > began and done > before else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None where too little is measured for one."""
        rate = self.rate
        if self._first is None or rate is None:
            return None
        now, done = self._recent[-1]
        share = (done - self._first[1]) / self._total
        if now - self._first[0] < _LEAST_SECONDS or share < _LEAST_SHARE:
            return None
        return (self._total - done) / rate

    @property
    def words(self) -> str:
        """Share, rate and time left, in a few words."""
        if not self._recent:
            return ""
        share, rate, left = self._recent[-1][1] / self._total, self.rate, self.seconds_left
        parts = [f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"]
        if rate is not None:
            parts.append(f"{_three_digits(rate)} {self._unit}/s")
        if left is not None:
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)


class _Lines:
    """Prints the progress of a computation in plain lines."""

    def __init__(self, description: str, pace: Pace):
        self._description, self._pace = description, pace
        self._said = time.monotonic()

    def __call__(self, done: float) -> None:
        self._pace.add(done)
        now = time.monotonic()
        if now - self._said < _SECONDS_PER_LINE or not self._pace.advanced:
            return
        self._said = now
        messages.print(f"{self._description}: {self._pace.words}", highlight=False)


@contextlib.contextmanager
def stage_indicator() -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of the next stage of work that cannot measure its own progress.

    The name is shown once the work takes longer than some seconds: beside a spinner and the seconds so far in
    a terminal, as a line every half minute elsewhere. Nothing is shown outside of `show_progress`.
    """
    if not _shown.get():
        yield lambda words: None
        return
    said = [""]
    ended = threading.Event()
    speaker = threading.Thread(target=_speak, args=(said, ended), daemon=True)
    speaker.start()

    def set_stage(words: str) -> None:
        said[0] = words

    try:
        yield set_stage
    finally:
        ended.set()
        speaker.join()


def _speak(said: list[str], ended: threading.Event) -> None:
    """Show the last of `said` until `ended`."""
    began = time.monotonic()

    def words() -> str:
        return f"{said[0]}, {_duration(time.monotonic() - began)} so far"

    if ended.wait(_PATIENCE):
        return
    if not messages.is_terminal:
        messages.print(words(), highlight=False, markup=False)
        while not ended.wait(_SECONDS_PER_LINE):
            messages.print(words(), highlight=False, markup=False)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(words(), total=None)
        while not ended.wait(_REFRESH):
            progress.update(task, description=words())


def _three_digits(value: float) -> str:
    """A number to three digits, with thousands separated."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.3g}"


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, for people."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
