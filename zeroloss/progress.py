"""Progress for people, on standard error: bars in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

messages = Console(stderr=True)
"""Where bars are drawn; what is printed on it meanwhile comes out above them."""

_SECONDS_PER_LINE = 30.0


@contextlib.contextmanager
def progress_bar(description: str, total: float, shown: bool) -> Iterator[Callable[[float], None]]:
    """A bar that is advanced by calling what this yields with the total done so far.

    Where standard error is no terminal, a line every half minute in its place.
    """
    if not shown:
        yield lambda done: None
        return
    if not messages.is_terminal:
        yield _Lines(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


class _Rate(ProgressColumn):
    """How much is done in a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


class _Lines:
    """Says in plain lines how far it is, and how much longer it takes."""

    def __init__(self, description: str, total: float):
        self._description, self._total = description, total
        self._began = self._said = time.monotonic()
        self._first: float | None = None

    def __call__(self, done: float) -> None:
        now = time.monotonic()
        if self._first is None:  # a computation that goes on does not begin at 0
            self._first, self._began = done, now
        if now - self._said < _SECONDS_PER_LINE or done <= self._first:
            return
        self._said = now
        rate = (done - self._first) / (now - self._began)
        messages.print(
            f"{self._description}: {100 * done / self._total:.0f} %, {rate:.3g}/s, "
            f"{(self._total - done) / rate:.0f} s left",
            highlight=False,
        )
