"""The runs of a sweep: a config, and axes along which it varies."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, JsonValue, SerializeAsAny

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.runs._commands import Config, config_from
from zeroloss.runs._config import is_text, validated

SWEEP = "sweep"

_MOST_CELLS = 100_000
_OPTION = "set."
_NO_AXES = ("command", "options", "source", "problem")


class SweepConfig(pydantic.BaseModel):
    """A grid of runs.

    - `cell`: the config that all have in common.
    - `grid`: for each axis its values. An axis is a field of the config, or `set.NAME`, an option of the
      problem.

    Cells are in the order of nested loops over the axes; the last axis varies fastest.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    command: Literal["sweep"] = SWEEP
    cell: SerializeAsAny[Config]
    grid: Annotated[dict[str, tuple[JsonValue, ...]], Field(min_length=1)]

    @pydantic.field_validator("cell", mode="before")
    @classmethod
    def _any_command(cls, cell: Any) -> Config:
        return config_from(cell) if isinstance(cell, Mapping) else cell

    @pydantic.model_validator(mode="after")
    def _every_cell_can_be_made(self) -> "SweepConfig":
        for name, values in self.grid.items():
            if not values:
                raise InputError(f"the axis {name!r} of the grid has no values.")
            twice = [value for index, value in enumerate(values) if value in values[:index]]
            if twice:
                raise InputError(f"the axis {name!r} of the grid has the value {twice[0]!r} twice.")
            strengths = {listing.strength for listing in zl.noise.LISTINGS.values()}
            if name in strengths and len(values) > 1 and not any(_takes(each, name) for each in self.noises):
                raise InputError(
                    f"all cells along the axis {name!r} would be the same: no noise takes its strength from "
                    f"there, among {', '.join(self.noises)}. It is for noises that have such a strength and "
                    "are named without one, such as dropout and not dropout:0.1 for a rate."
                )
        if math.prod(self.shape) > _MOST_CELLS:
            raise InputError(
                f"the grid has {math.prod(self.shape):,} cells; at most {_MOST_CELLS:,} are possible."
            )
        if not is_text(self.grid):
            raise InputError("a name or a value has characters that no text can have")
        for place in self.places():
            self.cell_at(place)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis."""
        return tuple(map(len, self.grid.values()))

    @property
    def noises(self) -> tuple[str, ...]:
        """All noises of its cells."""
        return tuple(map(str, self.grid.get("noise") or self.cell.noise))

    def places(self) -> Iterator[dict[str, JsonValue]]:
        """For each cell its value on every axis."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def cell_at(self, place: Mapping[str, JsonValue]) -> Config:
        """The config of the cell at `place`. Raises `InputError` where it is not valid."""
        fields: dict[str, Any] = {name: getattr(self.cell, name) for name in type(self.cell).model_fields}
        options = dict(fields["options"])
        # A problem that takes a seed has the seed of the run, unless it was given another.
        follows = options.get("seed") == fields["seed"] and f"{_OPTION}seed" not in place
        for name, value in place.items():
            option = name.removeprefix(_OPTION)
            if option != name and option.isidentifier():
                options[option] = value
            elif name in fields and name not in _NO_AXES:
                fields[name] = (value,) if name == "noise" else value
            else:
                axes = ", ".join(each for each in fields if each not in _NO_AXES)
                raise InputError(
                    f"{name!r} is not an axis of a grid. The axes of {fields['command']}: {axes}, and "
                    f"{_OPTION}NAME for an option of the problem."
                )
        if follows:
            options["seed"] = fields["seed"]
        return config_from(fields | {"options": options})


def sweep_config(values: Mapping[str, Any]) -> SweepConfig:
    """The config of a sweep with these values. Raises `InputError` like `config_from`, for every cell too."""
    return validated(SweepConfig, values)


def in_words(value: JsonValue) -> str:
    """A value on an axis, for people."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def _takes(noise: str, strength: str) -> bool:
    """Whether some part of a noise has this kind of strength, and is named without one."""
    parts = [part.strip() for part in noise.split("+")]
    return any(part in zl.noise.LISTINGS and zl.noise.LISTINGS[part].strength == strength for part in parts)
