"""Starting a run, and going on with one that was stopped, bit for bit.

A run is computed noise by noise. What a noise needs is a function of the config alone: the problem and its
systems are made anew, and the key of noise N is N folded into the seed. While a noise is computed, its verb
saves its state in `checkpoint/noise_N` (`zeroloss.Checkpoint`): every half minute, after a signal, and at the
end. Choices made by a clock, and the verdict on a noise, are saved there too.

`resume` therefore does what `start` did, with the same checkpoint. A noise that is finished returns at once
from its last state; the one that was interrupted goes on from the state saved last; the others begin. Nothing
else is remembered, so it does not matter how the run ended: by Ctrl-C, SIGTERM, SIGKILL, an error or a power
cut.

- `config.json` is written first and never changed. A folder without it holds no run, and `start` may use it.
- `results.zarr` is replaced as a whole after each noise, and `checkpoint/` is removed after the last. A run
  is complete when its results say so and there is no `checkpoint/`; resuming it then changes nothing.
- A checkpoint knows the computation it belongs to (versions, data, parameters, options). It refuses another
  one, and a damaged state, before anything is changed. A user's file is compared by its digest.
- Only one process works in a folder: a lock keeps others out, and goes with the process.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, lock_folder
from zeroloss._progress import Tell, silent
from zeroloss.errors import InputError, Interrupted, RunError, ZerolossError
from zeroloss.runs._commands import Config
from zeroloss.runs._compute import compute
from zeroloss.runs._folder import (
    CHECKPOINT,
    append_trajectory,
    check_free,
    configuration,
    create,
    is_complete,
    log,
    read,
    restore_previous,
)
from zeroloss.runs._grid import SweepConfig

Stop = Callable[[], bool]


def _never() -> bool:
    return False


def start(
    config: Config,
    folder: Path | None = None,
    *,
    overwrite: bool = False,
    tell: Tell = silent,
    every: float = 30.0,
    stop: Stop = _never,
) -> xr.DataTree:
    """Compute what `config` says, and return the results; with a `folder`, make a run of it there.

    The results of each noise are written when it is finished, and the state of the rest is saved `every` so
    many seconds: after a crash, or SIGINT or SIGTERM, or once `stop()` is true, `resume` goes on, to
    bit-identical results.

    Raises, before anything is computed or touched, `InputError` and the other errors of zeroloss for what
    cannot be computed, and `RunError` for a folder that holds something already or in which another process
    works; `Interrupted` when it was stopped.
    """
    if folder is None:
        return compute(config, config.experiment(), None, NO_CHECKPOINT, tell)
    check_free(folder, overwrite=overwrite)
    experiment = config.experiment()
    with lock_folder(folder):
        create(folder, config, experiment.problem.description, overwrite=overwrite)
        with _logged(folder, "started"):
            return compute(config, experiment, folder, _checkpoint(config, folder, every, stop), tell)


def resume(
    folder: Path,
    *,
    tell: Tell = silent,
    every: float = 30.0,
    stop: Stop = _never,
) -> xr.DataTree:
    """Go on with the run in `folder` where it was stopped, and return the results.

    The results are those that it would have had without the stop, bit for bit. A run that is complete is left
    as it is. Raises `RunError` where there is no run, another process is working in it, or its checkpoint
    is damaged or of other versions; `InputError` for a sweep, which `resume_sweep` goes on with.
    """
    config = configuration(folder)
    if isinstance(config, SweepConfig):
        raise InputError(f"{folder} holds a sweep; use resume_sweep.")
    _, results = read(folder)
    if is_complete(folder, results):
        return results
    experiment = config.experiment()
    with lock_folder(folder), _logged(folder, "resumed"):
        checkpoint = _checkpoint(config, folder, every, stop)
        return compute(config, experiment, folder, checkpoint, tell)


def _checkpoint(config: Config, folder: Path, every: float, stop: Stop) -> Checkpoint:
    """The checkpoint of a run; after each save it adds to `partial.zarr`."""
    written: dict[str, int] = {}

    def publish(stage: str, trajectory: Any) -> None:
        index, _, part = stage.removeprefix("noise_").partition("/")
        group = "/".join(filter(None, (config.noise[int(index)], part)))
        append_trajectory(folder, group, trajectory, written.get(group, 0))
        written[group] = len(trajectory.ts)

    publishes = publish if config.has_trajectories else None
    return Checkpoint(folder / CHECKPOINT, every=every, stop=stop, published=publishes)


@contextlib.contextmanager
def _logged(folder: Path, began: str) -> Any:
    """Write to the log of a run how it begins and ends; say after a stop how to go on.

    After an error that is not one of the folder, the run that was to be overwritten is brought back.
    """
    log(folder, began)
    try:
        yield
    except Interrupted as stopped:
        with contextlib.suppress(RunError):
            log(folder, "stopped")
        saved = "the state saved last is kept" if stopped.at_once else "everything until now is saved"
        raise Interrupted(
            f"{saved}. To go on: zeroloss resume {folder}", stopped.signal, at_once=stopped.at_once
        ) from None
    except BaseException as error:
        with contextlib.suppress(RunError):
            log(folder, "failed", error=f"{type(error).__name__}: {error}")
        if isinstance(error, ZerolossError) and not isinstance(error, RunError):
            restore_previous(folder)
        raise
    log(folder, "finished")
