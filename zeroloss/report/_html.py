"""Pieces of HTML that every page is made of. What comes from a run is escaped here, and only here."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # the direction of writing
_KINDS = ("non-degenerate", "degenerate", "trivial")


class Page(NamedTuple):
    """What differs between pages. All but `panels` is HTML.

    - `title`: what was run; `subtitle` and `question`: what for.
    - `setup`: one line on how.
    - `body`: everything between the header and the configuration.
    - `panels`: the figures of a `Board`.
    """

    title: str
    subtitle: str
    question: str
    setup: str
    body: str
    panels: list[dict[str, Any]]


class Entry(NamedTuple):
    """One line of a legend: a button that shows or hides the traces of the group `shows`."""

    shows: str
    swatch: str
    name: str


def text(value: object) -> str:
    """Any value as text in HTML, also inside an attribute. Marks that turn what follows are made visible."""
    return escape(_TURNS.sub("\ufffd", str(value)), quote=True)


def embedded(value: object) -> str:
    """JSON inside a script element, where nothing may look like its end, or like a comment's beginning."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """A file that lies beside this module."""
    return files("zeroloss.report").joinpath(name).read_text(encoding="utf-8")


def card(heading: str, tag: str, sentences: Iterable[str], fine: str) -> str:
    """What one noise does: a heading, sentences, and the verdict in fine print. `tag` colours it."""
    kind = tag if tag in _KINDS else "unknown"
    tagged = f' <span class="tag">{text(tag)}</span>' if tag else ""
    return (
        f'<article class="verdict {kind}"><h3>{text(heading)}{tagged}</h3>'
        + paragraphs(sentences)
        + (f'<p class="fine">{text(fine)}</p>' if fine else "")
        + "</article>"
    )


def body(
    *,
    cards: Iterable[str],
    table: str,
    heading: str,
    figures: str,
    reading: str,
    headline: str = "",
    picture: str = "",
    numbers: str = "Numbers",
    hint: str = "",
    more: str = "",
) -> str:
    """The middle of a page: `headline`, a picture, cards, a table, figures, `more`, and how to read them.

    `headline`, `numbers` and `heading`, which are those of the table and of the figures, and `hint`, which is
    on the figures, are text, the others HTML.
    """
    return Template(asset("body.html")).substitute(
        headline=f'<p class="headline">{text(headline)}</p>\n' if headline else "",
        picture=picture,
        cards="\n".join(cards),
        numbers=text(numbers),
        table=table,
        heading=text(heading),
        hint=f"{text(hint)} " if hint else "",
        figures=figures,
        more=more,
        reading=reading,
    )


def paragraphs(texts: Iterable[str]) -> str:
    """Text in paragraphs."""
    return "\n".join(f"<p>{text(each)}</p>" for each in texts)


def table(head: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table with a heading for each column, and one for each line."""
    return grouped_table(head, [("", list(lines))])


def grouped_table(
    head: Sequence[str], groups: Iterable[tuple[str, Sequence[tuple[str, Sequence[str]]]]]
) -> str:
    """The same of lines in groups, each below its heading, which may be empty."""
    columns = "".join(f'<th scope="col">{text(each)}</th>' for each in head)
    bodies = []
    for heading, lines in groups:
        rows = [f'<tr class="group"><th scope="rowgroup" colspan="{len(head) + 1}">{text(heading)}</th></tr>']
        rows = rows if heading else []
        rows += [
            f'<tr><th scope="row">{text(label)}</th>'
            + "".join(f"<td>{text(cell)}</td>" for cell in cells)
            + "</tr>"
            for label, cells in lines
        ]
        bodies.append("<tbody>\n" + "\n".join(rows) + "\n</tbody>")
    return f"<thead><tr><td></td>{columns}</tr></thead>\n" + "\n".join(bodies)


def legend(entries: Iterable[Entry]) -> str:
    """The names of the lines of a section; `page.js` makes them show and hide."""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-shows="{text(entry.shows)}">'
        f'<span class="swatch {text(entry.swatch)}"></span>{text(entry.name)}</button>'
        for entry in entries
    )
    return f'<div class="legend" role="group" aria-label="Show or hide">{buttons}</div>'


class Board:
    """Collects the interactive figures of a page; `figures` are what Plotly and `page.js` draw."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def panel(self, strong: str, weak: str, description: str, figure: dict[str, Any]) -> str:
        """The place of a figure, with a caption, and words for who cannot see it.

        A figure with `frames` gets a slider.
        """
        index = len(self.figures)
        self.figures.append(figure)
        slider = ""
        if "frames" in figure:
            labels = figure["frames"]["labels"]
            slider = (
                f'<label class="slider"><span>along the flow: <output>{text(labels[0])}</output></span>'
                f'<input type="range" min="0" max="{len(labels) - 1}" value="0" '
                f'aria-valuetext="{text(labels[0])}"></label>'
            )
        height = figure["layout"]["height"]
        return (
            f"<figure><figcaption><b>{text(strong)}</b> {text(weak)}</figcaption>"
            f'<div class="plot" style="height: {height}px" id="panel-{index}" role="img" '
            f'aria-label="{text(description)}"></div>{slider}</figure>'
        )


def clock(board: Board) -> str:
    """The choice between slow time and training steps, where there is any."""
    if not any("steps_per_unit" in each for each in board.figures):
        return ""
    choices = "".join(
        f'<label><input type="radio" name="clock" value="{value}"{checked}> {words}</label>'
        for value, checked, words in (("slow", " checked", "slow time t"), ("steps", "", "training steps k"))
    )
    return f'<fieldset class="clock"><legend>Drawn over</legend>{choices}</fieldset>'


def section(heading: str, entries: Iterable[Entry], panels: Iterable[str]) -> str:
    """Panels that share a legend."""
    return (
        f'<section class="quantity"><h3>{text(heading)}</h3>{legend(entries)}'
        f'<div class="panels">{"".join(panels)}</div></section>'
    )


def picture(pngs: Mapping[str, bytes], description: str) -> str:
    """A picture that is part of the page.

    `pngs` holds it in several looks, by the classes that `page.css` chooses from: "light wide" for paper and
    where there are no others, and "dark wide", "light narrow", "dark narrow".
    """
    images = "".join(
        f'<img class="{text(theme)}" alt="{text(description)}" '
        f'src="data:image/png;base64,{b64encode(png).decode("ascii")}">'
        for theme, png in pngs.items()
    )
    return f'<figure class="picture">{images}</figure>'


def configuration(config: Mapping[str, Any]) -> str:
    """The configuration of a run, and the versions of what computed it, as a list of terms."""
    versions = config.get("versions") or {}
    listed = {name: value for name, value in config.items() if name != "versions"}
    lines = {**listed, **{f"{name} (version)": value for name, value in versions.items()}}
    return "\n".join(
        f"<dt>{text(name)}</dt><dd>"
        f"{text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}</dd>"
        for name, value in lines.items()
    )
