"""A run on disk: one folder, in which every file is whole at any moment.

config.json     everything needed to repeat it, and the versions that computed it
results.zarr    the results of the noises that are finished, for xarray
partial.zarr    the trajectories of the noise that is being computed, as far as they are saved
timings.json    durations: the only result that another run of the same config changes
log.jsonl       events with their times, a line each
checkpoint/     the state of what is being computed, until that is complete
figures/, report.html
cells/          of a sweep: the folders of its runs
.stop           of a sweep: its cells save and stop while this file exists
.previous/      an earlier run that is to be overwritten, until the new one has results
"""

import contextlib
import datetime
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import xarray as xr

from zeroloss._checkpoint import LOCK, in_use
from zeroloss._files import PART, replacing, settle, unwritable
from zeroloss.dynamics import Trajectory
from zeroloss.errors import RunError, ZerolossError
from zeroloss.runs._commands import Config, config_from
from zeroloss.runs._config import Text, validated
from zeroloss.runs._grid import SWEEP, SweepConfig, sweep_config
from zeroloss.runs._schema import check_results, check_sizes
from zeroloss.studies import Comparison, Study

CONFIG, RESULTS, TIMINGS, LOG = "config.json", "results.zarr", "timings.json", "log.jsonl"
CHECKPOINT, FIGURES, REPORT, CELLS = "checkpoint", "figures", "report.html", "cells"
PARTIAL, STOP, DESCRIPTION = "partial.zarr", ".stop", "description"

_FORMAT = 2
_VERSIONED = ("zeroloss", "jax", "jaxlib", "equinox", "diffrax", "numpy", "xarray", "zarr")
_OLD = RESULTS + ".old"  # while new results take its place
_PREVIOUS = ".previous"
_PARTS = (TIMINGS, LOG, REPORT, RESULTS, _OLD, PARTIAL, CHECKPOINT, FIGURES, CELLS, STOP, CONFIG)
_COMPLETE = "complete"
_LONGEST_REASON = 300  # in an error
_CHUNK = 64  # saves together in a file, while a run works


class _Header(pydantic.BaseModel):
    """What `config.json` has beside the config."""

    model_config = pydantic.ConfigDict(strict=True)

    format: int
    versions: dict[Text, Text]
    description: Text = ""


@contextlib.contextmanager
def reading(folder: object) -> Iterator[None]:
    """Turn any failure to read or show the run in `folder` into one error, `RunError`.

    The files may come from a stranger: zarr and whatever draws them raise anything on damaged ones.
    """
    try:
        yield
    except ZerolossError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise RunError(f"the run in {folder} cannot be read: {type(error).__name__}: {reason}.") from error


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `RunError` unless a run can be made in `folder`: it is empty, or holds one to overwrite."""
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; a run needs a folder.")
        left_behind = (LOCK, CONFIG + PART)  # by a process that ended before it had written anything
        if not folder.exists() or all(each.name in left_behind for each in folder.iterdir()):
            return
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror or error}.") from error
    if not any((folder / place / CONFIG).is_file() for place in (".", _PREVIOUS)):
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


def create(
    folder: Path, config: Config | SweepConfig, description: str = "", *, overwrite: bool = False
) -> None:
    """Start a run in `folder` by writing its `config.json`, with the versions of what computes it.

    An earlier run that may be overwritten is set aside until the new one has results, or until
    `restore_previous`. Raises `RunError` like `check_free` and `require_idle`, and when the folder cannot be
    written.
    """
    check_free(folder, overwrite=overwrite)
    require_idle(folder)
    header = {"format": _FORMAT, "versions": {name: version(name) for name in _VERSIONED}}
    values = {**header, DESCRIPTION: description, **config.model_dump(mode="json")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside(folder)
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise unwritable(folder, error) from error
    except RunError:
        restore_previous(folder)
        raise


def require_idle(folder: Path) -> None:
    """Raise `RunError` where processes still compute cells of a sweep, and make those stop."""
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
    """Whether the run in `folder` is to overwrite an earlier one and has no results yet."""
    return (folder / _PREVIOUS / CONFIG).exists()


def restore_previous(folder: Path) -> None:
    """Restore the run that was set aside by `overwrite`, if the new run has no results."""
    if has_previous(folder):
        for name in _PARTS:
            _remove(folder / name)
        for name in _PARTS:
            if (folder / _PREVIOUS / name).exists():
                (folder / _PREVIOUS / name).rename(folder / name)
        _remove(folder / _PREVIOUS)


def _set_aside(folder: Path) -> None:
    """Move a run to `.previous`, its config last; if one is there already, delete the run."""
    whole = has_previous(folder)
    for path in [folder / name for name in _PARTS if (folder / name).exists()]:
        if whole:
            _remove(path)
        else:
            (folder / _PREVIOUS).mkdir(exist_ok=True)
            path.rename(folder / _PREVIOUS / path.name)


def _forget_previous(folder: Path) -> None:
    """Delete the run that was overwritten; a part of it is never taken for the whole."""
    (folder / _PREVIOUS / CONFIG).unlink(missing_ok=True)
    _remove(folder / _PREVIOUS)


def gather(results: Mapping[str, Comparison | Study | Trajectory]) -> xr.DataTree:
    """The results of a run as one tree, with a group for each noise: its `to_xarray()`.

    The root names the noises. Of comparisons it is a table, with a variable for each column of
    `Comparison.rows()`.
    """
    table: dict[str, Any] = {}
    groups: dict[str, xr.DataTree] = {}
    comparisons = [each for each in results.values() if isinstance(each, Comparison)]
    if comparisons:
        rows = [each.rows()[0] for each in comparisons]
        names = dict.fromkeys(name for row in rows for name in row if name != "noise")
        table = {name: ("noise", column([row.get(name) for row in rows])) for name in names}
        table["verdict"] = ("noise", column([str(each.verdict) for each in comparisons]))
    for name, each in results.items():
        found = each.to_xarray()
        groups[name] = found if isinstance(found, xr.DataTree) else xr.DataTree(found)
    names = np.array(list(results), dtype=object)
    return xr.DataTree(xr.Dataset(table, {"noise": ("noise", names)}), children=groups)


def write_results(folder: Path, results: xr.DataTree, *, complete: bool = True) -> None:
    """Write `results.zarr`, and durations to `timings.json`; the new is complete before the old goes.

    `complete` says whether that is all there will be. Raises `RunError` where it cannot be written; the
    results that were there before stay.
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
        for noise in noises_of(results):
            _remove(folder / PARTIAL if complete else folder / PARTIAL / noise)
        _forget_previous(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove(fresh)
        raise unwritable(target, error) from error
    if measured:
        with replacing(folder / TIMINGS) as file:
            file.write((json.dumps(timings, indent=2) + "\n").encode())


def append_trajectory(folder: Path, group: str, trajectory: Trajectory, written: int) -> None:
    """Add to `partial.zarr` the times of a trajectory beyond the `written` ones that are there.

    With none written, the group is replaced.
    """
    target, dataset = folder / PARTIAL, trajectory.to_xarray()
    try:
        if not written:
            chunks: dict[str, Any] = {
                str(name): {
                    "chunks": tuple(
                        _CHUNK if dim == "time" else max(size, 1)
                        for dim, size in zip(values.dims, values.shape, strict=True)
                    )
                }
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

    The numbers are in memory, the parameters stay on the disk. While a noise is being computed, its
    trajectories up to now are there too. Raises `RunError` where there is no run, or its files are damaged
    or not those of its command.
    """
    config = read_config(folder)
    target = folder / RESULTS
    if not target.exists():  # the process ended between two renames
        target = folder / _OLD
    results = xr.DataTree()
    with reading(folder):
        if target.exists():
            check_sizes(target)
            results = xr.open_datatree(target, engine="zarr", consolidated=False)
            noises = noises_of(results)
            check_results(config, results, noises)
            if (folder / TIMINGS).is_file():
                timings = _TIMINGS.validate_json((folder / TIMINGS).read_bytes())
                names = dict.fromkeys(name for each in timings.values() for name in each if is_timing(name))
                results.dataset = results.to_dataset().assign(
                    {
                        name: ("noise", [timings.get(noise, {}).get(name, np.nan) for noise in noises])
                        for name in names
                    }
                )
    with contextlib.suppress(Exception):  # a process may be writing there
        if (folder / PARTIAL).exists():
            check_sizes(folder / PARTIAL)
            partial = xr.open_datatree(folder / PARTIAL, engine="zarr", consolidated=False)
            check_results(config, partial, ())
            for name in set(partial.children) - set(results.children):
                results[name] = partial[name]
    return config, results


_TIMINGS = pydantic.TypeAdapter(dict[str, dict[str, float]])


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json` in `folder`. Raises `RunError` where that is not one of a run."""
    path = folder / CONFIG
    try:
        if path.exists() and not path.is_file():  # to read a pipe would take for ever
            raise ValueError(f"{CONFIG} is not a file")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{CONFIG} is not a table of values")
        if values.get("format") != _FORMAT:
            raise RunError(_of_another_format(folder, values))
        header = validated(_Header, {name: values[name] for name in _Header.model_fields if name in values})
        return {**header.model_dump(), **_parsed(values).model_dump(mode="json")}
    except FileNotFoundError:
        raise RunError(f"{folder} holds no readable run: there is no {CONFIG} in it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder} holds no readable run: {error}") from error


def _of_another_format(folder: Path, values: Mapping[str, Any]) -> str:
    versions = values.get("versions")
    writer = repr(versions.get("zeroloss") if isinstance(versions, dict) else None)[:20]
    return (
        f"the run in {folder} has format {repr(values.get('format', 1))[:20]}, of zeroloss {writer}; this is "
        f"zeroloss {version('zeroloss')}, which reads format {_FORMAT}. Read the run with the version that "
        f"wrote it, or compute it again with the options in its {CONFIG}."
    )


def configuration(folder: Path) -> Config | SweepConfig:
    """The config of the run, or of the sweep, in `folder`. Raises `RunError` like `read_config`."""
    return _parsed(read_config(folder))


def _parsed(values: Mapping[str, Any]) -> Config | SweepConfig:
    """The config in the contents of `config.json`."""
    values = {name: value for name, value in values.items() if name not in _Header.model_fields}
    if values.get("command") != SWEEP:
        return config_from(_without_strengths(values))
    return sweep_config({**values, "cell": _without_strengths(values.get("cell"))})


def _without_strengths(values: Any) -> Any:
    """The fields of a config without the strengths, which follow from them."""
    return {name: value for name, value in dict(values or {}).items() if name != "strengths"}


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
    """The events in `log.jsonl`; lines that are incomplete are left out."""
    try:
        is_file = (folder / LOG).is_file()
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace") if is_file else ""
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                found.append(event)
    return found


def is_timing(name: str) -> bool:
    """Whether this column is a duration."""
    return name.startswith("seconds_") or name in ("seconds", "ratio")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def column(values: list[Any]) -> np.ndarray:
    """Numbers or words as an array; missing numbers are NaN and missing words empty, as Zarr stores them."""
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values])
