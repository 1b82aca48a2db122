"""Laws of the noise: standardized random pytrees and the scale that goes with them.

A law describes eta = sigma * unit(xi) (theory.md, section 1): xi has uncorrelated components of mean 0
and variance 1, `unit` maps it to the noise at sigma = 1. Every formula of the limiting dynamics is
in terms of `unit`; only training uses sigma.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Int, Key, PyTree

from zeroloss._arguments import positive_number
from zeroloss._pytrees import is_traced
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.noise._checks import check_draws

Scale = float | Float[Array, ""]
"""A sigma or a rate: a number, or an array, so that compiled code serves all values."""

Matrix = ArrayLike | Sequence[Sequence[float]]


class AbstractLaw(eqx.Module):
    """A standardized law for a pytree of noise, with its natural scale `sigma`."""

    shape: eqx.AbstractVar[Any]
    sigma: eqx.AbstractVar[float]

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        """One draw of xi, a pytree like `shape`: mean 0, variance 1, uncorrelated components."""

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        """The noise at sigma = 1: a linear map of xi, by default xi itself."""
        return xi

    def draw(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        """One draw of the noise itself, eta = sigma * unit(xi)."""
        return jax.tree.map(lambda leaf: self.sigma * leaf, self.unit(self.sample(key, dtype)))

    def zeros(self, dtype: DTypeLike = float) -> PyTree[Array]:
        """The noise-free eta."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf, dtype), self.shape, is_leaf=is_shape)

    def scaled(self, factor: float) -> "AbstractLaw":
        """The same kind of law with sigma multiplied by `factor`."""
        return eqx.tree_at(lambda law: law.sigma, self, factor * self.sigma)

    def check(self) -> None:
        """Raise `InputError` when draws show that xi is not standardized, or `unit` not linear."""
        check_draws(self)

    @property
    def size(self) -> int:
        """Number of noise components n."""
        return sum(math.prod(leaf) for leaf in jax.tree.leaves(self.shape, is_leaf=is_shape))


def is_shape(node: Any) -> bool:
    """Whether `node` is the shape of one array: a tuple of integers, `()` for a scalar."""
    return isinstance(node, tuple) and all(isinstance(axis, int) for axis in node)


def positive_sigma(sigma: Scale) -> Scale:
    """`sigma` as a float, checked to be positive and finite; under tracing as it is."""
    return sigma if is_traced(sigma) else positive_number("sigma", float(sigma))


def draw_subset(key: Key[Array, ""], number: int, size: int) -> Int[Array, " size"]:
    """`size` of the integers below `number`, drawn without replacement."""
    if size == number:
        return jnp.arange(number)
    return jax.random.choice(key, number, (size,), replace=False)


def dropping_rate(rate: Scale) -> Scale:
    """`rate` as a float, checked to lie in [0, 1); under tracing as it is."""
    if is_traced(rate):
        return rate
    rate = float(rate)
    if not 0 <= rate < 1:
        raise InputError(f"rate is the probability of being dropped and must lie in [0, 1), got {rate}.")
    return rate


def is_zero(scale: Scale) -> bool:
    """Whether a sigma or rate is 0. Never under tracing: `with_scales_as_arrays` leaves zeros as numbers."""
    return not is_traced(scale) and float(scale) == 0


def with_scales_as_arrays(noise: Any) -> Any:
    """Laws or noises with every sigma and rate but 0 as an array, so that compiled code serves all values."""

    def as_array(path: tuple[Any, ...], leaf: Any) -> Any:
        is_scale = path and getattr(path[-1], "name", None) in ("sigma", "rate")
        return jnp.asarray(leaf) if is_scale and isinstance(leaf, float) and leaf != 0 else leaf

    return jax.tree_util.tree_map_with_path(as_array, noise)


def scaled_rate(rate: Scale, factor: float) -> float:
    """The rate of dropping whose sigma is `factor` times that of `rate`: sigma^2 = rate / (1 - rate)."""
    odds = factor**2 * rate / (1 - rate)
    return float(odds / (1 + odds))


def _check_shape(shape: Any) -> Any:
    """`shape`, checked to be a shape or a pytree of shapes."""
    leaves = jax.tree.leaves(shape, is_leaf=is_shape)
    if not all(is_shape(leaf) and all(axis >= 0 for axis in leaf) for leaf in leaves):
        raise InputError(f"shape must be a tuple of integers or a pytree of such tuples, got {shape!r}.")
    return shape


def symmetric_root(covariance: Matrix) -> Array:
    """The symmetric square root of a covariance.

    Raises `InputError` unless it is finite, not zero, symmetric and positive semidefinite.
    """
    matrix = np.asarray(covariance, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise InputError(f"a covariance must be a finite square matrix, got shape {matrix.shape}.")
    largest = np.abs(matrix).max(initial=0.0)
    if largest == 0:
        raise InputError("the covariance must not be zero.")
    if np.abs(matrix - matrix.T).max() > 1e-10 * largest:
        raise InputError("the covariance must be symmetric.")
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -1e-10 * largest:
        raise InputError(
            f"the covariance must be positive semidefinite; its smallest eigenvalue is {values[0]:.3g}."
        )
    return jnp.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _draw_leaves(
    key: Key[Array, ""], shape: Any, draw: Callable[[Key[Array, ""], tuple[int, ...]], Array]
) -> PyTree[Array]:
    """`draw(key, shape)` for each shape of a pytree."""
    leaves, structure = jax.tree.flatten(shape, is_leaf=is_shape)
    drawn = [draw(k, leaf) for k, leaf in zip(_keys(key, len(leaves)), leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _keys(key: Key[Array, ""], count: int) -> list[Key[Array, ""]]:
    """`count` keys; a single one is `key` itself, because making a key costs as much as drawing a number."""
    return [key] if count == 1 else list(jax.random.split(key, count))


class _Standardized(AbstractLaw):
    """A law of ours, whose draws need no check."""

    def check(self) -> None:
        pass


class _AbstractEntries(_Standardized):
    """eta = sigma * xi, the entries of xi independent and of one law."""

    shape: Any = eqx.field(converter=_check_shape)
    sigma: Scale = eqx.field(default=1.0, converter=positive_sigma)

    @abc.abstractmethod
    def _entries(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array of entries of xi."""

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        return _draw_leaves(key, self.shape, lambda k, leaf: self._entries(k, leaf, dtype))


class Gaussian(_AbstractEntries):
    """eta = sigma * xi with xi standard normal.

    `shape` is the shape of one array, such as `(2,)`, or a pytree of shapes.
    """

    def _entries(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.normal(key, shape, dtype)


class Rademacher(_AbstractEntries):
    """eta = sigma * xi with xi = +1 or -1, equally likely. `shape` as for `Gaussian`."""

    def _entries(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.rademacher(key, shape, dtype)


class Uniform(_AbstractEntries):
    """eta = sigma * xi with xi uniform on [-sqrt(3), sqrt(3)], of variance 1. `shape` as for `Gaussian`."""

    def _entries(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


class TwoPoint(_Standardized):
    """eta = -1 with probability `rate`, rate / (1 - rate) otherwise: the law behind dropout.

    h * (1 + eta) is then h dropped, or h / (1 - rate). `sigma` follows from the rate,
    sigma^2 = rate / (1 - rate) (theory.md, section 4). Rate 0 is no noise: sigma = 0.
    """

    shape: Any
    rate: Scale
    sigma: Scale

    def __init__(self, shape: Any, rate: Scale):
        self.shape = _check_shape(shape)
        self.rate = dropping_rate(rate)
        self.sigma = (self.rate / (1 - self.rate)) ** 0.5

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(jnp.zeros_like, xi) if is_zero(self.rate) else xi

    def scaled(self, factor: float) -> "TwoPoint":
        return TwoPoint(self.shape, scaled_rate(self.rate, factor))

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        if is_zero(self.rate):
            return self.zeros(dtype)
        return self._two_values(key, dtype, -1 / self.sigma, self.sigma)

    def draw(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        return self._two_values(key, dtype, -1.0, self.rate / (1 - self.rate))

    def _two_values(
        self, key: Key[Array, ""], dtype: DTypeLike, dropped: Scale, kept: Scale
    ) -> PyTree[Array]:
        def draw(k: Key[Array, ""], leaf: tuple[int, ...]) -> Array:
            drop = jax.random.bernoulli(k, self.rate, leaf)
            return jnp.where(drop, jnp.asarray(dropped, dtype), jnp.asarray(kept, dtype))

        return _draw_leaves(key, self.shape, draw)


class Law(AbstractLaw):
    """A law of your own: eta = sigma * xi, with xi from `sampler`.

    **Arguments:**

    - `sampler`: `sampler(key, shape) -> array` of independent entries of mean 0 and variance 1, which
      is checked on 200,000 numbers drawn before it is used.
    - `shape`: the shape of one array, such as `(2,)`, or a pytree of shapes.
    - `sigma`: the scale.
    """

    sampler: Callable[[Key[Array, ""], tuple[int, ...]], Array]
    shape: Any = eqx.field(converter=_check_shape)
    sigma: Scale = eqx.field(default=1.0, converter=positive_sigma)

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        return _draw_leaves(key, self.shape, lambda k, leaf: jnp.asarray(self.sampler(k, leaf), dtype))


class _AbstractDerived(AbstractLaw):
    """A law made from another one, `law`, whose sigma it has."""

    law: eqx.AbstractVar[AbstractLaw]

    @property
    def sigma(self) -> Scale:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.law.sigma

    def check(self) -> None:
        self.law.check()

    def scaled(self, factor: float) -> "AbstractLaw":
        return eqx.tree_at(lambda derived: derived.law, self, self.law.scaled(factor))


class Correlated(_AbstractDerived):
    """`law` mixed so that the covariance of eta is sigma^2 `covariance`.

    eta = sigma * A xi with A = covariance^(1/2), applied to the noise as one flat vector, in the order
    of `jax.flatten_util.ravel_pytree` (theory.md, section 1).

    **Arguments:**

    - `law`: a law of n components in all, such as `zeroloss.Gaussian((n,), sigma=0.1)`.
    - `covariance`: n x n, symmetric and positive semidefinite; it may be singular.
    - `root`: A itself, n x n, in place of a covariance.
    """

    law: AbstractLaw
    root: Float[Array, "n n"]

    def __init__(self, law: AbstractLaw, covariance: Matrix | None = None, *, root: Array | None = None):
        if (covariance is None) == (root is None):
            raise InputError("give either a covariance or its root.")
        self.law = law
        self.root = symmetric_root(covariance) if root is None else root  # pyright: ignore
        if self.root.shape != (law.size, law.size):
            raise InputError(
                f"the covariance of a noise with {law.size} components must be {law.size} x {law.size}, got "
                f"shape {self.root.shape}."
            )

    @property
    def shape(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.law.shape

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        return self.law.sample(key, dtype)

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        flat, unravel = ravel_pytree(self.law.unit(xi))
        return unravel(self.root.astype(flat.dtype) @ flat)


class Independent(_AbstractDerived):
    """`number` independent copies of `law`, along a new leading axis: one for each example."""

    law: AbstractLaw
    number: int = eqx.field(static=True)

    def __init__(self, law: AbstractLaw, number: int):
        self.law = law
        self.number = number

    @property
    def shape(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return jax.tree.map(lambda leaf: (self.number, *leaf), self.law.shape, is_leaf=is_shape)

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        return jax.vmap(lambda k: self.law.sample(k, dtype))(jax.random.split(key, self.number))

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        return jax.vmap(self.law.unit)(xi)


class RandomSubset(Independent):
    """Noise on `chosen` of `number` examples, drawn without replacement at every step; 0 on all others.

    A chosen example has total / chosen times a draw of `law`, so that the covariance of eta is total / chosen
    times that of `Independent` copies. Which examples are chosen makes their noises dependent but not
    correlated: for two of them E[eta_i eta_j] is the product of two means, 0.

    **Arguments:**

    - `law`: of the noise of one example.
    - `number`: how many examples eta has.
    - `chosen`: how many have noise.
    - `total`: how many examples the whole problem has; by default `number`. If eta has fewer, only `unit`
      has a meaning, because `chosen` are drawn from all examples.
    """

    chosen: int = eqx.field(static=True)
    total: int = eqx.field(static=True)

    def __init__(self, law: AbstractLaw, number: int, chosen: int, total: int | None = None):
        self.law = law
        self.number = number
        self.chosen = chosen
        self.total = number if total is None else total

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        to_subset, to_noise = jax.random.split(key)
        if self.chosen == 1:  # one number is cheaper to draw than an order of all examples
            subset = jax.random.randint(to_subset, (1,), 0, self.number)
        else:
            subset = draw_subset(to_subset, self.number, self.chosen)
        noise = jax.vmap(lambda k: self.law.sample(k, dtype))(jax.random.split(to_noise, self.chosen))
        variance = self.number / self.chosen

        def on_subset(zeros: Array, drawn: Array) -> Array:
            return zeros.at[subset].set(variance**0.5 * drawn)

        return jax.tree.map(on_subset, self.zeros(dtype), noise)

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        variance = self.total / self.chosen
        return jax.tree.map(lambda leaf: variance**0.5 * leaf, super().unit(xi))


class _AbstractDrawnLabels(_Standardized):
    """The difference of labels drawn afresh from their probabilities; sigma is 1."""

    probabilities: eqx.AbstractVar[Array]

    @property
    def shape(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.probabilities.shape

    def scaled(self, factor: float) -> AbstractLaw:
        raise UnsupportedError("labels drawn from probabilities have no scale to change.")


class OneHot(_AbstractDrawnLabels):
    """eta_i = e_c - q_i with the class c drawn from the probabilities q_i: labels drawn afresh.

    Its covariance is diag(q) - q q^T, and sigma is 1. xi = e_c / sqrt(q_c) - sqrt(q) + s sqrt(q) with a
    random sign s: the last term makes its covariance I, and `unit` removes it.
    """

    probabilities: Float[Array, "examples classes"]
    sigma: Scale

    def __init__(self, probabilities: Float[Array, "examples classes"]):
        self.probabilities = probabilities
        self.sigma = 1.0

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        to_class, to_sign = jax.random.split(key)
        q = self.probabilities.astype(dtype)
        chosen = jax.random.categorical(to_class, jnp.log(q), axis=-1)
        root = jnp.sqrt(q)
        drawn = jax.nn.one_hot(chosen, q.shape[-1], dtype=dtype) / jnp.where(root > 0, root, 1.0)
        sign = jax.random.rademacher(to_sign, (q.shape[0], 1), dtype)
        return drawn + (sign - 1) * root

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        root = jnp.sqrt(self.probabilities.astype(xi.dtype))
        return root * (xi - root * jnp.sum(root * xi, axis=-1, keepdims=True))


class Coins(_AbstractDrawnLabels):
    """eta_i = b_i - q_i with b_i = 1 with probability q_i, otherwise 0: labels of two classes drawn afresh.

    Its covariance is diag(q (1 - q)), and sigma is 1.
    """

    probabilities: Float[Array, " examples"]
    sigma: Scale

    def __init__(self, probabilities: Float[Array, " examples"]):
        self.probabilities = probabilities
        self.sigma = 1.0

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        q, deviation = self.probabilities.astype(dtype), self._deviation(dtype)
        centered = jax.random.bernoulli(key, q).astype(dtype) - q
        return centered / jnp.where(deviation > 0, deviation, 1.0)

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        return self._deviation(xi.dtype) * xi

    def _deviation(self, dtype: DTypeLike) -> Array:
        q = self.probabilities.astype(dtype)
        return jnp.sqrt(q * (1 - q))


class Joint(AbstractLaw):
    """Independent laws side by side, as a tuple, each with its own sigma.

    `sigma` is that of the first law with sigma > 0, and `unit` multiplies each law by the ratio of its sigma
    to that one. Where all are 0, sigma is 0 and so is `unit`.
    """

    laws: tuple[AbstractLaw, ...]
    shape: Any
    sigma: Scale

    def __init__(self, laws: tuple[AbstractLaw, ...]):
        self.laws = laws
        self.shape = tuple(law.shape for law in laws)
        self.sigma = next((law.sigma for law in laws if not is_zero(law.sigma)), 0.0)

    def sample(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        keys = _keys(key, len(self.laws))
        return tuple(law.sample(each, dtype) for law, each in zip(self.laws, keys, strict=True))

    def unit(self, xi: PyTree[Array]) -> PyTree[Array]:
        ratios = [0.0 if is_zero(self.sigma) else law.sigma / self.sigma for law in self.laws]
        return tuple(
            jax.tree.map(lambda leaf, ratio=ratio: ratio * leaf, law.unit(part))
            for law, part, ratio in zip(self.laws, xi, ratios, strict=True)
        )

    def check(self) -> None:
        for law in self.laws:
            law.check()

    def scaled(self, factor: float) -> "Joint":
        return Joint(tuple(law.scaled(factor) for law in self.laws))

    def draw(self, key: Key[Array, ""], dtype: DTypeLike = float) -> PyTree[Array]:
        keys = _keys(key, len(self.laws))
        return tuple(law.draw(each, dtype) for law, each in zip(self.laws, keys, strict=True))

    def zeros(self, dtype: DTypeLike = float) -> PyTree[Array]:
        return tuple(law.zeros(dtype) for law in self.laws)

    @property
    def size(self) -> int:
        return sum(law.size for law in self.laws)
