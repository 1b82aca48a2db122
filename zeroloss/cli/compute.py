"""The commands that compute: each makes a request into a call, or into a run on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.box import SIMPLE
from rich.table import Table

from zeroloss import report, runs
from zeroloss.cli.console import app, failing_in_a_line, messages, out, print_json
from zeroloss.cli.printing import as_rows, print_results
from zeroloss.cli.request import (
    Momentum,
    Nesterov,
    Out,
    Overwrite,
    Request,
    SaveEvery,
    Saves,
    Steps,
    StepSize,
    WeightDecay,
    on_problem,
)
from zeroloss.dynamics import classify, how_long
from zeroloss.manifold import largest_eigenvalue, project
from zeroloss.problems import Problem, parse_noise
from zeroloss.report.notation import greek

_WITH_PAGE = ("compare", "study")


@app.command("classify")
@on_problem
def classify_command(request: Request) -> None:
    """Say what each noise does to PROBLEM: time scale, stochastic or not, towards what.

    Without --noise, for every noise that the problem knows, and minibatches with each.
    """
    chosen = request.load()
    names = request.noise or _every_noise(chosen)
    noises = {name: parse_noise(chosen, name, request.strengths) for name in names}
    table = Table(title=chosen.description, title_justify="left", box=SIMPLE)
    for column in ("noise", "verdict", "drifts in steps", "towards", "margin"):
        table.add_column(column, no_wrap=True)
    caveats, dimensions, found = {}, "", []
    point = project(chosen.problem.with_noise(next(iter(noises.values()))), chosen.start)
    for name, one in noises.items():
        regime = classify(chosen.problem.with_noise(one), point, key=jax.random.key(request.seed))
        towards = "" if regime.name == "trivial" else regime.towards.removeprefix("towards ")
        verdict = regime.name + (", stochastic" if regime.stochastic else "")
        table.add_row(name, verdict, greek(regime.time_scale or "never"), towards, f"{regime.margin:.0e}")
        found.append(
            dict(
                noise=name, regime=regime.name, time_scale=regime.time_scale,
                stochastic=regime.stochastic, towards=towards, margin=regime.margin, caveat=regime.caveat,
            )
        )  # fmt: skip
        if regime.dimension is not None and regime.codimension is not None:
            parameters = regime.dimension + regime.codimension
            dimensions = f"{regime.dimension:,} in {parameters:,} parameters"
        if regime.caveat:
            caveats[name] = regime.caveat
    if request.json:
        print_json(found)
        return
    out.print(table)
    if dimensions:
        out.print(f"The zero-loss set has dimension {dimensions}.")
    for name, caveat in caveats.items():
        out.print(f"{name}: {caveat}.")


@app.command("compare")
@on_problem
def compare_command(
    request: Request,
    out: Out = None,
    step_size: StepSize = 0.5,
    horizon: Annotated[float | None, typer.Option(help="Slow time to go to; overrides --steps.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps to go to.")] = 50_000,
    replicas: Annotated[int, typer.Option(help="Training runs per ensemble.")] = 8,
    overwrite: Overwrite = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Limit, prediction and training of each noise on PROBLEM, side by side."""
    own = dict(command="compare", step_size=step_size, horizon=horizon, steps=steps, replicas=replicas)
    _run(request, request.config(_known_noises, **own), out, overwrite, save_every)


@app.command("study")
@on_problem
def study_command(
    request: Request,
    out: Out = None,
    budget: Annotated[float, typer.Option(help="Minutes for all noises together.")] = 10.0,
    drift: Annotated[float, typer.Option(help="How far to drift, relative to |w|.")] = 0.05,
    overwrite: Overwrite = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Measure on which time scale each noise on PROBLEM drifts, and how training approaches its limit.

    Ensembles on a ladder of step sizes, and one of sigmas, chosen to keep to the budget.
    """
    config = request.config(_known_noises, command="study", budget=budget, drift=drift)
    _run(request, config, out, overwrite, save_every)


@app.command("predict")
@on_problem
def predict_command(
    request: Request,
    out: Out = None,
    step_size: StepSize = 0.5,
    steps: Steps = 50_000,
    momentum: Momentum = 0.0,
    nesterov: Nesterov = False,
    weight_decay: WeightDecay = 0.0,
    saves: Saves = 2,
    replicas: Annotated[
        int | None, typer.Option(help="Draws of single runs, instead of the mean of training.")
    ] = None,
    overwrite: Overwrite = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Predict training on PROBLEM at its own step size and noise, without running it."""

    def noises(problem: Problem) -> list[str]:
        return [name for name in problem.noises if name != "langevin" or replicas]  # which has no mean path

    config = request.config(
        noises, command="predict", step_size=step_size, steps=steps, momentum=momentum, nesterov=nesterov,
        weight_decay=weight_decay, saves=saves, replicas=replicas,
    )  # fmt: skip
    _run(request, config, out, overwrite, save_every)


@app.command("descend")
@on_problem
def descend_command(
    request: Request,
    out: Out = None,
    step_size: StepSize = 0.5,
    steps: Steps = 50_000,
    momentum: Momentum = 0.0,
    nesterov: Nesterov = False,
    weight_decay: WeightDecay = 0.0,
    saves: Saves = 50,
    replicas: Annotated[int, typer.Option(help="Training runs per ensemble.")] = 8,
    overwrite: Overwrite = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Train ensembles on PROBLEM, from its start projected onto the zero-loss set."""
    config = request.config(
        _known_noises, command="descend", step_size=step_size, steps=steps, momentum=momentum,
        nesterov=nesterov, weight_decay=weight_decay, saves=saves, replicas=replicas,
    )  # fmt: skip
    _run(request, config, out, overwrite, save_every)


@app.command("limit")
@on_problem
def limit_command(
    request: Request,
    out: Out = None,
    horizon: Annotated[float, typer.Option(help="Slow time to go to.")] = 1.0,
    saves: Saves = 50,
    replicas: Annotated[int, typer.Option(help="Paths of a stochastic limit.")] = 200,
    overwrite: Overwrite = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Follow the limit of training on PROBLEM, as step size and noise go to zero."""
    own = dict(command="limit", horizon=horizon, saves=saves, replicas=replicas)
    _run(request, request.config(_known_noises, **own), out, overwrite, save_every)


@app.command("resume")
def resume_command(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No messages and no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON.")] = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Go on with the run in RUN where it was stopped; its results are as if it had not been."""
    with failing_in_a_line():
        tell = _silent if quiet or as_json else messages.print
        runs.resume(run, tell=tell, progress=not (quiet or as_json), every=save_every)
        _finish(run, tell, as_json)


@app.command("how-long")
@on_problem
def how_long_command(
    request: Request,
    step_size: StepSize = 0.5,
    of: Annotated[
        str | None, typer.Option(help="regularizer, hessian_trace, loss or an observable of the problem.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Of the change that is to come.")] = 0.5,
    value: Annotated[float | None, typer.Option(help="A value to reach, instead of --fraction.")] = None,
    momentum: Momentum = 0.0,
    nesterov: Nesterov = False,
    weight_decay: WeightDecay = 0.0,
) -> None:
    """How many training steps on PROBLEM until each noise has done half of what it will do."""
    chosen = request.load()
    names = request.noise or [name for name in chosen.noises if name not in ("minibatch", "langevin")]
    systems = {
        name: chosen.problem.with_noise(parse_noise(chosen, name, request.strengths)) for name in names
    }
    first = next(iter(systems.values()))
    point = project(first, chosen.start)
    largest = largest_eigenvalue(first, point)
    quantity = chosen.observables.get(of, of) if of is not None else None
    all_found = {}
    for name, system in systems.items():
        all_found[name] = found = how_long(
            system, point, step_size / largest, of=quantity, fraction=fraction, value=value,
            momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
        )  # fmt: skip
        if not request.json:
            out.print(f"{name}: {found}", highlight=False)
    if request.json:
        print_json({name: vars(found) for name, found in all_found.items()})


def _run(
    request: Request, values: dict[str, Any], folder: Path | None, overwrite: bool, save_every: float
) -> None:
    """Compute what a request asks for, print it, and with a folder make a run of it."""
    tell = _silent if request.quiet else messages.print
    config = runs.config_from(values)
    results = runs.start(
        config, folder, overwrite=overwrite, tell=tell, progress=not request.quiet, every=save_every
    )
    if folder is not None:
        _finish(folder, tell, request.json)
    elif request.json:
        print_json(as_rows(config.command, results))
    else:
        print_results(config.model_dump(), results)


def _finish(folder: Path, tell: Callable[[str], object], as_json: bool) -> None:
    run = runs.open_run(folder)
    if as_json:
        print_json(as_rows(run.config["command"], run.results))
    else:
        print_results(run.config, run.results)
    if run.config["command"] in _WITH_PAGE:
        tell(f"Wrote {report.write(folder)}")
    else:
        tell(f"Wrote {folder}")


def _silent(_: str) -> None:
    pass


def _known_noises(problem: Problem) -> list[str]:
    return list(problem.noises)


def _every_noise(problem: Problem) -> list[str]:
    alone = list(problem.noises)
    others = [name for name in alone if name != "minibatch"]
    return alone + [f"minibatch+{name}" for name in others]
