"""The command line: parse, call, print. `main` is the entry point of the `zeroloss` command."""

import sys

from zeroloss.cli import _compute, _folders, _running  # noqa: F401  # their commands register themselves
from zeroloss.cli._console import app


def main() -> None:
    """Entry point of the `zeroloss` command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
