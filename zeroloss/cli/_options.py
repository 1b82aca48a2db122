"""The options that all commands have that compute something about a problem, parsed once."""

import functools
import glob
import inspect
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from zeroloss import problems, runs
from zeroloss.cli._console import (
    GENERAL,
    NOISE,
    PROBLEM,
    RUN,
    TRAINING,
    Json,
    Quiet,
    UsageError,
    failing_in_a_line,
    flag,
    option,
)
from zeroloss.errors import InputError
from zeroloss.noise import LISTINGS
from zeroloss.problems import DEFAULT_STRENGTHS
from zeroloss.runs._config import is_text

_LARGEST = 2**31  # minibatch


def _problems_like(incomplete: str) -> list[str]:
    """Names of problems, folders and Python files that begin so, for the Tab key."""
    names = [name for name in problems.PROBLEMS if name.startswith(incomplete)]
    found = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    files = [each for each in found if each.endswith(".py")]
    return names + files + [f"{each}/" for each in found if Path(each).is_dir()]


def _noises_like(incomplete: str) -> list[str]:
    """Names of noises that begin so, also after a plus, for the Tab key."""
    before, plus, last = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in LISTINGS if name.startswith(last)]


_Problem = Annotated[
    str | None,
    typer.Argument(
        metavar="PROBLEM",
        help=f"One of {', '.join(problems.PROBLEMS)}; or a function in a file, path/to/problem.py:make "
        "(zeroloss new writes one); or nothing with --data.",
        autocompletion=_problems_like,
    ),
]
_Noise = Annotated[
    list[str] | None,
    option(
        NOISE,
        "Such as dropout, label:0.3, minibatch:32+label:0.1. Repeat for several. By default all that the "
        "problem has.",
        metavar="<noise>",
        complete=_noises_like,
    ),
]
_Rate = Annotated[float, option(NOISE, "Of dropout and dropconnect named without one.")]
_Sigma = Annotated[float | None, option(NOISE, "Of other noises named without one. By default 0.01 to 0.3.")]
_Batch = Annotated[int, option(NOISE, "Of minibatch named without one, if there are as many examples.")]
_Data = Annotated[Path | None, option(PROBLEM, "A .csv, .npz or .parquet file to fit.", metavar="<file>")]
_Target = Annotated[
    str | None, option(PROBLEM, "Of --data: what to fit. By default the last.", metavar="<column>")
]
_Model = Annotated[
    str | None, option(PROBLEM, "Of --data: hidden layers. By default mlp:50.", metavar="<mlp:...>")
]
_Width = Annotated[
    list[int] | None, option(PROBLEM, "Of a hidden layer. Repeat for several.", metavar="<int>")
]
_Examples = Annotated[int | None, option(PROBLEM, "How many to train on.")]
_Set = Annotated[
    list[str] | None,
    option(
        PROBLEM,
        "Another option of the problem, such as outputs=10. Repeat for several.",
        "--set",
        metavar="<name=value>",
    ),
]
_Seed = Annotated[int, option(PROBLEM, "Of data split, start and noise.")]


def _read_options(context: Any, path: Path | None) -> Path | None:
    """Take the defaults of a command's options from a TOML file."""
    if path is None:
        return None
    with failing_in_a_line():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no TOML: {error}.") from None
        parameters = {each.opts[0].lstrip("-"): each for each in context.command.params}
        del parameters["config"]
        values = {name.replace("_", "-"): value for name, value in values.items()}
        unknown = [name for name in values if name not in parameters]
        if unknown:
            raise InputError(
                f"{path}: {context.info_name} has no option {', '.join(map(repr, unknown))}. Its options: "
                f"{', '.join(parameters)}."
            )
        defaults = {}
        for name, value in values.items():
            many, repeated = isinstance(value, list), getattr(parameters[name], "multiple", False)
            if not is_text(value):
                raise InputError(f"{path}: {name} has characters that no option can have, got {value!r}.")
            if isinstance(value, dict) or (many and not repeated):
                raise InputError(f"{path}: {name} takes one value, got {value!r}.")
            defaults[parameters[name].name] = [value] if repeated and not many else value
        context.default_map = {**(context.default_map or {}), **defaults}
    return path


_ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="<file>",
        help="TOML file of options; the command line wins.",
        is_eager=True,
        callback=_read_options,
        rich_help_panel=GENERAL,
    ),
]

SaveEvery = Annotated[float, option(RUN, "Between saves of its state, for resume.", metavar="<seconds>")]
Steps = Annotated[int, option(TRAINING, "Training steps.")]
Saves = Annotated[int, option(TRAINING, "How many times to save at.")]
Replicas = Annotated[int, option(TRAINING, "Training runs of each noise.")]
StepSize = Annotated[
    float,
    option(
        TRAINING, "Relative to 1 / largest eigenvalue of the Hessian; stable below 2, with momentum further."
    ),
]


class Rule(NamedTuple):
    """The options of the rule of a training step."""

    step_size: StepSize = 0.5
    momentum: Annotated[float, option(TRAINING, "Of heavy ball.")] = 0.0
    nesterov: Annotated[bool, flag(TRAINING, "Nesterov's momentum, not heavy ball.", "--nesterov")] = False
    weight_decay: Annotated[float, option(TRAINING, "Added to the gradient.")] = 0.0


class Saving(NamedTuple):
    """The options of a command that can make a run on disk."""

    out: Annotated[Path | None, option(RUN, "For the run, to show and resume it.", metavar="<folder>")] = None
    overwrite: Annotated[bool, flag(RUN, "Replace the run in --out.", "--overwrite")] = False
    save_every: SaveEvery = 30.0


class Request(NamedTuple):
    """What was asked about a problem; `noise` is None where none was named."""

    problem: str
    noise: list[str] | None
    options: dict[str, Any]
    strengths: dict[str, float]
    seed: int
    quiet: bool
    json: bool

    def load(self) -> problems.Problem:
        """The problem."""
        return problems.load(self.problem, **self.options)

    def config(self, default: Callable[[problems.Problem], list[str]], **fields: Any) -> dict[str, Any]:
        """The config of a run of this request; `default` chooses noises where none was named."""
        return dict(
            problem=self.problem,
            noise=self.noise or default(self.load()),
            options=self.options,
            strengths=self.strengths,
            seed=self.seed,
            source=runs.digest_of_source(self.problem, self.options),
            **fields,
        )


def _request(
    problem: _Problem = None,
    noise: _Noise = None,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    data: _Data = None,
    target: _Target = None,
    model: _Model = None,
    width: _Width = None,
    examples: _Examples = None,
    others: _Set = None,
    seed: _Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    config: _ConfigFile = None,
) -> Request:
    own: dict[str, Any] = {}
    if data is not None:
        if problem is not None:
            raise UsageError(f"choose one of PROBLEM and --data; got {problem!r} and {str(data)!r}.")
        given = dict(path=str(data.resolve()), target=target, model=model)
        problem, own = "table", {name: value for name, value in given.items() if value is not None}
    elif target is not None or model is not None:
        raise UsageError("--target and --model are for --data.")
    if problem is None:
        raise UsageError("name a PROBLEM, or give --data.")
    if problems.is_own(problem):
        problem = problems.resolved(problem)
    options = own | _options(problem, width, examples, others, seed)
    if abs(batch) >= _LARGEST:
        raise UsageError(f"--batch must be below {_LARGEST:,}, got {batch}.")
    strengths = DEFAULT_STRENGTHS | problems.strengths_from(rate, sigma, float(batch))
    return Request(problem, noise, options, strengths, seed, quiet or as_json, as_json)


def on_problem(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above, and its function one `Request` in their place.

    What else it takes that is a NamedTuple, such as `Rule`, becomes an option for each field.
    """
    taken = inspect.signature(command).parameters.values()
    makers = {
        each.name: _request if each.annotation is Request else each.annotation
        for each in taken
        if isinstance(each.annotation, type) and issubclass(each.annotation, tuple)
    }
    fields = {name: list(inspect.signature(make).parameters.values()) for name, make in makers.items()}

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        with failing_in_a_line():
            for name, make in makers.items():
                arguments[name] = make(**{each.name: arguments.pop(each.name) for each in fields[name]})
            command(**arguments)

    (argument, noise, *common), *own = (fields.get(each.name, [each]) for each in taken)
    merged = [argument, noise, *(each for some in own for each in some), *common]
    wrapped.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in merged]
    )
    wrapped.__annotations__ = {each.name: each.annotation for each in merged}
    return wrapped


def _options(
    name: str, width: list[int] | None, examples: int | None, others: list[str] | None, seed: int
) -> dict[str, Any]:
    """The options of a problem; the seed goes to those that have one."""
    options: dict[str, Any] = {}
    for text in others or []:
        option, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set needs name=value, got {text!r}.")
        options[option.strip()] = typed(value.strip())
    known = problems.options_of(name)
    if width and "width" in known and "widths" not in known:
        if len(width) > 1:
            raise UsageError(f"{name!r} has one hidden layer, and --width was given {len(width)} times.")
        options["width"] = width[0]
    elif width:
        options["widths"] = width
    if examples is not None:
        options["examples"] = examples
    if name == "table" or "seed" in known:
        options.setdefault("seed", seed)
    return options


def typed(text: str) -> Any:
    """A number, true or false, a list of them, or else a word."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        return text
