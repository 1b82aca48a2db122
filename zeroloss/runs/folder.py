"""A run on disk: `config.json`, `results.zarr`, figures and `report.html` in one folder."""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.dynamics import Comparison, Study
from zeroloss.errors import RunError

CONFIG, RESULTS, REPORT, FIGURES = "config.json", "results.zarr", "report.html", "figures"

_VERSIONED = ("zeroloss", "jax", "jaxlib", "equinox", "diffrax", "numpy", "xarray", "zarr")


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `RunError` unless a run may be written to `folder`.

    It may when the folder is new or empty, or holds a run and `overwrite` is True. A folder that holds
    anything else is never touched.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a run needs a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / CONFIG).is_file():
        raise RunError(
            f"{folder} is not empty and holds no run ({CONFIG} is missing); nothing was touched. "
            "Choose another folder."
        )
    if not overwrite:
        raise RunError(
            f"{folder} already holds a run; nothing was touched. Choose another folder, or pass "
            "--overwrite to replace it."
        )


def create(folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Start a run in `folder` by writing its `config.json`, with the versions of what computes it.

    Overwriting removes only what a run consists of. Raises `RunError` like `check_free`, and when the
    folder cannot be written.
    """
    check_free(folder, overwrite=overwrite)
    for name in (RESULTS, FIGURES):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONFIG, REPORT):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in _VERSIONED}
        text = json.dumps({**config, "versions": versions}, indent=2)
        (folder / CONFIG).write_text(text + "\n")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error


def gather(comparisons: Mapping[str, Comparison]) -> xr.DataTree:
    """All comparisons of a run as one tree.

    The root is the table: one entry along `noise` for each, a variable for each column of
    `Comparison.rows()`. Each noise has a group of its own with `limit` and `training_0`.
    """
    rows = {name: comparison.rows()[0] for name, comparison in comparisons.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = {
        column: ("noise", _column([row.get(column) for row in rows.values()]))
        for column in columns
        if column != "noise"
    }
    table["verdict"] = ("noise", _column([str(each.regime) for each in comparisons.values()]))
    root = xr.Dataset(table, {"noise": ("noise", np.array(list(rows), dtype=object))})
    return xr.DataTree(
        root, children={name: comparison.to_xarray() for name, comparison in comparisons.items()}
    )


def gather_studies(studies: Mapping[str, Study]) -> xr.DataTree:
    """All studies of a run as one tree, with a group for each noise: `Study.to_xarray()`."""
    names = np.array(list(studies), dtype=object)
    return xr.DataTree(
        xr.Dataset(coords={"noise": ("noise", names)}),
        children={name: xr.DataTree(each.to_xarray()) for name, each in studies.items()},
    )


def write_results(folder: Path, results: xr.DataTree) -> None:
    """Write `results.zarr`; the new one is complete before the old one goes."""
    target, fresh = folder / RESULTS, folder / (RESULTS + ".part")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        results.to_zarr(fresh, mode="w", consolidated=False)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}.") from error


def read(folder: Path) -> tuple[dict[str, Any], xr.DataTree]:
    """The config and results of the run in `folder`."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        results = xr.open_datatree(folder / RESULTS, engine="zarr", consolidated=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no readable run: {error}.") from error
    return config, results


def _column(values: list[Any]) -> np.ndarray:
    # Missing numbers are NaN and missing words empty, as xarray and zarr have them.
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values])
