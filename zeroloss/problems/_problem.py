"""What a named problem is: something to train, a start, what to watch, and noises by name."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError
from zeroloss.noise import (
    LISTINGS,
    AbstractNoise,
    AntiCorrelated,
    DropConnect,
    Dropout,
    GaussianDropConnect,
    GaussianDropout,
    InputNoise,
    LabelNoise,
    Langevin,
    MiniBatch,
    WeightNoise,
)
from zeroloss.systems import LeastSquares, Loss

DEFAULT_STRENGTHS = {
    name: listing.default for name, listing in LISTINGS.items() if listing.default is not None
}
"""The rate, sigma or size of a noise whose strength is not given."""


def strengths_from(rate: Any = None, sigma: Any = None, batch: Any = None) -> dict[str, Any]:
    """Strengths by noise: `rate` of those that have one, `batch` of minibatches, `sigma` of all others."""
    given = {"rate": rate, "sigma": sigma, "batch": batch, None: None}
    values = {name: given[listing.strength] for name, listing in LISTINGS.items()}
    return {name: value for name, value in values.items() if value is not None}


class Problem(NamedTuple):
    """A named problem, ready to run.

    - `problem`: the clean problem; `.with_noise(...)` makes it a system.
    - `start`: where training starts; not necessarily on the zero-loss set.
    - `observables`: functions of the parameters worth watching, by name.
    - `noises`: by short name, what makes that noise from its strength (a rate, a sigma or a size); what
      has no parameters makes a noise without a strength.
    - `description`: one line for people.
    - `truth`: what the targets were made with, such as a vector of coefficients, where there is such a thing.
    """

    name: str
    problem: LeastSquares | Loss
    start: PyTree
    observables: dict[str, Callable[[PyTree], Array]]
    noises: dict[str, Callable[..., AbstractNoise]]
    description: str
    truth: Array | None = None


def parse_noise(
    problem: Problem, text: str, strengths: Mapping[str, float] = DEFAULT_STRENGTHS
) -> AbstractNoise:
    """The noise that `text` names, such as `"label"`, `"dropout:0.05"` or `"minibatch:32+label:0.1"`.

    A part without a strength takes it from `strengths`, or from `DEFAULT_STRENGTHS` when it is not there; a
    minibatch without a size, where there are fewer examples than that, takes half of them.
    Raises `InputError`, listing the known names, or saying what is wrong with a strength.
    """
    first, *others = [_parse_part(problem, part.strip(), strengths) for part in text.split("+")]
    return sum(others, start=first)


def _parse_part(problem: Problem, part: str, strengths: Mapping[str, float]) -> AbstractNoise:
    name, given, strength = part.partition(":")
    if name not in problem.noises:
        raise InputError(
            f"unknown noise {name!r} for problem {problem.name!r}. Known: "
            f"{', '.join(problem.noises)}; sums such as minibatch:32+label:0.1."
        )
    make = problem.noises[name]
    if not inspect.signature(make).parameters:
        if given:
            raise InputError(f"{name!r} takes no strength, got {part!r}.")
        return make()
    try:
        value = float(strength) if given else {**DEFAULT_STRENGTHS, **strengths}[name]
    except KeyError:
        raise InputError(
            f"the noise {name!r} has no default strength: give it one, such as {name}:0.1."
        ) from None
    except ValueError:
        raise InputError(f"the strength in {part!r} must be a number, got {strength!r}.") from None
    try:
        made = make(value)
        if isinstance(made, MiniBatch) and not given and isinstance(problem.problem, LeastSquares):
            examples = problem.problem.number
            made = made if made.replace or made.size <= examples else make(max(1, examples // 2))
        return made
    except ValueError as error:  # an InputError is one
        raise InputError(f"noise {part!r}: {error}") from error


def parameter_noises() -> dict[str, Callable[..., AbstractNoise]]:
    """The noises on all parameters, or on their gradient, which suit any problem."""
    noises = (WeightNoise, AntiCorrelated, DropConnect, GaussianDropConnect, Langevin)
    return {noise.listing.name: noise for noise in noises}


def data_noises(*, inputs: bool = True, replace: bool = False) -> dict[str, Callable[..., AbstractNoise]]:
    """The noises on the data of a problem with examples.

    **Arguments:**

    - `inputs`: whether there are floating-point inputs to put noise on.
    - `replace`: whether minibatches are drawn with replacement, as they must be where there are fewer
      examples than a minibatch holds.
    """
    noises = {LabelNoise.listing.name: LabelNoise} | ({InputNoise.listing.name: InputNoise} if inputs else {})
    return {**noises, MiniBatch.listing.name: lambda size: MiniBatch(size, replace=replace)}


def activation_noises(sites: str | Sequence[str]) -> dict[str, Callable[..., AbstractNoise]]:
    """The noises on the activations at `sites`."""
    return {
        Dropout.listing.name: lambda rate: Dropout(rate, at=sites),
        GaussianDropout.listing.name: lambda sigma: GaussianDropout(sigma, at=sites),
    }


def check_options(what: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise `InputError` where `options` has one that `function`, which makes `what`, does not take."""
    known = inspect.signature(function).parameters
    if any(each.kind == inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"{what} has no option {', '.join(map(repr, unknown))}. Its options: "
            f"{', '.join(known) or 'none'}."
        )


def standardized(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and variance 1 over the first axis; 0 where they are all the same."""
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def positive_integer(name: str, value: int) -> int:
    """The option `name`, checked to be a positive integer."""
    if isinstance(value, bool) or not math.isfinite(value) or int(value) != value or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def integer_between(name: str, value: int, low: int, high: int) -> int:
    """The option `name`, checked to be an integer from `low` to `high`."""
    if isinstance(value, bool) or not math.isfinite(value) or int(value) != value or not low <= value <= high:
        raise InputError(f"{name} must be an integer between {low} and {high}, got {value!r}.")
    return int(value)


def positive_number(name: str, value: float) -> float:
    """The option `name`, checked to be positive and finite."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive and finite, got {value!r}.")
    return float(value)
