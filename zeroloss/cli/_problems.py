"""The commands about a problem that make no run."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import zeroloss as zl
from zeroloss._progress import stage_indicator
from zeroloss.cli._console import PROBLEMS, command, failing_in_a_line, out, print_json, print_path
from zeroloss.cli._options import GOAL, Request, on_problem
from zeroloss.cli._printing import print_rows
from zeroloss.errors import ZerolossError
from zeroloss.runs import AbstractConfig, TrainingConfig, option

_VERDICT_HEAD = ["noise", "verdict", "drifts in steps", "towards", "margin"]
_LONGEST_ROWS = [  # "smaller-tr-H" as one word, so that the column is not too narrow for it
    ["degenerate, stochastic", "1/(α²σ²)", "along b, no known potential", "1e+99"],
    ["non-degenerate", "1/(ασ²)", "smaller-tr-H", "inf"],
]
_PROJECTING = "projecting the start onto the zero-loss set"


class ClassifyConfig(AbstractConfig):
    """Say on which time scale each noise drifts, and towards what.

    Without --noise, for dropout, label noise, minibatches and weight noise, where the problem has them. With
    --noise all, for every noise that the problem knows, and minibatches with each.
    """

    examples = (
        "zeroloss classify digits",
        "zeroloss classify digits --noise dropout:0.2 --noise minibatch:32+label",
    )

    @classmethod
    def all_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """All noises alone, and each with minibatches."""
        others = [name for name in problem.noises if name != zl.MiniBatch.listing.name]
        return [*problem.noises, *(f"{zl.MiniBatch.listing.name}+{name}" for name in others)]

    @classmethod
    def default_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """The noises that people train with."""
        return [
            name for name in problem.noises if name not in zl.noise.LISTINGS or zl.noise.LISTINGS[name].usual
        ]


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
    def all_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """All noises but minibatches alone, which move nothing, and Langevin noise, which has no mean."""
        excluded = (zl.MiniBatch.listing.name, zl.Langevin.listing.name)
        return [name for name in problem.noises if name not in excluded]


@on_problem("classify", PROBLEMS, ClassifyConfig)
def classify_command(request: Request) -> None:
    """Print the verdict on each noise as soon as it is known."""
    import jax  # not above: help need not wait for it

    problem, systems = request.config().load()
    key = jax.random.key(request.values["seed"])
    verdicts: dict[str, zl.Verdict] = {}
    with stage_indicator() as set_stage:
        set_stage(_PROJECTING)
        first = next(iter(systems.values()))
        point = zl.project(first, problem.start)
        largest = zl.zero_sets.largest_eigenvalue(first, point)
        longest = [[max(systems, key=len), *cells] for cells in _LONGEST_ROWS]
        show = None if request.json else print_rows(_VERDICT_HEAD, longest, problem.description)
        for index, (name, system) in enumerate(systems.items()):
            set_stage(f"classifying {name} ({index + 1} of {len(systems)})")
            verdicts[name] = zl.classify(system, point, key=key)
            if show is not None:
                show(_verdict_cells(name, verdicts[name]))
    if request.json:
        print_json([_verdict_facts(name, each, largest) for name, each in verdicts.items()])
        return
    out.print()
    verdict = next(iter(verdicts.values()))
    if verdict.dimension is not None and verdict.codimension is not None:
        out.print(
            f"The zero-loss set has dimension {verdict.dimension:,} in "
            f"{verdict.dimension + verdict.codimension:,} parameters.",
            highlight=False,
        )
    out.print(
        f"The largest eigenvalue of its Hessian is {largest:.4g} where training begins: --step-size 1 is "
        f"{1 / largest:.3g}.",
        highlight=False,
    )
    caveats = defaultdict(list)
    for name, each in verdicts.items():
        if each.caveat:
            caveats[zl.report.greek(each.caveat)].append(name)
    for caveat, names in caveats.items():
        out.print(f"{escape(', '.join(names))}: {caveat}.", highlight=False)
    if not request.named:
        out.print("For every noise, and minibatches with each: --noise all.", highlight=False)


def _towards(verdict: "zl.Verdict") -> str:
    return "" if verdict.name == "trivial" else verdict.towards.removeprefix("towards ")


def _verdict_cells(name: str, verdict: "zl.Verdict") -> list[str]:
    words = verdict.name + (", stochastic" if verdict.stochastic else "")
    scale = zl.report.greek(verdict.time_scale or "never")
    return [name, words, scale, _towards(verdict), f"{verdict.margin:.0e}"]


def _verdict_facts(name: str, verdict: "zl.Verdict", largest: float) -> dict[str, Any]:
    return dict(
        noise=name, verdict=verdict.name, time_scale=verdict.time_scale, stochastic=verdict.stochastic,
        towards=_towards(verdict), margin=verdict.margin, caveat=verdict.caveat, largest_eigenvalue=largest,
    )  # fmt: skip


@on_problem("how-long", PROBLEMS, HowLongConfig)
def how_long_command(request: Request) -> None:
    """Print the number of steps for each noise."""
    config: HowLongConfig = request.config()
    problem, systems = config.load()
    first = next(iter(systems.values()))
    with stage_indicator() as set_stage:
        set_stage(_PROJECTING)
        point = zl.project(first, problem.start)
        optimizer = config.optimizer(zl.zero_sets.largest_eigenvalue(first, point))
    quantity = None if config.of is None else problem.observables.get(config.of, config.of)
    all_found: dict[str, Any] = {}
    for name, system in systems.items():
        try:
            found = zl.how_long(
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
        zl.problems.write_template(path)
        print_path("Wrote", path)
        print_path("Try it: zeroloss classify", path)
