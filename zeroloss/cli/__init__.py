"""The command line: parse, call, print. `main` is the entry point of the `zeroloss` command."""

import sys

from zeroloss.cli import _problems, _runs, _stored_results  # noqa: F401  # they register their commands
from zeroloss.cli._console import app


def main() -> None:
    """Entry point of the `zeroloss` command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
