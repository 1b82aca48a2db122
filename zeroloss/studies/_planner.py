"""The plan of a convergence study: replicas and series of measurements that keep to its budget."""

from time import perf_counter

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._checkpoint import Checkpoint
from zeroloss.drifts import power_of_step_size, steps_per_unit
from zeroloss.dynamics import Ensemble, States, ensemble_of, train
from zeroloss.errors import DivergenceError, InputError, UnsupportedError
from zeroloss.optimizers import SGD
from zeroloss.studies._fits import expected_half_width
from zeroloss.studies._measurement import Measurement, Target, measure
from zeroloss.systems import AbstractSystem

LARGEST_STEP = 0.4
"""Step size of the first measurement, in units of 1 / lambda_max."""

PRIOR = {"step sizes": 1.0, "sigmas": 0.5}
"""Standard deviation of the corrections to the power laws, before the data are seen."""

FEWEST_MEASUREMENTS = 3
"""The measurements that an exponent needs; a ladder has at least so many, whatever the time left."""

_FEWEST_STEPS = 200  # the drift should take at least so many in the first measurement
_MEASUREMENTS = 5
_RANGES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)  # of a ladder of step sizes
_SIGMA_RANGES = (2.0, 3.0, 4.0, 6.0, 8.0)
_FEWEST, _MOST_IN_PILOT = 16, 256  # replicas
_ENSEMBLE_IN_PILOT = 1e5  # parameters
_MOST_REPLICAS = 4096
_LARGEST_ENSEMBLE = 5e6  # parameters of all replicas together
_FINEST_ERROR = 2e-3  # of a logarithm of steps: a smaller one is not aimed at
_SHARES = {"step sizes": 0.55, "sigmas": 0.8}  # of what is left of the budget


class Planner:
    """The time that is left for a study; it chooses replicas and ladders from the cost of a pilot run.

    `left` is what is left of the budget, in seconds.
    """

    def __init__(
        self,
        system: AbstractSystem,
        point: PyTree,
        target: Target,
        largest: float,
        seconds: float,
        checkpoint: Checkpoint,
    ):
        self.system, self.point, self.target = system, point, target
        self.largest, self.left = largest, seconds
        self.checkpoint = checkpoint
        self.step_size = LARGEST_STEP / largest
        self.power = power_of_step_size(target.time_scale)
        self.replicas = int(np.clip(_ENSEMBLE_IN_PILOT / target.start.shape[0], _FEWEST, _MOST_IN_PILOT))
        self.choices: list[str] = []

    def pilot(self, key: Key[Array, ""]) -> None:
        """A first measurement, for the number of steps, their scatter and the seconds of one step."""
        sigma = self.system.noise_law(self.point).sigma
        expected = self.target.t1 * steps_per_unit(self.target.time_scale, self.step_size, sigma)
        self.step_size *= min(expected / _FEWEST_STEPS, 1.0) ** (1 / self.power)
        number = 0
        while True:
            try:
                measurement = measure(
                    self.system, self.point, self.target, self.step_size, self.replicas, key,
                    checkpoint=self.checkpoint / f"pilot_{number}",
                )  # fmt: skip
                self.left -= measurement.seconds
            except DivergenceError as error:
                raise InputError(
                    f"a pilot run at the step size {self.step_size:.3g} and sigma {sigma:.3g} diverged at "
                    f"step {error.step}: the noise is too large for its limit to say anything. Take a "
                    "smaller sigma."
                ) from error
            if not np.isfinite(measurement.steps):
                raise InputError(
                    f"at the step size {measurement.step_size:.3g} and sigma {measurement.sigma:.3g} "
                    "training did not make the drift of the limit: the noise is too large for its limit to "
                    "describe it. Take a smaller sigma, or a smaller drift."
                )
            if measurement.steps >= _FEWEST_STEPS or measurement.step_size < 1e-3 / self.largest:
                break
            number += 1
            self.step_size *= max((measurement.steps / _FEWEST_STEPS) ** (1 / self.power) / 1.1, 0.1)
        self.steps, self.scatter = measurement.total_steps, max(measurement.steps_error, 1e-4)
        self.seconds_per_step = self.checkpoint.computed_once(
            "seconds_per_step", lambda: self._time_steps(key)
        )
        self.choices.append(
            f"Largest step size {self.step_size * self.largest:.3g} / lambda_max, where the drift takes "
            f"{measurement.steps:,.0f} steps; a pilot of {self.replicas} runs costs "
            f"{1e6 * self.seconds_per_step:.0f} microseconds a step."
        )

    def ladder(self, kind: str, key: Key[Array, ""]) -> tuple[Measurement, ...]:
        """The measurements along step sizes or sigmas, from the coarsest."""
        if kind == "sigmas":
            try:
                self.system.scaled(0.5)
            except UnsupportedError as error:
                self.choices.append(f"No ladder of sigmas: {error}")
                return ()
        factors, replicas = self._choose(kind)
        measurements: list[Measurement] = []
        for index, factor in enumerate(factors):
            if len(measurements) >= FEWEST_MEASUREMENTS and measurements[-1].seconds > 2 * self.left:
                self.choices.append(
                    f"The ladder of {kind} stops after {index} of {len(factors)} measurements: the budget is "
                    "used up."
                )
                break
            step_size, system = self.step_size, self.system
            if kind == "sigmas":
                system = system.scaled(float(factor))
            else:
                step_size = step_size * factor
            try:
                measurement = measure(
                    system, self.point, self.target, float(step_size), replicas,
                    jax.random.fold_in(key, index),
                    self.checkpoint / kind.replace(" ", "_") / f"{index}",
                )  # fmt: skip
                self.left -= measurement.seconds
            except DivergenceError as error:
                self.choices.append(f"A measurement of the ladder of {kind} was left out: {error}")
                continue
            if not np.isfinite(measurement.steps):
                self.choices.append(
                    f"A measurement of the ladder of {kind} was left out: training at step size "
                    f"{step_size:.3g} and sigma {measurement.sigma:.3g} did not make the drift."
                )
                continue
            measurements.append(measurement)
        return tuple(measurements)

    def _choose(self, kind: str) -> tuple[np.ndarray, int]:
        """The ladder and the replicas with the narrowest expected interval in the time that is left."""
        seconds = _SHARES[kind] * max(self.left, 1.0)
        power = self.power if kind == "step sizes" else 2
        most = int(min(_MOST_REPLICAS, max(_FEWEST, _LARGEST_ENSEMBLE // self.target.start.shape[0])))
        best: tuple[float, np.ndarray, int] | None = None
        for span in _RANGES if kind == "step sizes" else _SIGMA_RANGES:
            factors = np.geomspace(1.0, 1 / span, _MEASUREMENTS)
            one_run = self.steps * np.sum(factors ** -float(power)) * self.seconds_per_step / self.replicas
            replicas = int(min(seconds / one_run, most, self.replicas * (self.scatter / _FINEST_ERROR) ** 2))
            if replicas < _FEWEST:
                if best is not None:
                    continue
                replicas = _FEWEST
            error = max(self.scatter * np.sqrt(self.replicas / replicas), _FINEST_ERROR / 2)
            leading = factors * self.step_size * self.largest if kind == "step sizes" else factors**2
            width = expected_half_width(factors, error, (leading, leading**2), PRIOR[kind])
            if best is None or width < best[0]:
                best = (width, factors, replicas)
        assert best is not None
        width, factors, replicas = best
        self.choices.append(
            f"Ladder of {kind}: {_MEASUREMENTS} measurements over a factor of {1 / factors[-1]:.0f}, "
            f"{replicas} runs each, to know the exponent to about ± {width:.2g}."
        )
        return factors, replicas

    def _time_steps(self, key: Key[Array, ""]) -> float:
        ensemble, states = ensemble_of(self.system, self.point, SGD(self.step_size), self.replicas, key)
        return seconds_for(ensemble, states, int(min(self.steps, 500)))


def seconds_for(ensemble: Ensemble, states: States, steps: int) -> float:
    """The seconds that one of so many training steps takes, after compiling."""
    began = perf_counter()
    train(ensemble, states, np.array([steps]), lambda w: {})
    return (perf_counter() - began) / steps
