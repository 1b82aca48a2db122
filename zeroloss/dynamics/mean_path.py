"""The mean of training, and its fluctuations, many training steps at a time (docs/prediction.md)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zeroloss.dynamics.averages import AbstractAverage
from zeroloss.dynamics.expansion import AbstractExpansion
from zeroloss.dynamics.higher_orders import Excess, HigherOrders
from zeroloss.dynamics.optimizer import Optimizer
from zeroloss.dynamics.recursion import decay, geometric, responses
from zeroloss.manifold import AbstractGeometry, GramGeometry, length
from zeroloss.pytrees import Vector
from zeroloss.system import Scalar

_FEWER = 8  # times fewer draws for a change of the force than for the force
_TINY = 1e-300
_HIGHER = 2  # folded into a key, for draws of their own
_SETTLING = 8  # iterations for the random Hessian of minibatches


class State(eqx.Module):
    """The mean of the iterates and of their velocity, and the covariance of the iterates around it.

    The covariance is in the coordinates of `geometry`, that at `w` or, to second order, close by: normal to
    the zero-loss set.
    """

    w: Vector
    velocity: Vector
    covariance: Float[Array, "q q"]
    geometry: AbstractGeometry


class Outcome(eqx.Module):
    """What a step tells about itself.

    - `error`: predicted against corrected end point, relative to |w|.
    - `loss_error`: what the change of the noise within the step adds to the expected loss, relative to it.
    - `variance`: the variance that sampling adds to the tangential displacement.
    - `first`, `second`: tangential displacement by the averaged loss, and by the fluctuations.
    - `sharpness`: step_size times the largest curvature, in units of the stability limit.
    - `unsettled`: how far the fluctuations under minibatches are from consistent, relative to themselves.
    - `noise_to_signal`: sampling variance of a single draw over the squared tangential gradient.
    """

    error: Scalar
    loss_error: Scalar
    variance: Scalar
    first: Vector
    second: Vector
    sharpness: Scalar
    unsettled: Scalar
    noise_to_signal: Scalar


class MeanPath(eqx.Module):
    """Steps n training steps at once with the recursion of the linear part, corrected once.

    w_{k+1} = w_k - alpha (grad L_bar(w_k) + 1/2 T[C_k]),
    C_{k+1} = (I - alpha H) C_k (I - alpha H) + alpha^2 Sigma,

    the mean and covariance of training to leading order in the fluctuations. Linear along the eigenvectors of
    the Gauss-Newton Hessian and solved exactly there; what is left is integrated to second order, a
    predictor and a corrector with the force growing linearly between them (exponential Runge-Kutta, Hochbruck
    and Ostermann 2010, with the discrete recursion in the place of the exponential). The corrector takes
    the eigenvectors where the predictor ends: on a curved set, what has left it there would otherwise
    act along it, the more the smaller sigma is. At n = 1 it is the recursion itself. Costs 2 geometries, 2
    averages and 2 T[C].

    With `higher_orders`, the Sigma and H of the covariance hold what the noise adds beyond first order.
    """

    expansion: AbstractExpansion
    average: AbstractAverage
    optimizer: Optimizer
    higher_orders: HigherOrders | None
    stochastic: bool = eqx.field(static=True)

    def start(self, w: Vector) -> State:
        """At w, at rest, without fluctuations."""
        geometry = self.expansion.manifold.at(w)
        size = geometry.eigenvalues.shape[0]
        return State(w, jnp.zeros_like(w), jnp.zeros((size, size)), geometry)

    def step(
        self,
        state: State,
        step_size: Scalar,
        steps: Int[Array, ""],
        key: Key[Array, ""],
        draws: Array,
        kick: Vector | float = 0.0,
        excess: Excess | None = None,
    ) -> tuple[State, Outcome]:
        """`steps` training steps at `step_size`, after a `kick`.

        The kick comes first, so that the steps bring back to the set what has left it along a tangent.
        `excess` is that of a point close by.
        """
        decayed, manifold = self.optimizer.weight_decay, self.expansion.manifold
        state = self._kicked(state, kick)
        geometry = state.geometry
        curvatures = jnp.append(geometry.eigenvalues + decayed, decayed)
        position, velocity = responses(self.optimizer, step_size, curvatures, steps)
        within, _, noise, _, unsettled = self._fluctuate(
            state.w, geometry, state.covariance, step_size, steps, None, excess
        )
        averaged = self.average.at(state.w, geometry, key, draws)
        turned = self._turned(state.w, geometry, within, step_size)
        force = averaged.gradient + decayed * state.w + turned
        moved = _apply(geometry, position.velocity, state.velocity) + _apply(geometry, position.force, force)
        predicted = state.w + moved

        ahead = manifold.at(predicted)
        rotation = ahead.rotation_from(geometry)
        covariance, noise = _rotate(rotation, state.covariance), _rotate(rotation, noise)
        within, after, _, added, _ = self._fluctuate(
            predicted, ahead, covariance, step_size, steps, noise, excess
        )
        # The same draws on both sides: their difference is smooth, and a few of them show it.
        few = (draws + _FEWER - 1) // _FEWER
        here = self.average.at(state.w, geometry, key, few)
        then = self.average.at(predicted, ahead, key, few)
        turned_then = self._turned(predicted, ahead, within, step_size)
        linear = geometry.embed(geometry.eigenvalues * geometry.coordinates(moved))
        change = then.gradient - here.gradient + turned_then - turned - linear
        # Along the eigenvectors ahead, so that nothing of what pulls back to the set there acts along it.
        curvatures = jnp.append(ahead.eigenvalues + decayed, decayed)
        position_then, velocity_then = responses(self.optimizer, step_size, curvatures, steps)
        correction = _apply(ahead, position_then.ramp, change)
        w = predicted + correction
        speed = (
            _apply(geometry, velocity.velocity, state.velocity)
            + _apply(geometry, velocity.force, force)
            + _apply(ahead, velocity_then.ramp, change)
        )
        gradient_then = averaged.gradient + then.gradient - here.gradient
        half = position.force[-1] / 2
        tangential = jnp.sum(geometry.tangent(averaged.gradient + turned) ** 2)
        fluctuating = 0.5 * jnp.sum(ahead.eigenvalues * jnp.diag(after))
        loss = manifold.loss(w) + jnp.abs(fluctuating)
        stiffest = jnp.maximum(curvatures[:-1], relaxation(ahead, excess) + decayed)
        outcome = Outcome(
            error=jnp.linalg.norm(correction) / length(w),
            loss_error=0.5 * jnp.abs(jnp.sum(ahead.eigenvalues * jnp.diag(added))) / jnp.maximum(loss, _TINY),
            variance=position.force[-1] ** 2 * averaged.variance,
            first=half * (geometry.tangent(averaged.gradient) + ahead.tangent(gradient_then)),
            second=half * (geometry.tangent(turned) + ahead.tangent(turned_then)),
            sharpness=step_size * jnp.max(stiffest) / self.optimizer.stability_limit,
            unsettled=unsettled,
            noise_to_signal=averaged.variance * draws / jnp.maximum(tangential, _TINY),
        )
        return State(w, speed, after, ahead), outcome

    def excess_at(self, state: State, key: Key[Array, ""]) -> Excess | None:
        """What the noise adds beyond first order; None where nothing is known to be added."""
        if self.higher_orders is None:
            return None
        assert isinstance(state.geometry, GramGeometry)
        return self.higher_orders.at(state.w, state.geometry, jax.random.fold_in(key, _HIGHER))

    def _kicked(self, state: State, kick: Vector | float) -> State:
        w = state.w + kick
        geometry = self.expansion.manifold.at(w)
        covariance = _rotate(geometry.rotation_from(state.geometry), state.covariance)
        return State(w, state.velocity, covariance, geometry)

    def _turned(
        self, w: Vector, geometry: AbstractGeometry, covariance: Float[Array, "q q"], step_size: Scalar
    ) -> Vector:
        """1/2 T[C]; with noise along the set also T[alpha H^+ P_N Sigma P_T], the mixed part of b.

        With momentum the latter is larger by 1 / (1 - momentum), to leading order in the step size.
        """
        manifold = self.expansion.manifold
        force = 0.5 * manifold.third_of_normal(w, geometry, covariance)
        if not self.stochastic:
            return force
        left = geometry.embed(jnp.diag(geometry.inverses))
        common = self.expansion.tangential_covariance(w, geometry)
        effective = step_size / (1 - self.optimizer.momentum)
        return force + effective * self.average.sigma**2 * manifold.third(w, left, common)

    def losses(self, state: State, averaged_loss: Scalar) -> dict[str, Scalar]:
        """The clean and the noisy loss to expect: E L = L(w) + 1/2 tr(H C)."""
        fluctuating = 0.5 * jnp.sum(state.geometry.eigenvalues * jnp.diag(state.covariance))
        # Anti-correlated noise is part of the parameters that training reports.
        shifted = any(
            injection.as_increments for injection in getattr(self.expansion.system, "injections", ())
        )
        clean = averaged_loss if shifted else self.expansion.manifold.loss(state.w)
        return {"loss": clean + fluctuating, "noisy_loss": averaged_loss + fluctuating}

    def _fluctuate(
        self,
        w: Vector,
        geometry: AbstractGeometry,
        covariance: Float[Array, "q q"],
        step_size: Scalar,
        steps: Int[Array, ""],
        noise_before: Float[Array, "q q"] | None,
        excess: Excess | None,
    ) -> tuple[Array, Array, Array, Array, Scalar]:
        """The covariance on average over the steps, and after them; the covariance of the gradient noise.

        With `noise_before` the noise grows from that to what it is at w; last but one, what that adds.
        """
        expansion, sigma = self.expansion, self.average.sigma
        own = sigma**2 * expansion.normal_covariance(w, geometry)
        if excess is not None:
            assert isinstance(geometry, GramGeometry)
            own = own + excess.covariance(geometry)
        law = decay(self.optimizer, step_size, relaxation(geometry, excess) + self.optimizer.weight_decay)
        sums = geometric(law.rate, steps)

        def improve(_: Array, guess: tuple[Array, Array, Scalar]) -> tuple[Array, Array, Scalar]:
            within, _, _ = guess
            noise = own + expansion.excess_covariance(w, geometry, within)
            new = sums.constant / steps * covariance + sums.ramp * law.gain * noise
            change = jnp.linalg.norm(new - within) / jnp.maximum(jnp.linalg.norm(new), _TINY)
            return new, noise, change

        # Without minibatches the first iteration is exact.
        count = _SETTLING if self._has_minibatch else 1
        within, noise, unsettled = jax.lax.fori_loop(0, count, improve, (covariance, own, jnp.zeros(())))
        before = noise if noise_before is None else noise_before
        grown = law.gain * sums.ramp * (noise - before)
        after = sums.power * covariance + law.gain * sums.constant * before + grown
        return within, after, noise, grown, unsettled if count > 1 else jnp.zeros(())

    @property
    def _has_minibatch(self) -> bool:
        return getattr(self.expansion.system, "minibatch", None) is not None


def relaxation(geometry: AbstractGeometry, excess: Excess | None) -> Float[Array, " q"]:
    """The curvatures that fluctuations relax with: those of H, and what the noise adds to them."""
    if excess is None:
        return geometry.eigenvalues
    assert isinstance(geometry, GramGeometry)
    return jnp.maximum(geometry.eigenvalues + excess.curvatures(geometry), 0.0)


def _apply(geometry: AbstractGeometry, factors: Array, vector: Vector) -> Vector:
    """Multiply a vector by factors for each normal mode, and by the last factor along the set."""
    along = factors[-1]
    return along * vector + geometry.embed((factors[:-1] - along) * geometry.coordinates(vector))


def _rotate(rotation: Array, covariance: Array) -> Array:
    return rotation @ covariance @ rotation.T
