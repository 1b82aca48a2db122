"""The commands that look at runs on disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from zeroloss import problems, report, runs
from zeroloss.cli.console import app, failing_in_a_line, messages, out, print_json
from zeroloss.cli.printing import as_rows, print_results
from zeroloss.errors import InputError

_Run = Annotated[Path, typer.Argument(help="Folder of the run.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command("show")
def show_command(run: _Run, as_json: _Json = False) -> None:
    """Print what the run in RUN computes, whether it is complete, and what it has found."""
    with failing_in_a_line():
        opened = runs.open_run(run)
        command = runs.configuration(run).command
        if as_json:
            print_json(
                {
                    "config": opened.config,
                    "status": opened.status,
                    "verdicts": opened.verdicts,
                    "results": as_rows(command, opened.results),
                }
            )
            return
        out.print(f"{command} {escape(str(opened.config['problem']))}: {opened.status}", highlight=False)
        if opened.status != "complete":
            out.print(f"To go on: zeroloss resume {escape(str(run))}", highlight=False, soft_wrap=True)
        print_results(opened.config, opened.results)


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it.")] = Path("."),
    as_json: _Json = False,
) -> None:
    """List all runs in FOLDER and below, with their status."""
    with failing_in_a_line():
        found = [runs.summary(path) for path in runs.find_runs(folder)]
        if as_json:
            print_json(found)
            return
        table = Table(box=SIMPLE)
        for column in ("run", "command", "problem", "noise", "status"):
            table.add_column(column, overflow="fold")
        for each in found:
            table.add_row(*map(escape, each.values()))
        out.print(table if found else f"There are no runs in {escape(str(folder))}.")


@app.command("export")
def export_command(
    run: _Run,
    csv: Annotated[bool, typer.Option("--csv", help="A CSV file of the table, one of each path.")] = False,
    netcdf: Annotated[bool, typer.Option("--netcdf", help="One netCDF file, with a group a path.")] = False,
    to: Annotated[Path | None, typer.Option("--out", help="Folder to write to; by default RUN.")] = None,
) -> None:
    """Write the results of RUN as files that other programs read."""
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


@app.command("report")
def report_command(run: _Run) -> None:
    """Write the figures and report.html of RUN again."""
    with failing_in_a_line():
        messages.print(f"Wrote {escape(str(report.write(run)))}")


@app.command("new")
def new_command(
    path: Annotated[Path, typer.Argument(help="The file to write, such as problem.py.")],
) -> None:
    """Write a working problem of your own to PATH, to begin from."""
    with failing_in_a_line():
        problems.write_template(path)
        messages.print(f"Wrote {escape(str(path))}. Look at it: zeroloss classify {escape(str(path))}")
