"""A named problem: a loss, a start, functions to watch, and noises by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zeroloss.bridges import BridgedModel
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
    site_shapes,
)
from zeroloss.systems import Loss, Supervised

DEFAULT_STRENGTHS = {
    name: listing.default for name, listing in LISTINGS.items() if listing.default is not None
}
"""The rate, sigma or size of a noise whose strength is not given."""


def strengths_from(rate: Any = None, sigma: Any = None, batch: Any = None) -> dict[str, Any]:
    """Strengths by noise: `rate` for noises with one, `batch` for minibatches, `sigma` for all others."""
    values = {"rate": rate, "sigma": sigma, "batch": batch}
    strengths = {name: values.get(str(listing.strength)) for name, listing in LISTINGS.items()}
    return {name: value for name, value in strengths.items() if value is not None}


class Problem(NamedTuple):
    """A named problem, ready to run.

    - `problem`: the clean problem; `.with_noise(...)` makes it a system.
    - `start`: where training starts; not necessarily on the zero-loss set.
    - `observables`: functions of the parameters worth watching, by name.
    - `noises`: by short name, functions that make a noise from its strength (a rate, a sigma or a size). One
      without parameters makes a noise that has no strength; one whose parameter has a default, a noise with
      the strengths of the model.
    - `description`: one line for readers.
    - `truth`: the vector or matrix that the targets were made from, if there is one.
    """

    name: str
    problem: Supervised | Loss
    start: PyTree
    observables: dict[str, Callable[[PyTree], Array]]
    noises: dict[str, Callable[..., AbstractNoise]]
    description: str
    truth: Array | None = None


def parse_noise(problem: Problem, text: str, strengths: Mapping[str, float] | None = None) -> AbstractNoise:
    """The noise that `text` names, such as `"label"`, `"dropout:0.05"` or `"minibatch:32+label:0.1"`.

    A part without a strength takes it from `strengths`, then from the model, as dropout of a PyTorch module,
    then from `DEFAULT_STRENGTHS`. If that makes a minibatch larger than the data set, it takes half of the
    examples.
    Raises `InputError` for an unknown name, with the known ones, and for a strength that does not suit.
    """
    first, *others = [_parse_part(problem, part.strip(), strengths or {}) for part in text.split("+")]
    return sum(others, start=first)


def _parse_part(problem: Problem, part: str, strengths: Mapping[str, float]) -> AbstractNoise:
    """The noise of one summand."""
    name, given, strength = part.partition(":")
    if name not in problem.noises:
        raise InputError(
            f"unknown noise {name!r} for problem {problem.name!r}. Known: "
            f"{', '.join(problem.noises)}; sums such as minibatch:32+label:0.1."
        )
    make = problem.noises[name]
    parameters = list(inspect.signature(make).parameters.values())
    if parameters and parameters[0].default is None and not given and name not in strengths:
        return make()
    if not parameters:
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
        if isinstance(made, MiniBatch) and not given and isinstance(problem.problem, Supervised):
            examples = problem.problem.number
            made = made if made.replace or made.size <= examples else make(max(1, examples // 2))
        return made
    except ValueError as error:  # an InputError is one
        raise InputError(f"noise {part!r}: {error}") from error


def noises_for(
    problem: Supervised | Loss, start: PyTree, *, replace: bool = False
) -> dict[str, Callable[..., AbstractNoise]]:
    """The noises that suit a problem, as `Problem.noises`; its model is traced to find sites.

    All problems have noises on the parameters and their gradient. Supervised problems have noises on the
    data, and on the activations at the sites of their model. With `replace` minibatches are drawn with
    replacement, which a problem with few examples needs.
    """
    noises: dict[str, Callable[..., AbstractNoise]] = {}
    if isinstance(problem, Supervised):
        if sites := tuple(site_shapes(problem.model, start, problem.inputs)):
            noises[Dropout.listing.name] = _dropout(problem.model, sites)
            noises[GaussianDropout.listing.name] = lambda sigma: GaussianDropout(sigma, at=sites)
        noises[LabelNoise.listing.name] = LabelNoise
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(problem.inputs)):
            noises[InputNoise.listing.name] = InputNoise
        noises[MiniBatch.listing.name] = lambda size: MiniBatch(size, replace=replace)
    on_parameters = (WeightNoise, AntiCorrelated, DropConnect, GaussianDropConnect, Langevin)
    return noises | {noise.listing.name: noise for noise in on_parameters}


def _dropout(model: Callable[..., PyTree], sites: tuple[str, ...]) -> Callable[..., AbstractNoise]:
    """Dropout of a rate at all sites; without a rate, that of a model that has rates of its own."""

    def at_all(rate: float) -> AbstractNoise:
        return Dropout(rate, at=sites)

    if not (isinstance(model, BridgedModel) and any(each.rate > 0 for each in model.sites.values())):
        return at_all
    return lambda rate=None: model.dropout() if rate is None else at_all(rate)


def check_options(maker: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise `InputError` if `function` does not take one of `options`; `maker` names it in the message."""
    known = inspect.signature(function).parameters
    if any(each.kind == inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"{maker} has no option {', '.join(map(repr, unknown))}. Its options: "
            f"{', '.join(known) or 'none'}."
        )


def standardized(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and variance 1 over the first axis; 0 where they are all the same."""
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
