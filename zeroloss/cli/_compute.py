"""The commands that compute: each makes a request into a call, or says what to run."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import typer
from rich.markup import escape

from zeroloss._progress import doing, show_progress
from zeroloss.cli._console import (
    PROBLEMS,
    TRAINING,
    command,
    option,
    out,
    print_json,
)
from zeroloss.cli._options import (
    Replicas,
    Request,
    Rule,
    Saves,
    Steps,
    StepSize,
    on_problem,
)
from zeroloss.cli._printing import print_table
from zeroloss.cli._running import makes_runs
from zeroloss.drifts import classify
from zeroloss.errors import ZerolossError
from zeroloss.noise import Langevin, MiniBatch
from zeroloss.optimizers import SGD
from zeroloss.prediction import how_long
from zeroloss.problems import Problem, parse_noise
from zeroloss.report import greek
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, project

_GOAL, _LIMIT = "Goal", "Limit"  # panels of the help
_PROJECTING = "projecting the start onto the zero-loss set"


@command(
    "classify",
    PROBLEMS,
    "zeroloss classify digits",
    "zeroloss classify digits --noise dropout:0.2 --noise minibatch:32+label",
)
@on_problem
def classify_command(request: Request) -> None:
    """Say on which time scale each noise drifts, and towards what.

    Without --noise, for every noise that the problem knows, and minibatches with each.
    """
    chosen = request.load()
    names = request.noise or _every_noise(chosen)
    systems = _systems(chosen, names, request.strengths)
    verdicts = {}
    with show_progress(not request.quiet), doing() as say:
        say(_PROJECTING)
        point = project(next(iter(systems.values())), chosen.start)
        largest = largest_eigenvalue(next(iter(systems.values())), point)
        for index, (name, system) in enumerate(systems.items()):
            say(f"classifying {name} ({index + 1} of {len(systems)})")
            verdicts[name] = classify(system, point, key=jax.random.key(request.seed))
    lines, found, caveats, dimensions = [], [], defaultdict(list), ""
    for name, verdict in verdicts.items():
        towards = "" if verdict.name == "trivial" else verdict.towards.removeprefix("towards ")
        words = verdict.name + (", stochastic" if verdict.stochastic else "")
        scale = greek(verdict.time_scale or "never")
        lines.append([name, words, scale, towards, f"{verdict.margin:.0e}"])
        found.append(
            dict(
                noise=name, verdict=verdict.name, time_scale=verdict.time_scale,
                stochastic=verdict.stochastic, towards=towards, margin=verdict.margin, caveat=verdict.caveat,
                largest_eigenvalue=largest,
            )
        )  # fmt: skip
        if verdict.dimension is not None and verdict.codimension is not None:
            parameters = verdict.dimension + verdict.codimension
            dimensions = f"{verdict.dimension:,} in {parameters:,} parameters"
        if verdict.caveat:
            caveats[greek(verdict.caveat)].append(name)
    if request.json:
        print_json(found)
        return
    print_table(["noise", "verdict", "drifts in steps", "towards", "margin"], lines, chosen.description)
    if dimensions:
        out.print(f"The zero-loss set has dimension {dimensions}.", highlight=False)
    out.print(
        f"The largest eigenvalue of its Hessian is {largest:.4g} where training begins: --step-size 1 is "
        f"{1 / largest:.3g}.",
        highlight=False,
    )
    for caveat, names in caveats.items():
        out.print(f"{escape(', '.join(names))}: {caveat}.", highlight=False)


@command(
    "how-long",
    PROBLEMS,
    "zeroloss how-long digits --noise dropout:0.2 --step-size 0.5",
    "zeroloss how-long hyperbola --noise label --of hessian_trace --value 2.1",
)
@on_problem
def how_long_command(
    request: Request,
    *,
    of: Annotated[
        str | None,
        option(
            _GOAL,
            "regularizer, hessian_trace, loss or an observable of the problem. By default the regularizer, "
            "or hessian_trace of noise that leaves that constant.",
            metavar="<quantity>",
        ),
    ] = None,
    fraction: Annotated[float, option(_GOAL, "Of the change that is to come.")] = 0.5,
    value: Annotated[float | None, option(_GOAL, "To reach, instead of --fraction.")] = None,
    rule: Rule,
) -> None:
    """Say after how many training steps half of the drift is done."""
    chosen = request.load()
    excluded = (MiniBatch.listing.name, Langevin.listing.name)  # nothing moves, or there is no mean path
    names = request.noise or [name for name in chosen.noises if name not in excluded]
    systems = _systems(chosen, names, request.strengths)
    first = next(iter(systems.values()))
    with show_progress(not request.quiet), doing() as say:
        say(_PROJECTING)
        point = project(first, chosen.start)
        step_size = rule.step_size / largest_eigenvalue(first, point)
    optimizer = SGD(step_size, momentum=rule.momentum, nesterov=rule.nesterov, weight_decay=rule.weight_decay)
    quantity = chosen.observables.get(of, of) if of is not None else None
    all_found: dict[str, Any] = {}
    for name, system in systems.items():
        try:
            with show_progress(not request.quiet):
                found = how_long(system, point, optimizer, of=quantity, fraction=fraction, value=value)
            if of is not None:
                found = dataclasses.replace(found, quantity=of)
            all_found[name] = vars(found)
        except ZerolossError as error:
            if len(systems) == 1:
                raise
            found, all_found[name] = error, {"unknown": str(error)}
        if not request.json:
            out.print(f"{escape(name)}: {escape(str(found))}", highlight=False, soft_wrap=True)
    if request.json:
        print_json(all_found)
    if all("unknown" in each for each in all_found.values()):
        raise typer.Exit(1)


@makes_runs(
    "limit",
    "zeroloss limit hyperbola --noise label --horizon 2",
    "zeroloss limit ellipse --noise langevin --replicas 100 --out runs/limit",
)
def limit_values(
    request: Request,
    *,
    horizon: Annotated[float, option(_LIMIT, "Slow time to go to.")] = 1.0,
    saves: Annotated[int, option(_LIMIT, "How many times to save at.")] = 50,
    replicas: Annotated[int, option(_LIMIT, "Paths, where the limit is stochastic.")] = 200,
) -> dict[str, Any]:
    """Follow the limit of training as step size and noise go to zero."""
    own = dict(command="limit", horizon=horizon, saves=saves, replicas=replicas)
    return request.config(_known_noises, **own)


@makes_runs(
    "predict",
    "zeroloss predict hyperbola --noise weight:0.05 --step-size 0.1 --steps 2000",
    "zeroloss predict hyperbola --noise weight --momentum 0.9 --out runs/mean",
)
def predict_values(
    request: Request,
    *,
    steps: Steps = 50_000,
    rule: Rule,
    saves: Saves = 50,
    replicas: Annotated[int | None, option(TRAINING, "Draw so many runs, not the mean of training.")] = None,
) -> dict[str, Any]:
    """Predict training at its own step size and noise, not running it."""

    def noises(problem: Problem) -> list[str]:
        # Langevin noise has no mean path.
        return [name for name in problem.noises if name != Langevin.listing.name or replicas]

    own = dict(command="predict", steps=steps, saves=saves, replicas=replicas, **rule._asdict())
    return request.config(noises, **own)


@makes_runs(
    "descend",
    "zeroloss descend hyperbola --noise label:0.3 --steps 2000",
    "zeroloss descend digits --noise dropout:0.05 --steps 5000 --out runs/train",
)
def descend_values(
    request: Request,
    *,
    steps: Steps = 50_000,
    rule: Rule,
    saves: Saves = 50,
    replicas: Replicas = 8,
) -> dict[str, Any]:
    """Train ensembles, from the start projected onto the zero-loss set."""
    own = dict(command="descend", steps=steps, saves=saves, replicas=replicas, **rule._asdict())
    return request.config(_known_noises, **own)


@makes_runs(
    "compare",
    "zeroloss compare hyperbola --noise label --noise weight:0.1 --steps 5000",
    "zeroloss compare digits --noise dropout --noise label --out runs/compare",
)
def compare_values(
    request: Request,
    *,
    step_size: StepSize = 0.5,
    steps: Steps = 50_000,
    horizon: Annotated[float | None, option(TRAINING, "Slow time to go to, instead of --steps.")] = None,
    replicas: Replicas = 8,
) -> dict[str, Any]:
    """Compare limit, prediction and training of each noise."""
    own = dict(command="compare", step_size=step_size, horizon=horizon, steps=steps, replicas=replicas)
    return request.config(_known_noises, **own)


@makes_runs(
    "study",
    "zeroloss study hyperbola --noise weight:0.1 --budget 1",
    "zeroloss study hyperbola --noise label --noise langevin:0.1 --out runs/study",
)
def study_values(
    request: Request,
    *,
    budget: Annotated[float, option(TRAINING, "For all noises together.", metavar="<minutes>")] = 10.0,
    drift: Annotated[float, option(TRAINING, "How far to drift, relative to |w|.")] = 0.05,
) -> dict[str, Any]:
    """Measure how fast training drifts, and how it nears its limit.

    Ensembles on a ladder of step sizes, and one of sigmas, chosen to keep to the budget.
    """
    return request.config(_known_noises, command="study", budget=budget, drift=drift)


def _systems(
    chosen: Problem, names: list[str], strengths: Mapping[str, float]
) -> Mapping[str, AbstractSystem]:
    """The problem under each noise: what is wrong with any of them is found before the first takes time."""
    return {name: chosen.problem.with_noise(parse_noise(chosen, name, strengths)) for name in names}


def _known_noises(problem: Problem) -> list[str]:
    return list(problem.noises)


def _every_noise(problem: Problem) -> list[str]:
    alone = list(problem.noises)
    others = [name for name in alone if name != MiniBatch.listing.name]
    return alone + [f"minibatch+{name}" for name in others]
