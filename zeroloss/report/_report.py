"""Reading a run, and writing its page and its figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from zeroloss import runs
from zeroloss._files import replacing, require_free, unwritable
from zeroloss.errors import InputError, RunError
from zeroloss.report import _comparison, _study, _sweep, _trajectory
from zeroloss.report._chart import Figure
from zeroloss.report._matplotlib import save
from zeroloss.report._page import Page, render
from zeroloss.report._pictures import PICTURE
from zeroloss.report._sentences import TRAJECTORIES
from zeroloss.runs import FIGURES, REPORT, SWEEP

FORMATS = ("png", "pdf", "svg")


def write(folder: Path) -> Path:
    """Write the figures and `report.html` of the run in `folder`; returns the path of the page.

    The page holds everything it shows, Plotly included, and opens without a network.

    Raises `RunError` when the folder holds no readable run or cannot be written to, and `InputError` for a
    run without results.
    """
    folder = Path(folder)
    with runs.reading(folder):
        config, results = _read(folder)
        if (folder / FIGURES).is_symlink():
            raise RunError(
                f"{folder / FIGURES} is a link; the figures of a run are written into its own folder."
            )
        room = _room(config)
        figures = room.figures(config, results)
        _save_figures(figures, folder / FIGURES, "png")
        picture = next((each for each in figures if each.name == PICTURE and each.heading), None)
        page = replace(room.page(config, results), picture=picture)
        return _save(page, folder / REPORT, config, "config.json and results.zarr in this folder")


def write_several(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares the runs in `folders` to the file `path`.

    Raises `RunError` for a folder without a readable run, and where `path` exists already or cannot be
    written; `InputError` for runs that cannot be compared.
    """
    require_free(path)
    with runs.reading(", ".join(map(str, folders))):
        each = [_trajectory.NamedRun(str(folder), *_read(Path(folder))) for folder in folders]
        config = {f"{run.name}: {name}": value for run in each for name, value in run.config.items()}
        source = f"the runs {', '.join(run.name for run in each)}"
        return _save(_trajectory.page_of_several(each), path, config, source)


def write_figures(folder: Path, to: Path, format: str = "png") -> list[Path]:
    """Write the static figures of the run in `folder` into the folder `to`, as "png", "pdf" or "svg".

    Returns the files. Raises as `write` does.
    """
    if format not in FORMATS:
        raise InputError(f"figures can be {', '.join(FORMATS)}, not {format!r}.")
    with runs.reading(folder):
        config, results = _read(folder)
        return _save_figures(_room(config).figures(config, results), Path(to), format)


def _room(config: Mapping[str, Any]) -> Any:
    """The module that makes the figures and the page of a run with this config."""
    rooms = {"study": _study, SWEEP: _sweep} | dict.fromkeys(TRAJECTORIES, _trajectory)
    return rooms.get(str(config.get("command")), _comparison)


def _save_figures(figures: Sequence[Figure], to: Path, format: str) -> list[Path]:
    names: set[str] = set()
    try:
        to.mkdir(parents=True, exist_ok=True)
        return [save(figure, to / f"{_file_name(figure.name, names)}.{format}") for figure in figures]
    except OSError as error:
        raise unwritable(to, error) from error


def _file_name(name: str, taken: set[str]) -> str:
    """A name for a file that is not in `taken`, to which it is added."""
    chosen = re.sub(r"[^A-Za-z0-9.+_-]+", "_", name).strip("_.") or "noise"
    while chosen in taken:
        chosen += "_"
    taken.add(chosen)
    return chosen


def _read(folder: Path) -> tuple[Mapping[str, Any], xr.DataTree]:
    """Config and results of a run; `results.attrs["failure"]` is the reason why it failed, or None."""
    run = runs.open_run(folder)
    config, results = run.config, run.results
    results.attrs["failure"] = run.failure
    if config.get("command") == SWEEP:
        sweep = runs.configuration(Path(folder))
        assert isinstance(sweep, runs.SweepConfig)
        return config, runs.collect(sweep, Path(folder))
    if not runs.noises_of(results) or not results.children:
        raise InputError(f"{folder} has no results yet: no noise of it is done.")
    return config, results


def _save(page: Page, path: Path, config: Mapping[str, Any], source: str) -> Path:
    with replacing(path) as file:
        file.write(render(page, config, source))
    return path
