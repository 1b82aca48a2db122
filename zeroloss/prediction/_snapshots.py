"""The states of a prediction at the times saved, and the mean of training computed from them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from zeroloss._checkpoint import SavedArrays
from zeroloss._pytrees import Vector

MOST_PAIRS = 16  # of runs in an ensemble
_NEGLIGIBLE = 5e-4  # effect of the spread on the mean, relative to the way made
_SCATTER = 2e-3  # error of the ensemble's mean that is aimed at, relative to the way made


class EnsembleSample(NamedTuple):
    """An ensemble and the mean path in its midst, at a time saved.

    - `mean`, `mean_losses`, `mean_measured`: of the mean path, with averages to second order in the noise.
    - `runs`: runs displaced one way, then the runs displaced the opposite way; `drawn` with fluctuations
      normal to the set, as draws of single runs; `losses` of each, `normal` the trace of its covariance.
    - `runs_measured`: what is measured at `runs`; `drawn_measured` at draws of fluctuations around them, of
      which `drawn` are the first.
    """

    mean: Float[np.ndarray, " parameters"]
    mean_losses: dict[str, np.ndarray]
    mean_measured: dict[str, np.ndarray]
    runs: Float[np.ndarray, "runs parameters"]
    drawn: Float[np.ndarray, "runs parameters"]
    losses: dict[str, np.ndarray]
    normal: Float[np.ndarray, " runs"]
    runs_measured: dict[str, np.ndarray]
    drawn_measured: dict[str, np.ndarray]

    @property
    def variance_along(self) -> float:
        """The mean square distance of the runs from their mean, along the set."""
        return float(np.mean(np.sum((self.runs - self.runs.mean(axis=0)) ** 2, axis=1)))

    def joined(self, other: "EnsembleSample") -> "EnsembleSample":
        """With the runs of another ensemble."""
        first, second = len(self.runs) // 2, len(other.runs) // 2

        def join(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([old[:first], new[:second], old[first:], new[second:]])

        def by_name(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: join(values, new[name]) for name, values in old.items()}

        return self._replace(
            runs=join(self.runs, other.runs),
            drawn=join(self.drawn, other.drawn),
            losses=by_name(self.losses, other.losses),
            normal=join(self.normal, other.normal),
            runs_measured=by_name(self.runs_measured, other.runs_measured),
            drawn_measured=by_name(self.drawn_measured, other.drawn_measured),
        )


class Snapshot(NamedTuple):
    """The fine mean path and its ensemble at a time saved.

    - `step`, `mean`, `losses`, `measured`, `variance`: of the mean path, followed finely.
    - `left_out`: the truncation error of the displacement along the set in one training step.
    - `excess`: the relative truncation error of the fluctuations' share of the loss. Both are NaN where they
      were not computed.
    - `ensemble`: the ensemble and the mean path in its midst, followed coarsely.
    - `integration`, `integration_of`: the error of the integration in the fine mean path, and in the
      quantities measured on it, by name.
    """

    step: np.ndarray
    mean: Float[np.ndarray, " parameters"]
    losses: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]
    variance: np.ndarray
    left_out: Float[np.ndarray, " parameters"]
    excess: np.ndarray
    ensemble: EnsembleSample
    integration: np.ndarray
    integration_of: dict[str, np.ndarray]

    @property
    def shift(self) -> np.ndarray:
        """From the coarse mean path to the fine one."""
        return self.mean - self.ensemble.mean


def item_of(record: EnsembleSample | Snapshot) -> SavedArrays:
    """The arrays of a record by name, as a checkpoint keeps them; nested names are joined by slashes."""
    return dict(_named_arrays("", record._asdict()))


def _named_arrays(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in values.items():
        if isinstance(value, tuple):
            value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(value, Mapping):
            yield from _named_arrays(f"{prefix}{name}/", value)
        else:
            yield f"{prefix}{name}", np.asarray(value)


def ensemble_of(item: SavedArrays) -> EnsembleSample:
    """The ensemble that `item_of` took apart."""
    return EnsembleSample(**_fields(EnsembleSample, item))


def snapshot_of(item: SavedArrays) -> Snapshot:
    """The snapshot that `item_of` took apart."""
    of_ensemble = {
        name.removeprefix("ensemble/"): value for name, value in item.items() if name.startswith("ensemble/")
    }
    fields: dict[str, Any] = _fields(Snapshot, item) | {"ensemble": ensemble_of(of_ensemble)}
    return Snapshot(**fields)


def _fields(record: Any, item: SavedArrays) -> dict[str, Any]:
    """The fields of a record; a field without arrays is an empty dictionary."""
    fields: dict[str, Any] = {name: item.get(name, {}) for name in record._fields}
    for path, value in item.items():
        name, slash, rest = path.partition("/")
        if slash and "/" not in rest:
            fields[name][rest] = value
    return fields


def spread_matters(start: Vector, snapshots: list[Snapshot]) -> bool:
    """Whether the spread of the runs moves their mean."""

    def effect(snapshot: Snapshot) -> float:
        shift, variance = displacement_of(snapshot)
        return float(np.sqrt(shift @ shift + variance))

    return max(map(effect, snapshots)) > _NEGLIGIBLE * longest_way(start, snapshots)


def scatters(start: Vector, snapshots: list[Snapshot]) -> bool:
    """Whether more runs are called for, since the mean of those there are is not sharp."""
    if len(snapshots[-1].ensemble.runs) >= 2 * MOST_PAIRS:
        return False
    return (
        max(displacement_of(snapshot)[1] for snapshot in snapshots)
        > (_SCATTER * longest_way(start, snapshots)) ** 2
    )


def longest_way(start: Vector, snapshots: list[Snapshot]) -> float:
    return max(float(np.linalg.norm(snapshot.mean - start)) for snapshot in snapshots)


def mean(snapshot: Snapshot) -> tuple[Vector, dict[str, Any]]:
    """The mean of training and what is measured of it, corrected for the spread."""
    ensemble = snapshot.ensemble
    known = {
        name: snapshot.measured[name] + values.mean() - ensemble.mean_measured[name]
        for name, values in ensemble.drawn_measured.items()
    }
    losses = {
        name: snapshot.losses[name] + values.mean() - ensemble.mean_losses[name]
        for name, values in ensemble.losses.items()
    }
    return jnp.asarray(snapshot.mean + correction_of(snapshot)[0]), known | losses


def correction_of(snapshot: Snapshot) -> tuple[np.ndarray, float]:
    """The correction of the mean for the spread of the runs, and its squared standard error.

    Shrunk by as much of its square as is due to its error (James and Stein 1961).
    """
    shift, variance = displacement_of(snapshot)
    squared = float(shift @ shift)
    return shift * (max(0.0, 1 - variance / squared) if squared > 0 else 0.0), variance


def displacement_of(snapshot: Snapshot) -> tuple[np.ndarray, float]:
    """From the coarse mean path to the mean of the ensemble around it, and the squared error of that."""
    runs = snapshot.ensemble.runs
    pairs = len(runs) // 2
    middles = (runs[:pairs] + runs[pairs:]) / 2
    variance = float(middles.var(axis=0, ddof=1).sum()) / pairs if pairs > 1 else 0.0
    return middles.mean(axis=0) - snapshot.ensemble.mean, variance
