"""The options that all commands have that compute something about a problem, parsed once."""

import functools
import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from zeroloss import problems, runs
from zeroloss.cli.console import failing_in_a_line
from zeroloss.errors import InputError
from zeroloss.problems import DEFAULT_STRENGTHS

_Problem = Annotated[
    str | None,
    typer.Argument(
        help=f"One of: {', '.join(problems.PROBLEMS)}; or a function in a file, path/to/problem.py:make "
        "(zeroloss new writes one); or nothing with --data."
    ),
]
_Data = Annotated[Path | None, typer.Option(help="A .csv, .npz or .parquet file to fit a column of.")]
_Target = Annotated[str | None, typer.Option(help="Of --data: the column to fit; by default the last.")]
_Model = Annotated[
    str | None, typer.Option(help="Of --data: mlp: and the widths of hidden layers, such as mlp:64,64.")
]
_Noise = Annotated[
    list[str] | None,
    typer.Option(help="A noise such as dropout, label:0.3 or minibatch:32+label:0.1. Repeat for several."),
]
_Width = Annotated[list[int] | None, typer.Option(help="Width of a hidden layer. Repeat for several layers.")]
_Examples = Annotated[int | None, typer.Option(help="Number of training examples.")]
_Option = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "--option", help="Another option of the problem, such as outputs=10. Repeat for several."
    ),
]
_Rate = Annotated[float, typer.Option(help="Rate of dropout and DropConnect where --noise does not give it.")]
_Sigma = Annotated[float | None, typer.Option(help="Sigma of all other noises, likewise.")]
_Batch = Annotated[int, typer.Option(help="Size of minibatches, likewise.")]
_Seed = Annotated[int, typer.Option(help="Seed of data split, start, and noise.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No messages and no progress, only results.")]
_Json = Annotated[bool, typer.Option("--json", help="Results as JSON.")]


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
        parameters = {str(each.name): each for each in context.command.params if each.name != "config"}
        named = {"json": "as_json"}
        defaults = {named.get(name, name.replace("-", "_")): value for name, value in values.items()}
        unknown = [name for name in defaults if name not in parameters]
        if unknown:
            raise InputError(
                f"{path}: {context.info_name} has no option {', '.join(map(repr, unknown))}. Its options: "
                f"{', '.join(name.replace('_', '-') for name in parameters)}."
            )
        for name, value in defaults.items():
            many = isinstance(value, list)
            repeated = parameters[name].multiple if hasattr(parameters[name], "multiple") else False
            if isinstance(value, dict) or (many and not repeated):
                raise InputError(f"{path}: {name} takes one value, got {value!r}.")
            if repeated and not many:
                defaults[name] = [value]
        context.default_map = {**(context.default_map or {}), **defaults}
    return path


_ConfigFile = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with options of this command; what is said on the command line wins.",
        is_eager=True,
        callback=_read_options,
    ),
]

Out = Annotated[Path | None, typer.Option(help="Folder for the run, so that it can be resumed and shown.")]
Overwrite = Annotated[bool, typer.Option(help="Replace a run already in --out.")]
SaveEvery = Annotated[float, typer.Option(help="Seconds from one save of the state of a run to the next.")]
StepSize = Annotated[
    float, typer.Option(help="Step size times the largest Hessian eigenvalue; stable below 2.")
]
Steps = Annotated[int, typer.Option(help="Training steps.")]
Saves = Annotated[int, typer.Option(help="How many times to save at.")]
Momentum = Annotated[float, typer.Option(help="Momentum of heavy ball.")]
Nesterov = Annotated[bool, typer.Option(help="Nesterov's momentum.")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay, added to the gradient.")]


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
    data: _Data = None,
    target: _Target = None,
    model: _Model = None,
    width: _Width = None,
    examples: _Examples = None,
    option: _Option = None,
    rate: _Rate = DEFAULT_STRENGTHS["dropout"],
    sigma: _Sigma = None,
    batch: _Batch = int(DEFAULT_STRENGTHS["minibatch"]),
    seed: _Seed = 0,
    quiet: _Quiet = False,
    as_json: _Json = False,
    config: _ConfigFile = None,
) -> Request:
    own: dict[str, Any] = {}
    if data is not None:
        if problem is not None:
            raise InputError(f"choose one of PROBLEM and --data; got {problem!r} and {str(data)!r}.")
        given = dict(path=str(data.resolve()), target=target, model=model)
        problem, own = "table", {name: value for name, value in given.items() if value is not None}
    elif target is not None or model is not None:
        raise InputError("--target and --model are for --data.")
    if problem is None:
        raise InputError("name a PROBLEM, or give --data.")
    if problems.is_own(problem):
        problem = problems.resolved(problem)
    options = own | _options(problem, width, examples, option, seed)
    strengths = DEFAULT_STRENGTHS | problems.strengths_from(rate, sigma, float(batch))
    return Request(problem, noise, options, strengths, seed, quiet or as_json, as_json)


def on_problem(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above, and its function one `Request` in their place."""
    own = list(inspect.signature(command).parameters.values())[1:]
    common = list(inspect.signature(_request).parameters.values())

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        with failing_in_a_line():
            request = _request(**{each.name: arguments.pop(each.name) for each in common})
            command(request, **arguments)

    argument, *options = common
    merged = [argument, *options[:1], *own, *options[1:]]
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
            raise InputError(f"--option needs name=value, got {text!r}.")
        options[option.strip()] = _literal(value.strip())
    if width:
        options["widths"] = width
    if examples is not None:
        options["examples"] = examples
    if name == "table" or (name in problems.PROBLEMS and "seed" in _parameters(problems.PROBLEMS[name])):
        options.setdefault("seed", seed)
    return options


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _literal(text: str) -> Any:
    """A number, true or false, a list of them, or else a word."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
