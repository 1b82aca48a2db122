"""A run on disk: one folder, of which every file is whole at any moment.

config.json     everything needed to repeat it, versions included
results.zarr    what was computed, for xarray
timings.json    how long it took: the only thing that another run of the same config changes
log.jsonl       what happened when, a line each
checkpoint/     the state of what is being computed, until that is complete
figures/, report.html
cells/          of a sweep: the folders of its runs
.stop           of a sweep that was stopped: what told those who computed its cells
"""

import contextlib
import datetime
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from zeroloss._checkpoint import LOCK, in_use
from zeroloss._files import PART, replacing, settle, unwritable
from zeroloss.dynamics import Trajectory
from zeroloss.errors import RunError
from zeroloss.runs._config import check_kinds
from zeroloss.runs._validation import check_results, check_sizes
from zeroloss.studies import Comparison, Study

CONFIG, RESULTS, TIMINGS, LOG = "config.json", "results.zarr", "timings.json", "log.jsonl"
CHECKPOINT, FIGURES, REPORT, CELLS = "checkpoint", "figures", "report.html", "cells"
STOP = ".stop"
VERSIONS, DESCRIPTION = "versions", "description"

_VERSIONED = ("zeroloss", "jax", "jaxlib", "equinox", "diffrax", "numpy", "xarray", "zarr")
_OLD = RESULTS + ".old"  # while new results take its place
_PARTS = (CONFIG, TIMINGS, LOG, REPORT, RESULTS, _OLD, CHECKPOINT, FIGURES, CELLS, STOP)
_PREVIOUS = ".previous"  # a run that is to be overwritten, until the new one has results
_SETTING_ASIDE = _PREVIOUS + PART
_FORGOTTEN = _PREVIOUS + ".old"
_COMPLETE = "complete"
_CHUNK = 64  # saves together in a file, while a run works


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `RunError` unless a run may be written to `folder`.

    It may when the folder is new or empty, or holds a run and `overwrite` is True. A folder that holds
    anything else is never touched.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; a run needs a folder.")
        if not folder.exists() or all(_is_nothing(each) for each in folder.iterdir()):
            return
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror or error}.") from error
    if not any((folder / place / CONFIG).is_file() for place in (".", _PREVIOUS, _SETTING_ASIDE)):
        raise RunError(
            f"{folder} is not empty and holds no run ({CONFIG} is missing); nothing was touched. "
            "Choose another folder."
        )
    if not overwrite:
        last = [event["event"] for event in events(folder)][-1:]
        unfinished = (folder / CHECKPOINT).is_dir() or last not in ([], ["finished"])
        resume = f"Go on with it: zeroloss resume {folder}; or choose" if unfinished else "Choose"
        raise RunError(
            f"{folder} already holds {'an unfinished' if unfinished else 'a'} run; nothing was touched. "
            f"{resume} another folder, or pass --overwrite to replace it."
        )


def create(folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Start a run in `folder` by writing its `config.json`, with the versions of what computes it.

    An earlier run, where it may be overwritten, is set aside until there are results to take its place, or
    until `restore_previous`. One without results, that was to overwrite another, is deleted. Raises
    `RunError` like `check_free` and `require_idle`, and when the folder cannot be written.
    """
    check_free(folder, overwrite=overwrite)
    require_idle(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside(folder)
    except OSError as error:
        if (folder / _SETTING_ASIDE).is_dir():
            _bring_back(folder / _SETTING_ASIDE)
        raise unwritable(folder, error) from error
    versions = {name: version(name) for name in _VERSIONED}
    try:
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps({**config, VERSIONS: versions}, indent=2) + "\n").encode())
    except RunError:
        restore_previous(folder)
        raise


def require_idle(folder: Path) -> None:
    """Raise `RunError` where cells of a sweep are computed by processes that outlived it; have those stop."""
    busy = sum(in_use(path) for path in (folder / CELLS).glob("*"))
    try:
        if busy:
            (folder / STOP).touch()
            raise RunError(
                f"{busy} cells of {folder} are still being computed by processes of an earlier sweep. They "
                "have been told to save and stop; try again in a moment."
            )
        (folder / STOP).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder / STOP, error) from error


def has_previous(folder: Path) -> bool:
    """Whether there is a run that the one in `folder`, which has no results yet, is to overwrite."""
    return (folder / _PREVIOUS).is_dir()


def restore_previous(folder: Path) -> None:
    """Bring back the run that a new one without results was to overwrite, if there is one."""
    if has_previous(folder):
        for name in _PARTS:
            _remove(folder / name)
        _bring_back(folder / _PREVIOUS)


def _set_aside(folder: Path) -> None:
    """Move a run into a folder of its own, which has its name once it is whole."""
    part = folder / _SETTING_ASIDE
    if part.is_dir():  # a process ended here
        _bring_back(part)
    held = [folder / name for name in _PARTS if (folder / name).exists()]
    if has_previous(folder):
        for path in held:
            _remove(path)
    elif held:
        part.mkdir()
        for path in held:
            path.rename(part / path.name)
        part.rename(folder / _PREVIOUS)


def _forget_previous(folder: Path) -> None:
    """Delete the run that was overwritten; half of it is never taken for the whole."""
    _remove(folder / _FORGOTTEN)
    if has_previous(folder):
        (folder / _PREVIOUS).rename(folder / _FORGOTTEN)
        _remove(folder / _FORGOTTEN)


def _bring_back(aside: Path) -> None:
    for path in list(aside.iterdir()):
        path.rename(aside.parent / path.name)
    aside.rmdir()


def gather(comparisons: Mapping[str, Comparison]) -> xr.DataTree:
    """All comparisons of a run as one tree.

    The root is the table: one entry along `noise` for each, a variable for each column of
    `Comparison.rows()`. Each noise has a group of its own with `limit` and `training_0`.
    """
    rows = {name: comparison.rows()[0] for name, comparison in comparisons.items()}
    names = dict.fromkeys(name for row in rows.values() for name in row)
    table = {
        name: ("noise", column([row.get(name) for row in rows.values()])) for name in names if name != "noise"
    }
    table["verdict"] = ("noise", column([str(each.verdict) for each in comparisons.values()]))
    root = xr.Dataset(table, {"noise": ("noise", np.array(list(rows), dtype=object))})
    return xr.DataTree(
        root, children={name: comparison.to_xarray() for name, comparison in comparisons.items()}
    )


def gather_studies(studies: Mapping[str, Study]) -> xr.DataTree:
    """All studies of a run as one tree, with a group for each noise: `Study.to_xarray()`."""
    return _groups({name: each.to_xarray() for name, each in studies.items()})


def gather_paths(paths: Mapping[str, Trajectory]) -> xr.DataTree:
    """All paths of a run as one tree, with a group for each noise: `Path.to_xarray()`."""
    return _groups({name: each.to_xarray() for name, each in paths.items()})


def _groups(datasets: Mapping[str, xr.Dataset]) -> xr.DataTree:
    names = np.array(list(datasets), dtype=object)
    return xr.DataTree(
        xr.Dataset(coords={"noise": ("noise", names)}),
        children={name: xr.DataTree(each) for name, each in datasets.items()},
    )


def write_results(folder: Path, results: xr.DataTree, *, complete: bool = True) -> None:
    """Write `results.zarr`, and to `timings.json` how long it took; the new is complete before the old goes.

    `complete` says whether that is all there will be. Raises `RunError` where it cannot be written; what
    was there before stays.
    """
    results = results.copy()
    table = results.to_dataset()
    measured = [str(name) for name in table.data_vars if is_timing(str(name))]
    timings = {
        noise: {name: float(table[name].values[index]) for name in measured}
        for index, noise in enumerate(noises_of(results))
    }
    results.dataset = table.drop_vars(measured)
    results.attrs[_COMPLETE] = int(complete)
    target, fresh, old = folder / RESULTS, folder / (RESULTS + PART), folder / _OLD
    try:
        _remove(fresh)
        results.to_zarr(fresh, mode="w", consolidated=False)
        for path in fresh.rglob("*"):
            if path.is_file():
                settle(path)
        _remove(old)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        _remove(old)
        _forget_previous(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove(fresh)
        raise unwritable(target, error) from error
    if measured:
        with replacing(folder / TIMINGS) as file:
            file.write((json.dumps(timings, indent=2) + "\n").encode())


def append_path(folder: Path, group: str, path: Trajectory, written: int) -> None:
    """Add to `results.zarr` what a path has got beyond the `written` times that are there.

    With none written, what is in the group is replaced.
    """
    target, dataset = folder / RESULTS, path.to_xarray()
    try:
        if not target.exists():
            xr.Dataset(attrs={_COMPLETE: 0}).to_zarr(target, mode="w", consolidated=False)
        outer = group.rpartition("/")[0]
        if outer and not (target / outer).exists():
            xr.Dataset().to_zarr(target, group=outer, mode="a", consolidated=False)
        if written == 0:
            chunks = {
                name: {"chunks": tuple(_CHUNK if dim == "time" else values.sizes[dim] for dim in values.dims)}
                for name, values in dataset.variables.items()
                if values.dims
            }
            dataset.to_zarr(target, group=group, mode="w", consolidated=False, encoding=chunks)
        elif dataset.sizes["time"] > written:
            new = dataset.isel(time=slice(written, None))
            new.to_zarr(target, group=group, mode="a", append_dim="time", consolidated=False)
    except OSError as error:
        raise unwritable(target, error) from error


def read(folder: Path) -> tuple[dict[str, Any], xr.DataTree]:
    """The config and results of the run in `folder`; a run without results yet is an empty tree.

    What was measured is in memory, the parameters stay on the disk. Raises `RunError` where there is no run,
    or its files are damaged or not those of its command.
    """
    config = read_config(folder)
    target, old = folder / RESULTS, folder / _OLD
    if not target.exists() and old.exists():  # the process ended between one and the other
        target = old
    try:
        if not target.exists():
            return config, xr.DataTree()
        check_sizes(target)
        results = _open(target, unfinished=(folder / CHECKPOINT).is_dir())
        noises = noises_of(results)
        if (folder / TIMINGS).is_file():
            timings = json.loads((folder / TIMINGS).read_text(encoding="utf-8"))
            names = dict.fromkeys(name for each in timings.values() for name in each if is_timing(name))
            columns = {
                name: ("noise", [float(timings.get(noise, {}).get(name, np.nan)) for noise in noises])
                for name in names
            }
            results.dataset = results.to_dataset().assign(columns)
        unfinished = not is_complete(folder, results)
        results = check_results(config, results, noises, unfinished=unfinished)
    except Exception as error:  # zarr and its codecs raise anything on damaged files
        raise RunError(f"the results of {folder} cannot be read: {error}.") from error
    return config, results


def _open(store: Path, *, unfinished: bool) -> xr.DataTree:
    """The results in a store; of an unfinished run without the groups that are just being written."""
    try:
        return xr.open_datatree(store, engine="zarr", consolidated=False)
    except Exception:
        if not unfinished:
            raise
    nodes: dict[str, xr.Dataset] = {"/": xr.open_zarr(store, consolidated=False)}
    for metadata in sorted(store.rglob("zarr.json")):
        where = metadata.parent.relative_to(store).as_posix()
        with contextlib.suppress(Exception):
            if json.loads(metadata.read_text())["node_type"] == "group" and where != ".":
                nodes[where] = xr.open_zarr(store, group=where, consolidated=False)
    return xr.DataTree.from_dict(nodes)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the run in `folder`, as it was written. Raises `RunError` where that is no config."""
    path = folder / CONFIG
    try:
        if path.exists() and not path.is_file():  # to read a pipe would take for ever
            raise ValueError(f"{CONFIG} is no file")
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            check_kinds(config)
    except FileNotFoundError:
        raise RunError(f"{folder} holds no readable run: there is no {CONFIG} in it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder} holds no readable run: {error}.") from error
    if not isinstance(config, dict):
        raise RunError(f"{folder} holds no readable run: {CONFIG} is no table of values.")
    return config


def noises_of(results: xr.DataTree) -> list[str]:
    """The noises that there are results of, in their order."""
    table = results.to_dataset()
    return [str(name) for name in table["noise"].values] if "noise" in table.coords else []


def is_complete(folder: Path, results: xr.DataTree) -> bool:
    """Whether nothing is missing from the results of the run in `folder`, nor left to be done."""
    return bool(results.attrs.get(_COMPLETE, 0)) and not (folder / CHECKPOINT).is_dir()


def log(folder: Path, event: str, **facts: Any) -> None:
    """Add a line to `log.jsonl`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    try:
        with open(folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
    except OSError as error:
        raise unwritable(folder / LOG, error) from error


def events(folder: Path) -> list[dict[str, Any]]:
    """What `log.jsonl` says; lines that were not written to their end are left out."""
    try:
        is_file = (folder / LOG).is_file()
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace") if is_file else ""
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def _is_nothing(path: Path) -> bool:
    """Whether a file is no more than a trace of a process that ended before it had written anything."""
    return path.name == LOCK or path.name == CONFIG + PART


def is_timing(name: str) -> bool:
    """Whether what is called so is how long something took."""
    return name.startswith("seconds_") or name in ("seconds", "ratio")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def column(values: list[Any]) -> np.ndarray:
    """Numbers or words as an array; missing numbers are NaN and missing words empty, as Zarr has them."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values])
