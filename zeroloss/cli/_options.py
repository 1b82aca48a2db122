"""Options of the command line, made from Pydantic models, and the requests that are typed with them."""

import glob
import inspect
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import pydantic
import typer

import zeroloss as zl
from zeroloss import problems, runs
from zeroloss._progress import show_progress
from zeroloss.cli._console import (
    GENERAL,
    Json,
    Quiet,
    UsageError,
    app,
    command,
    failing_in_a_line,
    flag,
    option,
)
from zeroloss.errors import InputError
from zeroloss.runs import NOISE, PROBLEM, TRAINING, AbstractConfig, is_text, option as field, validated

_ALL = "all"  # in place of a noise

LIMIT, GOAL, SWEEP, RUN = "Limit", "Goal", "Sweep", "Run"
_PANELS = (None, NOISE, GOAL, LIMIT, TRAINING, SWEEP, RUN, PROBLEM, GENERAL)  # in the order of the help


def _problems_like(incomplete: str) -> list[str]:
    """Names of problems, folders and Python files that begin so, for the Tab key."""
    names = [name for name in problems.PROBLEMS if name.startswith(incomplete)]
    found = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    files = [each for each in found if each.endswith(".py")]
    return names + files + [f"{each}/" for each in found if Path(each).is_dir()]


def _noises_like(incomplete: str) -> list[str]:
    """Names of noises that begin so, also after a plus, for the Tab key."""
    before, plus, last = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in (*zl.noise.LISTINGS, _ALL) if name.startswith(last)]


class ProblemOptions(pydantic.BaseModel):
    """The options that become keyword arguments of a problem."""

    data: Path | None = field(None, "A .csv, .npz or .parquet file to fit.", PROBLEM, metavar="<file>")
    target: str | None = field(
        None, "The column of --data to fit. By default the last.", PROBLEM, metavar="<column>"
    )
    model: str | None = field(
        None, "Hidden layers of the model of --data. By default mlp:50.", PROBLEM, metavar="<mlp:...>"
    )
    width: list[int] | None = field(
        None, "Width of a hidden layer. Repeat for several.", PROBLEM, metavar="<int>"
    )
    examples: int | None = field(None, "How many to train on.", PROBLEM)
    loss: str | None = field(None, "squares or cross-entropy.", PROBLEM, metavar="<loss>")
    smoothing: float | None = field(None, "Part of a label that is spread over all classes.", PROBLEM)
    activation: str | None = field(None, "tanh or relu.", PROBLEM, metavar="<function>")
    set: list[str] | None = field(
        None,
        "Another option of the problem, such as outputs=10. Repeat for several.",
        PROBLEM,
        metavar="<name=value>",
    )

    def named(self, problem: str | None) -> str:
        """The name of the problem, in the working folder of this process."""
        if self.data is not None:
            if problem is not None:
                raise UsageError(f"choose one of PROBLEM and --data; got {problem!r} and {str(self.data)!r}.")
            return "table"
        if self.target is not None or self.model is not None:
            raise UsageError("--target and --model are for --data.")
        if problem is None:
            raise UsageError("name a PROBLEM, or give --data.")
        problems.check_name(problem)
        return problems.resolved(problem) if problems.is_own(problem) else problem

    def arguments(self, problem: str, seed: int) -> dict[str, Any]:
        """The keyword arguments of the problem; it has the seed if it takes one."""
        found: dict[str, Any] = {}
        if self.data is not None:
            found = dict(path=str(self.data.resolve()), target=self.target, model=self.model)
            found = {name: value for name, value in found.items() if value is not None}
        for text in self.set or []:
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--set needs name=value, got {text!r}.")
            found[name.strip()] = parse_value(value.strip())
        known = problems.options_of(problem)
        if self.width and "width" in known and "widths" not in known:
            if len(self.width) > 1:
                raise UsageError(
                    f"{problem!r} has one hidden layer, and --width was given {len(self.width)} times."
                )
            found["width"] = self.width[0]
        elif self.width:
            found["widths"] = self.width
        for name in ("examples", "loss", "smoothing", "activation"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if problem == "table" or "seed" in known:
            found.setdefault("seed", seed)
        return found


def parse_value(text: str) -> Any:
    """A number, true or false, a list of them, or else a word."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        return text


class SavingOptions(pydantic.BaseModel):
    """The options of a command that can make a run on disk."""

    out: Path | None = field(None, "Folder for the run, to show and resume it.", RUN, metavar="<folder>")
    overwrite: bool = field(False, "Replace the run in --out.", RUN)
    save_every: float = field(30.0, "Time between saves of the state, for resume.", RUN, metavar="<seconds>")


class WorkerOptions(pydantic.BaseModel):
    """The options that choose the workers of a sweep."""

    workers: int | None = field(
        None, "Processes on this machine. By default one for each core.", SWEEP, metavar="<int>"
    )
    memory: str | None = field(
        None, "Bound on each process, such as 4GiB. By default its share.", SWEEP, metavar="<size>"
    )
    scheduler: str | None = field(
        None, "A running Dask cluster, such as tcp://host:8786, instead.", SWEEP, metavar="<address>"
    )


class GridOptions(WorkerOptions):
    """The options of a sweep."""

    grid: list[str] = field(
        ..., "An axis, such as step_size=0.1,0.5. Repeat for several.", SWEEP, metavar="<axis=...>"
    )
    out: Path = field(..., "Folder for the sweep, to show and resume it.", SWEEP, metavar="<folder>")
    overwrite: bool = field(False, "Replace the sweep in --out.", SWEEP)
    save_every: float = SavingOptions.model_fields["save_every"]  # pyright: ignore[reportAssignmentType]


def parameters_of(model: type[pydantic.BaseModel]) -> Iterator[inspect.Parameter]:
    """The parameters of a Typer command for the fields of a model that are options."""
    for name, info in model.model_fields.items():
        shown = info.json_schema_extra
        if not isinstance(shown, dict):
            continue
        kind: Any = info.annotation
        default = inspect.Parameter.empty if info.is_required() else info.default
        if get_origin(kind) is tuple:
            kind = list[get_args(kind)[0]]
        panel, metavar = str(shown["panel"]), str(shown["metavar"] or "") or None
        if issubclass(model, AbstractConfig) and info.is_required():  # completed by `Request`
            kind, default = kind | None, None
        if name == "problem":
            listed: Any = typer.Argument(
                metavar="PROBLEM", help=info.description, autocompletion=_problems_like
            )
        elif kind is bool:
            listed = flag(panel, str(info.description), f"--{name.replace('_', '-')}")
        else:
            complete = _noises_like if name == "noise" else None
            listed = option(panel, str(info.description), metavar=metavar, complete=complete)
        yield _parameter(name, Annotated[kind, listed], default)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _read_defaults(context: Any, path: Path | None) -> Path | None:
    """Take the defaults of a command's options from a TOML file."""
    if path is None:
        return None
    with failing_in_a_line():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from None
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
        callback=_read_defaults,
        rich_help_panel=GENERAL,
    ),
]
_GENERAL = (
    _parameter("quiet", Quiet, False),
    _parameter("as_json", Json, False),
    _parameter("config", _ConfigFile, None),
)


class Request(NamedTuple):
    """The options that were typed: `values` for the config of a command, and the model of the others.

    `named` says whether --noise was among them.
    """

    command: type[AbstractConfig]
    values: dict[str, Any]
    more: Any
    quiet: bool
    json: bool
    named: bool

    def config(self) -> Any:
        """The config of the command. Raises `InputError` for values that are not valid."""
        return validated(self.command, self.values)


def on_problem(
    name: str,
    panel: str,
    config: type[AbstractConfig],
    more: type[pydantic.BaseModel] | None = None,
    *,
    examples: tuple[str, ...] = (),
    of: typer.Typer = app,
) -> Callable[[Callable[[Request], None]], Callable[[Request], None]]:
    """Make a function of a request the command `name`, with the fields of `config` and `more` as options."""
    models = (config, ProblemOptions, *([] if more is None else [more]))
    parameters = [each for model in models for each in parameters_of(model)] + list(_GENERAL)
    parameters.sort(key=_place_in_help)

    def register(use: Callable[[Request], None]) -> Callable[[Request], None]:
        def function(**typed: Any) -> None:
            with failing_in_a_line():
                request = _request(config, more, typed)
                with show_progress(not request.quiet):
                    use(request)

        function.__doc__ = config.__doc__
        function.__signature__ = inspect.Signature(parameters)  # pyright: ignore
        function.__annotations__ = {each.name: each.annotation for each in parameters}
        command(name, panel, *(examples or config.examples), of=of)(function)
        return use

    return register


def _place_in_help(parameter: inspect.Parameter) -> tuple[int, bool]:
    """The panel, and required options first."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return _PANELS.index(panel), parameter.default is not parameter.empty


def _request(
    config: type[AbstractConfig], more: type[pydantic.BaseModel] | None, typed: dict[str, Any]
) -> Request:
    """The request of the options that were typed; without --noise with the default noises of the command."""

    def of(model: type[pydantic.BaseModel]) -> dict[str, Any]:
        return {name: typed[name] for name in model.model_fields if name in typed}

    options, values = ProblemOptions(**of(ProblemOptions)), of(config)
    values["problem"] = options.named(values["problem"])
    # A wrong value is an error before the problem is made, which takes seconds.
    validated(config, values | {"noise": values["noise"] or ["any"]})
    values["options"] = options.arguments(values["problem"], values["seed"])
    named = tuple(values["noise"] or ())
    if named in ((), (_ALL,)):
        choose = config.all_noises if named else config.default_noises
        values["noise"] = choose(zl.problems.load(values["problem"], **values["options"]), values)
    values["source"] = runs.digest_of_source(values["problem"], values["options"])
    if "command" in config.model_fields:
        values["command"] = config.model_fields["command"].default
    quiet, as_json = typed["quiet"], typed["as_json"]
    return Request(config, values, more and more(**of(more)), quiet or as_json, as_json, bool(named))
