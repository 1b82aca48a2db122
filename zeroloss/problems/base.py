"""What a named problem is: something to train, a start, what to watch, and noises by name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import AbstractNoise
from zeroloss.system import LeastSquares, Loss

DEFAULT_STRENGTHS = {"dropout": 0.01, "label": 0.3, "weight": 0.01, "minibatch": 32.0}
"""The rate, sigma or size of a noise whose strength is not given."""


class Problem(NamedTuple):
    """A named problem, ready to run.

    - `problem`: the clean problem; `.with_noise(...)` makes it a system.
    - `start`: where training starts; not necessarily on the zero-loss set.
    - `observables`: functions of the parameters worth watching, by name.
    - `noises`: by short name, what makes that noise from its strength (a rate, a sigma or a size).
    - `description`: one line for people.
    """

    name: str
    problem: LeastSquares | Loss
    start: PyTree
    observables: dict[str, Callable[[PyTree], Array]]
    noises: dict[str, Callable[[float], AbstractNoise]]
    description: str


def parse_noise(
    problem: Problem, text: str, strengths: Mapping[str, float] = DEFAULT_STRENGTHS
) -> AbstractNoise:
    """The noise that `text` names, such as `"label"`, `"dropout:0.05"` or `"minibatch:32+label:0.1"`.

    A part without a strength takes it from `strengths`. Raises `InputError`, listing the known names.
    """
    noise: AbstractNoise | None = None
    for part in text.split("+"):
        name, given, strength = part.strip().partition(":")
        if name not in problem.noises:
            raise InputError(
                f"unknown noise {name!r} for problem {problem.name!r}. Known: "
                f"{', '.join(problem.noises)}; sums such as minibatch:32+label:0.1."
            )
        try:
            value = float(strength) if given else strengths[name]
        except ValueError:
            raise InputError(f"the strength in {part!r} must be a number, got {strength!r}.") from None
        one = problem.noises[name](value)
        noise = one if noise is None else noise + one
    assert noise is not None  # "".split("+") has one part
    return noise
