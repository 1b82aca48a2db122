"""The results of a run as numbers, a row for each noise."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.runs._folder import noises_of

_FACTS = ("verdict_name", "stochastic", "verdict")
_LEFT_OUT = ("hessian_trace_error", "distance_error")
_FIRST = ("regularizer", "hessian_trace", "test_error")
_LAST = ("distance", "loss", "noisy_loss")


def rows(command: str, results: xr.DataTree) -> list[dict[str, Any]]:
    """A row for each noise that has results, with numbers and words that JSON can hold.

    A comparison has the columns of `Comparison.rows()`; a study its measurements; a trajectory the verdict on
    the noise, the start and the end of each quantity, and the standard error of the end over replicas.
    """
    names = [name for name in noises_of(results) if command == "compare" or name in results.children]
    if command not in ("compare", "study"):  # a trajectory has values before it is done
        names += [name for name in results.children if name not in names]
    if command == "compare":
        table = results.to_dataset()
        return [
            {str(name): plain(values.values[index]) for name, values in table.variables.items()}
            for index in range(len(names))
        ]
    groups = {name: results.children[name].to_dataset(inherit=False) for name in names}
    if command == "study":
        return [
            {"noise": name} | {key: plain(value) for key, value in each.attrs.items() if key != "noise"}
            for name, each in groups.items()
        ]
    return [
        {
            "noise": name,
            "time": float(each["time"].values[-1]),
            "unit": each["time"].attrs.get("units", ""),
            **{fact: plain(each.attrs[fact]) for fact in _FACTS if fact in each.attrs},
            **{
                f"{quantity}_{where}": value
                for quantity, measured in ends(each).items()
                for where, value in zip(("start", "end", "error"), measured, strict=True)
            },
        }
        for name, each in groups.items()
    ]


class OverReplicas(NamedTuple):
    """A quantity over time: of `each` replica, in the `mean`, and with its standard `error` if several."""

    each: np.ndarray
    mean: np.ndarray
    error: np.ndarray | None


def over_replicas(values: xr.DataArray) -> OverReplicas:
    """The mean of a quantity over the replicas of a path, and the standard error of that."""
    each = values.transpose(..., "time").values.astype(float).reshape(-1, values.sizes["time"])
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged training overflows
        error = each.std(axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else None
        return OverReplicas(each, each.mean(axis=0), error)


def ends(path: xr.Dataset) -> dict[str, tuple[float, float, float | None]]:
    """The start of every quantity, its end, and the standard error of the end.

    The error is that over replicas, where there are several; else the one of a prediction, or None.
    """
    found = {}
    for name, values in path.data_vars.items():
        where = str(name)
        if where.startswith(("params", "uncertainty_")) or where in _LEFT_OUT:
            continue
        _, mean, error = over_replicas(values)
        stated = path.get(f"uncertainty_of_{where}")
        if error is None and stated is not None and np.isfinite(stated.values[-1]):
            error = stated.values
        found[where] = (float(mean[0]), float(mean[-1]), None if error is None else float(error[-1]))
    return {name: found[name] for name in sorted(found, key=reading_order)}


def reading_order(quantity: str) -> tuple[int, str]:
    """A key to sort quantities by, as people read them; on the disk they are in any order."""
    if quantity in _LAST:
        return len(_FIRST) + 1, quantity
    return _FIRST.index(quantity) if quantity in _FIRST else len(_FIRST), quantity


def plain(value: Any) -> Any:
    """A value of NumPy as numbers and lists of Python."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
