"""Executors that compute the cells of a sweep: processes on this machine, or a Dask cluster."""

import contextlib
import os
import queue
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import jax
import pydantic

from zeroloss._progress import Tell, silent
from zeroloss.errors import InputError, RunError, UnsupportedError

_DEATHS = 4  # of processes over one cell
_PATIENCE = 20.0  # seconds to wait for a scheduler
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_SIZE = pydantic.TypeAdapter(pydantic.ByteSize)


@contextlib.contextmanager
def worker_processes(
    *, workers: int | None = None, memory: str | None = None, tell: Tell = silent
) -> Iterator[Executor]:
    """An executor of processes on this machine, which end with the block.

    - `workers`: how many; by default one for each core, or one where JAX computes on a GPU. Each computes
      with its share of the cores.
    - `memory`: how much each of them may take, such as "4GiB"; by default its share of the machine's memory.
      On Linux a worker cannot take more, and its cell fails or the worker dies.
    - `tell`: is told how many workers there are, and the bound on their memory.

    A worker that dies is replaced, and its call is made again; after four deaths the call raises
    `RunError`. Raises `InputError` for a bound that is not valid.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = (cores if jax.default_backend() == "cpu" else 1) if workers is None else workers
    if count < 1:
        raise InputError(f"there must be at least one worker, got {count}.")
    try:
        limit = _memory() // count if memory is None else _SIZE.validate_python(memory)
    except pydantic.ValidationError:
        raise InputError(f"memory must be a size such as 4GiB, got {memory!r}.") from None
    tell(
        f"{count} worker process{'es' if count > 1 else ''} on this machine, with at most "
        f"{pydantic.ByteSize(limit).human_readable()} of memory each."
    )
    with _environment(max(1, cores // count)):
        executor = _Workers(count, limit)
        try:
            yield executor
        finally:
            executor.end()


class _Workers(ThreadPoolExecutor):
    """A thread for each worker process hands on its calls, and replaces the process when it dies."""

    def __init__(self, count: int, memory: int):
        super().__init__(count)
        self._memory, self._ended = memory, False
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._all: set[_Worker] = set()
        for _ in range(count):
            self._idle.put(None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(self._call, fn, *args, **kwargs)

    def _call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        worker = self._idle.get()
        try:
            for _ in range(_DEATHS):
                try:
                    if worker is None:
                        worker = _Worker(self._memory)
                        self._all.add(worker)
                        if self._ended:
                            worker.end()
                    return worker.pool.submit(fn, *args, **kwargs).result()
                except BrokenProcessPool:
                    worker = None
                    if self._ended:
                        raise
            raise RunError(f"its process died {_DEATHS} times; it may have taken too much memory.")
        finally:
            self._idle.put(worker)

    def end(self) -> None:
        """End all processes, whatever they compute."""
        self._ended = True
        self.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._all):
            worker.end()


class _Worker:
    """A process that computes."""

    def __init__(self, memory: int):
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (memory,))
        self._number = self.pool.submit(os.getpid).result()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._number, signal.SIGKILL)
        self.pool.shutdown()


def _begin(memory: int) -> None:
    """In a worker: bound its memory, leave signals of the terminal to the parent, and end with it."""
    os.setpgrp()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or memory < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _memory() -> int:
    """The memory that processes on this machine, or in this container, may take."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        found = min(found, int(_CGROUP.read_text()))
    return found


@contextlib.contextmanager
def _environment(cores: int) -> Iterator[None]:
    """Keep the processes that start meanwhile to this many cores each."""
    threads = str(cores)
    own = {
        "NPROC": threads,  # the threads of XLA on the CPU
        "PJRT_NPROC": threads,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # on a GPU that workers share
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def dask_executor(scheduler: str, *, tell: Tell = silent) -> Iterator[Executor]:
    """An executor of the Dask cluster whose scheduler is at an address such as "tcp://10.0.0.1:8786".

    Its workers must have zeroloss and see the same folders. Dask bounds their memory, replaces those that
    die, and makes a call again whose worker died, at most four times.

    Raises `UnsupportedError` without distributed, and `RunError` where there is no scheduler at the address.
    """
    try:
        import distributed
        from dask.utils import format_bytes
    except ImportError:
        raise UnsupportedError(
            "Dask clusters need the package distributed: pip install 'zeroloss[sweep]'."
        ) from None
    try:
        client = distributed.Client(scheduler, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise RunError(f"there is no scheduler to reach at {scheduler!r}: {error}.") from error
    with client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        limits = sorted({format_bytes(each["memory_limit"] or 0) for each in workers})
        tell(
            f"{len(workers)} workers at {scheduler}, with at most {', '.join(limits)} of memory each."
            if workers
            else f"no workers at {scheduler} yet; the cells wait for them."
        )
        yield client.get_executor(pure=False)  # a cell that is asked for again is computed again
