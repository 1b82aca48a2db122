"""Which runs a sweep consists of: a config, and axes along which it varies."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field, JsonValue

from zeroloss.errors import InputError
from zeroloss.problems import strengths_from
from zeroloss.runs._config import Config, config_from, validated

SWEEP = "sweep"

_MOST_CELLS = 100_000
_OPTION = "set."
STRENGTHS = ("rate", "sigma", "batch")
"""The axes that are strengths of noises."""
_NO_AXES = ("command", "options", "strengths", "source", "problem")


class SweepConfig(pydantic.BaseModel):
    """A grid of runs.

    - `cell`: the config that all have in common.
    - `grid`: for each axis its values. An axis is a field of the config; `set.NAME`, an option of the
      problem; or `rate`, `sigma` or `batch`, the strengths of noises that are named without one.

    Cells are in the order of nested loops over the axes, the last axis the fastest.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    command: Literal["sweep"] = SWEEP
    cell: dict[str, JsonValue]
    grid: dict[str, tuple[JsonValue, ...]] = Field(min_length=1)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(len(values) for values in self.grid.values())

    @property
    def noises(self) -> tuple[str, ...]:
        """All noises of its cells."""
        found = self.grid.get("noise") or self.cell["noise"]
        assert isinstance(found, list | tuple)
        return tuple(map(str, found))

    def places(self) -> Iterator[dict[str, JsonValue]]:
        """For each cell its value on every axis."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def cell_at(self, place: Mapping[str, JsonValue]) -> Config:
        """The config of the cell at `place`. Raises `InputError` where that is none."""
        values: dict[str, Any] = {**self.cell}
        values["options"], values["strengths"] = dict(values["options"]), dict(values["strengths"])
        # Problems that take a seed have the run's, unless they were given another.
        follows = values["options"].get("seed") == values["seed"] and f"{_OPTION}seed" not in place
        for name, value in place.items():
            _put(values, name, value)
        if follows:
            values["options"]["seed"] = values["seed"]
        return config_from(values)


def sweep_config(values: Mapping[str, Any]) -> SweepConfig:
    """The config of a sweep with these values. Raises `InputError` like `config_from`, for every cell too."""
    config = validated(SweepConfig, values)
    common = config_from(config.cell)
    for name, axis in config.grid.items():
        if not axis:
            raise InputError(f"the axis {name!r} of the grid has no values.")
        seen: list[JsonValue] = []
        for value in axis:
            if value in seen:
                raise InputError(f"the axis {name!r} of the grid has the value {value!r} twice.")
            seen.append(value)
    count = math.prod(config.shape)
    if count > _MOST_CELLS:
        raise InputError(f"the grid has {count:,} cells; at most {_MOST_CELLS:,} are possible.")
    config = config.model_copy(update={"cell": common.model_dump(mode="json")})
    for place in config.places():
        config.cell_at(place)
    return config


def in_words(value: JsonValue) -> str:
    """A value on an axis, for people."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def _put(values: dict[str, Any], name: str, value: JsonValue) -> None:
    """Give a config the value of a cell on one axis."""
    strengths, options = values["strengths"], values["options"]
    if name.startswith(_OPTION) and name.removeprefix(_OPTION).isidentifier():
        options[name.removeprefix(_OPTION)] = value
    elif name == "noise":
        values["noise"] = [value]
    elif name in STRENGTHS:
        strengths.update(strengths_from(**{name: value}))
    elif name in values and name not in _NO_AXES:
        values[name] = value
    else:
        axes = [each for each in values if each not in _NO_AXES]
        raise InputError(
            f"{name!r} is no axis of a grid. Those of {values['command']}: "
            f"{', '.join([*axes, *STRENGTHS])}, and {_OPTION}NAME for an option of the problem."
        )
