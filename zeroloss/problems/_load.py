"""Finding a named problem, or one in a user's file."""

import inspect
from collections.abc import Callable, Mapping

from zeroloss import problems
from zeroloss.errors import InputError
from zeroloss.problems._file import function_of, load_file
from zeroloss.problems._names import check_name, is_own
from zeroloss.problems._problem import Problem, check_options


def load(name: str, **options: object) -> Problem:
    """The problem called `name`, built with `options`; `InputError` lists the known names.

    A name such as `"path/to/problem.py:make"` is a function in a file, which is executed. It returns a
    `zeroloss.Supervised`, such as a `zeroloss.LeastSquares`, or a `zeroloss.Loss`, then a start, and perhaps
    a dictionary of functions of the parameters to watch; or a `Problem`.
    """
    if is_own(name):
        return load_file(name, **options)
    check_name(name)
    function = _maker(name)
    check_options(f"problem {name!r}", function, options)
    known = inspect.signature(function).parameters.values()
    missing = [each.name for each in known if each.default is each.empty and each.name not in options]
    if missing:
        file = " On the command line, --data FILE gives it." if name == "table" else ""
        raise InputError(f"problem {name!r} needs the option {', '.join(map(repr, missing))}.{file}")
    try:
        return function(**options)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"problem {name!r} cannot be made with {options}: {error}") from error


def _maker(name: str) -> Callable[..., Problem]:
    """The function that makes a named problem."""
    return getattr(problems, name)


def options_of(name: str) -> Mapping[str, inspect.Parameter]:
    """The options of a problem, by name. A problem in a file is executed to find them."""
    check_name(name)
    return inspect.signature(function_of(name) if is_own(name) else _maker(name)).parameters
