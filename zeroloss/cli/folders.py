"""The commands that look at runs on disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from zeroloss import problems, report, runs
from zeroloss.cli.console import (
    PROBLEMS,
    RESULTS,
    Json,
    RunFolder,
    command,
    failing_in_a_line,
    flag,
    option,
    out,
    print_json,
    print_path,
)
from zeroloss.cli.printing import as_rows, print_results, print_table
from zeroloss.errors import InputError

_FORMAT = "Format"  # a panel of the help


@command("show", RESULTS, "zeroloss show runs/first", "zeroloss show runs/first --json")
def show_command(run: RunFolder, as_json: Json = False) -> None:
    """Print what a run has found, and whether it is complete."""
    with failing_in_a_line():
        opened = runs.open_run(run)
        config, verb = opened.config, runs.configuration(run).command
        if as_json:
            print_json(
                {
                    "config": config,
                    "status": opened.status,
                    "verdicts": opened.verdicts,
                    "results": as_rows(config, opened.results),
                }
            )
            return
        what = f"{verb} {config['problem']}: {opened.status}"
        out.print(escape(what), highlight=False, soft_wrap=True)
        if opened.status != "complete":
            out.print(f"To go on: zeroloss resume {escape(str(run))}", highlight=False, soft_wrap=True)
        print_results(config, opened.results)


@command("list", RESULTS, "zeroloss list", "zeroloss list runs")
def list_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look.")] = Path("."),
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
    with failing_in_a_line():
        if csv == netcdf:
            raise InputError("choose one of --csv and --netcdf.")
        opened = runs.open_run(run)
        if not opened.results.children:
            raise InputError(f"{run} has no results yet.")
        folder = run if to is None else to
        if csv:
            written = runs.export_csv(opened, folder / "csv" if to is None else folder)
        else:
            written = [runs.export_netcdf(opened, folder / "results.nc")]
        for path in written:
            typer.echo(path)


@command("report", RESULTS, "zeroloss report runs/first")
def report_command(run: RunFolder) -> None:
    """Write the figures and report.html of a run again."""
    with failing_in_a_line():
        print_path("Wrote", report.write(run))


@command("new", PROBLEMS, "zeroloss new problem.py", "zeroloss classify problem.py")
def new_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write, such as problem.py.")],
) -> None:
    """Write a working problem of your own to a file, to begin from."""
    with failing_in_a_line():
        problems.write_template(path)
        print_path("Wrote", path)
        print_path("Look at it: zeroloss classify", path)
