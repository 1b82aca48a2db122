"""Does training do what the limit says, and as fast? A ladder of step sizes and sigmas measures it."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key, PyTree

from zeroloss.dynamics.descend import Run, train
from zeroloss.dynamics.drift import first_drift, second_drift
from zeroloss.dynamics.expansion import AbstractExpansion, expand
from zeroloss.dynamics.fits import Approach, Exponent, approach, expected_half_width, power_law
from zeroloss.dynamics.limit import limit
from zeroloss.dynamics.regime import FAST, Regime, classify, power_of_step_size
from zeroloss.dynamics.rungs import FROM, TO, Rung, Target, climb
from zeroloss.errors import DivergenceError, InputError, IntegrationError, UnsupportedError
from zeroloss.manifold import largest_eigenvalue, length, locate, project
from zeroloss.pytrees import Vector, refuse_tracing
from zeroloss.system import AbstractSystem, Scalar

_LARGEST = 0.4  # step size of the first rung, in units of 1 / lambda_max
_FEWEST_STEPS = 200  # that the drift should take on the first rung
_RUNGS = 5
_RANGES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)  # of a ladder of step sizes
_SIGMA_RANGES = (2.0, 3.0, 4.0, 6.0, 8.0)
_FEWEST, _MOST_IN_PILOT = 16, 256  # replicas
_ENSEMBLE_IN_PILOT = 1e5  # parameters
_MOST_REPLICAS = 4096
_LARGEST_ENSEMBLE = 5e6  # parameters of all replicas together
_FINEST_ERROR = 2e-3  # of a logarithm of steps: less is not worth aiming for
_SHARES = {"step sizes": 0.55, "sigmas": 0.8}  # of what is left of the budget
_PRIOR = {"step sizes": 1.0, "sigmas": 0.5}
_TRIVIAL_STEPS = 100_000


class Bound(eqx.Module):
    """How little a trivial noise moves training along the zero-loss set.

    - `distance`: upper 95 % confidence limit of the mean tangential displacement, relative to |w|.
    - `largest`: the largest of any replica.
    - `steps`, `step_size`, `replicas`: what was run.
    """

    distance: float
    largest: float
    steps: int
    step_size: float
    replicas: int

    def __str__(self) -> str:
        return (
            f"after {self.steps:,} steps of size {self.step_size:.3g} training has moved by less than "
            f"{self.distance:.1e} |w| along the set (95 % confidence, {self.replicas} runs)"
        )


class Study(eqx.Module):
    """What a ladder of step sizes, and one of sigmas, measured. `print` it, take `rows()`, or `to_xarray()`.

    - `noise`, `regime`: the noise in words, and the verdict.
    - `drift`: how far the limit goes, relative to |w|, in the slow time `t1`.
    - `by_step_size`, `by_sigma`: the rungs of the two ladders, from the coarsest.
    - `step_size_exponent`: p in steps ~ alpha^-p for a fixed drift, in theory 1 or 2;
      `sigma_exponent`: q in steps ~ sigma^-q, in theory 2.
    - `step_size_approach`, `sigma_approach`: how the gap to the limit, the logarithm of steps over those
      that the limit takes, closes along each ladder: its order, and what the other parameter leaves of
      it. None where the data leave the order open.
    - `bound`: for a trivial noise, in the place of all these.
    - `choices`: what was chosen to keep to the budget, in sentences.
    """

    noise: str
    regime: Regime
    largest_eigenvalue: float
    drift: float
    t1: float
    by_step_size: tuple[Rung, ...]
    by_sigma: tuple[Rung, ...]
    step_size_exponent: Exponent | None
    sigma_exponent: Exponent | None
    step_size_approach: Approach | None
    sigma_approach: Approach | None
    bound: Bound | None
    choices: tuple[str, ...]
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per rung, with `ladder` saying which it is on."""
        return [
            {"ladder": ladder, "step_size_relative": rung.step_size * self.largest_eigenvalue}
            | rung._asdict()
            for ladder, rungs in (("step size", self.by_step_size), ("sigma", self.by_sigma))
            for rung in rungs
        ]

    def to_xarray(self) -> xr.Dataset:
        """The rungs along the dimension `rung`; exponents, bound and verdict as attributes."""
        rows = self.rows()
        names = [name for name in rows[0] if name != "ladder"] if rows else []
        data = {name: ("rung", np.array([row[name] for row in rows])) for name in names}
        ladders = np.array([row["ladder"] for row in rows], dtype=object)
        attributes: dict[str, Any] = {
            "noise": self.noise,
            "verdict": str(self.regime),
            "regime": self.regime.name,
            "time_scale": self.regime.time_scale or "none",
            "stochastic": int(self.regime.stochastic),
            "drift": self.drift,
            "t1": self.t1,
            "choices": list(self.choices),
            "seconds": self.seconds,
        }
        for ladder in ("step_size", "sigma"):
            fitted = getattr(self, f"{ladder}_approach")
            found = {"exponent": getattr(self, f"{ladder}_exponent")}
            if fitted is not None:
                found["order"] = fitted.order
                attributes[f"{ladder}_remainder"] = fitted.remainder
                attributes[f"{ladder}_remainder_error"] = fitted.remainder_error
            for name, exponent in found.items():
                if exponent is not None:
                    attributes[f"{ladder}_{name}"] = exponent.value
                    attributes[f"{ladder}_{name}_half_width"] = exponent.half_width
                    if exponent.theory is not None:
                        attributes[f"{ladder}_{name}_theory"] = exponent.theory
        if self.bound is not None:
            attributes |= {f"bound_{k}": v for k, v in dataclasses.asdict(self.bound).items()}
        return xr.Dataset(data, {"ladder": ("rung", ladders)}, attributes)

    def __str__(self) -> str:
        lines = [f"{self.noise}: {self.regime}"]
        if self.bound is not None:
            return "\n".join([*lines, f"  {self.bound}"])
        for label, exponent in (
            ("steps ~ step size^-p, p =", self.step_size_exponent),
            ("steps ~ sigma^-q, q =", self.sigma_exponent),
            ("gap to the limit closes with step size^", self.step_size_approach),
            ("gap to the limit closes with sigma^", self.sigma_approach),
        ):
            space = "" if label.endswith("^") else " "
            lines.append(f"  {label}{space}{exponent if exponent is not None else 'r, r not resolved'}")
        return "\n".join(lines + [f"  {choice}" for choice in self.choices])


def study(
    system: AbstractSystem,
    params: PyTree,
    *,
    key: Key[Array, ""],
    budget: float = 5.0,
    drift: float = 0.05,
    progress: bool = False,
) -> Study:
    """Measure on which time scale training drifts, and how it approaches the limit.

    An ensemble is trained at each of a ladder of step sizes, and at each of a ladder of sigmas, until it has
    drifted as far as the limit does in a fixed slow time. How the number of steps grows down each ladder
    is a power law, steps ~ alpha^-p sigma^-q; theory says p = 1 or 2 and q = 2 (theory.md, section 2). The
    exponents come with 95 % intervals from the scatter of the replicas, allowing for a leading
    correction to the power law. How the distance to the limit falls along each ladder is its order.

    **Arguments:**

    - `system`, `params`: a system and any start from which zero loss can be reached. The sigmas
      of its noise are the largest of the ladder.
    - `key`: for the training runs.
    - `budget`: minutes. Replicas and the length of the ladders are chosen to keep to it, from a pilot
      run; `Study.choices` says what was chosen.
    - `drift`: how far to drift, relative to |w|; for a stochastic limit the root mean square.
    - `progress`: whether to show progress bars in a terminal.

    **Returns:** a `Study`. For a trivial noise it holds a bound on the drift instead of exponents.

    **Raises:** what `project`, `classify` and `limit` raise; `InputError` where the drift vanishes at the start,
    which is then a stationary point, or where a pilot run shows that the budget is too small.
    """
    if not (budget > 0 and np.isfinite(budget)):
        raise InputError(f"budget must be a positive number of minutes, got {budget}.")
    if not 0 < drift <= 1:
        raise InputError(f"drift must lie in (0, 1], relative to |w|, got {drift}.")
    refuse_tracing((system, params), "study")
    began = time.perf_counter()
    point = project(system, params)
    regime = classify(system, point)
    largest = largest_eigenvalue(system, point)
    common = dict(noise=system.describe(), regime=regime, largest_eigenvalue=largest)
    nothing = dict(by_step_size=(), by_sigma=(), step_size_exponent=None, sigma_exponent=None)
    nothing |= dict(step_size_approach=None, sigma_approach=None)
    pilot_key, limit_key, *keys = jax.random.split(key, 4)
    if regime.time_scale is None:
        bound = _bound(system, point, _LARGEST / largest, budget, pilot_key, progress)
        seconds = time.perf_counter() - began
        return Study(**common, **nothing, drift=0.0, t1=0.0, bound=bound, choices=(), seconds=seconds)
    target = _target(system, point, regime, drift, limit_key)
    deadline = began + 60 * budget
    plan = _Plan(system, point, target, largest, deadline, progress)
    plan.pilot(pilot_key)
    by_step_size = plan.ladder("step sizes", keys[0])
    by_sigma = plan.ladder("sigmas", keys[1])
    return Study(
        **common,
        drift=float(target.size**0.5 if regime.stochastic else target.size) / float(length(target.start)),
        t1=target.t1,
        by_step_size=by_step_size,
        by_sigma=by_sigma,
        step_size_exponent=_exponent(
            by_step_size,
            [rung.step_size * largest for rung in by_step_size],
            [rung.step_size * largest for rung in by_step_size],
            _PRIOR["step sizes"],
            float(power_of_step_size(regime.time_scale)),
        ),
        sigma_exponent=_exponent(
            by_sigma,
            [rung.sigma for rung in by_sigma],
            [(rung.sigma / by_sigma[0].sigma) ** 2 for rung in by_sigma],
            _PRIOR["sigmas"],
            2.0,
        ),
        step_size_approach=_approach(by_step_size, [rung.step_size for rung in by_step_size], 1.0),
        sigma_approach=_approach(by_sigma, [rung.sigma for rung in by_sigma], None),
        bound=None,
        choices=tuple(plan.choices),
        seconds=time.perf_counter() - began,
    )


class _Plan:
    """Chooses replicas and ladders so that the budget is kept, from what a pilot rung costs and scatters."""

    def __init__(
        self,
        system: AbstractSystem,
        point: PyTree,
        target: Target,
        largest: float,
        deadline: float,
        progress: bool,
    ):
        self.system, self.point, self.target = system, point, target
        self.largest, self.deadline, self.progress = largest, deadline, progress
        self.step_size = _LARGEST / largest
        self.power = power_of_step_size(target.time_scale)
        self.replicas = int(np.clip(_ENSEMBLE_IN_PILOT / target.start.shape[0], _FEWEST, _MOST_IN_PILOT))
        self.choices: list[str] = []

    def pilot(self, key: Key[Array, ""]) -> None:
        """A first rung: how many steps, how much scatter, how many seconds a step."""
        while True:
            rung = climb(self.system, self.point, self.target, self.step_size, self.replicas, key)
            if not np.isfinite(rung.steps):
                raise InputError(
                    f"at the step size {rung.step_size:.3g} and sigma {rung.sigma:.3g} training did not make "
                    "the drift of the limit: the noise is too large for its limit to say anything. Take a "
                    "smaller sigma, or a smaller drift."
                )
            if rung.steps >= _FEWEST_STEPS or rung.step_size < 1e-3 / self.largest:
                break
            self.step_size *= max((rung.steps / _FEWEST_STEPS) ** (1 / self.power) / 1.1, 0.1)
        self.steps, self.scatter = rung.total_steps, max(rung.steps_error, 1e-4)
        self.seconds_per_step = self._time_steps(key)
        self.choices.append(
            f"Largest step size {self.step_size * self.largest:.3g} / lambda_max, where the drift takes "
            f"{rung.steps:,.0f} steps; a pilot of {self.replicas} runs costs {1e6 * self.seconds_per_step:.0f} "
            "microseconds a step."
        )

    def ladder(self, kind: str, key: Key[Array, ""]) -> tuple[Rung, ...]:
        """The rungs along step sizes or sigmas, from the coarsest."""
        if kind == "sigmas":
            try:
                self.system.scaled(0.5)
            except UnsupportedError as error:
                self.choices.append(f"No ladder of sigmas: {error}")
                return ()
        factors, replicas = self._choose(kind)
        rungs: list[Rung] = []
        for index, factor in enumerate(factors):
            left = self.deadline - time.perf_counter()
            if rungs and rungs[-1].seconds > 2 * left:
                self.choices.append(
                    f"The ladder of {kind} stops after {index} of {len(factors)} rungs: the budget is used up."
                )
                break
            step_size, system = self.step_size, self.system
            if kind == "sigmas":
                system = system.scaled(float(factor))
            else:
                step_size = step_size * factor
            try:
                rung = climb(
                    system, self.point, self.target, float(step_size), replicas,
                    jax.random.fold_in(key, index), self.progress,
                )  # fmt: skip
            except DivergenceError as error:
                self.choices.append(f"A rung of the ladder of {kind} was left out: {error}")
                continue
            if not np.isfinite(rung.steps):
                self.choices.append(
                    f"A rung of the ladder of {kind} was left out: training at step size {step_size:.3g} and "
                    f"sigma {rung.sigma:.3g} did not make the drift."
                )
                continue
            rungs.append(rung)
        return tuple(rungs)

    def _choose(self, kind: str) -> tuple[np.ndarray, int]:
        """The ladder, and the replicas, that promise the narrowest interval for the time there is."""
        seconds = _SHARES[kind] * max(self.deadline - time.perf_counter(), 1.0)
        power = self.power if kind == "step sizes" else 2
        most = int(min(_MOST_REPLICAS, max(_FEWEST, _LARGEST_ENSEMBLE // self.target.start.shape[0])))
        best: tuple[float, np.ndarray, int] | None = None
        for span in _RANGES if kind == "step sizes" else _SIGMA_RANGES:
            factors = np.geomspace(1.0, 1 / span, _RUNGS)
            one_run = self.steps * np.sum(factors ** -float(power)) * self.seconds_per_step / self.replicas
            replicas = int(min(seconds / one_run, most, self.replicas * (self.scatter / _FINEST_ERROR) ** 2))
            if replicas < _FEWEST:
                if best is not None:
                    continue
                replicas = _FEWEST
            error = max(self.scatter * np.sqrt(self.replicas / replicas), _FINEST_ERROR / 2)
            leading = factors * self.step_size * self.largest if kind == "step sizes" else factors**2
            width = expected_half_width(factors, error, (leading, leading**2), _PRIOR[kind])
            if best is None or width < best[0]:
                best = (width, factors, replicas)
        assert best is not None
        width, factors, replicas = best
        self.choices.append(
            f"Ladder of {kind}: {_RUNGS} rungs over a factor of {1 / factors[-1]:.0f}, {replicas} runs each, to "
            f"know the exponent to about ± {width:.2f}."
        )
        return factors, replicas

    def _time_steps(self, key: Key[Array, ""]) -> float:
        run = Run(self.system, jax.random.split(key, self.replicas), jnp.asarray(self.step_size))
        states = jax.tree.map(lambda leaf: jnp.tile(leaf, (self.replicas,) + (1,) * leaf.ndim), self.point)
        count = int(min(self.steps, 500))
        began = time.perf_counter()
        train(run, states, np.array([count]), _Nothing(), False)
        return (time.perf_counter() - began) / count


class _Nothing:
    """A recorder that records nothing."""

    batched, started = True, False

    def save(self, w: Array) -> None:
        pass

    def path(self, *_: object) -> None:
        pass


def _target(
    system: AbstractSystem, point: PyTree, regime: Regime, drift: float, key: Key[Array, ""]
) -> Target:
    """How far the limit goes in how much slow time."""
    assert regime.time_scale is not None
    manifold, w = locate(system, point)
    geometry, speed, variance = _motion(expand(system, manifold), w, regime.time_scale == FAST)
    reach = drift * float(length(w))
    if regime.stochastic:
        t1 = reach**2 / float(variance)
        replicas = int(np.clip(2e5 / w.shape[0], 64, 4096))
        path = limit(system, point, ts=[t1], regime=regime, key=key, replicas=replicas, dt=t1 / 64)
        moved = _flat(path.params, 2)[:, 0] - np.asarray(w)
        squares = np.sum(np.asarray(jax.vmap(geometry.tangent)(jnp.asarray(moved))) ** 2, axis=-1)
        return Target(
            start=w,
            geometry=geometry,
            t1=t1,
            time_scale=regime.time_scale,
            stochastic=True,
            displacement=np.zeros(0),
            size=float(squares.mean()),
            size_error=float(squares.std(ddof=1) / np.sqrt(replicas)),
            share=TO - FROM,
        )
    if float(speed) * float(length(w)) <= 1e-10 * max(regime.first, regime.second):
        raise InputError(
            "the limit does not move from this start: it is a stationary point of the drift, though the noise "
            "is not trivial elsewhere on the set. Start somewhere else."
        )
    t1 = reach / float(speed)
    for _ in range(20):
        try:
            path = limit(system, point, ts=np.linspace(0, t1, 33), regime=regime)
            break
        except IntegrationError:
            t1 /= 2
    else:
        raise InputError(f"the limit cannot be followed from this start even to t = {t1:.3g}.")
    moved = _flat(path.params, 1) - np.asarray(w)
    size = float(np.linalg.norm(moved[-1]))
    share = TO - float(np.interp(FROM, moved @ moved[-1] / size**2, path.ts / t1))
    return Target(w, geometry, t1, regime.time_scale, False, moved[-1], size, 0.0, share)


@eqx.filter_jit
def _motion(expansion: AbstractExpansion, w: Vector, fast: bool) -> tuple[Any, Scalar, Scalar]:
    geometry = expansion.manifold.at(w)
    drift = first_drift(expansion, w, geometry) if fast else second_drift(expansion, w, geometry)
    return geometry, jnp.linalg.norm(drift), expansion.tangential_variance(w, geometry)


def _flat(params: PyTree, lead: int) -> Float[np.ndarray, "..."]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def _exponent(
    rungs: tuple[Rung, ...], x: list[float], correction: list[float], prior: float, theory: float
) -> Exponent | None:
    if len(rungs) < 3:
        return None
    steps = np.log([rung.steps for rung in rungs])
    errors = np.maximum([rung.steps_error for rung in rungs], 1e-6)
    leading = np.array(correction)
    return power_law(
        np.array(x), steps, errors, corrections=(leading, leading**2), prior=prior, theory=theory, sign=-1
    )


def _approach(rungs: tuple[Rung, ...], x: list[float], theory: float | None) -> Approach | None:
    gaps = np.array([np.log(rung.steps / rung.theory) for rung in rungs])
    errors = np.maximum([rung.steps_error for rung in rungs], 1e-6)
    return approach(np.array(x), gaps, errors, theory=theory)


def _bound(
    system: AbstractSystem,
    point: PyTree,
    step_size: float,
    budget: float,
    key: Key[Array, ""],
    progress: bool,
) -> Bound:
    """Train where theory says that nothing happens, and see how little does."""
    manifold, w = locate(system, point)
    geometry = _geometry(manifold, w)
    run = Run(system, jax.random.split(key, _FEWEST), jnp.asarray(step_size))
    states = jax.tree.map(lambda leaf: jnp.tile(leaf, (_FEWEST,) + (1,) * leaf.ndim), point)
    train(run, states, np.array([10]), _Nothing(), False)  # compiles
    began = time.perf_counter()
    train(run, states, np.array([100]), _Nothing(), False)
    per_step = (time.perf_counter() - began) / 100
    steps = int(np.clip(60 * budget / 2 / per_step, 100, _TRIVIAL_STEPS))
    last = _Last()
    train(run, states, np.array([steps]), last, progress)
    moved = np.asarray(jax.vmap(geometry.tangent)(last.states - w))
    distances = np.linalg.norm(moved, axis=-1) / float(length(w))
    one_sided = 1.753  # 95 % of Student's t with 15 degrees of freedom
    upper = distances.mean() + one_sided * distances.std(ddof=1) / np.sqrt(_FEWEST)
    return Bound(float(upper), float(distances.max()), steps, step_size, _FEWEST)


@eqx.filter_jit
def _geometry(manifold: Any, w: Vector) -> Any:
    return manifold.at(w)


class _Last(_Nothing):
    """A recorder that keeps the last states."""

    def save(self, w: Array) -> None:
        self.states = w
