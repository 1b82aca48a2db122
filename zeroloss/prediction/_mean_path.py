"""The mean of training, and its fluctuations, many training steps at a time (docs/prediction.md)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zeroloss._linalg import eigh
from zeroloss._pytrees import Vector
from zeroloss._tolerances import TINY
from zeroloss.drifts import AbstractExpansion
from zeroloss.optimizers import SGD
from zeroloss.prediction._averages import AbstractAverage, ExactAverage, fluctuation_force
from zeroloss.prediction._higher_orders import Excess, HigherOrders
from zeroloss.prediction._recursion import decay_of, geometric, responses
from zeroloss.systems import Scalar
from zeroloss.zero_sets import AbstractSpectrum, norm_or_one, spectrum_of

_DRAWS_RATIO = 8  # a change of the force takes so many times fewer draws than the force itself
# The fluctuations under the random Hessian of minibatches are iterated to this relative error.
_SETTLED, _MOST_ITERATIONS = 1e-4, 300
_POWER_TOLERANCE = 1e-5
_HIGHER, _FLUCTUATIONS = 2, 3  # folded into a key, so that their draws are independent
_FLUCTUATION_DRAWS = 64


class State(eqx.Module):
    """The mean of the iterates and of their velocity, and the covariance of the iterates around it.

    The covariance is normal to the zero-loss set, in the coordinates of `spectrum`: the spectrum at `w`, or
    at a point whose distance from `w` is of second order in the step of the integrator.
    """

    w: Vector
    velocity: Vector
    covariance: Float[Array, "q q"]
    spectrum: AbstractSpectrum


class StepReport(eqx.Module):
    """The error and the displacement of one step of the integrator.

    - `error`: the distance between the predicted and the corrected end point, relative to |w|; or the
      distance that the difference of their velocities adds later, where that is larger.
    - `loss_error`: the relative error of the expected loss. The noise changes within the step, and the
      integrator accounts for the first order of that change. The error is its relative effect on the loss,
      squared.
    - `variance`: the variance that sampling adds to the tangential displacement.
    - `of_average`: the part of it that comes from sampled averages over the noise.
    - `first`, `second`: tangential displacement by the averaged loss, and by the fluctuations.
    - `sharpness`: step_size times the largest curvature, in units of the stability limit.
    - `unsettled`: the relative error of the iteration for the fluctuations under minibatches.
    """

    error: Scalar
    loss_error: Scalar
    variance: Scalar
    of_average: Scalar
    first: Vector
    second: Vector
    sharpness: Scalar
    unsettled: Scalar


class Shared(eqx.Module):
    """What all runs of an ensemble take from the mean path in one step of the integrator.

    - `draws`: of each run, for its average over the noise.
    - `offset`: the gradient of L_bar at the mean path from all draws, less that from `draws` draws.
    - `variance`: the variance of the first, along the set.
    - `excess`: the terms of the noise beyond first order.
    """

    draws: Int[Array, ""]
    offset: Vector
    variance: Scalar
    excess: Excess | None


class _Guess(NamedTuple):
    """One iterate of the covariance averaged over a step of the integrator.

    - `within`, `noise`: the covariance of the fluctuations, and of the gradient noise that they cause.
    - `change`: the relative change of `within` in the last iteration.
    - `error`: the relative change that all further iterations would add, if changes fall geometrically.
    """

    within: Float[Array, "q q"]
    noise: Float[Array, "q q"]
    change: Scalar
    error: Scalar
    iterations: Int[Array, ""]


class _Covariances(NamedTuple):
    """Covariances over a step of the integrator.

    - `within`, `after`: of the iterates, averaged over the training steps, and after them.
    - `noise`: of the gradient noise at the point.
    - `grown`: the part of `after` that comes from the growth of the noise within the step.
    - `unsettled`: the relative error of the iteration under minibatches.
    """

    within: Float[Array, "q q"]
    after: Float[Array, "q q"]
    noise: Float[Array, "q q"]
    grown: Float[Array, "q q"]
    unsettled: Scalar


class MeanPath(eqx.Module):
    """The mean of training and the covariance around it, advanced by n training steps at once.

    w_{k+1} = w_k - alpha (grad L_bar(w_k) + 1/2 T[C_k]),
    C_{k+1} = (I - alpha H) C_k (I - alpha H) + alpha^2 Sigma,

    is the recursion, to leading order in the fluctuations. Its linear part, along the eigenvectors of the
    Gauss-Newton Hessian, is solved exactly. The rest of the force is integrated to second order: a predictor
    takes it as constant, a corrector lets it grow linearly to its value at the predicted point (exponential
    Runge-Kutta, Hochbruck and Ostermann 2010, with the discrete recursion in place of the exponential). The
    corrector takes the eigenvectors at the predicted point. On a curved set the eigenvectors of the start
    would turn part of the restoring force into a force along the set; that error is large when sigma is
    small. At n = 1 a step is the recursion itself. It costs 2 spectra, 2 averages and 2 T[C].

    With `higher_orders`, Sigma and H hold terms of the noise beyond first order.
    """

    expansion: AbstractExpansion
    average: AbstractAverage
    optimizer: SGD
    higher_orders: HigherOrders | None
    stochastic: bool = eqx.field(static=True)
    kinked: bool = eqx.field(static=True, default=False)
    """Whether the loss has kinks, as of ReLU units. Fluctuations straddle them, and T[C] is then sampled."""

    def start(self, w: Vector) -> State:
        """The state at w, at rest, without fluctuations."""
        spectrum = spectrum_of(self.expansion.around(w).zero_set, w)
        size = spectrum.eigenvalues.shape[0]
        return State(w, jnp.zeros_like(w), jnp.zeros((size, size)), spectrum)

    def step(
        self,
        state: State,
        step_size: Scalar,
        steps: Int[Array, ""],
        key: Key[Array, ""],
        shared: Shared,
        displacement: Vector | float = 0.0,
    ) -> tuple[State, StepReport]:
        """`steps` training steps at `step_size`, after a `displacement` along the set.

        The displacement comes first: it leaves a curved set along a tangent, and the steps lead back to it.
        `shared` comes from a point close by, with the same key.
        """
        excess = shared.excess
        decayed = self.optimizer.weight_decay
        state = self._displaced(state, displacement)
        spectrum = state.spectrum
        curvatures = jnp.append(spectrum.eigenvalues + decayed, decayed)
        position, velocity = responses(self.optimizer, step_size, curvatures, steps)
        here = self._covariances(state.w, spectrum, state.covariance, step_size, steps, None, excess)
        # The same draws at both ends and in all runs: a few of them show the differences, which are smooth.
        averaged = shared.offset + self.average.at(state.w, spectrum, key, shared.draws).gradient
        second, scatter = self._covariance_force(state.w, spectrum, here.within, step_size, key)
        force = averaged + decayed * state.w + second
        moved = _apply(spectrum, position.velocity, state.velocity) + _apply(spectrum, position.force, force)
        predicted = state.w + moved

        zero_set = self.expansion.around(predicted).zero_set
        ahead = spectrum_of(zero_set, predicted)
        rotation = ahead.rotation_from(spectrum)
        covariance, noise = _rotate(rotation, state.covariance), _rotate(rotation, here.noise)
        then = self._covariances(predicted, ahead, covariance, step_size, steps, noise, excess)
        averaged_then = shared.offset + self.average.at(predicted, ahead, key, shared.draws).gradient
        second_then, _ = self._covariance_force(predicted, ahead, then.within, step_size, key)
        linear = spectrum.embed(spectrum.eigenvalues * spectrum.coordinates(moved))
        change = averaged_then - averaged + second_then - second - linear
        # Along the eigenvectors ahead: there the force back to the set has no part along it.
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
        # The error of the velocity moves the iterate by this much after the step.
        afterwards = step_size * self.optimizer.momentum / (1 - self.optimizer.momentum) * speed_correction
        half = position.force[-1] / 2
        of_average = position.force[-1] ** 2 * shared.variance
        fluctuating = 0.5 * jnp.sum(ahead.eigenvalues * jnp.diag(then.after))
        loss = zero_set.loss(w) + jnp.abs(fluctuating)
        grown = 0.5 * jnp.abs(jnp.sum(ahead.eigenvalues * jnp.diag(then.grown))) / jnp.maximum(loss, TINY)
        stiffest = jnp.maximum(curvatures[:-1], relaxation(ahead, excess) + decayed)
        outcome = StepReport(
            error=jnp.maximum(jnp.linalg.norm(correction), jnp.linalg.norm(afterwards)) / norm_or_one(w),
            loss_error=grown**2,
            variance=of_average + position.force[-1] ** 2 * scatter,
            of_average=of_average,
            first=half * (spectrum.tangent(averaged) + ahead.tangent(averaged_then)),
            second=half * (spectrum.tangent(second) + ahead.tangent(second_then)),
            sharpness=step_size * jnp.max(stiffest) / self.optimizer.stability_limit,
            unsettled=here.unsettled,
        )
        return State(w, speed, then.after, ahead), outcome

    def shared_at(self, state: State, key: Key[Array, ""], draws: Int[Array, ""]) -> Shared:
        """What the runs near a state take from it, with `draws` draws of the noise at the state.

        Each run takes an eighth of the draws, if averages have to be sampled. Where the limit is stochastic
        runs leave the mean path too far for that.
        """
        excess = self.excess_at(state, key)
        if isinstance(self.average, ExactAverage):
            return Shared(draws, jnp.zeros_like(state.w), jnp.zeros(()), excess)
        if self.stochastic:
            own = self.average.at(state.w, state.spectrum, key, draws)
            return Shared(draws, jnp.zeros_like(state.w), own.variance, excess)
        few = (draws + _DRAWS_RATIO - 1) // _DRAWS_RATIO
        averages = jax.lax.map(
            lambda draws: self.average.at(state.w, state.spectrum, key, draws), jnp.stack([draws, few])
        )
        offset = averages.gradient[0] - averages.gradient[1]
        return Shared(few, offset, averages.variance[0], excess)

    def excess_at(self, state: State, key: Key[Array, ""]) -> Excess | None:
        """The terms of the noise beyond first order; None where there are none."""
        if self.higher_orders is None:
            return None
        return self.higher_orders.at(state.w, state.spectrum, jax.random.fold_in(key, _HIGHER))

    def _displaced(self, state: State, displacement: Vector | float) -> State:
        """The state at a point moved by `displacement`, with its covariance in the coordinates there."""
        w = state.w + displacement
        spectrum = spectrum_of(self.expansion.around(w).zero_set, w)
        covariance = _rotate(spectrum.rotation_from(state.spectrum), state.covariance)
        return State(w, state.velocity, covariance, spectrum)

    def _covariance_force(
        self,
        w: Vector,
        spectrum: AbstractSpectrum,
        covariance: Float[Array, "q q"],
        step_size: Scalar,
        key: Key[Array, ""],
    ) -> tuple[Vector, Scalar]:
        """1/2 T[C], and the variance of its part along the set where it is sampled.

        With noise along the set it adds T[alpha H^+ P_N Sigma P_T], the mixed part of b. With momentum the
        latter is larger by 1 / (1 - momentum), to leading order in the step size. Where the curvature of the
        loss changes with the outputs and L_bar is sampled, T is that of L_bar, sampled too. At kinks third
        derivatives say nothing, and the average over fluctuations takes their place.
        """
        expansion = self.expansion.around(w)
        zero_set = expansion.zero_set
        exact = isinstance(self.average, ExactAverage)
        # Where L_bar is exact, T[C] is most of the drift, and the scatter of draws would be too much of it.
        if not self.kinked and (expansion.has_constant_curvature or exact):
            force = 0.5 * zero_set.third_derivative_of_normal(w, spectrum, covariance)
            variance = jnp.zeros(())
        else:
            to_x, to_eta = jax.random.split(jax.random.fold_in(key, _FLUCTUATIONS))
            displacements = spectrum.embed(scattered(spectrum, covariance, w, to_x, _FLUCTUATION_DRAWS).T).T
            force, variance = fluctuation_force(
                expansion, w, spectrum, displacements, None if exact else to_eta
            )
        if not self.stochastic:
            return force, variance
        left = spectrum.embed(jnp.diag(spectrum.inverses))
        common = expansion.tangential_covariance(w, spectrum)
        effective = self.optimizer.effective(step_size)
        mixed = effective * self.average.sigma**2 * zero_set.third_derivative(w, left, common)
        return force + mixed, variance

    def losses(self, state: State, averaged_loss: Scalar) -> dict[str, Scalar]:
        """The clean and the noisy loss to expect: E L = L(w) + 1/2 tr(H C)."""
        fluctuating = 0.5 * jnp.sum(state.spectrum.eigenvalues * jnp.diag(state.covariance))
        moved = self.expansion.system.reports_perturbed_parameters
        clean = averaged_loss if moved else self.expansion.zero_set.loss(state.w)
        return {"loss": clean + fluctuating, "noisy_loss": averaged_loss + fluctuating}

    def _covariances(
        self,
        w: Vector,
        spectrum: AbstractSpectrum,
        covariance: Float[Array, "q q"],
        step_size: Scalar,
        steps: Int[Array, ""],
        noise_before: Float[Array, "q q"] | None,
        excess: Excess | None,
    ) -> _Covariances:
        """The covariances over `steps` training steps from `covariance` on.

        With `noise_before` the noise grows linearly from that to the noise at w.
        """
        expansion, sigma = self.expansion.around(w), self.average.sigma
        own = sigma**2 * expansion.normal_covariance(w, spectrum)
        if excess is not None:
            own = own + excess.covariance(spectrum)
        decay = decay_of(
            self.optimizer, step_size, relaxation(spectrum, excess) + self.optimizer.weight_decay
        )
        sums = geometric(decay.rate, steps)

        def improve(guess: _Guess) -> _Guess:
            noise = own + expansion.excess_covariance(w, spectrum, guess.within)
            new = sums.constant / steps * covariance + sums.ramp * decay.gain * noise
            change = jnp.linalg.norm(new - guess.within) / jnp.maximum(jnp.linalg.norm(new), TINY)
            ratio = jnp.minimum(change / jnp.maximum(guess.change, TINY), 1 - 1e-6)
            return _Guess(new, noise, change, change * ratio / (1 - ratio), guess.iterations + 1)

        def unfinished(guess: _Guess) -> Array:
            return (guess.error > _SETTLED) & (guess.iterations < most)

        # Each iteration computes the noise from the fluctuations of the last one, and its error is a fraction
        # of the last error. Without minibatches the noise does not depend on the fluctuations.
        most = _MOST_ITERATIONS if self.expansion.system.has_minibatches else 1
        # The first change has no predecessor: its ratio is set to 1, which never stops the iteration.
        start = _Guess(covariance, own, jnp.zeros(()), jnp.asarray(jnp.inf), jnp.asarray(0))
        within, noise, _, unsettled, _ = jax.lax.while_loop(unfinished, improve, start)
        before = noise if noise_before is None else noise_before
        grown = decay.gain * sums.ramp * (noise - before)
        after = sums.power * covariance + decay.gain * sums.constant * before + grown
        unsettled = unsettled if self.expansion.system.has_minibatches else jnp.zeros(())
        return _Covariances(within, after, noise, grown, unsettled)

    def amplification(self, w: Vector, step_size: Scalar) -> Scalar:
        """The factor by which the random Hessian of minibatches multiplies the variance of the iterates.

        It is the largest eigenvalue of C -> (gain / rate) o E[(H_B - H) C (H_B - H)], by power iteration.
        Below 1 training on batches is stable in mean square; above 1 the variance of the iterates grows from
        step to step. 0 without minibatches. An iteration costs 4 products of m x m matrices; there are at
        most 300.
        """
        if not self.expansion.system.has_minibatches:
            return jnp.zeros(())
        expansion = self.expansion.around(w)
        spectrum = spectrum_of(expansion.zero_set, w)
        decay = decay_of(self.optimizer, step_size, spectrum.eigenvalues + self.optimizer.weight_decay)
        response = decay.stationary
        constant = expansion.excess_covariance(w, spectrum, jnp.zeros_like(response))

        def improve(state: tuple[Array, Scalar, Scalar, Array]) -> tuple[Array, Scalar, Scalar, Array]:
            covariance, _, before, count = state
            image = response * (expansion.excess_covariance(w, spectrum, covariance) - constant)
            norm = jnp.linalg.norm(image)
            return image / jnp.maximum(norm, TINY), before, norm, count + 1

        def unfinished(state: tuple[Array, Scalar, Scalar, Array]) -> Array:
            _, before, now, count = state
            settled = (count > 1) & (jnp.abs(now - before) <= _POWER_TOLERANCE * now)
            return ~settled & (count < _MOST_ITERATIONS)

        size = spectrum.eigenvalues.shape[0]
        # The map keeps covariances positive, so the identity is not orthogonal to its leading eigenvector.
        start = (jnp.eye(size) / size**0.5, jnp.zeros(()), jnp.ones(()), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, improve, start)[2]


def scattered(
    spectrum: AbstractSpectrum, covariance: Float[Array, "q q"], w: Vector, key: Key[Array, ""], draws: int
) -> Float[Array, "draws q"]:
    """Draws of normal displacements from w with this covariance, in the coordinates of the spectrum.

    At neighbouring points a key gives nearly the same displacement, whatever the basis of the spectrum.
    """
    values, vectors = eigh(covariance)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T
    white = jax.random.normal(key, (w.shape[0], draws))
    return spectrum.coordinates(white).T @ root


def relaxation(spectrum: AbstractSpectrum, excess: Excess | None) -> Float[Array, " q"]:
    """The curvatures with which fluctuations relax: the eigenvalues of H, and the addition by the noise."""
    if excess is None:
        return spectrum.eigenvalues
    return jnp.maximum(spectrum.eigenvalues + excess.curvatures(spectrum), 0.0)


def _apply(spectrum: AbstractSpectrum, factors: Array, vector: Vector) -> Vector:
    """Multiply a vector by factors for each normal mode, and by the last factor along the set."""
    along = factors[-1]
    return along * vector + spectrum.embed((factors[:-1] - along) * spectrum.coordinates(vector))


def _rotate(rotation: Array, covariance: Array) -> Array:
    return rotation @ covariance @ rotation.T
