"""The schema of results: groups, variables, dimensions and attributes that readers count on."""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import xarray as xr
import zarr
from pydantic import Field

from zeroloss.errors import InputError, RunError
from zeroloss.runs._config import Text, validated
from zeroloss.runs._grid import SWEEP

# A store may declare this many bytes and chunks whatever its size: Zarr does not store chunks of zeros.
_BYTES, _CHUNKS = 2**28, 10_000
_BYTES_A_BYTE, _CHUNKS_A_FILE = 1000, 100  # it may declare so many more for each byte and file that it has
_LARGEST_TIME = 1e100
_PARAMETERS = "params"

_TABLE = {"verdict_name", "time_scale", "step_size", "sigma", "steps", "replicas", "hessian_trace_limit"}
_TRAJECTORY = {"time", "loss"}
_MEASURED = _TRAJECTORY | {"distance", "distance_error"}
_STUDY_COLUMNS = {
    "ladder",
    "step_size",
    "sigma",
    "step_size_relative",
    "replicas",
    "steps",
    "steps_error",
    "theory",
}
_GROUPS: dict[str, dict[str, set[str]]] = {
    "compare": {"limit": _TRAJECTORY, "training_0": _MEASURED},
    "study": {},
    "predict": {"": _TRAJECTORY},
    "descend": {"": _TRAJECTORY},
    "limit": {"": _TRAJECTORY},
}
"""Of each command the groups of a noise, and the variables that each must have."""
_Steps = Annotated[float, Field(ge=0, lt=_LARGEST_TIME)]


class _Attributes(pydantic.BaseModel):
    """The attributes of a group."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Text, Text | int | float | list[Text | int | float]] = Field(init=False)

    noise: Text = ""
    verdict: Text = ""
    verdict_name: Literal["", "non-degenerate", "degenerate", "trivial"] = ""
    time_scale: Text = ""
    units: Text = ""
    half_of: Text = ""
    half_unknown: Text = ""
    half_steps: _Steps | None = None
    half_end: float = 0.0
    stochastic: int = 0
    choices: Text | list[Text] = ""

    @pydantic.model_validator(mode="after")
    def _steps_of_a_quantity(self) -> "_Attributes":
        if self.half_steps is not None and not self.half_of:
            raise ValueError("half_steps without half_of")
        return self


def check_sizes(store: Path) -> None:
    """Raise `RunError` where arrays in `store` are declared far larger than their files.

    Reading them would first take that memory, and search for all the parts.
    """
    declared = chunks = stored = files = 0
    for where, folders, names in os.walk(store):
        paths = [Path(where) / name for name in names]
        for path in [*paths, *(Path(where) / name for name in folders)]:
            _require(not path.is_symlink(), f"{path} is a link")
        for path in paths:
            _require(path.is_file(), f"{path} is not a file")
        stored, files = stored + sum(path.stat().st_size for path in paths), files + len(paths)
        if "zarr.json" in names and _is_array(Path(where)):
            array = zarr.open_array(where, mode="r")
            declared += array.dtype.itemsize * prod(array.shape)
            chunks += prod(-(-size // part) for size, part in zip(array.shape, array.chunks, strict=True))
    _require(
        declared <= max(_BYTES, _BYTES_A_BYTE * stored) and chunks <= max(_CHUNKS, _CHUNKS_A_FILE * files),
        f"its arrays are said to have {declared:.3g} bytes in {chunks:.3g} parts, where there are {stored} "
        f"bytes in {files} files",
    )


def check_results(config: Mapping[str, Any], results: xr.DataTree, finished: Iterable[str]) -> None:
    """Read the results into memory, all but the parameters, and raise `RunError` where they break the schema.

    `finished` are the noises that must be whole; of the others there may be a part.
    """
    found: dict[str, xr.Dataset] = {}
    for node in results.subtree:
        load(node, parameters=False)
        where = node.path.strip("/")
        found[where] = node.to_dataset(inherit=False)
        _check_group(where, found[where])
    if config["command"] == SWEEP:
        return
    for name in {*results.children, *finished}:
        _require(name in config["noise"], f"{name!r} is not one of the noises of the config")
    measured: set[str] = set()
    if config["command"] == "compare" and finished:
        _check_has("the table", found[""], _TABLE)
        columns = map(str, found[""].data_vars)
        measured = {each.removesuffix("_limit") for each in columns if each.endswith("_limit")} - {"seconds"}
    for name in finished:
        for group, needed in _GROUPS[config["command"]].items():
            where = f"{name}/{group}".removesuffix("/")
            _require(where in found, f"there is no group {where!r}")
            _check_has(repr(where), found[where], needed | measured)


def load(node: xr.DataTree, *, parameters: bool) -> None:
    """Read the variables of a group into memory; the parameters, which may be large, only where asked to.

    Raises `RunError` where they are damaged.
    """
    for name, variable in node.variables.items():
        if parameters or not str(name).startswith(_PARAMETERS):
            try:
                variable.load()
            except Exception as error:  # zarr and its codecs raise anything
                where = f"{node.path.rstrip('/')}/{name}"
                raise RunError(f"{where[1:]!r} of the results cannot be read: {error}.") from error


def _check_group(where: str, group: xr.Dataset) -> None:
    """The rules of every group: kinds of attributes and values, and times that rise."""
    try:
        validated(_Attributes, {str(name): value for name, value in group.attrs.items()})
    except InputError as error:
        raise RunError(f"an attribute of {where!r} is wrong{error}") from None
    for name, values in group.variables.items():
        if str(name).startswith(_PARAMETERS):
            continue
        words = values.dtype.kind not in "fiub"
        _require(
            not words or _are_words(values.values), f"{name!r} in {where!r} is neither numbers nor words"
        )
    if "time" in group.dims:
        measured = "time" in group.coords and group.sizes["time"] and group["time"].dtype.kind in "fiu"
        _require(measured, f"{where!r} has no times")
        times = group["time"].values.astype(float)
        rising = times[0] >= 0 and bool((np.diff(times) >= 0).all()) and times[-1] < _LARGEST_TIME
        _require(rising, f"'time' in {where!r} does not rise from 0")
        for name, values in group.data_vars.items():
            _require("time" in values.dims, f"{name!r} in {where!r} does not go along time")
    if group.sizes.get("measurement"):
        _check_has(repr(where), group, _STUDY_COLUMNS)


def _check_has(where: str, group: xr.Dataset, needed: Iterable[str]) -> None:
    for name in sorted(needed):
        _require(name in group.variables, f"{where} lacks {name!r}")


def _is_array(path: Path) -> bool:
    return json.loads((path / "zarr.json").read_bytes())["node_type"] != "group"


def _are_words(values: np.ndarray) -> bool:
    words = pydantic.TypeAdapter(list[Text])
    return words.validate_python([each for each in values.ravel().tolist() if each == each]) is not None


def _require(right: object, wrong: str) -> None:
    if not right:
        raise RunError(wrong)
