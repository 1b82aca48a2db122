"""The processes that do the cells of a sweep: Dask's, on this machine or on a cluster that runs already."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import jax

from zeroloss.errors import InputError, RunError, UnsupportedError

_PATIENCE = 20.0  # seconds to wait for a scheduler


@contextlib.contextmanager
def dask_executor(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Executor]:
    """An executor for `sweep`, from Dask distributed.

    **Arguments:**

    - `scheduler`: the address of a running cluster, such as "tcp://10.0.0.1:8786", whose workers have
      zeroloss and see the same folders. Without it a cluster on this machine, which ends with the block.
    - `workers`: of that, how many processes: by default as many as there are cores, one where JAX computes on
      a GPU. Each computes with its share of the cores.
    - `memory`: of that, how much each of them may take, such as "4GiB": by default its share of what the
      machine has. One that takes more is ended and replaced, and its cell goes on from its checkpoint; after
      four times the cell has failed.
    - `tell`: is told what was started, the bound on memory included.

    Raises `UnsupportedError` without distributed, `InputError` for a bound that is none, and `RunError`
    where there is no scheduler at the address.
    """
    try:
        import distributed
        from dask.utils import format_bytes, parse_bytes
        from distributed.system import MEMORY_LIMIT
    except ImportError:
        raise UnsupportedError(
            "sweeps need the package distributed: pip install 'zeroloss[sweep]'."
        ) from None
    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            if workers is not None or memory is not None:
                raise InputError("the workers of a cluster that runs already, and their memory, are its own.")
            try:
                client = distributed.Client(scheduler, timeout=_PATIENCE)
            except (OSError, ValueError) as error:
                raise RunError(f"there is no scheduler to reach at {scheduler!r}: {error}.") from error
            stack.enter_context(client)
            found = client.scheduler_info(n_workers=-1)["workers"].values()
            tell(
                f"{len(found)} workers at {scheduler}, with at most "
                f"{', '.join(sorted({_bound(each['memory_limit'], format_bytes) for each in found}))} each."
                if found
                else f"no workers at {scheduler} yet; the cells wait for them."
            )
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            count = (cores if jax.default_backend() == "cpu" else 1) if workers is None else workers
            if count < 1:
                raise InputError(f"there must be at least one worker, got {count}.")
            try:
                limit = MEMORY_LIMIT // count if memory is None else parse_bytes(memory)
            except ValueError as error:
                raise InputError(f"memory must be a size such as 4GiB, got {memory!r}.") from error
            cluster = distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                memory_limit=limit,
                dashboard_address=None,  # pyright: ignore[reportArgumentType]  # as its documentation says
                silence_logs=logging.CRITICAL,
                env=_environment(max(1, cores // count)),
            )
            stack.enter_context(cluster)
            client = stack.enter_context(distributed.Client(cluster))
            client.register_worker_callbacks(_leave_the_group)
            limits = {each.memory_manager.memory_limit for each in cluster.workers.values()}
            tell(
                f"{count} worker process{'es' if count > 1 else ''} on this machine, with at most "
                f"{', '.join(sorted(_bound(each, format_bytes) for each in limits))} of memory each."
            )
        yield client.get_executor(pure=False)  # a cell is done again when it is asked for again


def _leave_the_group() -> None:
    """Leave signals, which terminals and schedulers send to all, to the process that tells others to stop."""
    os.setpgrp()


def _bound(limit: int | None, in_words: Callable[[int], str]) -> str:
    return in_words(limit) if limit else "any amount"


def _environment(cores: int) -> dict[str, str]:
    """What keeps a worker to its share of the machine."""
    threads = str(cores)
    return {
        "NPROC": threads,  # the threads of XLA on the CPU
        "PJRT_NPROC": threads,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # on a GPU that workers share
    }
