"""What a run computes: everything needed to repeat it, checked field by field."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt

from zeroloss.errors import InputError

_LARGEST = 2**63 - 1
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # what steers terminals; halves of pairs
_NO_TEXT_SAID = "a name or a value has characters that no text can have"
_LONGEST_PLACE, _MOST_ERRORS = 6, 12  # that are said
_Model = TypeVar("_Model", bound=pydantic.BaseModel)


class _Config(pydantic.BaseModel):
    """What all runs have.

    - `problem`: a named problem, `options` its keyword arguments.
    - `noise`: one or more noises, in the words of `zeroloss.problems.parse_noise`.
    - `strengths`: of noises that are named without one.
    - `seed`: of everything random.
    - `source`: a digest of the file of the user's that the problem is made from; None where there is none.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    problem: str
    noise: tuple[str, ...] = Field(min_length=1)
    options: dict[str, JsonValue] = {}
    strengths: dict[str, float] = {}
    seed: int = Field(0, ge=-_LARGEST, le=_LARGEST)
    source: str | None = None

    @pydantic.field_validator("noise")
    @classmethod
    def _each_once(cls, noise: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(noise)) < len(noise):
            raise ValueError("every noise can be named once")
        return noise


class _Training(_Config):
    """A training recipe; `step_size` is relative to 1 / lambda_max at the start, on the zero-loss set."""

    step_size: PositiveFloat = 0.5
    steps: Annotated[int, Field(gt=0, le=10**15)] = 50_000
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    saves: int = Field(50, ge=2, le=10**6)

    @property
    def rule(self) -> dict[str, Any]:
        """What the step size leaves to say of the rule of a step."""
        return dict(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)


class CompareConfig(_Config):
    """`zeroloss.compare` for each noise; `horizon` is the slow time to go to, instead of `steps`."""

    command: Literal["compare"] = "compare"
    step_size: PositiveFloat = 0.5
    horizon: PositiveFloat | None = None
    steps: Annotated[int, Field(gt=0, le=10**15)] = 50_000
    replicas: int = Field(8, ge=2)


class StudyConfig(_Config):
    """`zeroloss.study` for each noise, in `budget` minutes for all together."""

    command: Literal["study"] = "study"
    budget: PositiveFloat = 10.0
    drift: float = Field(0.05, gt=0, le=1)


class PredictConfig(_Training):
    """`zeroloss.predict` for each noise: the mean of training, or `replicas` draws of single runs."""

    command: Literal["predict"] = "predict"
    replicas: PositiveInt | None = None


class DescendConfig(_Training):
    """`zeroloss.descend` for each noise: an ensemble of `replicas` training runs."""

    command: Literal["descend"] = "descend"
    replicas: PositiveInt = 8


class LimitConfig(_Config):
    """`zeroloss.limit` for each noise, to the slow time `horizon`; `replicas` where it is stochastic."""

    command: Literal["limit"] = "limit"
    horizon: PositiveFloat = 1.0
    saves: int = Field(50, ge=2, le=10**6)
    replicas: PositiveInt = 200


Config = CompareConfig | StudyConfig | PredictConfig | DescendConfig | LimitConfig

_COMMANDS: dict[str, type[Config]] = {
    model.model_fields["command"].default: model
    for model in (CompareConfig, StudyConfig, PredictConfig, DescendConfig, LimitConfig)
}


def config_from(values: Mapping[str, Any]) -> Config:
    """The config of its command with these values; `InputError` as `validated`, and for a command unknown."""
    command = values.get("command")
    if not isinstance(command, str) or command not in _COMMANDS:
        raise InputError(f"unknown command {command!r}. Known: {', '.join(_COMMANDS)}.")
    return validated(_COMMANDS[command], values)


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """A config with these values. Raises `InputError`, naming the fields that are wrong, and their values."""
    command = values.get("command", "sweep")
    try:
        config = model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise InputError(f"{command}: {_wrong(error)}.") from None
    if not is_text(values):
        raise InputError(f"{command}: {_NO_TEXT_SAID}.")
    return config


class _Written(pydantic.BaseModel):
    """What the config of any run has, a sweep included: kinds of values, and nothing about which."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    command: str = ""
    problem: str = ""
    noise: list[str] = []
    options: dict[str, JsonValue] | None = None
    strengths: dict[str, JsonValue] = {}
    description: str = ""
    budget: float | str | None = None
    step_size: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    versions: dict[str, str] = {}


def check_kinds(values: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the values are of the kinds that a config has, whichever it is.

    What passes is nowhere nested deeply either, so that it can be written again.
    """
    try:
        _Written.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise InputError(_wrong(error)) from None
    if not is_text(values):
        raise InputError(_NO_TEXT_SAID)


def is_text(value: Any) -> bool:
    """Whether a value that JSON or TOML can hold has only text that can be written, and be a file's name."""
    if isinstance(value, str):
        return _NO_TEXT.search(value) is None
    if isinstance(value, Mapping):
        return all(is_text(each) for pair in value.items() for each in pair)
    return not isinstance(value, list | tuple) or all(map(is_text, value))


def _wrong(error: pydantic.ValidationError) -> str:
    """Every field that is wrong, and its value."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'][:_LONGEST_PLACE]))}: {each['msg'][:1].lower()}{each['msg'][1:]}, "
        f"got {_short(each['input'])}"
        for each in error.errors(include_url=False)[:_MOST_ERRORS]
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
