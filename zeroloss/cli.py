"""The command line: parse, call, print."""

import inspect
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from jaxtyping import PyTree
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from zeroloss import problems, report, runs
from zeroloss.dynamics import Comparison, Study, classify, compare, how_long, predict, study
from zeroloss.errors import InputError, ZerolossError
from zeroloss.manifold import largest_eigenvalue, project
from zeroloss.problems import DEFAULT_STRENGTHS, Problem, parse_noise
from zeroloss.report.notation import greek
from zeroloss.system import LeastSquaresSystem, LossSystem

app = typer.Typer(
    help="What the noise in a training recipe does once the loss is zero.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_out, _messages = Console(), Console(stderr=True)

_ProblemName = Annotated[str, typer.Argument(help=f"One of: {', '.join(problems.PROBLEMS)}.")]
_Noise = Annotated[
    list[str] | None,
    typer.Option(help="A noise such as dropout, label:0.3 or minibatch:32+label:0.1. Repeat for several."),
]
_Width = Annotated[list[int] | None, typer.Option(help="Width of a hidden layer. Repeat for several layers.")]
_Examples = Annotated[int | None, typer.Option(help="Number of training examples.")]
_Option = Annotated[
    list[str] | None,
    typer.Option(help="Another option of the problem, such as outputs=10. Repeat for several."),
]
_Rate = Annotated[float, typer.Option(help="Rate of dropout and DropConnect where --noise does not give it.")]
_Sigma = Annotated[float | None, typer.Option(help="Sigma of all other noises, likewise.")]
_Batch = Annotated[int, typer.Option(help="Size of minibatches, likewise.")]
_Seed = Annotated[int, typer.Option(help="Seed of data split, start, and noise.")]


_StepSize = Annotated[float, typer.Option(help="Step size times the largest Hessian eigenvalue.")]
_Momentum = Annotated[float, typer.Option(help="Momentum of heavy ball.")]
_Nesterov = Annotated[bool, typer.Option(help="Nesterov's momentum.")]
_WeightDecay = Annotated[float, typer.Option(help="Weight decay, added to the gradient.")]


@app.callback()
def _main() -> None:
    jax.config.update("jax_enable_x64", True)
    # LAPACK's threads wait for each other, for tens of times as long when another process is busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@app.command("classify")
def classify_command(
    problem: _ProblemName,
    noise: _Noise = None,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    seed: _Seed = 0,
) -> None:
    """Say what each noise does to PROBLEM: time scale, stochastic or not, towards what.

    Without --noise, for every noise that the problem knows, and minibatches with each.
    """
    with _errors():
        chosen = problems.load(problem, **_options(problem, width, examples, option, seed))
        strengths = _strengths(rate, sigma, batch)
        names = noise or _every_noise(chosen)
        noises = {name: parse_noise(chosen, name, strengths) for name in names}
        table = Table(title=chosen.description, title_justify="left", box=SIMPLE)
        for column in ("noise", "verdict", "drifts in steps", "towards", "margin"):
            table.add_column(column, no_wrap=True)
        caveats, dimensions = {}, ""
        point = project(chosen.problem.with_noise(next(iter(noises.values()))), chosen.start)
        for name, one in noises.items():
            regime = classify(chosen.problem.with_noise(one), point, key=jax.random.key(seed))
            towards = "" if regime.name == "trivial" else regime.towards.removeprefix("towards ")
            verdict = regime.name + (", stochastic" if regime.stochastic else "")
            table.add_row(name, verdict, greek(regime.time_scale or "never"), towards, f"{regime.margin:.0e}")
            if regime.dimension is not None and regime.codimension is not None:
                parameters = regime.dimension + regime.codimension
                dimensions = f"{regime.dimension:,} in {parameters:,} parameters"
            if regime.caveat:
                caveats[name] = regime.caveat
        _out.print(table)
        if dimensions:
            _out.print(f"The zero-loss set has dimension {dimensions}.")
        for name, caveat in caveats.items():
            _out.print(f"{name}: {caveat}.")


@app.command("compare")
def compare_command(
    problem: _ProblemName,
    noise: _Noise = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run: data, figures and report.html.")
    ] = None,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    step_size: Annotated[
        float, typer.Option(help="Step size times the largest Hessian eigenvalue; stable below 2.")
    ] = 0.5,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    horizon: Annotated[float | None, typer.Option(help="Slow time to go to; overrides --steps.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps to go to.")] = 50_000,
    replicas: Annotated[int, typer.Option(help="Training runs per ensemble.")] = 8,
    seed: _Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a run already in --out.")] = False,
) -> None:
    """Limit, prediction and training of each noise on PROBLEM, side by side."""
    with _errors():
        options = _options(problem, width, examples, option, seed)
        chosen = problems.load(problem, **options)
        names = noise or list(chosen.noises)
        strengths = _strengths(rate, sigma, batch)
        for name in names:
            parse_noise(chosen, name, strengths)
        config = dict(
            command="compare", problem=problem, description=chosen.description, noise=list(names),
            options=options, step_size=step_size, strengths=strengths,
            horizon=horizon, steps=steps, replicas=replicas, seed=seed,
        )  # fmt: skip
        if out is not None:
            runs.check_free(out, overwrite=overwrite)
        systems, point, largest = _systems(chosen, names, strengths)
        for system in systems.values():
            system.check(point)
        comparisons: dict[str, Comparison] = {}
        for index, (name, system) in enumerate(systems.items()):
            _messages.print(f"[bold]{name}[/bold]: limit, {replicas} training runs, and prediction ...")
            began = time.perf_counter()
            comparisons[name] = compare(
                system,
                point,
                [step_size / largest],
                key=jax.random.fold_in(jax.random.key(seed), index),
                t1=horizon,
                steps=steps,
                replicas=replicas,
                observables=chosen.observables,
                progress=True,
            )
            _messages.print(f"  {comparisons[name].regime}; {time.perf_counter() - began:.0f} s")
            if out is not None:
                if index == 0:  # only now is there something to put in the place of an earlier run
                    runs.create(out, config, overwrite=overwrite)
                runs.write_results(out, runs.gather(comparisons))
        _out.print(_comparison_table(chosen, comparisons))
        _print_divergence(comparisons)
        if out is not None:
            page = report.write(out)
            _messages.print(f"Wrote {page}")


@app.command("study")
def study_command(
    problem: _ProblemName,
    noise: _Noise = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the study: data, figures and report.html.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Minutes for all noises together.")] = 10.0,
    drift: Annotated[float, typer.Option(help="How far to drift, relative to |w|.")] = 0.05,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    seed: _Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a run already in --out.")] = False,
) -> None:
    """Measure on which time scale each noise on PROBLEM drifts, and how training approaches its limit.

    Ensembles on a ladder of step sizes, and one of sigmas, chosen to keep to the budget.
    """
    with _errors():
        options = _options(problem, width, examples, option, seed)
        chosen = problems.load(problem, **options)
        strengths = _strengths(rate, sigma, batch)
        noises = {name: parse_noise(chosen, name, strengths) for name in noise or list(chosen.noises)}
        config = dict(
            command="study", problem=problem, description=chosen.description, noise=list(noises),
            options=options, strengths=strengths, budget=budget, drift=drift, seed=seed,
        )  # fmt: skip
        if out is not None:
            runs.check_free(out, overwrite=overwrite)
        systems = {name: chosen.problem.with_noise(one) for name, one in noises.items()}
        for system in systems.values():
            system.check(chosen.start)
        studies: dict[str, Study] = {}
        deadline = time.perf_counter() + 60 * budget
        for index, (name, system) in enumerate(systems.items()):
            minutes = (deadline - time.perf_counter()) / 60 / (len(systems) - index)
            _messages.print(f"[bold]{name}[/bold]: {minutes:.1f} minutes ...")
            studies[name] = study(
                system,
                chosen.start,
                key=jax.random.fold_in(jax.random.key(seed), index),
                budget=max(minutes, 0.1),
                drift=drift,
                progress=True,
            )
            _out.print(str(studies[name]), highlight=False, markup=False)
            if out is not None:
                if index == 0:
                    runs.create(out, config, overwrite=overwrite)
                runs.write_results(out, runs.gather_studies(studies))
        if out is not None:
            page = report.write(out)
            _messages.print(f"Wrote {page}")


@app.command("predict")
def predict_command(
    problem: _ProblemName,
    noise: _Noise = None,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    step_size: _StepSize = 0.5,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 50_000,
    momentum: _Momentum = 0.0,
    nesterov: _Nesterov = False,
    weight_decay: _WeightDecay = 0.0,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    seed: _Seed = 0,
) -> None:
    """Predict training on PROBLEM at its own step size and noise, without running it."""
    with _errors():
        options = _options(problem, width, examples, option, seed)
        chosen = problems.load(problem, **options)
        strengths = _strengths(rate, sigma, batch)
        names = noise or [name for name in chosen.noises if name != "langevin"]  # which has no mean path
        systems, point, largest = _systems(chosen, names, strengths)
        table = Table(title=chosen.description, title_justify="left", box=SIMPLE)
        for column in ("noise", "", "start", f"after {steps:,} steps"):
            table.add_column(column, no_wrap=True)
        endings = []
        for name, system in systems.items():
            path = predict(
                system, point, step_size / largest, steps, saves=2, observables=chosen.observables,
                momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, progress=True,
            )  # fmt: skip
            for index, (label, values) in enumerate(path.measured().items()):
                table.add_row("" if index else name, label, f"{values[0]:.4g}", f"{values[-1]:.4g}")
            assert path.uncertainty is not None
            endings.append(
                f"{name}: mean parameters to {100 * path.uncertainty.total[-1]:.2g} % of the way from the "
                f"start; single runs lie {100 * path.uncertainty.spread[-1]:.2g} % of it from their mean."
            )
        _out.print(table)
        for ending in endings:
            _out.print(ending, highlight=False)


@app.command("how-long")
def how_long_command(
    problem: _ProblemName,
    noise: _Noise = None,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    step_size: _StepSize = 0.5,
    of: Annotated[
        str | None, typer.Option(help="regularizer, hessian_trace, loss or an observable of the problem.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Of the change that is to come.")] = 0.5,
    value: Annotated[float | None, typer.Option(help="A value to reach, instead of --fraction.")] = None,
    momentum: _Momentum = 0.0,
    nesterov: _Nesterov = False,
    weight_decay: _WeightDecay = 0.0,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    seed: _Seed = 0,
) -> None:
    """How many training steps on PROBLEM until each noise has done half of what it will do."""
    with _errors():
        options = _options(problem, width, examples, option, seed)
        chosen = problems.load(problem, **options)
        strengths = _strengths(rate, sigma, batch)
        names = noise or [name for name in chosen.noises if name not in ("minibatch", "langevin")]
        systems, point, largest = _systems(chosen, names, strengths)
        quantity = chosen.observables.get(of, of) if of is not None else None
        for name, system in systems.items():
            found = how_long(
                system, point, step_size / largest, of=quantity, fraction=fraction, value=value,
                momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
            )  # fmt: skip
            _out.print(f"{name}: {found}", highlight=False)


def _systems(
    problem: Problem, names: list[str], strengths: dict[str, float]
) -> tuple[dict[str, LeastSquaresSystem | LossSystem], PyTree, float]:
    """The problem under each noise, its start projected onto the zero-loss set, and lambda_max there."""
    systems = {name: problem.problem.with_noise(parse_noise(problem, name, strengths)) for name in names}
    first = next(iter(systems.values()))
    point = project(first, problem.start)
    return systems, point, largest_eigenvalue(first, point)


def _comparison_table(problem: Problem, comparisons: dict[str, Comparison]) -> Table:
    rows = [{**comparison.rows()[0], "noise": name} for name, comparison in comparisons.items()]
    table = Table(title=problem.description, title_justify="left", box=SIMPLE)
    table.add_column("")
    for row in rows:
        table.add_column(row["noise"], overflow="fold")
    for label, cells in report.table(rows):
        table.add_row(label, *cells)
    return table


def _print_divergence(comparisons: dict[str, Comparison]) -> None:
    for name, comparison in comparisons.items():
        for training in comparison.trainings:
            if training.diverged_at is not None:
                _messages.print(
                    f"[red]{name}: training diverged at step {training.diverged_at:,}[/red]; the results "
                    f"go to step {int(training.path.ts[-1]):,}."
                )


def _options(
    name: str, width: list[int] | None, examples: int | None, others: list[str] | None, seed: int
) -> dict[str, Any]:
    """The options of a problem; the seed goes to those that have one."""
    options: dict[str, Any] = {}
    for text in others or []:
        option, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option needs name=value, got {text!r}.")
        options[option.strip()] = _literal(value.strip())
    if width:
        options["widths"] = width
    if examples is not None:
        options["examples"] = examples
    if name in problems.PROBLEMS and "seed" in inspect.signature(problems.PROBLEMS[name]).parameters:
        options.setdefault("seed", seed)
    return options


def _literal(text: str) -> Any:
    """A number, true or false, a list of them, or else a word."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _every_noise(problem: Problem) -> list[str]:
    alone = list(problem.noises)
    others = [name for name in alone if name != "minibatch"]
    return alone + [f"minibatch+{name}" for name in others]


def _strengths(rate: float, sigma: float | None, batch: int) -> dict[str, float]:
    rates = {"dropout": rate, "dropconnect": rate}
    given = {} if sigma is None else dict.fromkeys(set(DEFAULT_STRENGTHS) - {*rates, "minibatch"}, sigma)
    return DEFAULT_STRENGTHS | rates | {"minibatch": float(batch)} | given


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except ZerolossError as error:
        _messages.print(f"[bold red]error:[/bold red] {error}", highlight=False, markup=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _messages.print("Stopped. Noises that had finished are in the run folder, if one was given.")
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point of the `zeroloss` command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
