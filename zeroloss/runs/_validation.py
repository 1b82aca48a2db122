"""Whether a store holds what a command writes: found out when results are read, and nowhere else."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from zeroloss.drifts._slow_time import FAST, SLOW, slow_time
from zeroloss.errors import RunError
from zeroloss.runs._config import is_text
from zeroloss.runs._grid import SWEEP

_BYTES, _CHUNKS = 2**28, 10_000  # may always be declared: what is zero everywhere is not stored
_BYTES_A_BYTE, _CHUNKS_A_FILE = 1000, 100  # and so many for each that is stored
_FAR = 1e100  # beyond any time
_LARGEST = 2**63
_PARAMETERS, _UNCERTAINTY = "params", "uncertainty_"

_WORDS = ("noise", "verdict_name", "time_scale", "verdict", "no_prediction", "distance_of")
_NUMBERS = ("diverged_at", "distance", "distance_error", "replicas", "ratio", "step_size_relative")
_MEASURED = (
    "_start",
    "_limit",
    "_prediction",
    "_training",
    "_error",
    "_distance",
    "_estimate",
    "_spread",
    "_compiling",
)
_HALF = ("half_steps", "half_of", "half_end", "half_unknown")
_OF_GROUPS = ("stochastic", "limit_replicas", *_HALF)  # which a table does not say
_DISTANCES = ("distance", "distance_error")
_UNCERTAIN = ("integration", "sampling", "model", "spread")
_RUNG = ("step_size", "sigma", "step_size_relative", "replicas", "steps", "steps_error", "theory")
_GIVEN = ("step_size", "sigma", "step_size_relative", "replicas", "theory")
_BOUND = ("distance", "largest", "steps", "step_size", "replicas")
_STUDY_WORDS = ("noise", "verdict", "verdict_name", "time_scale")
_STUDY_NUMBERS = ("stochastic", "drift", "seconds", "step_size_", "sigma_", "bound_")

_PATHS = ("limit", "prediction", "training", "path")
_VIEWS = {  # of zeroloss.runs._geometry, what every one has; of paths, and of their ends
    "spectrum": {"eigenvalue": ("where", "index"), "where": ("where",), "index": ("index",)},
    "function": {"x": ("x",), "at": ("moment",), "inputs": ("example",), "targets": ("example",)},
    "zero_loss_set": {"point": ("number", "parameter")},
}
_PATHS_IN = {
    "function": (("moment", "x"), ("x",)),
    "zero_loss_set": (("{}_path", "{}_time", "parameter"), ("{}_replica", "parameter")),
}

_Check = Callable[[xr.DataTree, xr.Dataset], None]


def check_sizes(store: Path) -> None:
    """Raise `RunError` where arrays in `store` are declared far larger than what is there of them.

    Whoever reads them would first take the memory, and look for all the parts.
    """
    declared = chunks = stored = files = 0
    for where, folders, names in os.walk(store):
        path = Path(where)
        for name in folders:
            _require(not (path / name).is_symlink(), f"{path / name} is a link")
        for name in names:
            _require((path / name).is_file(), f"{path / name} is no file")
        stored, files = stored + sum((path / name).stat().st_size for name in names), files + len(names)
        array = _array(path) if "zarr.json" in names else None
        if array is not None:
            declared += array.dtype.itemsize * prod(array.shape)
            chunks += prod(-(-size // part) for size, part in zip(array.shape, array.chunks, strict=True))
    _require(
        declared <= max(_BYTES, _BYTES_A_BYTE * stored) and chunks <= max(_CHUNKS, _CHUNKS_A_FILE * files),
        f"its arrays are said to have {declared:.3g} bytes in {chunks:.3g} parts, where there are {stored} "
        f"bytes in {files} files",
    )


def check_results(
    config: Mapping[str, Any], results: xr.DataTree, noises: Iterable[str], *, unfinished: bool
) -> xr.DataTree:
    """The results of a run, in which everything is there that who looks at them may count on, in memory.

    Only the parameters stay on the disk. `noises` are those that are finished. Of an `unfinished` run, what
    there is of others is left out where it is not whole. Raises `RunError` with the first thing that is
    damaged, missing or of the wrong kind.
    """
    command = config.get("command", "compare")
    load(results, parameters=False)
    _require(command in _CHECKS or command == SWEEP, f"the config has the unknown command {command!r}")
    if command == SWEEP:
        for node in results.descendants:
            load(node, parameters=False)
        return results
    check, table = _CHECKS[command], results.to_dataset()
    names, asked = list(noises), config.get("noise") or ()
    for name in results.children if asked else ():
        _require(name in asked, f"{name!r} is none of the noises that were asked for")
    _require("noise" in table.coords or "noise" not in table.dims, "the noises of the table have no names")
    if command == "compare" and names:
        _check_table(table)
    for name in names:
        _require(name in results.children, f"there is no group {name!r}")
        for node in results.children[name].subtree:
            load(node, parameters=False)
        check(results.children[name], table)
        _check_views(results.children[name])
    broken = []
    for group in (results.children[name] for name in results.children if name not in names):
        for node in group.subtree:
            try:
                load(node, parameters=False)
                _check_attributes(node)
                if command == "study":
                    check(node, table)
                elif node.data_vars or not node.children:
                    _check_path(node)
            except RunError:
                if not unfinished:
                    raise
                broken.append(node.path)
    if not broken:
        return results
    kept = {
        node.path: node.to_dataset(inherit=False)
        for node in results.subtree
        if not any(f"{node.path}/".startswith(f"{each}/") for each in broken)
    }
    return xr.DataTree.from_dict(kept)


def load(node: xr.DataTree, *, parameters: bool) -> None:
    """Read into memory what is in a group itself; the parameters, which may be large, only where asked to.

    Raises `RunError` where that is damaged.
    """
    for name, variable in node.variables.items():
        if parameters or not str(name).startswith(_PARAMETERS):
            try:
                variable.load()
            except Exception as error:  # zarr and its codecs raise anything
                where = f"{node.path.rstrip('/')}/{name}"
                raise RunError(f"{where[1:]!r} of the results cannot be read: {error}.") from error


def _array(path: Path) -> zarr.Array | None:
    """The array in a folder; None for a group, and for what cannot be opened, which is said elsewhere."""
    try:
        if json.loads((path / "zarr.json").read_bytes())["node_type"] == "group":
            return None
        return zarr.open_array(path, mode="r")
    except Exception:  # zarr raises anything
        return None


def _check_table(table: xr.Dataset) -> None:
    for name in (
        "verdict_name",
        "time_scale",
        "step_size",
        "sigma",
        "steps",
        "replicas",
        "hessian_trace_limit",
    ):
        _require(name in table.variables, f"the table lacks {name!r}")
    for name, column in ((str(name), column) for name, column in table.variables.items()):
        _require(column.dims == ("noise",), f"{name!r} in the table does not go along the noises")
        _require(name not in _OF_GROUPS, f"{name!r} is in the table, where only groups say it")
        if name in _WORDS:
            words = [each for each in column.values.tolist() if each == each]  # what is missing is NaN
            _require(_are_words(words), f"{name!r} in the table holds no words")
        elif name in _NUMBERS or name.endswith(_MEASURED):
            _require(column.dtype.kind in "fiub", f"{name!r} in the table holds no numbers")
    for index, noise in enumerate(table["noise"].values.tolist()):
        row = {str(name): column.values[index] for name, column in table.variables.items()}
        scale = _scale(row["time_scale"])
        _require(isinstance(row["verdict_name"], str) and row["verdict_name"], f"{noise!r} has no verdict")
        counted = all(0 <= row[name] < _FAR for name in ("steps", "replicas"))
        _require(counted, f"{noise!r} has no steps or runs")
        diverged = row.get("diverged_at", np.nan)
        _require(np.isnan(diverged) or 0 <= diverged < _FAR, f"{noise!r} diverged at step {diverged}")
        if scale:
            _require(scale in (FAST, SLOW), f"{noise!r} has the unknown time scale {scale!r}")
            sizes = float(row["step_size"]), float(row["sigma"])
            with np.errstate(all="ignore"):
                step = float(slow_time(np.ones(1), FAST if scale == FAST else SLOW, *sizes)[0])
            _require(1 / _FAR < step < _FAR, f"{noise!r} has the step size and sigma {sizes}")


def _check_comparison(group: xr.DataTree, table: xr.Dataset) -> None:
    _check_attributes(group)
    where = group.path.strip("/")
    columns = [str(name) for name in table.variables]
    measured = {name.removesuffix("_limit") for name in columns if name.endswith("_limit")} - {"seconds"}
    measured.add("loss")
    drifts = _scale(table["time_scale"].sel(noise=where).item())
    for name, needed in (("limit", ()), ("training_0", _DISTANCES), ("prediction_0", ("distance",))):
        if name not in group.children and name == "prediction_0":
            continue
        _require(name in group.children, f"there is no group {f'{where}/{name}'!r}")
        _check_path(group.children[name], (*needed, *sorted(measured)))
        if drifts and name != "limit":
            _check_times(group.children[name], "slow_time")
    ends = group.children["training_0"].sizes["time"] <= group.children["limit"].sizes["time"]
    _require(ends, f"{where!r} has more times of training than of the limit")


def _check_followed(group: xr.DataTree, _: xr.Dataset) -> None:
    """One path, and the verdict on its noise where there is one."""
    _check_path(group)
    verdict = group.attrs.get("verdict_name", "trivial")
    _require(verdict in ("non-degenerate", "degenerate", "trivial"), f"{group.path!r} is {verdict!r}")


def _check_path(node: xr.DataTree, needed: Iterable[str] = ()) -> None:
    """What was measured at some times, of one run or of replicas."""
    where = repr(node.path.strip("/"))
    _check_attributes(node)
    _check_times(node, "time")
    lead = ("replica", "time") if "replica" in node.sizes else ("time",)
    _require(all(node.sizes[dim] for dim in lead), f"{where} is empty")
    uncertain = [_UNCERTAINTY + part for part in _UNCERTAIN]
    if any(name in node.data_vars for name in uncertain):
        needed = (*needed, *uncertain)
    for name in needed:
        _require(name in node.data_vars and not name.startswith(_PARAMETERS), f"{where} lacks {name!r}")
    for name, variable in ((str(name), variable) for name, variable in node.data_vars.items()):
        if name.startswith(_PARAMETERS):
            continue
        own = ("time",) if name in _DISTANCES or name.startswith(_UNCERTAINTY) else lead
        _require(variable.dims == own, f"{name!r} in {where} does not go along {' and '.join(own)}")
        _require(variable.dtype.kind in "fiub", f"{name!r} in {where} holds no numbers")


def _check_views(group: xr.DataTree) -> None:
    """What `zeroloss.runs._geometry` computed."""
    for kind in set(_VIEWS) & set(group.children):
        view, dims = group.children[kind], dict(_VIEWS[kind])
        where, along, ends = repr(view.path.strip("/")), *_PATHS_IN.get(kind, ((), ()))
        for path in _PATHS if along else ():
            if path in view.variables:
                dims[path] = tuple(each.format(path) for each in along)
            if f"{path}_end" in view.variables or (path in dims and kind == "zero_loss_set"):
                dims[f"{path}_end"] = tuple(each.format(path) for each in ends)
        _require(not along or set(_PATHS) & set(dims), f"{where} has no path")
        named = [str(name) for name in view.variables]
        others = [f"{path}{name[4:]}" for name in named if name.startswith("path") for path in _PATHS[:-1]]
        _require(not set(others) & set(named), f"{where} has a 'path' beside others")
        for name, own in dims.items():
            _require(name in view.variables, f"{where} lacks {name!r}")
            variable = view.variables[name]
            right = variable.dims == own and variable.size
            _require(right, f"{name!r} in {where} does not go along {' and '.join(own)}")
            values = variable.values
            if name == "where":
                places = sorted(map(str, values.tolist()))
                _require(places in (["start"], ["end"], ["end", "start"]), f"{where} is of places {places}")
                continue
            _require(values.dtype.kind in "fiu", f"{name!r} in {where} holds no numbers")
            near = (np.abs(values) < _FAR) | (np.isnan(values) if kind == "spectrum" else False)
            _require(near.all(), f"{name!r} in {where} is not finite")
        _require(view.sizes.get("parameter", 2) in (2, 3), f"{where} is not of two or three parameters")


def _check_times(node: xr.DataTree, name: str) -> None:
    where = repr(node.path.strip("/"))
    _require(name in node.coords, f"{where} lacks {name!r}")
    times = node.coords[name]
    _require(times.dims == ("time",) and times.dtype.kind in "fiu" and times.size, f"{where} has no times")
    values = times.values.astype(float)
    rise = values[0] >= 0 and bool((np.diff(values) >= 0).all()) and values[-1] < _FAR
    _require(rise, f"{name!r} in {where} does not rise from 0")


def _check_study(group: xr.DataTree, _: xr.Dataset) -> None:
    _check_attributes(group)
    where, given = repr(group.path.strip("/")), {str(name): value for name, value in group.attrs.items()}
    for name, value in given.items():
        right = isinstance(value, str) or name not in _STUDY_WORDS
        right = right and (_is_number(value) or not name.startswith(_STUDY_NUMBERS))
        right = right and (isinstance(value, str | list) or name != "choices")
        _require(right, f"{name!r} of {where} is {value!r}")
    needed = [f"bound_{name}" for name in _BOUND if any(each.startswith("bound_") for each in given)]
    for ladder in ("step_size", "sigma"):
        fitted = [each for each in ("exponent", "order") if f"{ladder}_{each}" in given]
        needed += [f"{ladder}_{each}_half_width" for each in fitted]
        needed += [f"{ladder}_{each}" for each in ("remainder", "remainder_error") if "order" in fitted]
    for name in needed:
        _require(name in given, f"{where} lacks {name!r}")
    if not group.data_vars:  # nothing drifts, or there was no time for a rung
        return
    for name in (*_RUNG, *_DISTANCES, "ladder"):
        _require(name in group.variables, f"{where} lacks {name!r}")
        column = group.variables[name]
        right = column.dims == ("rung",) and (name == "ladder" or column.dtype.kind in "fiu")
        _require(right, f"{name!r} of {where} holds no numbers along the rungs")
        if name in _GIVEN:
            near = (column.values >= 0) & (column.values < _FAR)
        elif name != "ladder":  # what was not measured is NaN
            near = ~np.isfinite(column.values) | (np.abs(column.values) < _FAR)
        else:
            near = np.isin(column.values, ("step size", "sigma"))
        _require(near.all(), f"{name!r} of {where} is {column.values}")


def _check_attributes(node: xr.DataTree) -> None:
    for name, value in node.attrs.items():
        parts = value if isinstance(value, list) else [value]
        right = all(_is_number(each) or _are_words([each]) for each in parts)
        if name in _HALF:
            words = name in ("half_of", "half_unknown")
            right = right and (isinstance(value, str) if words else _is_number(value))
        _require(right and _are_words([name]), f"{name!r} of {node.path!r} is {value!r}")
    if "half_steps" in node.attrs:
        steps, of = node.attrs["half_steps"], node.attrs.get("half_of")
        _require(of and 0 <= steps < _FAR, f"'half_steps' of {node.path!r} is {steps!r}, of {of!r}")


def _scale(value: object) -> str:
    return value if isinstance(value, str) else ""  # what is missing is NaN


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < _LARGEST and not isinstance(value, bool)
    return isinstance(value, float | np.number)


def _are_words(values: Iterable[object]) -> bool:
    return all(isinstance(each, str) and is_text(each) for each in values)


def _require(right: object, wrong: str) -> None:
    if not right:
        raise RunError(wrong)


_CHECKS: dict[str, _Check] = {
    "compare": _check_comparison,
    "study": _check_study,
    **dict.fromkeys(("predict", "descend", "limit"), _check_followed),
}
