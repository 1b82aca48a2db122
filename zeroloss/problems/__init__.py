"""Named problems: small ones with a known answer, and networks on real data. See docs/problems.md."""

import inspect
from collections.abc import Callable

from zeroloss.errors import InputError
from zeroloss.problems.base import DEFAULT_STRENGTHS, Problem, parse_noise
from zeroloss.problems.digits import digits
from zeroloss.problems.ellipse import ellipse
from zeroloss.problems.hyperbola import hyperbola
from zeroloss.problems.matrix_completion import matrix_completion
from zeroloss.problems.matrix_sensing import matrix_sensing
from zeroloss.problems.phase_retrieval import phase_retrieval
from zeroloss.problems.regression_1d import regression_1d
from zeroloss.problems.sparse_regression import sparse_regression

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

__all__ = [
    "DEFAULT_STRENGTHS",
    "PROBLEMS",
    "Problem",
    "digits",
    "ellipse",
    "hyperbola",
    "load",
    "matrix_completion",
    "matrix_sensing",
    "parse_noise",
    "phase_retrieval",
    "regression_1d",
    "sparse_regression",
]


def load(name: str, **options: object) -> Problem:
    """The problem called `name`, built with `options`; `InputError` lists the known names."""
    if name not in PROBLEMS:
        raise InputError(f"unknown problem {name!r}. Known: {', '.join(PROBLEMS)}.")
    known = inspect.signature(PROBLEMS[name]).parameters
    unknown = set(options) - set(known)
    if unknown:
        raise InputError(
            f"problem {name!r} has no option {', '.join(map(repr, sorted(unknown)))}. Its options: "
            f"{', '.join(known) or 'none'}."
        )
    return PROBLEMS[name](**options)
