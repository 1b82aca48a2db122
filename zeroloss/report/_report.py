"""The page a person looks at: one HTML file that needs nothing else."""

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, ParamSpec, TypeVar

import xarray as xr
from plotly.offline import get_plotlyjs

from zeroloss import runs
from zeroloss._files import replacing, require_free, unwritable
from zeroloss.errors import InputError, RunError
from zeroloss.report import (
    _comparison_page,
    _several_page,
    _study_page,
    _sweep_charts,
    _sweep_page,
    _trajectory_charts,
    _trajectory_page,
)
from zeroloss.report._figures import write_figures
from zeroloss.report._html import Page, asset, configuration, embedded, text
from zeroloss.report._matplotlib_zero_sets import write_stills
from zeroloss.report._study_matplotlib import write_study_figures
from zeroloss.runs._folder import FIGURES, REPORT
from zeroloss.runs._grid import SWEEP

FORMATS = ("png", "pdf", "svg")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _refusing_damage(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make any failure to show the runs in the first argument one `RunError`."""

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with runs.reading(args[0]):
            return function(*args, **kwargs)

    return wrapped


@_refusing_damage
def write(folder: Path) -> Path:
    """Write the figures and `report.html` of the run in `folder`; returns the path of the page.

    The page is that of the run's command, or of a sweep. It holds everything it shows, Plotly included, and
    opens without a network.

    Raises `RunError` when the folder holds no readable run or cannot be written to, and `InputError` for a
    run without results.
    """
    folder = Path(folder)
    config, results = _read(folder)
    if (folder / FIGURES).is_symlink():
        raise RunError(f"{folder / FIGURES} is a link; the figures of a run are written into its own folder.")
    _stills(config, results, folder / FIGURES, "png")
    command = config.get("command")
    if command == "study":
        page = _study_page.page(config, results)
    elif command == SWEEP:
        page = _sweep_page.page(config, results)
    elif command in _trajectory_charts.WORDS:
        page = _trajectory_page.page(config, results)
    else:
        page = _comparison_page.page(config, results, folder / FIGURES)
    return _save(page, folder / REPORT, config, "config.json and results.zarr in this folder")


@_refusing_damage
def write_several(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares the runs in `folders` to the file `path`.

    Raises `RunError` for a folder without a readable run, and where `path` is there already or cannot be
    written; `InputError` for runs that cannot be compared.
    """
    require_free(path)
    told = [_several_page.Told(str(folder), *_read(Path(folder))) for folder in folders]
    page = _several_page.page(told)
    config = {f"{each.name}: {name}": value for each in told for name, value in each.config.items()}
    return _save(page, path, config, "the runs " + ", ".join(each.name for each in told))


@_refusing_damage
def write_stills_of(folder: Path, to: Path, format: str = "png") -> list[Path]:
    """Write the static figures of the run in `folder` into the folder `to`, as "png", "pdf" or "svg".

    Returns the files. Raises as `write` does.
    """
    if format not in FORMATS:
        raise InputError(f"figures can be {', '.join(FORMATS)}, not {format!r}.")
    return _stills(*_read(folder), to, format)


def _stills(config: Mapping[str, Any], results: xr.DataTree, to: Path, format: str) -> list[Path]:
    try:
        if config.get("command") == "study":
            return write_study_figures(config, results, to, format)
        if config.get("command") == SWEEP:
            table = results.to_dataset().load()
            return write_stills(_sweep_charts.groups(table), "", to, format)
        if config.get("command") in _trajectory_charts.WORDS:
            title = str(config.get("description", ""))
            return write_stills(_trajectory_charts.groups(config, results), title, to, format)
        return write_figures(config, results, to, format)
    except OSError as error:
        raise unwritable(to, error) from error


def _read(folder: Path) -> tuple[Mapping[str, Any], xr.DataTree]:
    """The config of a run and its results, which know, as the attribute `failure`, why it has failed."""
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
    html = Template(asset("page.html")).substitute(
        page._asdict() | {"panels": embedded(page.panels)},
        configuration=configuration(config),
        version=text(version("zeroloss")),
        source=text(source),
        style=asset("page.css"),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        script=asset("page.js"),
    )
    with replacing(path) as file:
        file.write(html.encode())
    return path
