"""The mean of training, and its fluctuations, many training steps at a time (docs/prediction.md)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zeroloss._pytrees import Vector
from zeroloss.drifts._expansion import AbstractExpansion
from zeroloss.optimizers import SGD
from zeroloss.prediction._averages import AbstractAverage
from zeroloss.prediction._higher_orders import Excess, HigherOrders
from zeroloss.prediction._recursion import decay, geometric, responses
from zeroloss.systems import Scalar
from zeroloss.zero_sets import AbstractSpectrum, length, spectrum_of

_FEWER = 8  # times fewer draws for a change of the force than for the force
_TINY = 1e-300
_SETTLED = 1e-4  # relative error of the fluctuations under the random Hessian of minibatches
_MOST_SETTLING = 300  # iterations for them
_POWER_TOLERANCE = 1e-5
_HIGHER = 2  # folded into a key, for draws of their own


class State(eqx.Module):
    """The mean of the iterates and of their velocity, and the covariance of the iterates around it.

    The covariance is in the coordinates of `spectrum`, that at `w` or, to second order, close by: normal to
    the zero-loss set.
    """

    w: Vector
    velocity: Vector
    covariance: Float[Array, "q q"]
    spectrum: AbstractSpectrum


class Outcome(eqx.Module):
    """What a step tells about itself.

    - `error`: predicted against corrected end point, or what the difference of their velocities would add to
      that later, relative to |w|.
    - `loss_error`: of the expected loss, relative to it. The change of the noise within the step adds to the
      loss, and is accounted for to first order; the error is taken to be the square of what it adds. Under
      minibatches it is a tenth of that, since their noise changes with the fluctuations themselves.
    - `variance`: the variance that sampling adds to the tangential displacement.
    - `first`, `second`: tangential displacement by the averaged loss, and by the fluctuations.
    - `sharpness`: step_size times the largest curvature, in units of the stability limit.
    - `unsettled`: how far the fluctuations under minibatches are from consistent, relative to themselves.
    - `draw_variance`: the `variance` that a single draw would have added.
    """

    error: Scalar
    loss_error: Scalar
    variance: Scalar
    first: Vector
    second: Vector
    sharpness: Scalar
    unsettled: Scalar
    draw_variance: Scalar


class _Guess(NamedTuple):
    """The covariance averaged over the steps of an integrator step, while its iteration settles.

    - `within`, `noise`: the covariance of the fluctuations, and of the gradient noise that goes with it.
    - `change`: of `within` in the last iteration, relative to it.
    - `error`: what further iterations would change, from how fast changes fall.
    """

    within: Float[Array, "q q"]
    noise: Float[Array, "q q"]
    change: Scalar
    error: Scalar
    iterations: Int[Array, ""]


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
    optimizer: SGD
    higher_orders: HigherOrders | None
    stochastic: bool = eqx.field(static=True)

    def start(self, w: Vector) -> State:
        """At w, at rest, without fluctuations."""
        spectrum = spectrum_of(self.expansion.zero_set, w)
        size = spectrum.eigenvalues.shape[0]
        return State(w, jnp.zeros_like(w), jnp.zeros((size, size)), spectrum)

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
        decayed, zero_set = self.optimizer.weight_decay, self.expansion.zero_set
        state = self._kicked(state, kick)
        spectrum = state.spectrum
        curvatures = jnp.append(spectrum.eigenvalues + decayed, decayed)
        position, velocity = responses(self.optimizer, step_size, curvatures, steps)
        within, _, noise, _, unsettled = self._fluctuate(
            state.w, spectrum, state.covariance, step_size, steps, None, excess
        )
        averaged = self.average.at(state.w, spectrum, key, draws)
        turned = self._turned(state.w, spectrum, within, step_size)
        force = averaged.gradient + decayed * state.w + turned
        moved = _apply(spectrum, position.velocity, state.velocity) + _apply(spectrum, position.force, force)
        predicted = state.w + moved

        ahead = spectrum_of(zero_set, predicted)
        rotation = ahead.rotation_from(spectrum)
        covariance, noise = _rotate(rotation, state.covariance), _rotate(rotation, noise)
        within, after, _, added, _ = self._fluctuate(
            predicted, ahead, covariance, step_size, steps, noise, excess
        )
        # The same draws on both sides: their difference is smooth, and a few of them show it.
        few = (draws + _FEWER - 1) // _FEWER
        here = self.average.at(state.w, spectrum, key, few)
        then = self.average.at(predicted, ahead, key, few)
        turned_then = self._turned(predicted, ahead, within, step_size)
        linear = spectrum.embed(spectrum.eigenvalues * spectrum.coordinates(moved))
        change = then.gradient - here.gradient + turned_then - turned - linear
        # Along the eigenvectors ahead, so that nothing of what pulls back to the set there acts along it.
        curvatures = jnp.append(ahead.eigenvalues + decayed, decayed)
        position_then, velocity_then = responses(self.optimizer, step_size, curvatures, steps)
        correction = _apply(ahead, position_then.ramp, change)
        w = predicted + correction
        speed_correction = _apply(ahead, velocity_then.ramp, change)
        speed = (
            _apply(spectrum, velocity.velocity, state.velocity)
            + _apply(spectrum, velocity.force, force)
            + speed_correction
        )
        # What the velocity is wrong by goes on to move the iterate by this much after the step.
        afterwards = step_size * self.optimizer.momentum / (1 - self.optimizer.momentum) * speed_correction
        gradient_then = averaged.gradient + then.gradient - here.gradient
        half = position.force[-1] / 2
        sampling_variance = position.force[-1] ** 2 * averaged.variance
        fluctuating = 0.5 * jnp.sum(ahead.eigenvalues * jnp.diag(after))
        loss = zero_set.loss(w) + jnp.abs(fluctuating)
        grown = 0.5 * jnp.abs(jnp.sum(ahead.eigenvalues * jnp.diag(added))) / jnp.maximum(loss, _TINY)
        stiffest = jnp.maximum(curvatures[:-1], relaxation(ahead, excess) + decayed)
        outcome = Outcome(
            error=jnp.maximum(jnp.linalg.norm(correction), jnp.linalg.norm(afterwards)) / length(w),
            loss_error=grown / 10 if self._has_minibatch else grown**2,
            variance=sampling_variance,
            first=half * (spectrum.tangent(averaged.gradient) + ahead.tangent(gradient_then)),
            second=half * (spectrum.tangent(turned) + ahead.tangent(turned_then)),
            sharpness=step_size * jnp.max(stiffest) / self.optimizer.stability_limit,
            unsettled=unsettled,
            draw_variance=sampling_variance * draws,
        )
        return State(w, speed, after, ahead), outcome

    def excess_at(self, state: State, key: Key[Array, ""]) -> Excess | None:
        """What the noise adds beyond first order; None where nothing is known to be added."""
        if self.higher_orders is None:
            return None
        return self.higher_orders.at(state.w, state.spectrum, jax.random.fold_in(key, _HIGHER))

    def _kicked(self, state: State, kick: Vector | float) -> State:
        w = state.w + kick
        spectrum = spectrum_of(self.expansion.zero_set, w)
        covariance = _rotate(spectrum.rotation_from(state.spectrum), state.covariance)
        return State(w, state.velocity, covariance, spectrum)

    def _turned(
        self, w: Vector, spectrum: AbstractSpectrum, covariance: Float[Array, "q q"], step_size: Scalar
    ) -> Vector:
        """1/2 T[C]; with noise along the set also T[alpha H^+ P_N Sigma P_T], the mixed part of b.

        With momentum the latter is larger by 1 / (1 - momentum), to leading order in the step size.
        """
        zero_set = self.expansion.zero_set
        force = 0.5 * zero_set.third_of_normal(w, spectrum, covariance)
        if not self.stochastic:
            return force
        left = spectrum.embed(jnp.diag(spectrum.inverses))
        common = self.expansion.tangential_covariance(w, spectrum)
        effective = step_size / (1 - self.optimizer.momentum)
        return force + effective * self.average.sigma**2 * zero_set.third(w, left, common)

    def losses(self, state: State, averaged_loss: Scalar) -> dict[str, Scalar]:
        """The clean and the noisy loss to expect: E L = L(w) + 1/2 tr(H C)."""
        fluctuating = 0.5 * jnp.sum(state.spectrum.eigenvalues * jnp.diag(state.covariance))
        # Anti-correlated noise is part of the parameters that training reports.
        shifted = any(
            injection.as_increments for injection in getattr(self.expansion.system, "injections", ())
        )
        clean = averaged_loss if shifted else self.expansion.zero_set.loss(state.w)
        return {"loss": clean + fluctuating, "noisy_loss": averaged_loss + fluctuating}

    def _fluctuate(
        self,
        w: Vector,
        spectrum: AbstractSpectrum,
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
        own = sigma**2 * expansion.normal_covariance(w, spectrum)
        if excess is not None:
            own = own + excess.covariance(spectrum)
        law = decay(self.optimizer, step_size, relaxation(spectrum, excess) + self.optimizer.weight_decay)
        sums = geometric(law.rate, steps)

        def improve(guess: _Guess) -> _Guess:
            noise = own + expansion.excess_covariance(w, spectrum, guess.within)
            new = sums.constant / steps * covariance + sums.ramp * law.gain * noise
            change = jnp.linalg.norm(new - guess.within) / jnp.maximum(jnp.linalg.norm(new), _TINY)
            ratio = jnp.minimum(change / jnp.maximum(guess.change, _TINY), 1 - 1e-6)
            return _Guess(new, noise, change, change * ratio / (1 - ratio), guess.iterations + 1)

        def unfinished(guess: _Guess) -> Array:
            return (guess.error > _SETTLED) & (guess.iterations < most)

        # Each iteration takes the noise to be that of the fluctuations before, and errs by a fraction of what
        # the one before did. Without minibatches the first is exact.
        most = _MOST_SETTLING if self._has_minibatch else 1
        # No change before the first: its ratio tells nothing, and counts as slow.
        start = _Guess(covariance, own, jnp.zeros(()), jnp.asarray(jnp.inf), jnp.asarray(0))
        within, noise, _, unsettled, _ = jax.lax.while_loop(unfinished, improve, start)
        before = noise if noise_before is None else noise_before
        grown = law.gain * sums.ramp * (noise - before)
        after = sums.power * covariance + law.gain * sums.constant * before + grown
        return within, after, noise, grown, unsettled if self._has_minibatch else jnp.zeros(())

    def amplification(self, w: Vector, step_size: Scalar) -> Scalar:
        """How much the random Hessian of minibatches makes of the fluctuations, in mean square.

        The largest eigenvalue of C -> (gain / rate) o E[(H_B - H) C (H_B - H)], by power iteration. Below 1
        training on batches is stable in mean square; beyond, the variance of its iterates grows from step to
        step. 0 without minibatches. Costs an iteration of 4 products of m x m matrices, at most 300 times.
        """
        if not self._has_minibatch:
            return jnp.zeros(())
        spectrum = spectrum_of(self.expansion.zero_set, w)
        law = decay(self.optimizer, step_size, spectrum.eigenvalues + self.optimizer.weight_decay)
        response = jnp.where(law.rate > 0, law.gain / jnp.where(law.rate > 0, law.rate, 1.0), 0.0)
        still = self.expansion.excess_covariance(w, spectrum, jnp.zeros_like(response))

        def improve(state: tuple[Array, Scalar, Scalar, Array]) -> tuple[Array, Scalar, Scalar, Array]:
            covariance, _, before, count = state
            image = response * (self.expansion.excess_covariance(w, spectrum, covariance) - still)
            norm = jnp.linalg.norm(image)
            return image / jnp.maximum(norm, _TINY), before, norm, count + 1

        def unfinished(state: tuple[Array, Scalar, Scalar, Array]) -> Array:
            _, before, now, count = state
            settled = (count > 1) & (jnp.abs(now - before) <= _POWER_TOLERANCE * now)
            return ~settled & (count < _MOST_SETTLING)

        size = spectrum.eigenvalues.shape[0]
        # The map keeps covariances positive, so that the identity has a share in its leading eigenvector.
        start = (jnp.eye(size) / size**0.5, jnp.zeros(()), jnp.ones(()), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, improve, start)[2]

    @property
    def _has_minibatch(self) -> bool:
        return getattr(self.expansion.system, "minibatch", None) is not None


def relaxation(spectrum: AbstractSpectrum, excess: Excess | None) -> Float[Array, " q"]:
    """The curvatures that fluctuations relax with: those of H, and what the noise adds to them."""
    if excess is None:
        return spectrum.eigenvalues
    return jnp.maximum(spectrum.eigenvalues + excess.curvatures(spectrum), 0.0)


def _apply(spectrum: AbstractSpectrum, factors: Array, vector: Vector) -> Vector:
    """Multiply a vector by factors for each normal mode, and by the last factor along the set."""
    along = factors[-1]
    return along * vector + spectrum.embed((factors[:-1] - along) * spectrum.coordinates(vector))


def _rotate(rotation: Array, covariance: Array) -> Array:
    return rotation @ covariance @ rotation.T
