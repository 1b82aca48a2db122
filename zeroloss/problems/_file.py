"""Problems from a Python file of the user: `path/to/problem.py:make`."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from zeroloss.errors import InputError, RunError, ZerolossError
from zeroloss.problems._names import file_of, split
from zeroloss.problems._problem import Problem, check_options, noises_for
from zeroloss.systems import Loss, Supervised

TEMPLATE = '''"""A problem of your own. Look at it with

    zeroloss classify {name}
    zeroloss compare {name} --noise label:0.1 --steps 20000 --out runs/mine
    zeroloss compare {name} --set width=100 --noise dropout:0.02 --out runs/wide
"""

import jax
import jax.numpy as jnp
import zeroloss as zl


def model(params, inputs):
    """Any JAX function of parameters (a pytree of arrays) and inputs; site() names a place for dropout."""
    hidden = zl.site(jnp.tanh(inputs @ params["in"]), "hidden")
    return hidden @ params["out"]


def make(width=50, examples=30, seed=0):
    """The options, `--set width=100`, are keyword arguments. Zero loss needs more parameters than examples.

    Returns the problem to train, a start (its loss need not be zero), and, if you like, functions of the
    parameters to watch, by name. For a loss that is not least squares, return zl.Loss(function) first.
    """
    data, first, last = jax.random.split(jax.random.key(seed), 3)
    inputs = jax.random.normal(data, (examples, 5))
    targets = jnp.sin(inputs.sum(axis=1))
    params = {{
        "in": jax.random.normal(first, (5, width)) / 5**0.5,
        "out": jax.random.normal(last, (width,)) / width**0.5,
    }}
    watch = {{"size_of_out": lambda params: jnp.linalg.norm(params["out"])}}
    return zl.LeastSquares(model, inputs, targets), params, watch
'''
"""A working file, with a field for the file's name."""


def load_file(name: str, **options: object) -> Problem:
    """The problem that the function in a file makes from `options`. The file is executed.

    The function returns a `Supervised`, such as a `LeastSquares`, or a `Loss`, then a start, and perhaps a
    dictionary of functions of the parameters to watch; or a `Problem`. Raises `InputError`, with the line
    where the file fails, or with the part of the function's result that is wrong.
    """
    path, function_name = file_of(name), split(name)[1]
    function = function_of(name)
    check_options(f"{function_name} in {path}", function, options)
    made = _run(path, lambda: function(**options))
    if isinstance(made, Problem):
        return made
    if not (isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], Supervised | Loss)):
        raise InputError(
            f"{function_name} in {path} must return (problem, start) or (problem, start, watch), with a "
            f"LeastSquares, another Supervised or a Loss first; it returned {_kind(made)}."
        )
    problem, start, watch = made if len(made) == 3 else (*made, {})
    if not isinstance(watch, dict) or not all(map(callable, watch.values())):
        raise InputError(f"the functions to watch must be a dictionary of functions, got {_kind(watch)}.")
    for each, watched in watch.items():
        _check_number(path, each, watched, start)
    if isinstance(problem, Loss):
        _check_number(path, "the loss", problem.function, start)
    noises = _run(path, lambda: noises_for(problem, start))
    size = sum(leaf.size for leaf in map(jnp.asarray, jax.tree.leaves(start)))
    description = f"{function_name} in {path.name}, {size:,} parameters"
    return Problem(path.stem, problem, start, watch, noises, description)


def function_of(name: str) -> Callable[..., Any]:
    """The function in a file that makes a problem. The file is executed."""
    path, function_name = file_of(name), split(name)[1]
    function = getattr(_imported(path), function_name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {function_name!r}. Name another: {path}:NAME.")
    return function


def _check_number(path: Path, name: object, function: Callable[..., Any], start: Any) -> None:
    """Raise `InputError` unless a function of the parameters, called `name`, returns one number."""
    found = _run(path, lambda: jax.eval_shape(function, start))
    shape = getattr(found, "shape", None)
    if shape != ():
        result = _kind(found) if shape is None else f"an array of shape {shape}"
        raise InputError(f"{path}: {name} must return one number, it returns {result}.")


def write_template(path: Path) -> None:
    """Write a working file to begin from. Raises `RunError` where there is a file already."""
    if path.suffix != ".py":
        raise InputError(f"the name of a problem must end in .py, got {str(path)!r}.")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=path))
    except FileExistsError:
        raise RunError(f"{path} is there already; nothing was written.") from None
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}.") from error


def _imported(path: Path) -> ModuleType:
    """The file as a module, executed anew."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read the problem {path}: {error.strerror}.") from None
    specification = importlib.util.spec_from_file_location(f"zeroloss_own_{path.stem}", path)
    assert specification is not None and specification.loader is not None
    module, loader = importlib.util.module_from_spec(specification), specification.loader
    sys.modules[specification.name] = module  # dataclasses find the types of their fields there
    _run(path, lambda: loader.exec_module(module))
    return module


def _run(path: Path, call: Callable[[], Any]) -> Any:
    """The result of `call`. Any error becomes an `InputError` with the last line of the file that was run."""
    try:
        return call()
    except ZerolossError:
        raise
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {frames[-1].lineno}" if frames else ""
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from error


def _kind(value: object) -> str:
    """The type of a value, in words."""
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return type(value).__name__
