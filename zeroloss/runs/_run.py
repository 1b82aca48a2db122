"""A run read from disk, and exports of it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from zeroloss._files import PART, replacing, require_free, unwritable
from zeroloss.errors import RunError, UnsupportedError
from zeroloss.runs._folder import CONFIG, events, is_complete, noises_of, read
from zeroloss.runs._grid import SWEEP
from zeroloss.runs._page_data import VIEWS
from zeroloss.runs._schema import load


class Run(NamedTuple):
    """A run on disk.

    - `path`: its folder, `config` what it computes.
    - `results`: an `xarray.DataTree`: at the root the table, along `noise`, and a group for each noise. Times
      carry their units.
    - `verdicts`: for each noise the verdict in words, where the run says one.
    - `complete`: whether it has finished; if not, `zeroloss resume` goes on with it.
    """

    path: Path
    config: dict[str, Any]
    results: xr.DataTree
    verdicts: dict[str, str]
    complete: bool

    @property
    def status(self) -> str:
        """In a word: complete, unfinished, or failed."""
        if self.complete:
            return "complete"
        last = self.log[-1]["event"] if self.log else ""
        return "failed" if last == "failed" else "unfinished"

    @property
    def failure(self) -> str:
        """Why it failed, if it has; of a sweep, whose cells fail, nothing."""
        return str(self.log[-1].get("error", "")) if self.status == "failed" else ""

    @property
    def log(self) -> list[dict[str, Any]]:
        """What happened when; lines that were not written to their end are left out."""
        return events(self.path)


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`, complete or not. It is only read: nothing in it is executed.

    Raises `RunError` where there is none, or its files are damaged.
    """
    folder = Path(path)
    config, results = read(folder)
    verdicts: dict[str, str] = {}
    for noise in noises_of(results):
        group = results.children.get(noise)
        if group is not None and "verdict" in group.attrs:
            verdicts[noise] = str(group.attrs["verdict"])
    return Run(folder, config, results, verdicts, is_complete(folder, results))


def find_runs(folder: Path) -> list[Path]:
    """The folders of all runs in `folder` and below, by name. Raises `RunError` where it is not a folder."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.")
    found: list[Path] = []
    for where, folders, files in os.walk(folder):  # skips folders that may not be read
        if CONFIG in files:
            found.append(Path(where))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def summary(path: Path) -> dict[str, str]:
    """A run in a line: its command, problem, noises and status; what is wrong with it where it is damaged."""
    try:
        run = open_run(path)
    except RunError as error:
        return {"run": str(path), "command": "", "problem": "", "noise": "", "status": f"damaged: {error}"}
    command, values = run.config["command"], run.config
    if command == SWEEP:
        values = {**values["cell"], **values["grid"]}
        command = f"{SWEEP} {values['command']}"
    return {
        "run": str(path),
        "command": command,
        "problem": values["problem"],
        "noise": ", ".join(map(str, values["noise"])),
        "status": run.status,
    }


def export_csv(run: Run, folder: Path) -> list[Path]:
    """Write a CSV file of the table of a run, and one of each dataset, named after it.

    Parameters are left out, and what `views` adds for the page, since they are no table. Raises `RunError`
    where a file is there already or cannot be written.
    """
    datasets = {"table": run.results.to_dataset()} | {
        f"{noise}{node.path}".strip("/").replace("/", "_").replace(":", "-"): node.to_dataset()
        for noise in noises_of(run.results)
        if noise in run.results.children
        for node in sorted(run.results.children[noise].copy().subtree, key=lambda node: node.path)
        if node.name not in VIEWS
    }
    files = {folder / f"{name}.csv": each for name, each in datasets.items() if each.data_vars}
    require_free(*files)
    for path, dataset in files.items():
        plain = dataset.drop_vars([name for name in dataset.data_vars if str(name).startswith("params")])
        with replacing(path) as file:
            file.write(plain.to_dataframe().to_csv().encode())
    return list(files)


def export_netcdf(run: Run, path: Path) -> Path:
    """Write a run as one netCDF file, with a group for each dataset.

    Raises `UnsupportedError` without h5netcdf, and `RunError` where the file is there already or cannot be
    written.
    """
    require_free(path)
    try:
        import h5netcdf  # noqa: F401
        import h5py  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "netCDF files need the packages h5netcdf and h5py: pip install 'zeroloss[netcdf]'."
        ) from None
    for node in run.results.subtree:
        load(node, parameters=True)
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        run.results.to_netcdf(part, engine="h5netcdf", invalid_netcdf=False)
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritable(path, error) from error
    return path
