"""The commands that make runs: the options of each, and what it computes for one noise."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import zeroloss as zl
from zeroloss._progress import stage_indicator
from zeroloss.errors import InputError, ZerolossError
from zeroloss.runs._config import (
    AbstractConfig,
    SaveCount,
    Steps,
    StepSize,
    TrainingConfig,
    option,
    validated,
)

_HALF_RTOL, _HALF_GRADIENTS = 1e-2, 2e5  # three digits, at a small part of the cost of a comparison

ComputedOnce = Callable[[str, Callable[[], Any]], Any]
"""Computes something once, even if the run is stopped and resumed: `Checkpoint.computed_once`."""


class Experiment(NamedTuple):
    """A problem under each noise, the start of a run, and the largest eigenvalue of the Hessian there."""

    problem: "zl.problems.Problem"
    systems: "dict[str, zl.systems.AbstractSystem]"
    start: Any
    largest_eigenvalue: float
    verdicts: "dict[int, zl.Verdict]"

    def saves(self, end: float, count: int | None = None) -> "zl.Saves":
        """`count` saves up to `end`, with the observables of the problem."""
        return zl.Saves(end, count, observables=self.problem.observables)

    def verdict(self, system: "zl.systems.AbstractSystem") -> "zl.Verdict":
        """The verdict on the noise of one of the systems, computed once."""
        if id(system) not in self.verdicts:
            self.verdicts[id(system)] = zl.classify(system, self.start)
        return self.verdicts[id(system)]


class Config(AbstractConfig):
    """A command that makes a run."""

    command: str
    announcement: ClassVar[str]  # of the computation for one noise
    on_set: ClassVar[bool] = True  # whether the command starts on the zero-loss set
    has_trajectories: ClassVar[bool] = True  # which the page shows

    def optimizer(self, largest_eigenvalue: float) -> "zl.SGD | None":
        """The optimizer of training, where the Hessian has this largest eigenvalue; None without training."""
        return None

    def experiment(self) -> Experiment:
        """Problem, systems and start of the run.

        Raises the errors of zeroloss for what cannot be computed, before anything takes long.
        """
        problem, systems = self.load()
        for system in systems.values():
            system.check(problem.start)
        if not self.on_set:
            return Experiment(problem, systems, problem.start, 0.0, {})
        first = next(iter(systems.values()))
        with stage_indicator() as set_stage:
            set_stage("projecting the start onto the zero-loss set")
            start = zl.project(first, problem.start)
            largest = zl.zero_sets.largest_eigenvalue(first, start)
        optimizer = self.optimizer(largest)
        if optimizer is not None:
            optimizer.check_stability(largest)
        return Experiment(problem, systems, start, largest, {})

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """The result for one noise; `done` holds the results of the noises before it.

        `options` are the key and the checkpoint of the verb.
        """
        raise NotImplementedError

    def attributes(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", result: Any, once: ComputedOnce
    ) -> Any:
        """Numbers and text to store beside the result: the verdict on the noise."""

        def ask() -> dict[str, Any]:
            try:
                verdict = experiment.verdict(system)
            except ZerolossError as error:
                return {"verdict_unknown": str(error)}
            stochastic = int(verdict.stochastic)
            return {"verdict": str(verdict), "verdict_name": verdict.name, "stochastic": stochastic}

        return once("verdict", ask)

    def trajectories(self, result: Any) -> "dict[str, zl.Trajectory]":
        """The trajectories of a result that the page shows, by name."""
        return {"path": result} if self.has_trajectories else {}

    def summary(self, result: Any) -> str:
        """The result in a line."""
        return ""


class LimitConfig(Config):
    """Follow the limit of training as step size and noise go to zero."""

    examples = (
        "zeroloss limit hyperbola --noise label --horizon 2",
        "zeroloss limit ellipse --noise langevin --replicas 100 --out runs/limit",
    )
    announcement = "limit"

    command: Literal["limit"] = "limit"
    horizon: float = option(1.0, "Slow time to go to.", "Limit", gt=0)
    saves: int = option(50, "Number of times to save at.", "Limit", ge=2, le=10**6)
    replicas: int = option(200, "Trajectories, where the limit is stochastic.", "Limit", gt=0)

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """The limit for one noise."""
        zero_set, start = zl.zero_sets.locate(system, experiment.start)
        return zl.dynamics.limit_with_verdict(
            zl.drifts.expand_at(system, zero_set, start),
            start,
            experiment.verdict(system),
            experiment.saves(self.horizon, self.saves),
            replicas=self.replicas,
            **options,
        )


class PredictConfig(TrainingConfig, Config):
    """Predict training at its own step size and noise, not running it."""

    examples = (
        "zeroloss predict hyperbola --noise weight:0.05 --step-size 0.1 --steps 2000",
        "zeroloss predict hyperbola --noise weight --momentum 0.9 --out runs/mean",
    )
    announcement = "prediction"

    command: Literal["predict"] = "predict"
    steps: Steps
    saves: SaveCount
    replicas: int | None = option(None, "Predict this many single runs, not the mean.", gt=0)

    @classmethod
    def all_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """All noises; without Langevin noise where the mean is asked for, which it does not have."""
        return [name for name in problem.noises if name != zl.Langevin.listing.name or values.get("replicas")]

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """The mean of training under one noise, or draws of single runs."""
        key = options.pop("key")
        return zl.predict(
            system,
            experiment.start,
            self.optimizer(experiment.largest_eigenvalue),
            experiment.saves(self.steps, self.saves),
            key=None if self.replicas is None else key,
            replicas=self.replicas,
            **options,
        )


class DescendConfig(TrainingConfig, Config):
    """Train ensembles, from the start projected onto the zero-loss set."""

    examples = (
        "zeroloss descend hyperbola --noise label:0.3 --steps 2000",
        "zeroloss descend digits --noise dropout:0.05 --steps 5000 --out runs/train",
    )
    announcement = "training runs"

    command: Literal["descend"] = "descend"
    steps: Steps
    saves: SaveCount
    replicas: int = option(8, "Training runs of each noise.", gt=0)

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """An ensemble of training runs under one noise."""
        return zl.descend(
            system,
            experiment.start,
            self.optimizer(experiment.largest_eigenvalue),
            experiment.saves(self.steps, self.saves),
            replicas=self.replicas,
            **options,
        )


class CompareConfig(Config):
    """Compare limit, prediction and training of each noise."""

    examples = (
        "zeroloss compare hyperbola --noise label --noise weight:0.1 --steps 5000",
        "zeroloss compare digits --noise dropout --noise label --out runs/compare",
    )
    announcement = "limit, training runs, and prediction"

    command: Literal["compare"] = "compare"
    step_size: StepSize
    steps: Steps
    horizon: float | None = option(None, "Slow time to go to, instead of --steps.", gt=0)
    replicas: int = option(8, "Training runs of each noise.", ge=2)

    def optimizer(self, largest_eigenvalue: float) -> "zl.SGD":
        """Plain stochastic gradient descent at the step size."""
        return zl.SGD(self.step_size / largest_eigenvalue)

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """The comparison for one noise."""
        return zl.compare(
            system,
            experiment.start,
            [self.step_size / experiment.largest_eigenvalue],
            t1=None if self.horizon is None else experiment.saves(self.horizon),
            steps=experiment.saves(self.steps),
            replicas=self.replicas,
            **options,
        )

    def attributes(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", result: Any, once: ComputedOnce
    ) -> Any:
        """The number of steps after which half of the drift is done, as `how_long` computes it."""
        if result.verdict.time_scale is None or result.verdict.stochastic:
            return {}

        def ask() -> dict[str, Any]:
            try:
                step_size = result.trainings[0].step_size
                tolerance = zl.Tolerance(_HALF_RTOL, max_gradients=_HALF_GRADIENTS)
                found = zl.how_long(system, experiment.start, step_size, rtol=tolerance)
            except ZerolossError as error:
                return {"half_unknown": str(error)}
            if not found.settled:
                reason = f"{found.quantity} had not settled after {found.followed:,.0f} steps."
                return {"half_unknown": reason}
            return {"half_steps": found.steps, "half_of": found.quantity, "half_end": found.end}

        return once("half", ask)

    def trajectories(self, result: "zl.Comparison") -> "dict[str, zl.Trajectory]":
        """Limit, prediction and training; the last two where there are such."""
        training = result.trainings[0]
        predicted = {} if training.prediction is None else {"prediction": training.prediction.path}
        trained = {} if training.diverged_at is not None else {"training": training.path}
        return {"limit": result.limit} | predicted | trained

    def summary(self, result: "zl.Comparison") -> str:
        """The verdict."""
        return f"{result.verdict}; "


class StudyConfig(Config):
    """Measure how fast training drifts, and how it nears its limit.

    Ensembles on a ladder of step sizes, and one of sigmas, chosen to keep to the budget.
    """

    examples = (
        "zeroloss study hyperbola --noise weight:0.1 --budget 1",
        "zeroloss study hyperbola --noise label --noise langevin:0.1 --out runs/study",
    )
    announcement = "two ladders of ensembles"
    on_set = has_trajectories = False

    command: Literal["study"] = "study"
    budget: float = option(10.0, "Time for all noises together.", metavar="<minutes>", gt=0)
    drift: float = option(0.05, "How far to drift, relative to |w|.", gt=0, le=1)

    def compute(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", done: Any, **options: Any
    ) -> Any:
        """The study of one noise, in its share of the time that is left."""
        minutes = self.budget - sum(each.seconds for each in done.values()) / 60
        left = len(experiment.systems) - len(done)
        budget = max(minutes / left, 0.1)
        return zl.study(system, experiment.start, budget=budget, drift=self.drift, **options)

    def attributes(
        self, experiment: Experiment, system: "zl.systems.AbstractSystem", result: Any, once: ComputedOnce
    ) -> Any:
        """Nothing: a study has its own verdict."""
        return {}

    def summary(self, result: "zl.Study") -> str:
        """What it found."""
        return f"{result}\n  "


COMMANDS: dict[str, type[Config]] = {
    config.model_fields["command"].default: config
    for config in (LimitConfig, PredictConfig, DescendConfig, CompareConfig, StudyConfig)
}
"""Every command that makes runs, by name, in the order of the help."""


def config_from(values: Mapping[str, Any]) -> Config:
    """The config with these values. Raises `InputError` like `validated`, and for an unknown command."""
    command = values.get("command")
    if not isinstance(command, str) or command not in COMMANDS:
        raise InputError(f"unknown command {command!r}. Known: {', '.join(COMMANDS)}.")
    return validated(COMMANDS[command], values)
