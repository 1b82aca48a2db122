"""Named problems: small ones with a known answer, and networks on real data. See docs/problems.md."""

import inspect
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from zeroloss.errors import InputError
from zeroloss.problems._digits import digits as digits
from zeroloss.problems._ellipse import ellipse as ellipse
from zeroloss.problems._file import (
    file_of,
    function_of,
    is_own as is_own,
    load_file,
    resolved as resolved,
    write_template as write_template,
)
from zeroloss.problems._hyperbola import hyperbola as hyperbola
from zeroloss.problems._matrix_completion import matrix_completion as matrix_completion
from zeroloss.problems._matrix_sensing import matrix_sensing as matrix_sensing, product as product
from zeroloss.problems._phase_retrieval import least_norm as least_norm, phase_retrieval as phase_retrieval
from zeroloss.problems._problem import (
    DEFAULT_STRENGTHS as DEFAULT_STRENGTHS,
    Problem as Problem,
    check_options,
    parse_noise as parse_noise,
    strengths_from as strengths_from,
)
from zeroloss.problems._regression_1d import regression_1d as regression_1d
from zeroloss.problems._sparse_regression import (
    coefficients as coefficients,
    sparse_regression as sparse_regression,
)
from zeroloss.problems._table import FORMATS, table as table

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits": digits,
    "hyperbola": hyperbola,
    "ellipse": ellipse,
    "regression_1d": regression_1d,
    "sparse_regression": sparse_regression,
    "matrix_sensing": matrix_sensing,
    "matrix_completion": matrix_completion,
    "phase_retrieval": phase_retrieval,
}
"""The named problems that come with their data."""

_ALL: dict[str, Callable[..., Problem]] = {**PROBLEMS, "table": table}


def load(name: str, **options: object) -> Problem:
    """The problem called `name`, built with `options`; `InputError` lists the known names.

    A name such as `"path/to/problem.py:make"` is a function in a file, which is executed. It returns a
    `zeroloss.LeastSquares` or a `zeroloss.Loss`, then a start, and perhaps a dictionary of functions of the
    parameters to watch; or a `Problem`.
    """
    if is_own(name):
        return load_file(name, **options)
    if name not in _ALL:
        raise InputError(_unknown(name))
    check_options(f"problem {name!r}", _ALL[name], options)
    known = inspect.signature(_ALL[name]).parameters.values()
    missing = [each.name for each in known if each.default is each.empty and each.name not in options]
    if missing:
        file = " On the command line, --data FILE gives it." if name == "table" else ""
        raise InputError(f"problem {name!r} needs the option {', '.join(map(repr, missing))}.{file}")
    try:
        return _ALL[name](**options)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"problem {name!r} cannot be made with {options}: {error}") from error


def _unknown(name: str) -> str:
    """The message for a name that is not that of a problem."""
    if Path(name).suffix in FORMATS:
        return (
            f"{name!r} is a file of data, not a problem. On the command line, give it with "
            f"--data {shlex.quote(name)}; in Python, zeroloss.problems.load('table', path={name!r})."
        )
    return (
        f"unknown problem {name!r}. Known: {', '.join(_ALL)}; or a function in a file, such as "
        f"path/to/problem.py:make. A file of data ({', '.join(FORMATS)}) goes to --data, without a problem."
    )


def options_of(name: str) -> Collection[str]:
    """The names of a problem's options. A problem in a file is executed to find them."""
    function = function_of(name) if is_own(name) else _ALL.get(name)
    return () if function is None else inspect.signature(function).parameters


def source(name: str, options: Mapping[str, object]) -> Path | None:
    """The file that a problem is made from; None if it comes with its data."""
    if is_own(name):
        return file_of(name)
    return Path(str(options.get("path"))) if name == "table" else None
