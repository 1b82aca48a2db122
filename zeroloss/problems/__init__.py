"""Named problems on real or published data, ready to run."""

import inspect
from collections.abc import Callable

from zeroloss.errors import InputError
from zeroloss.problems.base import DEFAULT_STRENGTHS, Problem, parse_noise
from zeroloss.problems.digits import digits
from zeroloss.problems.hyperbola import hyperbola

PROBLEMS: dict[str, Callable[..., Problem]] = {"digits": digits, "hyperbola": hyperbola}

__all__ = [
    "DEFAULT_STRENGTHS",
    "PROBLEMS",
    "Problem",
    "digits",
    "hyperbola",
    "load",
    "parse_noise",
]


def load(name: str, **options: object) -> Problem:
    """The problem called `name`, built with `options`; `InputError` lists the known names."""
    if name not in PROBLEMS:
        raise InputError(f"unknown problem {name!r}. Known: {', '.join(PROBLEMS)}.")
    unknown = set(options) - set(inspect.signature(PROBLEMS[name]).parameters)
    if unknown:
        raise InputError(f"problem {name!r} has no option {', '.join(map(repr, sorted(unknown)))}.")
    return PROBLEMS[name](**options)
