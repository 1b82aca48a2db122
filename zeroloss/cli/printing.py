"""What a run found, as tables for a terminal and as rows for machines."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from zeroloss import report, runs
from zeroloss.cli.console import messages, out
from zeroloss.report.series import table_rows
from zeroloss.report.study_series import studies
from zeroloss.report.study_words import findings

_LEFT_OUT = ("hessian_trace_error",)
_FIRST = {"loss": 0, "noisy_loss": 1, "regularizer": 2, "hessian_trace": 3}


def print_results(config: Mapping[str, Any], results: xr.DataTree) -> None:
    """Print the table of a run, or what its studies found."""
    if not results.children:
        out.print("There are no results yet.")
    elif config["command"] == "compare":
        _print_comparison(config, results)
    elif config["command"] == "study":
        for measured in studies(config, results):
            out.print(f"[bold]{escape(measured.noise)}[/bold]")
            for sentence in findings(measured, config.get("strengths") or {}):
                out.print(f"  {escape(sentence)}", highlight=False)
    else:
        _print_paths(config, results)


def as_rows(command: str, results: xr.DataTree) -> list[dict[str, Any]]:
    """A row for each noise, of numbers and words that JSON can hold."""
    if not results.children:
        return []
    if command == "compare":
        return table_rows(results)
    groups = {name: results.children[name].to_dataset(inherit=False) for name in runs.noises_of(results)}
    if command == "study":
        return [
            {"noise": name, **{k: _plain(v) for k, v in each.attrs.items()}} for name, each in groups.items()
        ]
    return [
        {
            "noise": name,
            "time": float(each["time"].values[-1]),
            "unit": each["time"].attrs.get("units", ""),
            **{
                f"{quantity}_{where}": value
                for quantity, ends in _ends(each).items()
                for where, value in zip(("start", "end", "error"), ends, strict=True)
            },
        }
        for name, each in groups.items()
    ]


def _print_comparison(config: Mapping[str, Any], results: xr.DataTree) -> None:
    rows = table_rows(results)
    table = Table(title=escape(str(config.get("description", ""))), title_justify="left", box=SIMPLE)
    table.add_column("")
    for row in rows:
        table.add_column(escape(row["noise"]), overflow="fold")
    for label, cells in report.table(rows):
        table.add_row(label, *map(escape, cells))
    out.print(table)
    for row in rows:
        if row.get("diverged_at") is not None:
            messages.print(
                f"[red]{escape(row['noise'])}: training diverged at step {row['diverged_at']:,.0f}[/red]; "
                f"the results go to step {row['steps']:,.0f}."
            )


def _print_paths(config: Mapping[str, Any], results: xr.DataTree) -> None:
    table = Table(title=escape(str(config.get("description", ""))), title_justify="left", box=SIMPLE)
    groups = {name: group.to_dataset(inherit=False) for name, group in results.children.items()}
    last = max(float(each["time"].values[-1]) for each in groups.values())
    after = f"after {last:g} of slow time" if config["command"] == "limit" else f"after {last:,.0f} steps"
    for column in ("noise", "", "start", after):
        table.add_column(column, no_wrap=True)
    endings = []
    for name, each in groups.items():
        for index, (label, (start, end, error)) in enumerate(_ends(each).items()):
            scatter = "" if error is None else f" ± {error:.1g}"
            table.add_row("" if index else escape(name), label, f"{start:.4g}", f"{end:.4g}{scatter}")
        if "uncertainty_model" in each:
            parts = [each[f"uncertainty_{part}"].values[-1] for part in ("integration", "sampling", "model")]
            endings.append(
                f"{name}: mean parameters to {100 * float(np.linalg.norm(parts)):.2g} % of the way from the "
                f"start; single runs lie {100 * float(each['uncertainty_spread'].values[-1]):.2g} % of it "
                "from their mean."
            )
    out.print(table)
    for ending in endings:
        out.print(escape(ending), highlight=False)


def _ends(path: xr.Dataset) -> dict[str, tuple[float, float, float | None]]:
    """Of every quantity measured its start, its end, and the standard error of that over replicas."""
    ends = {}
    for name, values in path.data_vars.items():
        where = str(name)
        if where.startswith(("params", "uncertainty_")) or where in _LEFT_OUT:
            continue
        at = values.values.reshape(-1, path.sizes["time"])
        error = float(at[:, -1].std(ddof=1) / np.sqrt(len(at))) if len(at) > 1 else None
        ends[where] = (float(at[:, 0].mean()), float(at[:, -1].mean()), error)
    return {name: ends[name] for name in sorted(ends, key=lambda name: _FIRST.get(name, len(_FIRST)))}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
