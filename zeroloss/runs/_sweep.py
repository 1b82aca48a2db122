"""A grid of runs, each in a folder of its own, several at a time.

The folder of a sweep is a run itself: `config.json` holds the grid, `results.zarr` the numbers of all cells
along the axes of the grid, and `cells/` their folders.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, as_completed, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from pydantic import JsonValue
from rich.markup import escape

from zeroloss._checkpoint import handle_signals, lock_folder
from zeroloss._progress import Tell, progress_bar, silent
from zeroloss.errors import InputError, Interrupted, RunError, ZerolossError
from zeroloss.runs._commands import config_from
from zeroloss.runs._executors import worker_processes
from zeroloss.runs._folder import (
    CELLS,
    CONFIG,
    STOP,
    check_free,
    column,
    configuration,
    create,
    events,
    has_previous,
    is_timing,
    log,
    require_idle,
    restore_previous,
    write_results,
)
from zeroloss.runs._grid import SweepConfig, in_words
from zeroloss.runs._resume import resume, start
from zeroloss.runs._run import Run, open_run
from zeroloss.runs._table import rows

COMPLETE, FAILED, UNFINISHED, WAITING = "complete", "failed", "unfinished", "waiting"
_STOPPED = "stopped"  # as it was told to, after saving
_FAILED, _LOST = "cell failed", "cell lost"  # events: by an error of its own, or with its worker
_LONGEST_REASON = 1000

MakesExecutor = Executor | AbstractContextManager[Executor] | None


class Cell(NamedTuple):
    """One run of a sweep: its place on the axes, its folder, its status, and why it failed."""

    place: dict[str, JsonValue]
    path: Path
    status: str
    reason: str

    @property
    def name(self) -> str:
        """Its place in words."""
        return ", ".join(f"{axis}={in_words(value)}" for axis, value in self.place.items())


def sweep(
    config: SweepConfig,
    folder: Path,
    *,
    executor: MakesExecutor = None,
    overwrite: bool = False,
    tell: Tell = silent,
    every: float = 30.0,
) -> xr.DataTree:
    """Do all runs of a grid, each in a folder of its own, and return their numbers.

    **Arguments:**

    - `config`: from `sweep_config`; `folder`: for the sweep, on a disk that all workers see.
    - `executor`: any of `concurrent.futures`; or a context manager that yields one, such as
      `dask_executor(...)`, which is entered once there is something to compute; by default
      `worker_processes()`, a process for each core.
    - `overwrite`: whether to replace a sweep that is there already, all its cells with it.
    - `every`: seconds from one save of a cell's state to the next.

    **Returns:** a tree whose root has the axes of the grid as dimensions, and `noise` where that is not one
    of them: `status`, `reason`, and the numbers of `rows` for each cell.

    A cell that fails is reported with its reason, and does not stop the others. After a crash or a signal
    `resume_sweep` goes on: cells that are complete are not done again, and one that was interrupted goes on
    from its checkpoint.

    Raises, before anything is computed, `InputError` for a problem or noise that cannot be made on one of the
    axes, and `RunError` for a folder that holds something already; `Interrupted` after a signal, once the
    cells that were being computed have saved their state. A second signal does not wait for that.
    """
    check_free(folder, overwrite=overwrite)
    first = next(config.places())
    for axis, values in config.grid.items():
        for value in values:
            config.cell_at({**first, axis: value}).load()
    with contextlib.ExitStack() as stack:
        entered = _entered(executor, stack, tell)
        stack.enter_context(lock_folder(folder))
        create(folder, config, overwrite=overwrite)
        log(folder, "started")
        return _go_on(config, folder, entered, tell, every)


def resume_sweep(
    folder: Path,
    *,
    executor: MakesExecutor = None,
    tell: Tell = silent,
    every: float = 30.0,
) -> xr.DataTree:
    """Go on with the sweep in `folder`: with cells that were interrupted, failed, or not begun."""
    config = configuration(folder)
    if not isinstance(config, SweepConfig):
        raise InputError(f"{folder} holds a run; use resume.")
    with lock_folder(folder):
        require_idle(folder)
        log(folder, "resumed")
        return _go_on(config, folder, executor, tell, every)


def cells_of(config: SweepConfig, folder: Path) -> list[Cell]:
    """All cells of the sweep in `folder`, with their status."""
    return [cell for cell, _ in _cells(config, folder)]


def collect(config: SweepConfig, folder: Path) -> xr.DataTree:
    """The numbers of all cells of a sweep up to now, as `sweep` returns them."""
    noises = config.noises
    noise_axis = {} if "noise" in config.grid else {"noise": column(list(noises))}
    axes, shape = [*config.grid, *noise_axis], (*config.shape, *map(len, noise_axis.values()))
    cells: list[Cell] = []
    found: list[dict[str, Any]] = []
    for cell, run in _cells(config, folder):
        cells.append(cell)
        of: dict[Any, dict[str, Any]] = {}
        if run is not None and cell.status == COMPLETE:
            of = {row["noise"]: row for row in rows(config.cell.command, run.results)}
        found += [of.get(noise, {}) for noise in (noises if noise_axis else [cell.place["noise"]])]
    columns = {
        "status": [cell.status for cell in cells],
        "reason": [cell.reason for cell in cells],
        "folder": [cell.path.relative_to(folder).as_posix() for cell in cells],
    }
    data: dict[str, Any] = {
        name: (list(config.grid), column(values).reshape(config.shape)) for name, values in columns.items()
    }
    lists = {name for row in found for name, value in row.items() if isinstance(value, list)}
    for name in dict.fromkeys(name for row in found for name in row):
        if name != "noise" and not is_timing(name) and name not in lists:
            values = column([row.get(name) for row in found]).reshape(shape)
            data[f"{name}_of_run" if name in (*axes, *data) else name] = (axes, values)
    coordinates = {name: _coordinate(values) for name, values in config.grid.items()} | noise_axis
    coordinates = {name: (name, values) for name, values in coordinates.items()}
    return xr.DataTree(xr.Dataset(data, coordinates, {"command": config.cell.command}))


def compute_cell(path: str, values: Mapping[str, Any], every: float) -> str:
    """Do one cell, or go on with it, in whatever process this is.

    Returns why it is not complete, or nothing. Raises `Interrupted` after a signal to this process.
    """
    jax.config.update("jax_enable_x64", True)
    folder = Path(path)
    whole = folder.parent.parent
    stop = functools.partial(os.path.exists, whole / STOP)
    if multiprocessing.parent_process() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C between two cells would break a process pool
    try:
        if not (whole / CONFIG).is_file():
            raise RunError(f"{whole} is not there: every worker must see the folder of the sweep.")
        if stop():
            return _STOPPED
        if (folder / CONFIG).is_file():
            resume(folder, every=every, stop=stop)
        else:
            start(config_from(values), folder, every=every, stop=stop)
    except Interrupted as stopped:
        if stop() and not stopped.at_once:
            return _STOPPED
        raise
    except ZerolossError as error:
        return str(error)
    except Exception as error:  # raised by a user's problem
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {last.name}, line {last.lineno} of {last.filename}: {error}"
    return ""


def _entered(executor: MakesExecutor, stack: contextlib.ExitStack, tell: Tell) -> Executor:
    made = worker_processes(tell=tell) if executor is None else executor
    return made if isinstance(made, Executor) else stack.enter_context(made)


def _go_on(
    config: SweepConfig, folder: Path, executor: MakesExecutor, tell: Tell, every: float
) -> xr.DataTree:
    """Compute the cells that are not complete, and write the results; an error says why some are missing."""
    folder = folder.resolve()
    cells = cells_of(config, folder)
    left = [cell for cell in cells if cell.status != COMPLETE]
    stopped: Interrupted | None = None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_sigterm_interrupts())
            if left:
                entered = _entered(executor, stack, tell)
                tick = stack.enter_context(progress_bar(f"{len(cells)} cells", len(cells), "cells"))
                count = lambda left, tick=tick: tick(len(cells) - left)  # noqa: E731
                stopped = _compute_cells(config, folder, left, entered, tell, count, every)
    except KeyboardInterrupt as stop:  # while the executor begins or ends
        stopped = stopped or _as_interrupted(stop)
    results = collect(config, folder)
    done = int(np.sum(results.to_dataset()["status"].values == COMPLETE))
    if done or not has_previous(folder):
        write_results(folder, results, complete=done == len(cells))
    if stopped is not None and done < len(cells):
        log(folder, "stopped", cells=done)
        others = (
            "last saved state of the others is kept" if stopped.at_once else "state of the others is saved"
        )
        raise Interrupted(
            f"{done} of {len(cells)} cells are complete; the {others}. To continue: zeroloss resume {folder}",
            stopped.signal,
            at_once=stopped.at_once,
        )
    if has_previous(folder):
        reason = next(filter(None, results.to_dataset()["reason"].values.ravel()), "it is not known why")
        if any(event["event"] == _LOST for event in _latest_events(folder)):
            log(folder, "failed", cells=done)
            raise RunError(
                f"none of the {len(cells)} cells finished: workers were lost. Saved states were kept, and "
                "the run that was to be overwritten is kept until a cell is complete. To go on: zeroloss "
                f"resume {folder}. The first reason: {reason}"
            )
        restore_previous(folder)
        raise RunError(
            f"none of the {len(cells)} cells could be completed, and the run that was to be overwritten is "
            f"back. The first reason: {reason}"
        )
    log(folder, "finished" if done == len(cells) else "failed", cells=done)
    return results


def _compute_cells(
    config: SweepConfig,
    folder: Path,
    left: list[Cell],
    executor: Executor,
    tell: Tell,
    count: Callable[[int], None],
    every: float,
) -> Interrupted | None:
    """Compute the cells that are left; returns what stopped them, if anything did."""
    futures: dict[Future[str], Cell] = {}

    def ended(future: Future[str]) -> str:
        """Report how a cell ended; returns why it is not complete, or nothing."""
        cell, (reason, lost) = futures.pop(future), _reason(future)
        if reason == _STOPPED:
            return reason
        if reason:
            tell(f"[red]{escape(cell.name)}[/red] failed: {escape(reason)}")
            log(folder, _LOST if lost else _FAILED, cell=cell.path.name, reason=reason)
        else:
            log(folder, "cell complete", cell=cell.path.name)
        count(len(futures))
        return reason

    count(len(left))
    try:
        for cell in left:
            values = config.cell_at(cell.place).model_dump(mode="json", exclude={"strengths"})
            futures[executor.submit(compute_cell, str(cell.path), values, every)] = cell
        reasons = [ended(future) for future in as_completed(list(futures))]
        return Interrupted("stopped", signal.SIGTERM) if _STOPPED in reasons else None
    except KeyboardInterrupt as error:
        stop = _as_interrupted(error)
        try:
            (folder / STOP).touch()
            with contextlib.suppress(OSError, SystemExit):  # where standard error is closed
                tell("Stopping, once the cells at work have saved. Ctrl-C again stops at once.")
            wait(futures)
            reasons = [ended(future) for future in list(futures)]
            saved = all(reason in ("", _STOPPED) for reason in reasons)
        except (KeyboardInterrupt, OSError, RunError):
            saved = False
        return Interrupted(str(stop), stop.signal, at_once=stop.at_once or not saved)
    finally:
        if futures:
            with contextlib.suppress(OSError):
                (folder / STOP).touch()
            for future in futures:
                future.cancel()


def _as_interrupted(stop: KeyboardInterrupt) -> Interrupted:
    return stop if isinstance(stop, Interrupted) else Interrupted("stopped", signal.SIGINT)


def _reason(future: Future[str]) -> tuple[str, bool]:
    """Why a cell is not complete, or nothing; and whether its worker was lost."""
    try:
        return future.result()[:_LONGEST_REASON], False
    except Interrupted as stop:
        return (f"it was stopped: {stop}", True) if stop.at_once else (_STOPPED, False)
    except CancelledError:
        return "the worker cancelled the cell or was lost", True
    except Exception as error:  # the process that computed it is gone
        return f"{type(error).__name__}: {error}"[:_LONGEST_REASON], True


def _cells(config: SweepConfig, folder: Path) -> Iterator[tuple[Cell, Run | None]]:
    """All cells, and the run of each where there is one."""
    reasons = {
        str(event.get("cell")): str(event.get("reason"))
        for event in _latest_events(folder)
        if event["event"] in (_FAILED, _LOST)
    }
    for index, place in enumerate(config.places()):
        path = folder / CELLS / f"{index:05d}"
        status, reason, run = WAITING, reasons.get(path.name, ""), None
        if (path / CONFIG).is_file():
            try:
                run = open_run(path)
                status = COMPLETE if run.complete else UNFINISHED
            except RunError as error:
                status, reason = FAILED, str(error)
        if status != COMPLETE and path.name in reasons:
            status = FAILED
        yield Cell(place, path, status, "" if status == COMPLETE else reason), run


def _latest_events(folder: Path) -> list[dict[str, Any]]:
    """The events since the sweep was last begun or resumed."""
    latest: list[dict[str, Any]] = []
    for event in events(folder):
        if event["event"] in ("started", "resumed"):
            latest.clear()
        latest.append(event)
    return latest


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does."""

    def stop(number: int, _: object) -> None:
        raise Interrupted("stopped", number)

    with handle_signals(stop, signal.SIGTERM):
        yield


def _coordinate(values: tuple[JsonValue, ...]) -> np.ndarray:
    numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    return np.array(numbers) if len(numbers) == len(values) else column([in_words(each) for each in values])
