"""The commands that make runs, the same over a grid, and going on with either."""

import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zeroloss import report, runs
from zeroloss._progress import Tell, show_progress, silent
from zeroloss.cli._console import (
    RUNS,
    Json,
    Quiet,
    RunFolder,
    UsageError,
    app,
    command,
    failing_in_a_line,
    messages,
    print_json,
    print_path,
)
from zeroloss.cli._options import (
    GridOptions,
    Request,
    SavingOptions,
    WorkerOptions,
    on_problem,
    parameters_of,
    parse_value,
)
from zeroloss.cli._printing import as_rows, print_results
from zeroloss.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

sweeps = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(
    sweeps,
    name="sweep",
    help="Compute a run for every cell of a grid, several at a time.\n\n"
    "zeroloss sweep COMMAND takes all options of COMMAND, and axes of the grid: options of the command, "
    "noise, rate, sigma, batch, seed, or set.NAME for an option of the problem.",
    rich_help_panel=RUNS,
)


def resume(run: Path, quiet: bool, as_json: bool, **more: Any) -> None:
    """Go on with a run or a sweep where it was stopped.

    The results of a run are those that it would have had without the stop, bit for bit. Of a sweep all cells
    that are not complete are resumed, and those that failed are tried again.
    """
    quiet = quiet or as_json
    with failing_in_a_line(), show_progress(not quiet):
        every: float = more.pop("save_every")
        if isinstance(runs.configuration(run), runs.SweepConfig):
            _keep_off_the_gpu()
            executor = _executor(WorkerOptions(**more), _tell(quiet))
            runs.resume_sweep(run, executor=executor, tell=_tell(quiet), every=every)
        else:
            runs.resume(run, tell=_tell(quiet), every=every)
        _finish(run, quiet, as_json)


_RESUME = inspect.signature(resume).parameters
resume.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [
        _RESUME["run"].replace(annotation=RunFolder, kind=inspect.Parameter.KEYWORD_ONLY),
        *parameters_of(WorkerOptions),
        *(each for each in parameters_of(SavingOptions) if each.name == "save_every"),
        _RESUME["quiet"].replace(annotation=Quiet, default=False, kind=inspect.Parameter.KEYWORD_ONLY),
        _RESUME["as_json"].replace(annotation=Json, default=False, kind=inspect.Parameter.KEYWORD_ONLY),
    ]
)
command("resume", RUNS, "zeroloss resume runs/first")(resume)


def _run(request: Request) -> None:
    """Compute what a request asks for, print it, and with a folder make a run of it."""
    config, saving = request.config(), request.more
    results = runs.start(
        config,
        saving.out,
        overwrite=saving.overwrite,
        tell=_tell(request.quiet),
        every=saving.save_every,
    )
    if saving.out is not None:
        _finish(saving.out, request.quiet, request.json)
    else:
        _print(config.model_dump(mode="json"), results, request.json)


def _sweep(request: Request) -> None:
    """Compute all cells of a grid, and print their numbers."""
    _keep_off_the_gpu()
    options: GridOptions = request.more
    axes = [_axis(each) for each in options.grid]
    if len(dict(axes)) < len(axes):
        raise UsageError("--grid names an axis twice; give all its values at once, separated by commas.")
    runs.sweep(
        runs.sweep_config({"cell": request.values, "grid": dict(axes)}),
        options.out,
        executor=_executor(options, _tell(request.quiet)),
        overwrite=options.overwrite,
        tell=_tell(request.quiet),
        every=options.save_every,
    )
    _finish(options.out, request.quiet, request.json)


for _name, _config in runs.COMMANDS.items():
    on_problem(_name, RUNS, _config, SavingOptions)(_run)
    _example = f"zeroloss sweep {_name} hyperbola --grid sigma=0.1,0.2 --out sweeps/{_name}"
    on_problem(f"sweep {_name}", RUNS, _config, GridOptions, examples=(_example,), of=sweeps)(_sweep)


def _axis(text: str) -> tuple[str, list[Any]]:
    """An axis of a grid and its values; commas within brackets belong to a value."""
    name, equals, listed = text.partition("=")
    if not equals:
        raise UsageError(f"--grid needs name=value,value,..., got {text!r}.")
    depth, parts = 0, [""]
    for character in listed:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return name.strip(), [parse_value(part.strip()) for part in parts if part.strip()]


def _executor(options: WorkerOptions, tell: Tell) -> AbstractContextManager[Any]:
    """The workers of a sweep."""
    if options.scheduler is None:
        return runs.worker_processes(workers=options.workers, memory=options.memory, tell=tell)
    if options.workers is not None or options.memory is not None:
        raise InputError(
            "--workers and --memory cannot be combined with --scheduler: that cluster sets them."
        )
    return runs.dask_executor(options.scheduler, tell=tell)


def _finish(folder: Path, quiet: bool, as_json: bool) -> None:
    """Print what a run or a sweep has found, and write its page; leave with 1 where cells failed."""
    run = runs.open_run(folder)
    _print(run.config, run.results, as_json)
    written = report.write(folder)
    if not quiet:
        print_path("Wrote", written)
    if not run.complete:
        raise typer.Exit(1)


def _print(config: Mapping[str, Any], results: "xr.DataTree", as_json: bool) -> None:
    if as_json:
        print_json(as_rows(config, results))
    else:
        print_results(config, results)


def _keep_off_the_gpu() -> None:
    """Leave the memory of a GPU to the processes that compute; this one only checks the grid."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _tell(quiet: bool) -> Tell:
    return silent if quiet else messages.print
