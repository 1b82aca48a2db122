"""The command itself, and the parts that all subcommands share: help, printing, and errors."""

import inspect
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperOption

from zeroloss import __version__
from zeroloss._progress import messages
from zeroloss.errors import AccuracyWarning, InputError, Interrupted, ZerolossError

PROBLEMS, RUNS, RESULTS = "Problems", "Runs", "Results"
"""The panels of the commands in the help."""

GENERAL = "General"
"""The panel of the options that most commands have."""

EXAMPLES: dict[str, tuple[str, ...]] = {}
"""The examples in the help of each command."""

EXIT_CODES = {
    0: "done",
    1: "error (one line on standard error)",
    2: "wrong usage",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}


def _listed(title: str, *lines: str) -> str:
    """Lines that the help shows as they are, below a title."""
    return "\n".join([title, *(f"[bold]  {escape(line)}[/bold]" for line in lines)])


app = typer.Typer(
    help="What the noise in a training recipe does once the loss is zero.",
    epilog="\n\n".join(
        [
            _listed(
                "To begin with:",
                "zeroloss classify digits",
                "zeroloss compare hyperbola --noise label --steps 5000 --out runs/first",
                "zeroloss show runs/first",
            ),
            "Results go to standard output, messages to standard error. Exit codes: "
            + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())
            + ".",
        ]
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

out = Console()


class _Command(TyperCommand):
    """A command whose help lists --help with the other general options."""

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        found = super().get_help_option(ctx)
        if found is not None:
            found.rich_help_panel, found.metavar = GENERAL, ""
        return found


def command(
    name: str, panel: str, *examples: str, of: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command `name`, with its docstring and some examples as its help.

    A command of the group `of` has both words in its name. An example of at most 76 columns is not wrapped.
    """
    EXAMPLES[name] = examples

    def register(function: Callable[..., None]) -> Callable[..., None]:
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        return of.command(
            name.rpartition(" ")[2],
            cls=_Command,
            help="\n\n".join(" ".join(each.split()) for each in paragraphs),
            epilog=_listed("Example:" if len(examples) == 1 else "Examples:", *examples),
            rich_help_panel=panel,
        )(function)

    return register


def option(
    panel: str,
    words: str,
    *names: str,
    metavar: str | None = None,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """An option that the help of a command lists in `panel`.

    For the Tab key `complete` returns the values that begin with its argument.
    """
    return typer.Option(*names, help=words, metavar=metavar, rich_help_panel=panel, autocompletion=complete)


def flag(panel: str, words: str, name: str) -> Any:
    """An option without a value."""
    return option(panel, words, name, metavar="")


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
Quiet = Annotated[bool, flag(GENERAL, "Print results only: no messages and no progress.", "--quiet")]
Json = Annotated[bool, flag(GENERAL, "Print results as JSON.", "--json")]


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"zeroloss {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", True)
    else:  # JAX reads this when it is imported, which help does not wait for
        os.environ.setdefault("JAX_ENABLE_X64", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that a terminal cannot show
    warnings.showwarning = _show_warning
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # damage that Zarr finds is reported by us
    # LAPACK's threads wait for each other, for tens of times as long when another process is busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_show_other_warning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    """Print warnings of zeroloss in a line, and others as Python does."""
    if issubclass(category, AccuracyWarning):
        text = f"[bold yellow]warning:[/bold yellow] {escape(str(message))}"
        messages.print(text, highlight=False, soft_wrap=True)
    else:
        _show_other_warning(message, category, filename, lineno, file, line)


class UsageError(InputError):
    """Options that exclude each other, or are written in a wrong form."""


@contextmanager
def failing_in_a_line() -> Iterator[None]:
    """Print errors of zeroloss in a line and exit with 1 or 2; after a signal say how to go on."""
    try:
        yield
    except ZerolossError as error:
        messages.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except Interrupted as stop:
        messages.print(f"Stopped; {escape(str(stop))}", highlight=False, soft_wrap=True)
        raise typer.Exit(128 + stop.signal) from None
    except KeyboardInterrupt:
        messages.print("Stopped.")
        raise typer.Exit(130) from None


def print_path(words: str, path: Path) -> None:
    """Print a message about a path, in one line that can be copied."""
    messages.print(f"{words} {escape(str(path))}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print `value` on standard output for machines."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
