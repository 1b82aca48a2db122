"""The page a person looks at: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from zeroloss import runs
from zeroloss.errors import RunError
from zeroloss.report.figures import write_figures
from zeroloss.report.notation import greek
from zeroloss.report.plots import description, plot, reference_role
from zeroloss.report.series import DISTANCE, Panel, panels, table_rows, time_axis, windows
from zeroloss.report.words import table, verdict
from zeroloss.runs.folder import FIGURES, REPORT

_Row = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Write the figures and `report.html` of the run in `folder`; returns the path of the page.

    The page holds everything it shows, Plotly included, and opens without a network.

    Raises `RunError` when the folder holds no readable run or cannot be written to.
    """
    folder = Path(folder)
    config, results = runs.read(folder)
    rows, shown = table_rows(results), panels(results)
    figures, specifications = _figures(rows, shown)
    page = Template(_asset("page.html")).substitute(
        title=_text(config.get("problem", "a run")),
        setup=_setup(config, rows),
        verdicts=_verdicts(config, rows),
        table=_table(rows),
        figures=figures,
        configuration=_configuration(config),
        version=_text(config.get("versions", {}).get("zeroloss", "")),
        style=_asset("page.css"),
        panels=_json(specifications),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        script=_asset("page.js"),
    )
    try:
        write_figures(config, results, folder / FIGURES)
        (folder / REPORT).write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error
    return folder / REPORT


def _setup(config: Mapping[str, Any], rows: Sequence[_Row]) -> str:
    parts = [_text(config.get("description", ""))]
    relative = {row.get("step_size_relative") for row in rows} - {None}
    if len(relative) == 1:
        parts.append(f"step size {relative.pop():.3g} / \u03bb<sub>max</sub>")
    replicas = {row.get("replicas") for row in rows} - {None}
    if len(replicas) == 1:
        parts.append(f"{replicas.pop():.0f} training runs for each noise")
    return " \u00b7 ".join(part for part in parts if part)


def _verdicts(config: Mapping[str, Any], rows: Sequence[_Row]) -> str:
    strengths = config.get("strengths") or {}
    return "\n".join(
        f'<article class="verdict {_kind(row)}">'
        f'<h3>{_text(row["noise"])} <span class="tag">{_text(row["regime"])}</span></h3>'
        + "".join(f"<p>{_text(each)}</p>" for each in verdict(row, time_axis(row), strengths))
        + f'<p class="fine">{_text(greek(row.get("verdict") or ""))}</p></article>'
        for row in rows
    )


def _kind(row: _Row) -> str:
    known = ("non-degenerate", "degenerate", "trivial")
    return row["regime"] if row["regime"] in known else "unknown"


def _table(rows: Sequence[_Row]) -> str:
    head = "".join(f'<th scope="col">{_text(row["noise"])}</th>' for row in rows)
    body = "\n".join(
        f'<tr><th scope="row">{_text(label)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, cells in table(rows)
    )
    return f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _figures(rows: Sequence[_Row], shown: Mapping[str, Sequence[Panel]]) -> tuple[str, list[dict[str, Any]]]:
    regimes = {row["noise"]: row["regime"] for row in rows}
    sections, specifications = [], []
    for quantity in shown.values():
        drawn = []
        for panel, limits in zip(quantity, windows(quantity), strict=True):
            drawn.append(
                f"<figure><figcaption><b>{_text(panel.noise)}</b> {_text(regimes[panel.noise])}"
                f'{_unit(panel)}</figcaption><div class="plot" id="panel-{len(specifications)}" role="img" '
                f'aria-label="{_text(description(panel))}"></div></figure>'
            )
            specifications.append(plot(panel, limits))
        label = next((panel.label for panel in quantity if panel.axis.slow), quantity[0].label)
        sections.append(
            f'<section class="quantity"><h3>{_text(label[:1].upper() + label[1:])}</h3>'
            f"{_legend(quantity[0])}"
            f'<div class="panels">{"".join(drawn)}</div></section>'
        )
    return "\n".join(sections), specifications


def _unit(panel: Panel) -> str:
    return ", relative to |w|" if panel.quantity == DISTANCE and not panel.axis.slow else ""


def _legend(panel: Panel) -> str:
    banded = panel.training.error is not None
    second = reference_role(panel)
    entries = (
        ("training", "training", panel.training.name + " \u00b1 2 standard errors")
        if banded
        else ("training", "training line", panel.training.name),
        (second, second, panel.reference.name),
    )
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-shows="{role}">'
        f'<span class="swatch {swatch}"></span>{_text(name)}</button>'
        for role, swatch, name in entries
    )
    return f'<div class="legend" role="group" aria-label="Show or hide">{buttons}</div>'


def _configuration(config: Mapping[str, Any]) -> str:
    versions = config.get("versions") or {}
    listed = {name: value for name, value in config.items() if name != "versions"}
    lines = {**listed, **{f"{name} (version)": value for name, value in versions.items()}}
    return "\n".join(
        f"<dt>{_text(name)}</dt><dd>"
        f"{_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}</dd>"
        for name, value in lines.items()
    )


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _json(value: object) -> str:
    # Inside a script element nothing may look like its end, or like a comment's beginning.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("zeroloss.report").joinpath(name).read_text(encoding="utf-8")
