"""The command and what all its subcommands share: where they print, and how they fail."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import typer
from rich.console import Console
from rich.markup import escape

from zeroloss.errors import Interrupted, ZerolossError

app = typer.Typer(
    help="What the noise in a training recipe does once the loss is zero.",
    epilog="Results go to standard output, messages to standard error. Exit codes: 0 done; 1 an error, said "
    "in a line; 2 wrong usage; 130 stopped by Ctrl-C, 143 by SIGTERM, both after saving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

out, messages = Console(), Console(stderr=True)


@app.callback()
def _main() -> None:
    jax.config.update("jax_enable_x64", True)
    # LAPACK's threads wait for each other, for tens of times as long when another process is busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@contextmanager
def failing_in_a_line() -> Iterator[None]:
    """Print errors of ours in a line and exit with 1; say how to go on after a signal."""
    try:
        yield
    except ZerolossError as error:
        messages.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    except Interrupted as stop:
        messages.print(f"Stopped; {escape(str(stop))}", highlight=False, soft_wrap=True)
        raise typer.Exit(128 + stop.signal) from None
    except KeyboardInterrupt:
        messages.print("Stopped.")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print `value` on standard output for machines."""
    typer.echo(json.dumps(value, indent=2, default=str))
