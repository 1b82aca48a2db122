"""The commands that read runs on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from zeroloss import report, runs
from zeroloss.cli._console import (
    RESULTS,
    Json,
    RunFolder,
    UsageError,
    command,
    failing_in_a_line,
    flag,
    option,
    out,
    print_json,
    print_path,
)
from zeroloss.cli._printing import as_rows, print_results, print_table
from zeroloss.errors import InputError
from zeroloss.runs import SWEEP

_FORMAT = "Format"  # a panel of the help


@command("show", RESULTS, "zeroloss show runs/first", "zeroloss show runs/first --json")
def show_command(run: RunFolder, as_json: Json = False) -> None:
    """Print what a run has found, and whether it is complete."""
    with _reading(run):
        found = _results_now(run)
        config = found.config
        if as_json:
            print_json(
                {
                    "config": config,
                    "status": found.status,
                    "failure": found.failure,
                    "verdicts": found.verdicts,
                    "results": as_rows(config, found.results),
                }
            )
            return
        cell = config["cell"] if config["command"] == SWEEP else config
        of = f"{cell['command']} {cell['problem']}".removeprefix(f"{config['command']} ")
        lines = [f"{config['command']} {of}: {found.status}", found.failure]
        if not found.complete:
            lines.append(f"To go on: zeroloss resume {run}")
        for line in filter(None, lines):
            out.print(escape(line), highlight=False, soft_wrap=True)
        print_results(config, found.results)


@contextmanager
def _reading(run: Path) -> Iterator[None]:
    """Print any failure to read or show a run as an error in a line."""
    with failing_in_a_line(), runs.reading(run):
        yield


def _results_now(run: Path) -> "runs.Run":
    """A run; the results of a sweep are those that its cells have now."""
    found, config = runs.open_run(run), runs.configuration(run)
    if isinstance(config, runs.SweepConfig):
        return found._replace(results=runs.collect(config, run))
    return found


@command("list", RESULTS, "zeroloss list", "zeroloss list runs")
def list_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to search.")] = Path("."),
    as_json: Json = False,
) -> None:
    """List all runs in a folder and below, with their status."""
    with failing_in_a_line():
        found = [runs.summary(path) for path in runs.find_runs(folder)]
        if as_json:
            print_json(found)
            return
        if not found:
            out.print(f"There are no runs in {escape(str(folder))}.", soft_wrap=True)
            return
        print_table(["run", "command", "problem", "noise", "status"], [list(each.values()) for each in found])


@command(
    "export",
    RESULTS,
    "zeroloss export runs/first --csv",
    "zeroloss export runs/first --netcdf --out results",
)
def export_command(
    run: RunFolder,
    csv: Annotated[bool, flag(_FORMAT, "A file of the table, and one of each path.", "--csv")] = False,
    netcdf: Annotated[
        bool, flag(_FORMAT, "One file, with a group for each path; needs h5netcdf.", "--netcdf")
    ] = False,
    to: Annotated[
        Path | None,
        option(_FORMAT, "Where to write. By default RUN.", "--out", metavar="<folder>"),
    ] = None,
) -> None:
    """Write the results of a run as CSV or netCDF files."""
    with _reading(run):
        if csv == netcdf:
            raise UsageError("choose one of --csv and --netcdf.")
        found = _results_now(run)
        if not found.results.children and not found.results.data_vars:
            raise InputError(f"{run} has no results yet.")
        folder = run if to is None else to
        if csv:
            written = runs.export_csv(found, folder / "csv" if to is None else folder)
        else:
            written = [runs.export_netcdf(found, folder / "results.nc")]
        for path in written:
            typer.echo(path)


@command(
    "report",
    RESULTS,
    "zeroloss report runs/first",
    "zeroloss report runs/first runs/compare --out compared.html",
)
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    to: Annotated[
        Path | None,
        option(_FORMAT, "The page to write, of several runs.", "--out", metavar="<file>"),
    ] = None,
) -> None:
    """Write the page of a run again, or one that compares several.

    Of one run it is report.html in its folder, with static figures beside it.
    """
    with failing_in_a_line():
        if len(runs) == 1 and to is not None:
            raise UsageError("the page of one run is report.html in its folder; --out is for several.")
        if len(runs) > 1 and to is None:
            raise UsageError("say with --out which file to write the page of several runs to.")
        print_path("Wrote", report.write(runs[0]) if to is None else report.write_several(runs, to))


@command(
    "figures",
    RESULTS,
    "zeroloss figures runs/first --format pdf",
    "zeroloss figures runs/first --format png --out figures",
)
def figures_command(
    run: RunFolder,
    format: Annotated[str, option(_FORMAT, "pdf, svg or png.", "--format", metavar="<format>")] = "pdf",
    to: Annotated[
        Path | None,
        option(_FORMAT, "Where to write. By default figures in RUN.", "--out", metavar="<folder>"),
    ] = None,
) -> None:
    """Write static figures of a run, for papers."""
    with failing_in_a_line():
        if to is None and (run / runs.FIGURES).is_symlink():
            raise InputError(f"{run / runs.FIGURES} is a link; say with --out where to write.")
        for path in report.write_figures(run, run / runs.FIGURES if to is None else to, format):
            typer.echo(path)
