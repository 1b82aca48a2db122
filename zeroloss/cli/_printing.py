"""The results of a run, as tables for a terminal and as rows for machines."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import zeroloss as zl
from zeroloss import report, runs
from zeroloss.cli._console import messages, out
from zeroloss.runs import SWEEP

if TYPE_CHECKING:
    import xarray as xr

_MOST_CELLS = 200
_GAP = 2  # between two columns
_LABELS = 26  # columns of the terminal for the labels of a comparison; longer ones are folded


def print_results(config: Mapping[str, Any], results: "xr.DataTree") -> None:
    """Print the table of a run, or the findings of its studies."""
    if config["command"] == SWEEP:
        _print_sweep(results)
    elif not results.children:
        out.print("There are no results yet.")
    elif config["command"] == "compare" and not runs.noises_of(results):
        out.print("No noise has been compared to the end yet.")
    elif config["command"] == "compare":
        _print_comparison(config, results)
    elif config["command"] == "study":
        print_title(_title(config, results))
        for measured in report.studies(config, results):
            out.print(f"[bold]{escape(measured.noise)}[/bold]")
            for sentence in report.study(measured, config.get("strengths") or {}):
                out.print(f"  {escape(sentence)}", highlight=False)
    else:
        _print_paths(config, results)


def _print_sweep(results: "xr.DataTree") -> None:
    table = results.to_dataset().load()
    statuses = table["status"].values.ravel()
    complete = int((statuses == "complete").sum())
    head, lines = report.cell_table(table)
    print_table(head, [line for _, line in lines[:_MOST_CELLS]])
    if len(lines) > _MOST_CELLS:
        out.print(f"... and {len(lines) - _MOST_CELLS} more: zeroloss export --csv writes all.")
    out.print(f"{complete} of {len(statuses)} cells are complete.", highlight=False)
    for name, reason in report.failures(table):
        messages.print(f"[red]{escape(name)}[/red] failed: {escape(reason)}", highlight=False)


def as_rows(config: Mapping[str, Any], results: "xr.DataTree") -> list[dict[str, Any]]:
    """A row for each noise, or each cell of a sweep, of numbers and words that JSON can hold."""
    if config["command"] == SWEEP:
        return report.cell_rows(results.to_dataset().load())
    return (
        report.comparison_rows(results)
        if config["command"] == "compare"
        else runs.rows(config["command"], results)
    )


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table below its title. Cells too wide for the terminal are folded, at spaces if possible."""
    print_title(title)
    lines = [list(row) for row in rows]
    out.print(_table(head, _column_widths([head, *lines]), lines))
    out.print()


def print_rows(
    head: Sequence[str], longest: Sequence[Sequence[str]], title: str = ""
) -> Callable[[Sequence[str]], None]:
    """Print the head of a table; returns a function that prints a row of it, as soon as that is known.

    The longest rows that may come decide how wide the columns are.
    """
    widths = _column_widths([head, *longest])
    print_title(title)
    out.print(_table(head, widths, []))
    return lambda row: out.print(_table(head, widths, [row], show_header=False))


def _table(
    head: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[str]], **options: Any
) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, **options)
    for name, width in zip(head, widths, strict=True):
        table.add_column(Text(name), overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _column_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """The widths of the columns of a table that fits into the terminal."""
    return _widths(lines, out.width - _GAP * (len(lines[0]) - 1))


def _widths(lines: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widths of the columns of a table; where the longest cells do not fit, few are folded."""
    cells = [[_length(cell) for cell in column] for column in zip(*lines, strict=True)]
    words = [
        max((cell_len(word) for cell in column for word in cell.split()), default=0)
        for column in zip(*lines, strict=True)
    ]
    widths = [max(column) for column in cells]

    def cost(column: int) -> tuple[int, int]:
        return sum(length >= widths[column] for length in cells[column]), -widths[column]

    for least in (words, [1] * len(widths)):
        while sum(widths) > room and (wide := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[min(wide, key=cost)] -= 1
    return widths


def _length(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def print_title(title: str) -> None:
    """Print the title of a table, if it has one."""
    if title:
        out.print(escape(title), style="italic", highlight=False)


def _title(config: Mapping[str, Any], results: "xr.DataTree") -> str:
    return str(results.attrs.get(runs.DESCRIPTION) or config.get(runs.DESCRIPTION) or "")


def _print_comparison(config: Mapping[str, Any], results: "xr.DataTree") -> None:
    rows = report.comparison_rows(results)
    print_title(_title(config, results))
    for row in rows:
        if said := zl.studies.which_answer(row):
            out.print(f"[bold]{escape(row['noise'])}:[/bold] {escape(said)}", highlight=False)
    out.print()
    lines = report.comparison_table(rows)
    names = [row["noise"].replace("+", "\n+") for row in rows]  # of sums a line for each
    columns = zip(names, *(cells for _, cells in lines), strict=True)
    for some in _side_by_side([max(map(_length, column)) for column in columns]):
        print_table(["", *names[some]], _grouped([(label, cells[some]) for label, cells in lines]))
    for row in rows:
        for said in report.remarks(row):
            out.print(f"{escape(row['noise'])}: {escape(said)}", highlight=False)
    for row in rows:
        if row.get("diverged_at") is not None:
            messages.print(
                f"[red]{escape(row['noise'])}: training diverged at step {row['diverged_at']:,.0f}[/red]; "
                f"the results go to step {row['steps']:,.0f}."
            )


def _side_by_side(widths: Sequence[int]) -> Iterator[slice]:
    """The columns that fit beside each other after the labels; at least one each time."""
    first, taken = 0, 0
    for index, width in enumerate(widths):
        taken += _GAP + width
        if index > first and _LABELS + taken > out.width:
            yield slice(first, index)
            first, taken = index, _GAP + width
    yield slice(first, len(widths))


def _grouped(lines: Sequence[tuple[str, list[str]]]) -> Iterator[list[str]]:
    """Lines with labels such as "regularizer, start" below one that says "regularizer"."""
    for heading, parts in report.grouped(lines):
        if heading:
            yield [heading, *[""] * len(parts[0][1])]
        yield from ([f"  {label}" if heading else label, *cells] for label, cells in parts)


def _print_paths(config: Mapping[str, Any], results: "xr.DataTree") -> None:
    groups = {
        name: results.children[name].to_dataset(inherit=False)
        for name in config["noise"]
        if name in results.children
    }
    after = {name: _after(config, each) for name, each in groups.items()}
    at_the_end, *others = dict.fromkeys(after.values())
    lines, endings = [], []
    for name, each in groups.items():
        beside = [name, *([f"  {after[name]}"] if others else [])]
        for index, (label, (start, end, error)) in enumerate(runs.ends(each).items()):
            before = beside[index] if index < len(beside) else ""
            numbers = (report.in_table(start, digits=4), report.in_table(end, error, digits=4))
            lines.append([before, label, *numbers])
        if "verdict" in each.attrs:
            endings.append(f"{name}: {report.greek(str(each.attrs['verdict']))}")
        if "uncertainty_model" in each:
            endings.append(f"{name}: {report.uncertainty(each)}")
    head = ["noise", "", "start", "at the end" if others else at_the_end]
    print_table(head, lines, _title(config, results))
    for ending in endings:
        out.print(escape(ending), highlight=False)


def _after(config: Mapping[str, Any], path: "xr.Dataset") -> str:
    last = float(path["time"].values[-1])
    return f"after {last:g} of slow time" if config["command"] == "limit" else f"after {last:,.0f} steps"
