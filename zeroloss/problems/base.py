"""What a named problem is: something to train, a start, and what to watch."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, PyTree

from zeroloss.noise import AbstractNoise
from zeroloss.system import LeastSquares, Loss


class Problem(NamedTuple):
    """A named problem, ready to run.

    - `problem`: the clean problem; `.with_noise(...)` makes it a system.
    - `start`: where training starts; not yet on the zero-loss set.
    - `observables`: functions of the parameters worth watching, by name.
    - `noises`: what each noise of the catalogue means here, by its short name, given its strength.
    - `description`: one line for people.
    """

    name: str
    problem: LeastSquares | Loss
    start: PyTree
    observables: dict[str, Callable[[PyTree], Array]]
    noises: dict[str, Callable[[float], AbstractNoise]]
    description: str
