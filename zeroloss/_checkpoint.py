"""The state of a long computation on disk, from which the same call continues to bit-identical results."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import equinox as eqx
import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from zeroloss._files import PART, digest_of_bytes, replacing
from zeroloss.errors import Interrupted, RunError

_State = TypeVar("_State")
SavedArrays = dict[str, np.ndarray]
"""The arrays saved at one time, by name."""

_FORMAT = 3
_VERSIONED = ("zeroloss", "jax", "jaxlib", "numpy")  # another version may round in another way
LOCK = "lock"
"""The file that keeps other processes out of a folder."""

_STATE, _SAVED, _ONCE = "state.npz", "saved", "once"
_FACTS = "facts"
_LARGEST_SHARE = 0.05  # of the time, for saving


class Checkpoint:
    """A folder in which a long computation saves its state, and from which the same call continues.

        path = zl.descend(system, params, 0.1, 10**8, key=key, checkpoint=zl.Checkpoint("checkpoints/mine"))

    After a crash the same line continues from the last state saved. Its result is bit-identical to that of a
    run that was never stopped, on the same machine, devices and versions. During the computation, Ctrl-C
    (SIGINT) and SIGTERM make it finish the step, save and raise `zeroloss.errors.Interrupted`; a second
    signal stops it at once.

    **Arguments:**

    - `folder`: the folder. It is created if it does not exist, and must belong to this call alone.
    - `every`: seconds from one save to the next; longer if saving takes more than 5 % of the time. With 0
      every opportunity is used.
    - `stop`: a function that is called at every step; if it returns True, the computation saves and stops, as
      after a signal. Only the main thread receives signals: for another thread pass `event.is_set` of a
      `threading.Event`.
    - `published`: a function that is called after a save with the name of the part of the computation, such
      as "." or "limit", and the `zeroloss.Trajectory` so far.

    **Raises**, when it is used: `RunError` where the folder cannot be written, another process works in it,
    or its contents are damaged or belong to a call with other arguments or to other versions. Nothing is
    removed then. `checkpoint.remove()` deletes the state.

    Costs the state of the computation and the saved part of its trajectory on disk. A save writes the new
    part only. Files contain arrays and no pickle: opening a checkpoint executes nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: float = 30.0,
        stop: Callable[[], bool] = lambda: False,
        published: Callable[[str, Any], object] | None = None,
        _root: "_Root | None" = None,
    ):
        self._folder = Path(folder)
        self._root = _Root(self._folder, every, stop, published) if _root is None else _root
        self._written, self._earlier = 0, 0.0
        self._segments: list[tuple[int, str]] = []  # the number of its first item, and its fingerprint
        self._began = time.perf_counter()
        self._facts: dict[str, Any] = {}

    def __truediv__(self, name: str) -> "Checkpoint":
        """A checkpoint within this one, for a part of the computation."""
        return Checkpoint(self._folder / name, _root=self._root)

    def open(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder, and take signals as requests to save and stop."""
        return self._root.open()

    def restore(self, state: _State, items: list[SavedArrays], facts: Callable[[], dict[str, Any]]) -> _State:
        """The state to begin from: the one saved last, or `state` where nothing is saved.

        The items saved with it, dictionaries of arrays, replace the contents of `items`. `facts()` says in
        numbers and words what is computed; a checkpoint of something else is refused.
        """
        self._began = time.perf_counter()
        self._facts = json.loads(json.dumps(facts(), default=str))
        path = self._folder / _STATE
        if not path.exists():
            return state
        with _reading(path), np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays[_FACTS]))
            self._check(path, about)
            self._segments = [(int(first), str(found)) for first, found in about["segments"]]
            self._earlier = float(about["seconds"])
            self._written = int(about["count"])
            saved, restored = self._items(), _unpacked(state, arrays)
        items[:] = saved
        return restored

    def save_if_due(
        self,
        state: Callable[[], PyTree],
        items: list[SavedArrays],
        trajectory: Callable[[list[SavedArrays]], Any],
        *,
        last: bool = False,
    ) -> None:
        """Save if it is time to, if it is the `last` state, or if a signal has come; then stop.

        `trajectory(items)`, where it is not None, is published after the save. Raises `Interrupted` after a
        signal, and `RunError` where the state cannot be written.
        """
        stopped = self._root.stopped
        if not (last or stopped or self._root.due):
            return
        began = time.perf_counter()
        if len(items) > self._written:
            segment = {
                f"{index}/{name}": value
                for index, item in enumerate(items[self._written :])
                for name, value in item.items()
            }
            with replacing(self._segment(self._written)) as file:
                np.savez(file, allow_pickle=False, **segment)
            self._segments.append((self._written, _digest_of_arrays(segment)))
            self._written = len(items)
        about = {
            "format": _FORMAT,
            "versions": _versions(),
            "facts": self._facts,
            "segments": self._segments,
            "count": self._written,
            "seconds": self._earlier + time.perf_counter() - self._began,
        }
        with replacing(self._folder / _STATE) as file:
            np.savez(file, allow_pickle=False, **{_FACTS: np.array(json.dumps(about))}, **_packed(state()))
        if self._root.published is not None and items and not last:
            path = trajectory(items)
            if path is not None:
                self._root.published(self._folder.relative_to(self._root.folder).as_posix(), path)
        self._root.saved(time.perf_counter() - began)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise `Interrupted` after a signal. Call it when the state is saved."""
        if self._root.stopped:
            number = self._root.signal
            by = f"by {signal.Signals(number).name}" if number else "as asked"
            raise Interrupted(
                f"stopped {by}; the state is saved in {self._root.folder}, and the same call continues "
                "from it.",
                number or signal.SIGTERM,
            )

    def computed_once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value that `compute()` returned the first time: for choices that depend on time."""
        path = self._folder / _ONCE / f"{name}.json"
        place = path.relative_to(self._root.folder).as_posix()
        if path.exists():
            with _reading(path):
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["digest"] != _digest_of_text(f"{place} {kept['value']}"):
                    raise ValueError("its contents were changed after it was saved")
                return json.loads(kept["value"])
        text = json.dumps(compute())
        with replacing(path) as file:
            file.write(json.dumps({"value": text, "digest": _digest_of_text(f"{place} {text}")}).encode())
        return json.loads(text)

    @property
    def earlier_seconds(self) -> float:
        """The seconds that earlier processes spent on this computation."""
        return self._earlier

    def remove(self) -> None:
        """Delete the saved state, and no other files in the folder."""
        for path in sorted(self._folder.rglob("*"), reverse=True):
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.name.removesuffix(PART) in (_STATE, LOCK) or path.parent.name in (_SAVED, _ONCE):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _segment(self, first: int) -> Path:
        return self._folder / _SAVED / f"{first:08}.npz"

    def _items(self) -> list[SavedArrays]:
        items: list[SavedArrays] = [{} for _ in range(self._written)]
        for first, fingerprint in self._segments:
            path = self._segment(first)
            with _reading(path), np.load(path, allow_pickle=False) as arrays:
                segment = {where: arrays[where] for where in arrays.files}
                if _digest_of_arrays(segment) != fingerprint:
                    raise ValueError("its contents were changed after it was saved")
                for where, value in segment.items():
                    index, _, name = where.partition("/")
                    items[first + int(index)][name] = value
        if not all(items):
            raise RunError(f"the checkpoint {self._folder} is damaged: saves are missing. {_DAMAGED}")
        return items

    def _check(self, path: Path, about: Mapping[str, Any]) -> None:
        if about["format"] != _FORMAT or about["versions"] != _versions():
            theirs = {"format": about["format"], **about["versions"]}
            ours = {"format": _FORMAT, **_versions()}
            raise RunError(
                f"the checkpoint {path} was made by {_differences(theirs, ours)}: its results would "
                "not be bit-identical. Install those versions, or start in another folder."
            )
        if about["facts"] != self._facts:
            raise RunError(
                f"the checkpoint {path} belongs to another computation: "
                f"{_differences(about['facts'], self._facts)}. Use another folder, or repeat that call."
            )


class _NoCheckpoint(Checkpoint):
    """Saves nothing."""

    def __init__(self) -> None:
        self._earlier = 0.0

    def __truediv__(self, name: str) -> Checkpoint:
        return self

    def open(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def restore(self, state: _State, items: list[SavedArrays], facts: Callable[[], dict[str, Any]]) -> _State:
        return state

    def save_if_due(
        self,
        state: Callable[[], PyTree],
        items: list[SavedArrays],
        trajectory: Callable[[list[SavedArrays]], Any],
        *,
        last: bool = False,
    ) -> None:
        pass

    def stop_if_asked(self) -> None:
        pass

    def computed_once(self, name: str, compute: Callable[[], Any]) -> Any:
        return compute()

    def remove(self) -> None:
        pass


NO_CHECKPOINT = _NoCheckpoint()
"""The checkpoint of a computation that saves nothing."""


class _Root:
    """The part of a checkpoint that all stages of a computation share: folder, lock, signals and clock."""

    def __init__(
        self,
        folder: Path,
        every: float,
        stop: Callable[[], bool],
        published: Callable[[str, Any], object] | None,
    ):
        self.folder, self.published = folder, published
        self.signal, self._stop = 0, stop
        self._every = self._interval = every
        self._last, self._depth = time.monotonic(), 0

    @property
    def stopped(self) -> bool:
        """Whether a signal or the `stop` function asks to stop."""
        return bool(self.signal) or self._stop()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._last >= self._interval

    def saved(self, seconds: float) -> None:
        self._last = time.monotonic()
        self._interval = max(self._every, seconds / _LARGEST_SHARE) if self._every > 0 else 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self._depth += 1
        try:
            with contextlib.ExitStack() as stack:
                if self._depth == 1:
                    stack.enter_context(lock_folder(self.folder))
                    stack.enter_context(self._signals())
                yield
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self.signal, self._last = 0, time.monotonic()

        def stop(number: int, _: FrameType | None) -> None:
            if self.signal:
                raise Interrupted(
                    f"stopped at once; the last saved state is in {self.folder}.", number, at_once=True
                )
            self.signal = number

        with handle_signals(stop, signal.SIGINT, signal.SIGTERM):
            yield


@contextlib.contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Handle these signals inside the `with` block. Without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. The lock of a process that dies is released.

    Raises `RunError` where another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RunError(
            f"another process is working in {folder}; two cannot. Wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process is working in `folder`."""
    try:
        if (folder / LOCK).exists():
            with filelock.FileLock(folder / LOCK, blocking=False):
                pass
        return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that cannot be opened cannot be in use
        return False


_DAMAGED = "Nothing was changed; start in another folder, or delete this one."


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise ValueError("it is not a file")
        yield
    except RunError:
        raise
    except Exception as error:  # zip, NumPy and JSON raise anything on damaged files
        raise RunError(f"the checkpoint {path} cannot be read: {error}. {_DAMAGED}") from error


def _digest_of_text(text: str) -> str:
    return digest_of_bytes([text.encode()])


def _digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    return digest_of_bytes(
        f"{name} {array.shape} {array.dtype.itemsize} ".encode() + array.tobytes()
        for name, array in arrays.items()
    )


def digest(tree: PyTree) -> str:
    """A short fingerprint of all numbers in `tree`."""

    def in_bytes(leaf: Any) -> bytes:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return f"{array.shape} {array.dtype} ".encode() + array.tobytes()

    return digest_of_bytes(in_bytes(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf))


def facts_of(system: Any, start: PyTree, times: np.ndarray, **more: Any) -> dict[str, Any]:
    """Facts about a computation that takes a system from a start through times, for `Checkpoint.restore`.

    Costs one pass over all data and parameters.
    """
    readable = dict(noise=system.describe(), **more)  # they come first in messages
    return readable | dict(system=digest(system), start=digest(start), saves=digest(times))


def _packed(state: PyTree) -> dict[str, np.ndarray]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state) if eqx.is_array_like(leaf)]
    return {f"{index}": _plain(leaf) for index, leaf in enumerate(leaves)}


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a type that NumPy's files support; bfloat16 becomes bytes."""
    if array.dtype.isbuiltin == 1:
        return array
    return np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.dtype.itemsize)


def _unpacked(like: _State, arrays: Mapping[str, np.ndarray]) -> _State:
    """The state that was packed, with the structure, devices and types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    restored, index = [], 0
    for leaf in leaves:
        if not eqx.is_array_like(leaf):
            restored.append(leaf)
            continue
        value, index = arrays[f"{index}"], index + 1
        expected = _plain(np.asarray(leaf))
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ValueError(
                f"an array of shape {value.shape} and type {value.dtype} is in the place of one of shape "
                f"{expected.shape} and type {expected.dtype}"
            )
        value = np.frombuffer(value.tobytes(), np.asarray(leaf).dtype).reshape(np.shape(leaf))
        if isinstance(leaf, jax.Array):  # on its own devices if it was bound to them
            restored.append(jax.device_put(value, leaf.sharding) if leaf.committed else jnp.asarray(value))
        else:
            restored.append(value if isinstance(leaf, np.ndarray) else type(leaf)(value.item()))
    return jax.tree.unflatten(structure, restored)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONED}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} {theirs.get(name)!r} (here {ours.get(name)!r})" for name in names)
