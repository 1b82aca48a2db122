"""A grid of runs, each in a folder of its own, several at a time.

The folder of a sweep is a run itself: `config.json` holds the grid, `results.zarr` what all cells found in
numbers, along the axes of the grid, and `cells/` their folders.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, as_completed, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from pydantic import JsonValue
from rich.markup import escape

from zeroloss import problems
from zeroloss._checkpoint import lock_folder
from zeroloss._progress import progress_bar, show_progress
from zeroloss.errors import InputError, Interrupted, RunError, ZerolossError
from zeroloss.problems import parse_noise, strengths_from
from zeroloss.runs._cluster import dask_executor
from zeroloss.runs._config import config_from
from zeroloss.runs._folder import (
    CELLS,
    CONFIG,
    STOP,
    check_free,
    column,
    create,
    events,
    has_previous,
    is_timing,
    log,
    require_idle,
    restore_previous,
    write_results,
)
from zeroloss.runs._grid import STRENGTHS, SweepConfig, in_words
from zeroloss.runs._jobs import Tell, resume, start
from zeroloss.runs._run import Run, open_run
from zeroloss.runs._table import rows

COMPLETE, FAILED, UNFINISHED, WAITING = "complete", "failed", "unfinished", "waiting"
_STOPPED = "stopped"  # as it was told to, after saving
_FAILED, _LOST = "cell failed", "cell lost"  # in the log: of itself, or with who computed it
_LONGEST_REASON = 1000


class Cell(NamedTuple):
    """One run of a sweep: its place on the axes, its folder, and how it stands."""

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
    executor: Executor | AbstractContextManager[Executor] | None = None,
    overwrite: bool = False,
    tell: Tell = lambda _: None,
    progress: bool = False,
    every: float = 30.0,
) -> xr.DataTree:
    """Do all runs of a grid, each in a folder of its own, and return what they found.

    **Arguments:**

    - `config`: from `sweep_config`; `folder`: for the sweep, seen by all who compute.
    - `executor`: any of `concurrent.futures`; or what makes one, such as `dask_executor(...)`, which is
      entered once there is something to compute; by default that, with a worker process for each core.
    - `overwrite`: whether to replace a sweep that is there already, all its cells with it.
    - `every`: seconds from one save of a cell's state to the next.

    **Returns:** a tree whose root has the axes of the grid as dimensions, and `noise` where that is none of
    them: `status`, `reason`, and the numbers of `rows` for each cell.

    A cell that fails is reported with its reason, and does not stop the others. After a crash or a signal
    `resume_sweep` goes on: cells that are complete are not done again, and one that was interrupted goes on
    from its checkpoint.

    Raises, before anything is computed, `InputError` for a problem or noise that cannot be made on one of the
    axes, and `RunError` for a folder that holds something already; `Interrupted` after a signal, once the
    cells that were being computed have saved their state. A second signal does not wait for that.
    """
    check_free(folder, overwrite=overwrite)
    _check(config)
    with contextlib.ExitStack() as stack:
        used = _entered(executor, stack, tell)
        stack.enter_context(lock_folder(folder))
        create(folder, config.model_dump(mode="json"), overwrite=overwrite)
        log(folder, "started")
        return _go_on(config, folder, used, tell, progress, every)


def resume_sweep(
    config: SweepConfig,
    folder: Path,
    *,
    executor: Executor | AbstractContextManager[Executor] | None = None,
    tell: Tell = lambda _: None,
    progress: bool = False,
    every: float = 30.0,
) -> xr.DataTree:
    """Go on with the sweep in `folder`: with cells that were interrupted, failed, or not begun."""
    with lock_folder(folder):
        require_idle(folder)
        log(folder, "resumed")
        return _go_on(config, folder, executor, tell, progress, every)


def cells_of(config: SweepConfig, folder: Path) -> list[Cell]:
    """All cells of the sweep in `folder`, and how each stands."""
    return [cell for cell, _ in _looked(config, folder)]


def collect(config: SweepConfig, folder: Path) -> xr.DataTree:
    """What the cells of a sweep have found up to now, as `sweep` returns it."""
    noises = config.noises
    own = {} if "noise" in config.grid else {"noise": column(list(noises))}
    axes, shape = [*config.grid, *own], (*config.shape, *map(len, own.values()))
    cells: list[Cell] = []
    found: list[dict[str, Any]] = []
    for cell, run in _looked(config, folder):
        cells.append(cell)
        of: dict[Any, dict[str, Any]] = {}
        if run is not None and cell.status == COMPLETE:
            of = {row["noise"]: row for row in rows(str(config.cell["command"]), run.results)}
        found += [of.get(noise, {}) for noise in ([cell.place["noise"]] if not own else noises)]
    stands = {
        "status": [cell.status for cell in cells],
        "reason": [cell.reason for cell in cells],
        "folder": [cell.path.relative_to(folder).as_posix() for cell in cells],
    }
    data: dict[str, Any] = {
        name: (list(config.grid), column(values).reshape(config.shape)) for name, values in stands.items()
    }
    lists = {name for row in found for name, value in row.items() if isinstance(value, list)}
    for name in dict.fromkeys(name for row in found for name in row):
        if name != "noise" and not is_timing(name) and name not in lists:
            values = column([row.get(name) for row in found]).reshape(shape)
            data[f"{name}_of_run" if name in (*axes, *data) else name] = (axes, values)
    coordinates = {name: _coordinate(values) for name, values in config.grid.items()} | own
    coordinates = {name: (name, values) for name, values in coordinates.items()}
    return xr.DataTree(xr.Dataset(data, coordinates, {"command": str(config.cell["command"])}))


def compute_cell(path: str, values: Mapping[str, Any], every: float) -> str:
    """Do one cell, or go on with it, in whatever process this is.

    Returns why it is not complete, or nothing. Raises `Interrupted` after a signal to this process.
    """
    jax.config.update("jax_enable_x64", True)
    folder = Path(path)
    whole = folder.parent.parent
    stop = functools.partial(os.path.exists, whole / STOP)
    _leave_interrupts()
    try:
        if not (whole / CONFIG).is_file():
            raise RunError(f"{whole} is not there: who computes must see the sweep's folder.")
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
    except Exception as error:  # what a problem of the user's own raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {last.name}, line {last.lineno} of {last.filename}: {error}"
    return ""


def _leave_interrupts() -> None:
    """In a process of a pool, do not die of Ctrl-C between two cells: that would break the pool."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if multiprocessing.parent_process() is not None and in_main_thread:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check(config: SweepConfig) -> None:
    """Make every problem and noise once that is on one of the axes, with the first value of all others."""
    first = next(config.places())
    for axis, values in config.grid.items():
        for value in values:
            cell = config.cell_at({**first, axis: value})
            problem = problems.load(cell.problem, **cell.options)
            for noise in cell.noise:
                parse_noise(problem, noise, cell.strengths)
    for axis in STRENGTHS:
        if len(config.grid.get(axis, ())) > 1 and not any(
            _takes_strength(each, axis) for each in config.noises
        ):
            raise InputError(
                f"all cells along the axis {axis!r} would be the same: no noise takes its strength from "
                f"there, among {', '.join(config.noises)}. It is for noises that have such a strength and "
                "are named without one, such as dropout and not dropout:0.1 for a rate."
            )


def _takes_strength(noise: str, axis: str) -> bool:
    """Whether some part of a noise has the strength that is an axis, and is named without one."""
    named = strengths_from(**{axis: 1.0})
    return any(part.strip() in named for part in noise.split("+"))


def _go_on(
    config: SweepConfig,
    folder: Path,
    executor: Executor | AbstractContextManager[Executor] | None,
    tell: Tell,
    progress: bool,
    every: float,
) -> xr.DataTree:
    folder = folder.resolve()
    cells = cells_of(config, folder)
    left = [cell for cell in cells if cell.status != COMPLETE]
    stopped: Interrupted | None = None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_terminable())
            if left:
                used = _entered(executor, stack, tell)
                stopped = _compute(config, folder, left, len(cells), used, tell, progress, every)
    except KeyboardInterrupt as stop:  # while the executor begins or ends
        stopped = stopped or _as_interrupted(stop)
    results = collect(config, folder)
    done = int(np.sum(results.to_dataset()["status"].values == COMPLETE))
    if done or not has_previous(folder):
        write_results(folder, results, complete=done == len(cells))
    if stopped is not None and done < len(cells):
        log(folder, "stopped", cells=done)
        others = "had saved last is there" if stopped.at_once else "had done is saved"
        raise Interrupted(
            f"{done} of {len(cells)} cells are complete, and what the others {others}. To go on: zeroloss "
            f"resume {folder}",
            stopped.signal,
            at_once=stopped.at_once,
        )
    if has_previous(folder):
        reason = next(filter(None, results.to_dataset()["reason"].values.ravel()), "it is not known why")
        if any(event["event"] == _LOST for event in _latest_events(folder)):
            log(folder, "failed", cells=done)
            raise RunError(
                f"none of the {len(cells)} cells could be completed, because who computed them is lost. What "
                "they had saved is there, and what was to be overwritten is kept until a cell is complete. "
                f"To go on: zeroloss resume {folder}. The first reason: {reason}"
            )
        restore_previous(folder)
        raise RunError(
            f"none of the {len(cells)} cells could be completed, and what was to be overwritten is back. The "
            f"first reason: {reason}"
        )
    log(folder, "finished" if done == len(cells) else "failed", cells=done)
    return results


def _entered(
    executor: Executor | AbstractContextManager[Executor] | None, stack: contextlib.ExitStack, tell: Tell
) -> Executor:
    made = dask_executor(tell=tell) if executor is None else executor
    return made if isinstance(made, Executor) else stack.enter_context(made)


def _compute(
    config: SweepConfig,
    folder: Path,
    left: list[Cell],
    total: int,
    executor: Executor,
    tell: Tell,
    progress: bool,
    every: float,
) -> Interrupted | None:
    """Do the cells that are left; returns what stopped it, if anything did."""
    futures: dict[Future[str], Cell] = {}
    with show_progress(progress), progress_bar(f"{total} cells", total, "cells") as tick:

        def ended(future: Future[str]) -> str:
            """Say how a cell ended; returns why it is not complete, or nothing."""
            cell, (reason, lost) = futures.pop(future), _reason(future)
            if reason == _STOPPED:
                return reason
            if reason:
                tell(f"[red]{escape(cell.name)}[/red] failed: {escape(reason)}")
                log(folder, _LOST if lost else _FAILED, cell=cell.path.name, reason=reason)
            else:
                log(folder, "cell complete", cell=cell.path.name)
            tick(total - len(futures))
            return reason

        tick(total - len(left))
        try:
            for cell in left:
                values = config.cell_at(cell.place).model_dump(mode="json")
                futures[executor.submit(compute_cell, str(cell.path), values, every)] = cell
            reasons = [ended(future) for future in as_completed(list(futures))]
            return Interrupted("stopped", signal.SIGTERM) if _STOPPED in reasons else None
        except KeyboardInterrupt as error:
            stop = _as_interrupted(error)
            try:
                (folder / STOP).touch()
                with contextlib.suppress(OSError, SystemExit):  # where nobody reads it any more
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
    """Why a cell is not complete, or nothing; and whether that is because who computed it is lost."""
    try:
        return future.result()[:_LONGEST_REASON], False
    except Interrupted as stop:
        return (f"it was stopped: {stop}", True) if stop.at_once else (_STOPPED, False)
    except CancelledError:
        return "who computes cancelled it, or is lost", True
    except Exception as error:  # the process that computed it is gone
        return f"{type(error).__name__}: {error}"[:_LONGEST_REASON], True


def _looked(config: SweepConfig, folder: Path) -> Iterator[tuple[Cell, Run | None]]:
    """All cells, and of each the run that is there."""
    reasons = _reasons(folder)
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


def _reasons(folder: Path) -> dict[str, str]:
    """Why cells failed since the sweep was last begun or resumed."""
    return {
        str(event.get("cell")): str(event.get("reason"))
        for event in _latest_events(folder)
        if event["event"] in (_FAILED, _LOST)
    }


def _latest_events(folder: Path) -> list[dict[str, Any]]:
    """What happened since the sweep was last begun or resumed."""
    latest: list[dict[str, Any]] = []
    for event in events(folder):
        if event["event"] in ("started", "resumed"):
            latest.clear()
        latest.append(event)
    return latest


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM as what Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise Interrupted("stopped", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _coordinate(values: tuple[JsonValue, ...]) -> np.ndarray:
    numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    return np.array(numbers) if len(numbers) == len(values) else column([in_words(each) for each in values])
