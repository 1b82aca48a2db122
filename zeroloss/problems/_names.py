"""The names of problems. Nothing here waits for JAX."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from zeroloss.errors import InputError

PROBLEMS = (
    "digits",
    "hyperbola",
    "ellipse",
    "regression_1d",
    "sparse_regression",
    "matrix_sensing",
    "matrix_completion",
    "phase_retrieval",
)
"""The named problems that come with their data, each a function of this name in `zeroloss.problems`."""

FORMATS = (".csv", ".npz", ".parquet")
"""The files that the problem `table` can read."""

_ALL = (*PROBLEMS, "table")
_DEFAULT = "make"


def check_name(name: str) -> None:
    """Raise `InputError`, with the known names, unless `name` is a problem or a function in a file."""
    if is_own(name) or name in _ALL:
        return
    if Path(name).suffix in FORMATS:
        raise InputError(
            f"{name!r} is a file of data, not a problem. On the command line, give it with "
            f"--data {shlex.quote(name)}; in Python, zeroloss.problems.load('table', path={name!r})."
        )
    raise InputError(
        f"unknown problem {name!r}. Known: {', '.join(_ALL)}; or a function in a file, such as "
        f"path/to/problem.py:make. A file of data ({', '.join(FORMATS)}) goes to --data, without a problem."
    )


def is_own(name: str) -> bool:
    """Whether a problem's name is that of a function in a Python file."""
    return split(name)[0].endswith(".py")


def resolved(name: str) -> str:
    """The same problem with the whole path of its file."""
    path, function = split(name)
    return f"{Path(path).resolve()}:{function}"


def file_of(name: str) -> Path:
    """The file of a problem that comes from one."""
    return Path(split(name)[0])


def source(name: str, options: Mapping[str, object]) -> Path | None:
    """The file that a problem is made from; None if it comes with its data."""
    if is_own(name):
        return file_of(name)
    return Path(str(options.get("path"))) if name == "table" else None


def split(name: str) -> tuple[str, str]:
    """The path of the file and the name of the function, by default "make"."""
    path, colon, function = name.rpartition(":")
    return (path, function) if colon and path.endswith(".py") else (name, _DEFAULT)
