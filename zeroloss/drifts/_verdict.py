"""The verdict: on which time scale the noise acts, and how (theory.md, section 2)."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector, flatten, refuse_tracing
from zeroloss._tolerances import TINY, ZERO
from zeroloss.drifts._drift import first_drift, second_drift, second_drift_of
from zeroloss.drifts._rare_masks import (
    DRAWS,
    EXACT,
    RareMaskExpansion,
    all_drops,
    draw_units,
    errors_of_drops,
    expand_at,
)
from zeroloss.drifts._reg_and_sigma import AbstractExpansion, relative
from zeroloss.drifts._slow_time import FAST, SLOW, TimeScale
from zeroloss.errors import InputError, LossError, NoMinimumError, RankError, UnsupportedError
from zeroloss.noise import is_zero
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import (
    ON_SET,
    AbstractSpaces,
    AbstractZeroSet,
    locate,
    looks_smooth,
    neighbours,
    norm_or_one,
    spectrum_of,
    zero_set_of,
)

CLASSIFIED_POINTS = 6
"""How many points of the set decide, by default."""

_SPREAD = 0.1  # distance between the points that decide, relative to |w|
_SMALLEST_SPREAD = 1e-3


class Verdict(eqx.Module):
    """The effect of the noise once the loss is zero.

    A verdict is about the drift on the zero-loss set as alpha goes to 0. Before training reaches the set,
    noise also changes the point of the set that it reaches, even minibatches alone. `zeroloss.predict` and
    `zeroloss.descend` show that.

    - `name`: `"non-degenerate"`, `"degenerate"` or `"trivial"`.
    - `time_scale`: `"1/(alpha sigma^2)"`, `"1/(alpha^2 sigma^2)"` or None: the number of training steps on
      which training drifts.
    - `stochastic`: whether the limit is an SDE rather than an ODE.
    - `margin`: the factor by which the measures below clear the threshold 1e-6; always >= 1.
    - `towards`: the function that the limit makes smaller, where that is known.
    - `first`, `second`, `diffusion`: the largest over the points of |P_T grad Reg| |w|, |b| |w| and
      |P_T G|^2, each relative to its typical size beside the set, so that the scales of the loss, the
      weights and the noise do not matter. For a problem treated matrix-free, `second` and `diffusion` are NaN
      unless the noise is white label noise.
    - `affine`: whether the noisy gradient is affine in the noise. If not, and the noise is degenerate,
      terms of order alpha sigma^3 (a skewed law) or alpha sigma^4 were neglected: they matter
      unless sigma^2 << alpha (sigma << alpha for a skewed law).
    - `rare`: whether there are Bernoulli masks in which the loss is not quadratic, as for dropout before a
      nonlinearity. Drift and limit are then those of masks of a small rate, with R of theory.md, section
      4, in the place of Reg. `second` and `diffusion` are then computed only where the drift on the fast
      scale is zero, and NaN otherwise.
    - `gaussian_sigma`: whether the noise is degenerate, and Sigma that of Gaussian masks although masks are
      Bernoulli ones. The loss is then quadratic in the masks, but its gradient is not linear in them.
    - `smooth`: whether the loss looks smooth around the point. If not, as with ReLU units, the limit is
      followed with almost-everywhere derivatives. Real noise straddles kinks, however small it is beside the
      distance travelled; `zeroloss.predict` averages over that.
    - `dimension`, `codimension`: of the zero-loss set; None for a loss treated matrix-free.
    - `points`: how many points of the set decided.
    """

    name: Literal["non-degenerate", "degenerate", "trivial"]
    time_scale: TimeScale | None
    stochastic: bool
    margin: float
    towards: str
    first: float
    second: float
    diffusion: float
    affine: bool
    rare: bool
    gaussian_sigma: bool
    smooth: bool
    dimension: int | None
    codimension: int | None
    points: int

    def __str__(self) -> str:
        kind = "" if self.name == "trivial" else f", {'stochastic' if self.stochastic else 'deterministic'}"
        scale = "no drift on the set" if self.time_scale is None else f"drift on {self.time_scale} steps"
        text = f"{self.name}{kind}: {scale} {self.towards} (margin {self.margin:.1e})"
        return text + (f"; {self.caveat}" if self.caveat else "")

    @property
    def caveat(self) -> str:
        """A limitation of the verdict in words, or an empty string."""
        if not self.smooth:
            return (
                "the loss has kinks (ReLU units?): the limit slides along them, but fluctuations straddle "
                "them, which predict takes into account"
            )
        if self.gaussian_sigma:
            return "this is the drift under Gaussian masks; under rare full drops Sigma is another"
        if self.name == "degenerate" and self.rare:
            return "this holds only for rates << alpha"
        if self.name == "degenerate" and not self.affine:
            return "the noise is not affine, so this holds only for sigma^2 << alpha"
        if self.name != "trivial":
            return ""
        text = (
            "this holds on the set, as alpha goes to 0; from a start off the set the noise may still change "
            "where training arrives, which predict and descend show"
        )
        if self.affine:
            return text
        return f"the noise is not affine, so drift of higher order in sigma is possible; {text}"


def classify(
    system: AbstractSystem,
    point: PyTree,
    *,
    key: Key[Array, ""] | None = None,
    points: int = CLASSIFIED_POINTS,
) -> Verdict:
    """Decide on which time scale the noise moves training along the zero-loss set, and how.

    Degeneracy is a property of the set and not of one point. It is therefore decided from `point` and
    `points` - 1 random points of the set, up to a tenth of |w| away.

    **Arguments:**

    - `system`, `point`: a system and a point of its zero-loss set.
    - `key`: for the choice of the other points; a fixed key by default.
    - `points`: how many points decide.

    **Returns:** a `Verdict`, with the measures and the margin of the decision.

    **Raises:** `NotOnSetError`, `RankError`; `UnsupportedError` where a problem treated matrix-free would
    need the drift on the slow scale; `NoMinimumError` for hard labels under cross-entropy, with two numbers
    that say how much the noise does at `point`.

    Costs two drifts a point, compiled once.
    """
    if points < 2:
        raise InputError(f"points must be at least 2 to tell degeneracy from stationarity, got {points}.")
    refuse_tracing((system, point), "classify")
    try:
        zero_set, w = locate(system, point)
    except NoMinimumError as error:
        raise _with_ratios(error, system, point) from None
    return classify_at(expand_at(system, zero_set, w), w, jax.random.key(0) if key is None else key, points)


def _with_ratios(error: NoMinimumError, system: AbstractSystem, point: PyTree) -> NoMinimumError:
    """The same error with the ratios of what the noise does at `point` to what the loss does."""
    w, unravel = flatten(point)
    zero_set = zero_set_of(system, w, unravel)
    law = system.noise_law(point)
    if is_zero(law.sigma):
        return error
    drift, regularizer = (float(each) for each in _ratios(expand_at(system, zero_set, w), w))
    drift, regularizer = float(law.sigma) ** 2 * drift, float(law.sigma) ** 2 * regularizer
    return NoMinimumError(
        f"{error} At this point the noise moves the parameters {drift:.3g} times as fast along the set of "
        "equal outputs as the loss moves them across it (sigma^2 |P_T grad Reg| / |grad L|), and sigma^2 Reg "
        f"is {regularizer:.3g} times L. The two time scales do not separate, so that there is no slow limit.",
        drift,
        regularizer,
    )


@compiled_once
def _ratios(expansion: AbstractExpansion, w: Vector) -> tuple[Scalar, Scalar]:
    """|P_T grad Reg| / |grad L| and Reg / L."""
    zero_set = expansion.zero_set.around(w)
    value, slope = jax.value_and_grad(expansion.regularizer)(w)
    loss, pull = jax.value_and_grad(zero_set.loss)(w)
    return jnp.linalg.norm(zero_set.spaces(w).tangent(slope)) / jnp.linalg.norm(pull), value / loss


def classify_at(expansion: AbstractExpansion, w: Vector, key: Key[Array, ""], points: int) -> Verdict:
    """`classify` at a point already located."""
    zero_set = expansion.zero_set
    chosen = jnp.concatenate([w[None], _other_points(zero_set, w, key, points - 1)])
    measures = _measure(expansion, chosen, key)
    first, second, diffusion = (float(jnp.max(column)) for column in measures[:3])
    follows_trace, nonlinearity = bool(measures[3]), float(measures[4])
    rare = isinstance(expansion, RareMaskExpansion)
    is_second_known = _is_second_known(expansion, w) and not (rare and first > ZERO)
    if not is_second_known and first <= ZERO:
        raise UnsupportedError(
            "this noise does not drift on the fast scale, and a matrix-free problem has no slow drift. "
            'Use fewer examples or parameters, or geometry="factorized" where memory allows.'
        )
    decisive = [first, second, diffusion, nonlinearity] if is_second_known else [first, nonlinearity]
    if not np.isfinite(decisive).all():
        raise LossError(
            "a derivative of the loss near the point is not finite (measures of both drifts, of the "
            f"diffusion, of non-affinity: {first:.3g}, {second:.3g}, {diffusion:.3g}, {nonlinearity:.3g}); "
            "the noisy loss must be three times differentiable in params and twice in the noise there."
        )
    codimension = zero_set.rank
    common: dict[str, Any] = dict(
        first=first,
        second=second,
        diffusion=diffusion,
        affine=nonlinearity <= ZERO,
        rare=rare,
        gaussian_sigma=first <= ZERO and not rare and _gradient_error(expansion, w, key) > ZERO,
        smooth=looks_smooth(zero_set, w, key),
        dimension=None if codimension is None else w.shape[0] - codimension,
        codimension=codimension,
        points=points,
    )
    slow = max(second, diffusion)
    if first > ZERO:
        return Verdict("non-degenerate", FAST, False, first / ZERO, "towards smaller Reg", **common)
    if slow > ZERO:
        towards = "towards smaller tr H" if follows_trace else "along b, no known potential"
        margin = min(_ratio(ZERO, first), slow / ZERO)
        return Verdict("degenerate", SLOW, diffusion > ZERO, margin, towards, **common)
    return Verdict("trivial", None, False, _ratio(ZERO, max(first, slow)), "on either time scale", **common)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("inf")


def _other_points(
    zero_set: AbstractZeroSet, w: Vector, key: Key[Array, ""], count: int
) -> Float[Array, "count parameters"]:
    distance = _SPREAD
    while distance >= _SMALLEST_SPREAD:
        found, residuals = neighbours(zero_set, w, key, count, distance)
        if bool(jnp.all(residuals <= ON_SET)):
            return found
        distance /= 3
    raise RankError(
        f"no other points of the zero-loss set were found within {_SMALLEST_SPREAD:g} |w| of this one, so "
        "degeneracy cannot be decided."
    )


@compiled_once
def _measure(expansion: AbstractExpansion, points: Float[Array, "count parameters"], key: Array):
    """First, second and diffusion measure at each point; whether b is -c P_T grad tr H; non-affinity."""
    zero_set = expansion.zero_set
    if isinstance(expansion, RareMaskExpansion) and expansion.largest_row(points[0]) > EXACT:
        expansion = expansion.sampled(points[0], draw_units(expansion, points[0], key, DRAWS))
    typical_regularizer, typical_variance = _typical(expansion, points, key)

    def at_point(w: Vector):
        spaces, first, second, diffusion = _on_both_scales(expansion, w, typical_regularizer)
        known = _is_second_known(expansion, w)
        trace_gradient = spaces.tangent(jax.grad(zero_set.trace)(w)) if known else jnp.zeros_like(w)
        return (
            relative(jnp.linalg.norm(first) * norm_or_one(w), typical_regularizer),
            relative(jnp.linalg.norm(second) * norm_or_one(w), typical_variance),
            relative(diffusion, typical_variance),
            second,
            trace_gradient,
        )

    first, second, diffusion, drifts, traces = jax.lax.map(at_point, points)
    coefficient = jnp.sum(drifts * traces) / jnp.maximum(jnp.sum(traces**2), TINY)
    remainder = jnp.linalg.norm(drifts - coefficient * traces)
    follows = (coefficient < 0) & (remainder <= 1e-6 * jnp.linalg.norm(drifts))
    w = points[0]
    return first, second, diffusion, follows, _nonlinearity(expansion, w, key)


def _on_both_scales(
    expansion: AbstractExpansion, w: Vector, typical: Array
) -> tuple[AbstractSpaces, Vector, Vector, Scalar]:
    """Normal and tangent space, P_T grad Reg, P_T b, Tr P_T Sigma P_T; the last two are NaN where unknown.

    Under rare masks they cost many gradients, and are left out where the first is not zero beside `typical`.
    """

    def unknown() -> tuple[Vector, Scalar]:
        return jnp.full_like(w, jnp.nan), jnp.full((), jnp.nan)

    if not _is_second_known(expansion, w):
        spaces = expansion.zero_set.spaces(w)
        return spaces, first_drift(expansion, w, spaces), *unknown()
    if expansion.hessian_multiple(w) is not None:
        spaces = expansion.zero_set.spaces(w)
        second = second_drift_of(expansion, w), expansion.tangential_variance(w, spaces)
        return spaces, first_drift(expansion, w, spaces), *second
    spectrum = spectrum_of(expansion.zero_set, w)

    def known() -> tuple[Vector, Scalar]:
        return second_drift(expansion, w, spectrum), expansion.tangential_variance(w, spectrum)

    first = first_drift(expansion, w, spectrum)
    if not isinstance(expansion, RareMaskExpansion):
        return spectrum, first, *known()
    moves = relative(jnp.linalg.norm(first) * norm_or_one(w), typical) > ZERO
    return spectrum, first, *jax.lax.cond(moves, unknown, known)


def _is_second_known(expansion: AbstractExpansion, w: Vector) -> bool:
    return expansion.zero_set.has_spectrum or expansion.hessian_multiple(w) is not None


def _typical(
    expansion: AbstractExpansion, points: Float[Array, "count parameters"], key: Array
) -> tuple[Array, Array]:
    """The sizes of Reg and tr Sigma beside the set, where they do not vanish by coincidence."""

    def beside(w: Vector, key: Array) -> tuple[Array, Array]:
        direction = jax.random.normal(key, w.shape, w.dtype)
        w = w + _SPREAD * norm_or_one(w) * direction / jnp.linalg.norm(direction)
        slope = jnp.linalg.norm(jax.grad(expansion.regularizer)(w)) * norm_or_one(w)
        # A step beside the set may leave the domain of the loss; such a point does not count.
        size, variance = expansion.magnitude(w) + slope, expansion.total_variance(w)
        return jnp.where(jnp.isfinite(size), size, jnp.nan), jnp.where(
            jnp.isfinite(variance), variance, jnp.nan
        )

    keys = jax.random.split(key, points.shape[0])
    regularizers, variances = jax.lax.map(lambda pair: beside(*pair), (points, keys))
    return jnp.nanmean(regularizers), jnp.nanmean(variances)


def _nonlinearity(expansion: AbstractExpansion, w: Vector, key: Array) -> Array:
    """The relative change of d_eta grad_w L_hat in a random direction from zero noise to a random noise."""
    system, unravel = expansion.system, expansion.zero_set.unravel
    law = system.noise_law(unravel(w))
    if law.size == 0 or is_zero(law.sigma):
        return jnp.zeros(())
    zero, unravel_noise = ravel_pytree(law.zeros(jnp.float64))
    one, other = (ravel_pytree(law.sample(k, jnp.float64))[0] for k in jax.random.split(key))

    def gradient(xi: Array) -> Vector:
        eta = law.unit(unravel_noise(xi))
        return jax.grad(lambda w: system.noisy_loss(unravel(w), eta))(w)

    def slope(at: Array) -> Vector:
        return jax.jvp(gradient, (at,), (one,))[1]

    at_zero, elsewhere = slope(zero), slope(law.sigma * other)
    return relative(
        jnp.linalg.norm(elsewhere - at_zero),
        jnp.maximum(jnp.linalg.norm(at_zero), jnp.linalg.norm(elsewhere)),
    )


def _gradient_error(expansion: AbstractExpansion, w: Vector, key: Array) -> float:
    """The largest relative error of expanding the gradient to first order in a mask that drops one unit."""
    errors = [float(errors_of_drops(drops, w, key)[1]) for drops in all_drops(expansion, w)]
    return max(errors, default=0.0)
