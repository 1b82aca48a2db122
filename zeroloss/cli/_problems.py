"""The commands about a problem that make no run."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.markup import escape

from zeroloss import problems
from zeroloss._progress import stage_indicator
from zeroloss.cli._console import PROBLEMS, command, failing_in_a_line, out, print_json, print_path
from zeroloss.cli._options import GOAL, Request, on_problem
from zeroloss.cli._printing import print_table
from zeroloss.drifts import classify
from zeroloss.errors import ZerolossError
from zeroloss.noise import Langevin, MiniBatch
from zeroloss.prediction import how_long
from zeroloss.problems import Problem
from zeroloss.report import greek
from zeroloss.runs import AbstractConfig, TrainingConfig, option
from zeroloss.zero_sets import largest_eigenvalue, project

_PROJECTING = "projecting the start onto the zero-loss set"


class ClassifyConfig(AbstractConfig):
    """Say on which time scale each noise drifts, and towards what.

    Without --noise, for every noise that the problem knows, and minibatches with each.
    """

    examples = (
        "zeroloss classify digits",
        "zeroloss classify digits --noise dropout:0.2 --noise minibatch:32+label",
    )

    @classmethod
    def default_noises(cls, problem: Problem, values: Mapping[str, Any]) -> list[str]:
        """All noises alone, and each with minibatches."""
        others = [name for name in problem.noises if name != MiniBatch.listing.name]
        return [*problem.noises, *(f"{MiniBatch.listing.name}+{name}" for name in others)]


class HowLongConfig(TrainingConfig):
    """Say after how many training steps half of the drift is done."""

    examples = (
        "zeroloss how-long digits --noise dropout:0.2 --step-size 0.5",
        "zeroloss how-long hyperbola --noise label --of hessian_trace --value 2.1",
    )

    of: str | None = option(
        None,
        "regularizer, hessian_trace, loss or an observable of the problem. By default the regularizer, "
        "or hessian_trace of noise that leaves that constant.",
        GOAL,
        metavar="<quantity>",
    )
    fraction: float = option(0.5, "Fraction of the change that is to come.", GOAL)
    value: float | None = option(None, "Value to reach, instead of --fraction.", GOAL)

    @classmethod
    def default_noises(cls, problem: Problem, values: Mapping[str, Any]) -> list[str]:
        """All noises but minibatches alone, which move nothing, and Langevin noise, which has no mean."""
        excluded = (MiniBatch.listing.name, Langevin.listing.name)
        return [name for name in problem.noises if name not in excluded]


@on_problem("classify", PROBLEMS, ClassifyConfig)
def classify_command(request: Request) -> None:
    """Print the verdict on each noise."""
    problem, systems = request.config().load()
    verdicts = {}
    with stage_indicator() as set_stage:
        set_stage(_PROJECTING)
        point = project(next(iter(systems.values())), problem.start)
        largest = largest_eigenvalue(next(iter(systems.values())), point)
        for index, (name, system) in enumerate(systems.items()):
            set_stage(f"classifying {name} ({index + 1} of {len(systems)})")
            verdicts[name] = classify(system, point, key=jax.random.key(request.values["seed"]))
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
    print_table(["noise", "verdict", "drifts in steps", "towards", "margin"], lines, problem.description)
    if dimensions:
        out.print(f"The zero-loss set has dimension {dimensions}.", highlight=False)
    out.print(
        f"The largest eigenvalue of its Hessian is {largest:.4g} where training begins: --step-size 1 is "
        f"{1 / largest:.3g}.",
        highlight=False,
    )
    for caveat, names in caveats.items():
        out.print(f"{escape(', '.join(names))}: {caveat}.", highlight=False)


@on_problem("how-long", PROBLEMS, HowLongConfig)
def how_long_command(request: Request) -> None:
    """Print the number of steps for each noise."""
    config: HowLongConfig = request.config()
    problem, systems = config.load()
    first = next(iter(systems.values()))
    with stage_indicator() as set_stage:
        set_stage(_PROJECTING)
        point = project(first, problem.start)
        optimizer = config.optimizer(largest_eigenvalue(first, point))
    quantity = None if config.of is None else problem.observables.get(config.of, config.of)
    all_found: dict[str, Any] = {}
    for name, system in systems.items():
        try:
            found = how_long(
                system, point, optimizer, of=quantity, fraction=config.fraction, value=config.value
            )
            if config.of is not None:
                found = dataclasses.replace(found, quantity=config.of)
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


@command("new", PROBLEMS, "zeroloss new problem.py", "zeroloss classify problem.py")
def new_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write, such as problem.py.")],
) -> None:
    """Write a working problem of your own to a file, to begin from."""
    with failing_in_a_line():
        problems.write_template(path)
        print_path("Wrote", path)
        print_path("Try it: zeroloss classify", path)
