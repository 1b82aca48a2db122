"""What makes runs: each command that computes one, the same over a grid, and going on with either."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import xarray as xr

from zeroloss import report, runs
from zeroloss.cli._console import (
    RUNS,
    Json,
    Quiet,
    RunFolder,
    UsageError,
    app,
    command,
    failing_in_a_line,
    flag,
    messages,
    option,
    print_json,
    print_path,
)
from zeroloss.cli._options import Request, SaveEvery, Saving, on_problem, typed
from zeroloss.cli._printing import as_rows, print_results

_SWEEP = "Sweep"  # a panel of the help

sweeps = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(
    sweeps,
    name="sweep",
    help="Compute a run for every cell of a grid, several at a time.\n\n"
    "zeroloss sweep COMMAND takes all options of COMMAND, and axes of the grid: options of the command, "
    "noise, rate, sigma, batch, seed, or set.NAME for an option of the problem.",
    rich_help_panel=RUNS,
)

Workers = Annotated[
    int | None, option(_SWEEP, "Processes on this machine. By default one for each core.", metavar="<int>")
]
Memory = Annotated[
    str | None,
    option(_SWEEP, "At most for each of them, such as 4GiB. By default its share.", metavar="<size>"),
]
Scheduler = Annotated[
    str | None,
    option(_SWEEP, "Of a Dask cluster that runs already: tcp://host:8786.", metavar="<address>"),
]


class Grid(NamedTuple):
    """The options of a sweep."""

    grid: Annotated[
        list[str],
        option(_SWEEP, "An axis, such as step_size=0.1,0.5. Repeat for several.", metavar="<axis=...>"),
    ]
    out: Annotated[Path, option(_SWEEP, "For the sweep, to show and resume it.", metavar="<folder>")]
    workers: Workers = None
    memory: Memory = None
    scheduler: Scheduler = None
    overwrite: Annotated[bool, flag(_SWEEP, "Replace the sweep in --out.", "--overwrite")] = False
    save_every: SaveEvery = 30.0


def makes_runs(name: str, *examples: str) -> Callable[[Callable[..., dict[str, Any]]], None]:
    """Make a function that gives the values of a config the commands `name` and `sweep name`."""

    def register(values: Callable[..., dict[str, Any]]) -> None:
        command(name, RUNS, *examples)(on_problem(_then(values, Saving, _run)))
        grid = f"zeroloss sweep {name} hyperbola --grid sigma=0.1,0.2 --out sweeps/{name}"
        command(f"sweep {name}", RUNS, grid, of=sweeps)(on_problem(_then(values, Grid, _sweep)))

    return register


def _then(
    values: Callable[..., dict[str, Any]], options: type, use: Callable[[Request, dict[str, Any], Any], None]
) -> Callable[..., None]:
    """A function of a request that hands on what `values` says of it, with more options."""

    @functools.wraps(values)
    def function(request: Request, **arguments: Any) -> None:
        chosen = arguments.pop("chosen")
        use(request, values(request, **arguments), chosen)

    own = inspect.signature(values)
    chosen = inspect.Parameter("chosen", inspect.Parameter.KEYWORD_ONLY, annotation=options)
    function.__signature__ = own.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[*own.parameters.values(), chosen], return_annotation=None
    )
    return function


@command("resume", RUNS, "zeroloss resume runs/first")
def resume_command(
    run: RunFolder,
    workers: Workers = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    save_every: SaveEvery = 30.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run or a sweep where it was stopped.

    The results of a run are those that it would have had without the stop, bit for bit. Of a sweep all cells
    that are not complete are resumed, and those that failed are tried again.
    """
    with failing_in_a_line():
        quiet = quiet or as_json
        config = runs.configuration(run)
        told: dict[str, Any] = dict(tell=_tell(quiet), progress=not quiet, every=save_every)
        if isinstance(config, runs.SweepConfig):
            _keep_off_the_gpu()
            executor = runs.dask_executor(
                scheduler=scheduler, workers=workers, memory=memory, tell=_tell(quiet)
            )
            runs.resume_sweep(config, run, executor=executor, **told)
        else:
            runs.resume(run, **told)
        _finish(run, quiet, as_json)


def _run(request: Request, values: dict[str, Any], saving: Saving) -> None:
    """Compute what a request asks for, print it, and with a folder make a run of it."""
    config = runs.config_from(values)
    results = runs.start(
        config,
        saving.out,
        overwrite=saving.overwrite,
        tell=_tell(request.quiet),
        progress=not request.quiet,
        every=saving.save_every,
    )
    if saving.out is not None:
        _finish(saving.out, request.quiet, request.json)
    else:
        _print(config.model_dump(), results, request.json)


def _sweep(request: Request, values: dict[str, Any], chosen: Grid) -> None:
    """Do all cells of a grid, and print what they found."""
    _keep_off_the_gpu()
    tell = _tell(request.quiet)
    axes = [_axis(each) for each in chosen.grid]
    grid = dict(axes)
    if len(grid) < len(axes):
        raise UsageError("--grid names an axis twice; give all its values at once, separated by commas.")
    config = runs.sweep_config({"cell": values, "grid": grid})
    runs.sweep(
        config,
        chosen.out,
        executor=runs.dask_executor(
            scheduler=chosen.scheduler, workers=chosen.workers, memory=chosen.memory, tell=tell
        ),
        overwrite=chosen.overwrite,
        tell=tell,
        progress=not request.quiet,
        every=chosen.save_every,
    )
    _finish(chosen.out, request.quiet, request.json)


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
    return name.strip(), [typed(part.strip()) for part in parts if part.strip()]


def _finish(folder: Path, quiet: bool, as_json: bool) -> None:
    """Print what a run or a sweep has found, and write its page; leave with 1 where cells failed."""
    run = runs.open_run(folder)
    _print(run.config, run.results, as_json)
    written = report.write(folder)
    if not quiet:
        print_path("Wrote", written)
    if not run.complete:
        raise typer.Exit(1)


def _print(config: Mapping[str, Any], results: xr.DataTree, as_json: bool) -> None:
    if as_json:
        print_json(as_rows(config, results))
    else:
        print_results(config, results)


def _keep_off_the_gpu() -> None:
    # This process checks the grid; the memory of a GPU is for those that compute.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _tell(quiet: bool) -> Callable[[str], object]:
    return (lambda _: None) if quiet else messages.print
