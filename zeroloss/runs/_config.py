"""Options of commands as Pydantic models, and the options that several commands have.

A command is one model. Each option is declared there once, with its default, bounds and help; the command
line, its help, TOML files of options, `config.json` and the axes of a sweep follow from the model. What needs
JAX is reached through `zeroloss`, which imports it when it is used: help and errors in options need not wait.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import Field, JsonValue

import zeroloss as zl
from zeroloss._files import digest_of_bytes
from zeroloss.errors import InputError
from zeroloss.problems import PROBLEMS

NOISE, TRAINING, PROBLEM = "Noise", "Training", "Problem"
"""Panels of options in the help of a command."""

_LARGEST_SEED, _LARGEST_BATCH = 2**63 - 1, 2**31
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # steer terminals; half pairs
_DEEPEST_PLACE, _MOST_ERRORS, _LONGEST_VALUE = 6, 12, 60  # in a message

_Model = TypeVar("_Model", bound=pydantic.BaseModel)


def option(
    default: Any, words: str, panel: str = TRAINING, *, metavar: str | None = None, **more: Any
) -> Any:
    """A field that is an option of the command line, with `words` as its help in `panel`.

    `metavar` names its value there; `more` are arguments of `pydantic.Field`, such as the bound `gt=0`.
    """
    shown: dict[str, JsonValue] = {"panel": panel, "metavar": metavar}
    return Field(default, description=words, json_schema_extra=shown, **more)


def is_text(value: Any) -> bool:
    """Whether all text in a value from JSON or TOML can be printed, and be the name of a file."""
    if isinstance(value, str):
        return _CONTROL_CHARACTERS.search(value) is None
    if isinstance(value, Mapping):
        return all(is_text(each) for pair in value.items() for each in pair)
    return not isinstance(value, list | tuple) or all(map(is_text, value))


def _only_text(value: Any) -> Any:
    if not is_text(value):
        raise ValueError("a name or a value has characters that no text can have")
    return value


Text = Annotated[str, pydantic.AfterValidator(_only_text)]


class AbstractConfig(pydantic.BaseModel):
    """The options of all commands that work on a problem; `examples` are shown in the help of one.

    Beside them `options` holds keyword arguments of the problem, and `source` a digest of the file that the
    problem is made from, where a user's file makes it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    examples: ClassVar[tuple[str, ...]] = ()

    problem: str = option(
        ...,
        f"One of {', '.join(PROBLEMS)}; or a function in a file, path/to/problem.py:make "
        "(zeroloss new writes one); or nothing with --data.",
    )
    noise: tuple[str, ...] = option(
        ...,
        "Such as dropout, label:0.3, minibatch:32+label:0.1. Repeat for several. By default all "
        "noises of the problem, for classify the usual ones; all: all of them.",
        NOISE,
        metavar="<noise>",
        min_length=1,
    )
    rate: float | None = option(None, "Default rate of dropout and dropconnect. Otherwise 0.01.", NOISE)
    sigma: float | None = option(None, "Default sigma of other noises. Otherwise 0.01 to 0.3.", NOISE)
    batch: int | None = option(
        None,
        "Default size of minibatches. Otherwise 32. A smaller data set uses half of its examples.",
        NOISE,
        gt=-_LARGEST_BATCH,
        lt=_LARGEST_BATCH,
    )
    options: dict[str, JsonValue] = {}
    seed: int = option(
        0, "Seed of data split, start and noise.", PROBLEM, ge=-_LARGEST_SEED, le=_LARGEST_SEED
    )
    source: str | None = None

    @pydantic.field_validator("noise")
    @classmethod
    def _each_noise_once(cls, noise: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(noise)) < len(noise):
            raise ValueError("every noise can be named once")
        return noise

    @pydantic.model_validator(mode="after")
    def _only_text(self) -> "AbstractConfig":
        _only_text(self.__dict__)
        return self

    @pydantic.computed_field
    @property
    def strengths(self) -> dict[str, float]:
        """The strength of each noise that is named without one."""
        batch = None if self.batch is None else float(self.batch)
        given = zl.problems.strengths_from(self.rate, self.sigma, batch)
        return zl.problems.DEFAULT_STRENGTHS | given

    @classmethod
    def all_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """The noises that `all` stands for; `values` are the other options."""
        return list(problem.noises)

    @classmethod
    def default_noises(cls, problem: "zl.problems.Problem", values: Mapping[str, Any]) -> list[str]:
        """The noises where none is named."""
        return cls.all_noises(problem, values)

    def load(self) -> "tuple[zl.problems.Problem, dict[str, zl.systems.AbstractSystem]]":
        """The problem, and the system of each noise.

        Raises `InputError` for what cannot be made, and where the user's file has changed since.
        """
        found = None if self.source is None else digest_of_source(self.problem, self.options)
        if found != self.source:
            raise InputError(
                f"{zl.problems.source(self.problem, self.options)} has changed since the run began (digest "
                f"{found}, then {self.source}). Bring the file back, or begin anew."
            )
        problem = zl.problems.load(self.problem, **self.options)
        noises = {name: zl.problems.parse_noise(problem, name, self.strengths) for name in self.noise}
        return problem, {name: problem.problem.with_noise(noise) for name, noise in noises.items()}


def digest_of_source(problem: str, options: Mapping[str, Any]) -> str | None:
    """A digest of the file that a problem is made from; None where there is none."""
    path = zl.problems.source(problem, options)
    if path is None:
        return None
    try:
        return digest_of_bytes([path.read_bytes()])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


StepSize = Annotated[
    float,
    option(
        0.5,
        "Step size times the largest eigenvalue of the Hessian. Stable below 2; more with momentum.",
        gt=0,
    ),
]
Steps = Annotated[int, option(50_000, "Training steps.", gt=0, le=10**15)]
SaveCount = Annotated[int, option(50, "Number of times to save at.", ge=2, le=10**6)]


class TrainingConfig(AbstractConfig):
    """The options of one training recipe: its optimizer."""

    step_size: StepSize
    momentum: float = option(0.0, "Momentum of the heavy ball method.", ge=0, lt=1)
    nesterov: bool = option(False, "Nesterov's momentum, not heavy ball.")
    weight_decay: float = option(0.0, "Weight decay, added to the gradient.", ge=0)

    def optimizer(self, largest_eigenvalue: float) -> "zl.SGD":
        """The optimizer, where the Hessian has this largest eigenvalue."""
        return zl.SGD(
            self.step_size / largest_eigenvalue,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """A model with these values. Raises `InputError` with each field that is wrong, and its value."""
    try:
        return model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        command = values.get("command", getattr(model.model_fields.get("command"), "default", ""))
        raise InputError(
            f"{command}: {'; '.join(map(_wrong_field, error.errors()[:_MOST_ERRORS]))}."
        ) from None


def _wrong_field(error: Any) -> str:
    """One field that is wrong, the reason, and the value."""
    place = ".".join(map(str, error["loc"][:_DEEPEST_PLACE]))
    if error["type"] == "value_error":
        return ": ".join(filter(None, (place, str(error["ctx"]["error"]).removesuffix("."))))
    value = repr(error["input"])
    value = value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 3] + "..."
    return f"{place}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {value}"
