"""The one loop behind every long computation: advance, save, keep a checkpoint, show progress."""

import abc
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays
from zeroloss._progress import progress_bar
from zeroloss.errors import DivergenceError, IntegrationError, StabilityError

State = TypeVar("State")

_SECONDS_PER_CHUNK = 0.5  # so that progress, checkpoints and Ctrl-C come often enough


class AbstractEvolution(abc.ABC, Generic[State]):
    """A computation that `drive` advances through its times.

    `State` is a pytree that holds everything on which the rest depends, so that a checkpoint can bring it
    back. Times are training steps or slow time.
    """

    name: str
    """The name that the progress bar shows."""

    unit: str = "steps"
    first_chunk: ClassVar[int] = 1
    """How many steps `advance` takes at first; `drive` doubles the number while a chunk is quick."""

    @abc.abstractmethod
    def start(self) -> State:
        """The state to begin from."""

    @abc.abstractmethod
    def position(self, state: State) -> float:
        """The time that `state` has reached."""

    @abc.abstractmethod
    def advance(self, state: State, target: float, chunk: int) -> State:
        """The state after at most `chunk` steps towards `target`. It may pass the target."""

    @abc.abstractmethod
    def item(self, state: State, time: float) -> SavedArrays:
        """The arrays to save at `time`, which `state` has reached."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Numbers and words that say what is computed; a checkpoint of something else is refused."""

    def trajectory(self, items: list[SavedArrays]) -> Any:
        """The result so far, for an error on the way and for readers of the checkpoint; None without one."""
        return None


def drive(
    evolution: AbstractEvolution[State],
    times: Sequence[float] | np.ndarray,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    items: list[SavedArrays] | None = None,
) -> list[SavedArrays]:
    """Advance `evolution` through `times`, and return the items that it saves, one for each time.

    The items are also appended to the argument `items`, for callers that need them after an error. The error
    has the trajectory so far as its `path`.

    Where `checkpoint` holds a state, the computation continues from it, to bit-identical results: `advance`
    must give the same state whether its steps come in one chunk or in several.
    """
    items = [] if items is None else items
    chunk = evolution.first_chunk
    bar = progress_bar(evolution.name, float(times[-1]) or 1.0, evolution.unit)
    with checkpoint.open(), bar as show:
        state = checkpoint.restore(evolution.start(), items, evolution.facts)
        try:
            for target in map(float, times[len(items) :]):
                while evolution.position(state) < target:
                    began = time.perf_counter()
                    state = evolution.advance(state, target, chunk)
                    show(evolution.position(state))
                    if evolution.position(state) < target:
                        if time.perf_counter() - began < _SECONDS_PER_CHUNK / 2:
                            chunk *= 2
                        checkpoint.save_if_due(lambda: state, items, evolution.trajectory)  # noqa: B023
                items.append(evolution.item(state, target))
                last = len(items) == len(times)
                checkpoint.save_if_due(lambda: state, items, evolution.trajectory, last=last)  # noqa: B023
        except (DivergenceError, IntegrationError, StabilityError) as error:
            if error.path is None and items:
                error.path = evolution.trajectory(items)
            raise
    return items
