"""Noise on named activations: dropout, with Bernoulli or Gaussian masks (theory.md, section 4)."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError
from zeroloss.noise._laws import AbstractLaw, Scale, dropping_rate, positive_sigma
from zeroloss.noise._noise import (
    AbstractDropping,
    AbstractGaussian,
    AbstractInjection,
    Forward,
    Listing,
    multiplied,
)
from zeroloss.noise._sites import inject, site_shapes

Per = Literal["example", "step"]


Shared = tuple[int, ...] | None
"""Axes of an activation along which units share a mask; None for all but that of the examples."""


def check_per(per: str) -> Any:
    """`per`, checked to be "example" or "step"."""
    if per not in ("example", "step"):
        raise InputError(f'per must be "example" or "step", got {per!r}.')
    return per


def names_of_sites(at: Any) -> tuple[str, ...] | None:
    """`at` as a tuple, checked to name different sites; None stays None."""
    if at is None:
        return None
    names = (at,) if isinstance(at, str) else tuple(at) if isinstance(at, Sequence) else ()
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            "at must name one or several different sites, each named by zeroloss.site in the model, "
            f"got {at!r}."
        )
    return names


class _AbstractMasks(AbstractInjection):
    """h -> h * (1 + eta) at named activations."""

    at: eqx.AbstractVar[tuple[str, ...] | None]
    shared: eqx.AbstractVar[Shared]

    @property
    def needs(self) -> str:
        return "a model with sites"

    @abc.abstractmethod
    def of_shapes(self, shapes: Any) -> AbstractLaw:
        """The law of eta, of the given shapes."""

    def law(self, forward: Forward) -> AbstractLaw:
        shapes = _shapes_at(forward, self.at, type(self).__name__)
        masks = {name: _mask_shape(shape, name, self.shared) for name, shape in shapes.items()}
        if self.per == "step":  # one mask for all examples
            masks = {name: shape[1:] for name, shape in masks.items()}
        return self.of_shapes(masks)

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        def multiply(mask: Array) -> Callable[[Array], Array]:
            return lambda activation: multiplied(activation, mask)

        handlers = {name: multiply(mask) for name, mask in eta.items()}
        return forward.replace(model=inject(forward.model, handlers))


class Dropout(AbstractDropping, _AbstractMasks):
    """Dropout at named activations: h -> h * (1 + eta), eta from `zeroloss.TwoPoint(rate)`.

    The regularizer is 1/(2N) sum_i |d f_i / d eta_i|^2, so it is non-degenerate in general
    (theory.md, section 4; Srivastava et al. 2014; Wei, Kakade and Ma 2020).

    **Arguments:**

    - `rate`: probability of being dropped, in [0, 1); sigma^2 = rate / (1 - rate).
    - `at`: the site, or sites, named with `zeroloss.site` inside the model. For different rates at
      different sites, add several: `Dropout(0.1, at="first") + Dropout(0.5, at="second")`. By default the
      site of a model that has one; for a model with several it must be given.
    - `per`: `"example"` for a mask per example, as frameworks do; `"step"` for one mask a step.
    - `shared`: the axes of the activation along which units share a mask, with the examples as axis 0.
      `shared=(1, 2)` of images `[N, height, width, channels]` drops whole channels, as `Dropout2d` of
      PyTorch, and `shared=-1` all channels of a position. `DropPath` shares all axes.

    A mask of a small rate is rare but drops all of a unit, so it is a small noise only where the loss is
    quadratic in it, as squares before a linear last layer. Otherwise the formula above holds for
    `GaussianDropout`; under Bernoulli masks finite differences take the place of the derivatives:
    R = sum_ij [L_hat(w, -e_ij) - L(w) + d_ij L_hat(w, 0)] over examples i and units j.
    """

    listing: ClassVar[Listing] = Listing("dropout", "dropout", "rate", 0.01, usual=True)

    rate: Scale
    at: tuple[str, ...] | None = eqx.field(static=True)
    per: Per = eqx.field(static=True)
    shared: Shared = eqx.field(static=True)

    def __init__(
        self,
        rate: float,
        at: str | Sequence[str] | None = None,
        per: Per = "example",
        shared: int | Sequence[int] = (),
    ):
        self.rate = dropping_rate(rate)
        self.at, self.per, self.shared = names_of_sites(at), check_per(per), _axes(shared)


class DropPath(AbstractDropping, _AbstractMasks):
    """Stochastic depth: h -> h * (1 + eta) with one eta for each example and site, so that branches drop.

    Put the sites at the ends of residual branches, `x + zl.site(branch(x), "block_1")`. This is `Dropout`
    with all axes but that of the examples shared (Huang et al. 2016; `StochasticDepth(mode="row")` of
    torchvision). `rate` and `at` as for `Dropout`; add several for rates that grow with depth.
    """

    rate: Scale
    at: tuple[str, ...] | None = eqx.field(static=True)
    per: Per = eqx.field(static=True, default="example", init=False)
    shared: Shared = eqx.field(static=True, default=None, init=False)

    def __init__(self, rate: float, at: str | Sequence[str] | None = None):
        self.rate, self.at = dropping_rate(rate), names_of_sites(at)


class GaussianDropout(AbstractGaussian, _AbstractMasks):
    """Dropout with Gaussian masks at named activations: h -> h * (1 + sigma * xi).

    The same regularizer as `Dropout` with sigma^2 = rate / (1 - rate), exact before nonlinearities too
    (theory.md, section 4; Srivastava et al. 2014). `at`, `per` and `shared` as for `Dropout`.
    """

    listing: ClassVar[Listing] = Listing("gaussian-dropout", "Gaussian dropout", "sigma", 0.1)

    sigma: Scale
    at: tuple[str, ...] | None = eqx.field(static=True)
    per: Per = eqx.field(static=True)
    shared: Shared = eqx.field(static=True)

    def __init__(
        self,
        sigma: float,
        at: str | Sequence[str] | None = None,
        per: Per = "example",
        shared: int | Sequence[int] = (),
    ):
        self.sigma = positive_sigma(sigma)
        self.at, self.per, self.shared = names_of_sites(at), check_per(per), _axes(shared)


def _axes(shared: Any) -> tuple[int, ...]:
    """`shared` as a tuple, checked to be axes other than that of the examples."""
    axes = (shared,) if isinstance(shared, int) else tuple(shared) if isinstance(shared, Sequence) else None
    if axes is None or not all(isinstance(axis, int) for axis in axes):
        raise InputError(f"shared must be an axis or axes of the activation, such as (1, 2), got {shared!r}.")
    if 0 in axes:
        raise InputError(
            'shared counts the examples as axis 0; pass per="step" for one mask for all of them.'
        )
    return axes


def _mask_shape(shape: tuple[int, ...], name: str, shared: Shared) -> tuple[int, ...]:
    """The shape of the mask of an activation: 1 along the axes that share it."""
    rank = len(shape)
    axes = range(1, rank) if shared is None else [axis + rank if axis < 0 else axis for axis in shared]
    for axis in axes:
        if not 1 <= axis < rank:
            raise InputError(
                f"shared={shared} does not suit site {name!r}, whose activation has shape {shape}: axes from "
                f"1 to {rank - 1} can be shared."
            )
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _shapes_at(forward: Forward, names: tuple[str, ...] | None, noise: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the activations at the sites `names`; None stands for the only site of the model.

    Raises `InputError`, which names the `noise`, for sites that the model lacks or that do not hold examples.
    """
    if forward.inputs is None:
        raise InputError("noise at a site needs a model with sites: use it with zeroloss.LeastSquares.")
    known = site_shapes(forward.model, forward.params, forward.inputs)
    listing = ", ".join(map(repr, known))
    if names is None:
        if not known:
            raise InputError(
                f"{noise} acts at a named activation, and the model names none. Name one inside the model, "
                f'h = zeroloss.site(h, "hidden"), and pass {noise}(..., at="hidden").'
            )
        if len(known) > 1:
            raise InputError(
                f"{noise} without at= is for a model with one site, and this model has {len(known)}: "
                f"{listing}. Pass at={next(iter(known))!r} or at=[{listing}]."
            )
        names = tuple(known)
    number = jax.tree.leaves(forward.inputs)[0].shape[0]
    for name in names:
        if name not in known:
            raise InputError(
                f"the model has no site {name!r}. Its sites: "
                f"{listing or 'none; name one with zeroloss.site(h, name)'}."
            )
        if known[name][:1] != (number,):
            raise InputError(
                f"site {name!r} has shape {known[name]}; its leading axis must run over the "
                f"{number} examples."
            )
    return {name: known[name] for name in names}
