"""Doing what a config says, noise by noise, into a folder that survives whatever happens meanwhile."""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import xarray as xr
from jaxtyping import PyTree

from zeroloss import problems
from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, digest_of_bytes, lock_folder
from zeroloss._progress import doing, show_progress
from zeroloss.drifts import classify
from zeroloss.drifts._verdict import Verdict
from zeroloss.dynamics import Saves, Trajectory, descend, limit
from zeroloss.dynamics._saves import Observables
from zeroloss.errors import InputError, Interrupted, RunError, ZerolossError
from zeroloss.optimizers import SGD
from zeroloss.prediction import Tolerance, how_long, predict
from zeroloss.problems import Problem, parse_noise
from zeroloss.runs._config import (
    CompareConfig,
    Config,
    DescendConfig,
    LimitConfig,
    PredictConfig,
    StudyConfig,
    config_from,
)
from zeroloss.runs._folder import (
    CHECKPOINT,
    DESCRIPTION,
    RESULTS,
    VERSIONS,
    append_path,
    check_free,
    create,
    gather,
    gather_paths,
    gather_studies,
    is_complete,
    log,
    noises_of,
    read,
    read_config,
    restore_previous,
    write_results,
)
from zeroloss.runs._geometry import views
from zeroloss.runs._grid import SWEEP, SweepConfig, sweep_config
from zeroloss.studies import compare, study
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, project

Tell = Callable[[str], object]
Stop = Callable[[], bool]

_HALF_RTOL = 1e-2  # for a number of steps that is said to three digits
_HALF_GRADIENTS = 2e5  # what it may cost, beside a limit, a prediction and trainings


def _never() -> bool:
    return False


def start(
    config: Config,
    folder: Path | None = None,
    *,
    overwrite: bool = False,
    tell: Tell = lambda _: None,
    progress: bool = False,
    every: float = 30.0,
    stop: Stop = _never,
) -> xr.DataTree:
    """Compute what `config` says, and return the results; with a `folder`, make a run of it there.

    What is finished is written as it is there, and the state of the rest is saved `every` so many seconds:
    after a crash, or SIGINT or SIGTERM, or once `stop()` is true, `resume` goes on, to bit-identical results.

    Raises, before anything is computed or touched, `InputError` and the other errors of ours for what cannot
    be computed, and `RunError` for a folder that holds something already or in which another process works;
    `Interrupted` when it was stopped.
    """
    if folder is None:
        return _compute(config, _prepared(config, progress), None, NO_CHECKPOINT, tell, progress)
    check_free(folder, overwrite=overwrite)
    prepared = _prepared(config, progress)
    with lock_folder(folder):
        create(
            folder,
            config.model_dump(mode="json") | {DESCRIPTION: prepared.problem.description},
            overwrite=overwrite,
        )
        log(folder, "started")
        return _logged(config, prepared, folder, tell, progress, every, stop)


def resume(
    folder: Path,
    *,
    tell: Tell = lambda _: None,
    progress: bool = False,
    every: float = 30.0,
    stop: Stop = _never,
) -> xr.DataTree:
    """Go on with the run in `folder` where it was stopped, and return the results.

    The results are those that it would have had without the stop, bit for bit. A run that is complete is left
    as it is. Raises `RunError` where there is no run, another process is working in it, or its checkpoint
    is damaged or of other versions.
    """
    config = configuration(folder)
    if isinstance(config, SweepConfig):
        raise InputError(f"{folder} holds a sweep; use resume_sweep.")
    _, results = read(folder)
    if is_complete(folder, results):
        return results
    prepared = _prepared(config, progress)
    with lock_folder(folder):
        log(folder, "resumed")
        held = noises_of(results) if (folder / RESULTS).exists() else ()
        return _logged(config, prepared, folder, tell, progress, every, stop, held)


def configuration(folder: Path) -> Config | SweepConfig:
    """The config of the run, or of the sweep, in `folder`.

    Raises `RunError` where there is none, and `InputError` where it is wrong.
    """
    values = read_config(folder)
    values = {name: value for name, value in values.items() if name not in (VERSIONS, DESCRIPTION)}
    return sweep_config(values) if values.get("command") == SWEEP else config_from(values)


def digest_of_source(problem: str, options: Mapping[str, Any]) -> str | None:
    """A digest of the file that a problem is made from, for `Config.source`."""
    path = problems.source(problem, options)
    if path is None:
        return None
    try:
        return digest_of_bytes([path.read_bytes()])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


class _Prepared(NamedTuple):
    """A problem under each noise, and, where the command needs them, a point and lambda_max there."""

    problem: Problem
    systems: dict[str, AbstractSystem]
    point: PyTree
    largest: float


def _prepared(config: Config, progress: bool = False) -> _Prepared:
    found = None if config.source is None else digest_of_source(config.problem, config.options)
    if found != config.source:
        raise InputError(
            f"{problems.source(config.problem, config.options)} has changed since the run began (digest "
            f"{found}, then {config.source}). Bring the file back, or begin anew."
        )
    problem = problems.load(config.problem, **config.options)
    noises = {name: parse_noise(problem, name, config.strengths) for name in config.noise}
    systems: dict[str, AbstractSystem] = {
        name: problem.problem.with_noise(each) for name, each in noises.items()
    }
    for system in systems.values():
        system.check(problem.start)
    if isinstance(config, StudyConfig):
        return _Prepared(problem, systems, problem.start, 0.0)
    first = next(iter(systems.values()))
    with show_progress(progress), doing() as say:
        say("projecting the start onto the zero-loss set")
        point = project(first, problem.start)
        largest = largest_eigenvalue(first, point)
    if isinstance(config, CompareConfig):
        SGD(config.step_size / largest).check_stability(largest)
    elif isinstance(config, PredictConfig | DescendConfig):
        SGD(config.step_size / largest, **config.rule).check_stability(largest)
    return _Prepared(problem, systems, point, largest)


def _logged(
    config: Config,
    prepared: _Prepared,
    folder: Path,
    tell: Tell,
    progress: bool,
    every: float,
    stop: Stop,
    held: Collection[str] = (),
) -> xr.DataTree:
    try:
        checkpoint = Checkpoint(
            folder / CHECKPOINT, every=every, stop=stop, published=_publisher(config, folder)
        )
        results = _compute(config, prepared, folder, checkpoint, tell, progress, held)
    except Interrupted as stopped:
        with contextlib.suppress(RunError):
            log(folder, "stopped")
        saved = "what was saved last is there" if stopped.at_once else "everything until now is saved"
        raise Interrupted(
            f"{saved}. To go on: zeroloss resume {folder}", stopped.signal, at_once=stopped.at_once
        ) from None
    except BaseException as error:
        with contextlib.suppress(RunError):
            log(folder, "failed", error=f"{type(error).__name__}: {error}")
        if isinstance(error, ZerolossError) and not isinstance(error, RunError):
            restore_previous(folder)
        raise
    log(folder, "finished")
    return results


def _publisher(config: Config, folder: Path) -> Callable[[str, Any], None]:
    """What adds to the results, while they are computed, where the paths have got to."""
    written: dict[str, int] = {}

    def publish(stage: str, path: Any) -> None:
        index, _, part = stage.removeprefix("noise_").partition("/")
        if isinstance(config, StudyConfig):
            return  # of its many short ensembles there is nothing to look at
        group = "/".join(filter(None, (config.noise[int(index)], part)))
        append_path(folder, group, path, written.get(group, 0))
        written[group] = len(path.ts)

    return publish


def _compute(
    config: Config,
    prepared: _Prepared,
    folder: Path | None,
    checkpoint: Checkpoint,
    tell: Tell,
    progress: bool,
    held: Collection[str] = (),
) -> xr.DataTree:
    """The results. Those of the noises that are `held` in the folder are not written again.

    For what has been saved of the next noise lies beside them.
    """
    job = _JOBS[type(config)](config, prepared)
    done: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    seen: dict[str, dict[str, xr.Dataset]] = {}
    results = xr.DataTree()
    with show_progress(progress), checkpoint.open():
        checkpoint.stop_if_asked()
        for index, (name, system) in enumerate(prepared.systems.items()):
            tell(f"[bold]{name}[/bold]: {job.announcement} ...")
            began = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(config.seed), index)
            done[name] = job.compute(
                system, key, checkpoint / f"noise_{index}", len(prepared.systems) - index
            )
            tell(f"  {job.words(done[name])}{time.perf_counter() - began:.0f} s")
            checkpoint.stop_if_asked()
            with doing() as say:
                say(f"{name}: {job.afterwards}")
                facts[name] = job.facts(system, done[name], checkpoint / f"noise_{index}")
                checkpoint.stop_if_asked()
                if folder is not None:  # else there will be no page
                    say(f"{name}: what the page shows besides")
                    seen[name] = views(prepared.problem, system, job.trajectories(done[name]))
            results = job.gather(done)
            results.attrs[DESCRIPTION] = prepared.problem.description
            for noise in done:
                for view, dataset in seen.get(noise, {}).items():
                    results[noise][view] = xr.DataTree(dataset)
                results[noise].attrs.update(facts[noise])
            complete = len(done) == len(prepared.systems)
            if folder is not None and (complete or not set(done) <= set(held)):
                write_results(folder, results, complete=complete)
                log(folder, "computed", noise=name)
    checkpoint.remove()
    return results


class _AbstractJob:
    """What a command computes for a noise, and how that is gathered."""

    announcement: str
    afterwards = "verdict"
    gather: Callable[[Any], xr.DataTree] = staticmethod(gather_paths)

    def __init__(self, config: Any, prepared: _Prepared):
        self.config, self.prepared = config, prepared

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        """The result for one noise, of which `left` are still to come, this one included."""
        raise NotImplementedError

    def words(self, result: Any) -> str:
        """What to say of it in a line."""
        return ""

    def facts(self, system: AbstractSystem, result: Any, checkpoint: Checkpoint) -> dict[str, Any]:
        """What else to keep about it, as attributes of its group: by default the verdict on the noise."""

        def ask() -> dict[str, Any]:
            try:
                return _facts_of(classify(system, self.prepared.point))
            except ZerolossError as error:
                return {"verdict_unknown": str(error)}

        return checkpoint.computed_once("verdict", ask)

    def trajectories(self, result: Any) -> dict[str, Trajectory]:
        """The paths in it that a page shows, by name."""
        return {"path": result}

    @property
    def _observables(self) -> Observables:
        return self.prepared.problem.observables


class _Compare(_AbstractJob):
    announcement = "limit, training runs, and prediction"
    afterwards = "how long half of it takes"
    gather = staticmethod(gather)

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        config: CompareConfig = self.config
        return compare(
            system,
            self.prepared.point,
            [config.step_size / self.prepared.largest],
            key=key,
            t1=None if config.horizon is None else Saves(config.horizon, observables=self._observables),
            steps=Saves(config.steps, observables=self._observables),
            replicas=config.replicas,
            checkpoint=checkpoint,
        )

    def words(self, result: Any) -> str:
        return f"{result.verdict}; "

    def facts(self, system: AbstractSystem, result: Any, checkpoint: Checkpoint) -> dict[str, Any]:
        """After how many steps half of what the noise will do is done, as `how_long` says it."""
        if result.verdict.time_scale is None or result.verdict.stochastic:
            return {}

        def ask() -> dict[str, Any]:
            try:
                found = how_long(
                    system, self.prepared.point, result.trainings[0].step_size,
                    rtol=Tolerance(_HALF_RTOL, _HALF_GRADIENTS),
                )  # fmt: skip
            except ZerolossError as error:
                return {"half_unknown": str(error)}
            if not found.settled:
                reason = f"{found.quantity} had not settled after {found.followed:,.0f} steps."
                return {"half_unknown": reason}
            return {"half_steps": found.steps, "half_of": found.quantity, "half_end": found.end}

        return checkpoint.computed_once("half", ask)

    def trajectories(self, result: Any) -> dict[str, Trajectory]:
        training = result.trainings[0]
        predicted = {} if training.prediction is None else {"prediction": training.prediction.path}
        trained = {} if training.diverged_at is not None else {"training": training.path}
        return {"limit": result.limit} | predicted | trained


class _Study(_AbstractJob):
    announcement = "two ladders of ensembles"
    gather = staticmethod(gather_studies)

    def __init__(self, config: StudyConfig, prepared: _Prepared):
        super().__init__(config, prepared)
        self._seconds = 60 * config.budget

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        result = study(
            system,
            self.prepared.point,
            key=key,
            budget=max(self._seconds / left / 60, 0.1),
            drift=self.config.drift,
            checkpoint=checkpoint,
        )
        self._seconds -= result.seconds
        return result

    def facts(self, system: AbstractSystem, result: Any, checkpoint: Checkpoint) -> dict[str, Any]:
        return {}  # a study says its own verdict

    def words(self, result: Any) -> str:
        return f"{result}\n  "

    def trajectories(self, result: Any) -> dict[str, Trajectory]:
        return {}


class _Predict(_AbstractJob):
    announcement = "prediction"

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        config: PredictConfig = self.config
        return predict(
            system,
            self.prepared.point,
            SGD(config.step_size / self.prepared.largest, **config.rule),
            Saves(config.steps, config.saves, observables=self._observables),
            key=None if config.replicas is None else key,
            replicas=config.replicas,
            checkpoint=checkpoint,
        )


class _Descend(_AbstractJob):
    announcement = "training runs"

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        config: DescendConfig = self.config
        return descend(
            system,
            self.prepared.point,
            SGD(config.step_size / self.prepared.largest, **config.rule),
            Saves(config.steps, config.saves, observables=self._observables),
            key=key,
            replicas=config.replicas,
            checkpoint=checkpoint,
        )


class _Limit(_AbstractJob):
    announcement = "limit"

    def compute(self, system: AbstractSystem, key: Any, checkpoint: Checkpoint, left: int) -> Any:
        self._verdict = verdict = classify(system, self.prepared.point)
        stochastic = dict(key=key, replicas=self.config.replicas) if verdict.stochastic else {}
        return limit(
            system,
            self.prepared.point,
            Saves(self.config.horizon, self.config.saves, observables=self._observables),
            checkpoint=checkpoint,
            **stochastic,
        )

    def facts(self, system: AbstractSystem, result: Any, checkpoint: Checkpoint) -> dict[str, Any]:
        return _facts_of(self._verdict)


def _facts_of(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": str(verdict), "verdict_name": verdict.name, "stochastic": int(verdict.stochastic)}


_JOBS: dict[type, type[_AbstractJob]] = {
    CompareConfig: _Compare,
    StudyConfig: _Study,
    PredictConfig: _Predict,
    DescendConfig: _Descend,
    LimitConfig: _Limit,
}
