"""The page of any run: one model, filled into the template `page.html.j2` as one file that needs no other."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from zeroloss.report._chart import DARK, LIGHT, Figure
from zeroloss.report._plotly import plot
from zeroloss.report._text import Lines

_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # marks that turn what follows


class Card(NamedTuple):
    """A box about one noise: `tag` is the verdict, which colours it; `fine` is in fine print."""

    heading: str
    tag: str
    sentences: Sequence[str]
    fine: str


class Table(NamedTuple):
    """A table: the names of its columns, and groups of lines below their headings, which may be ""."""

    heading: str
    head: Sequence[str]
    groups: Sequence[tuple[str, Lines]]


class Section(NamedTuple):
    """A section of text with lists, each below its heading."""

    heading: str
    text: str
    lists: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Page:
    """The contents of a page. All strings are text: the template escapes them.

    - `kind`: of the run; `page.html.j2` has its question, `reading.html.j2` explains it.
    - `setup`: one line on how it was computed. `hint`: on the figures. `nothing`: where there are none.
    """

    kind: str
    title: str
    cards: Sequence[Card]
    table: Table
    heading: str
    figures: Sequence[Figure]
    setup: str = ""
    headline: str = ""
    picture: Figure | None = None
    hint: str = ""
    nothing: str = ""
    more: Section | None = None


def render(page: Page, config: Mapping[str, Any], source: str) -> bytes:
    """The page as HTML, with the configuration of the run and the name of its source."""
    shown = [*([] if page.picture is None else [page.picture]), *page.figures]
    plots = [plot(panel) for figure in shown for panel in figure.panels]
    versions = config.get("versions") or {}
    settings = {name: value for name, value in config.items() if name != "versions"}
    settings |= {f"{name} (version)": value for name, value in versions.items()}
    html = _template().render(
        page=page,
        plots=plots,
        clock=any("steps_per_unit" in each for each in plots),
        settings={name: _as_text(value) for name, value in settings.items()},
        version=version("zeroloss"),
        source=source,
    )
    return html.encode()


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("zeroloss.report", ""), autoescape=True, finalize=_visible,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals |= {
        "light": LIGHT,
        "dark": DARK,
        # These three are the package's, and go in as they are.
        "style": Markup(_asset("page.css")),
        "script": Markup(_asset("page.js")),
        "plotly": Markup(get_plotlyjs().replace("</script", "<\\/script")),
    }
    return environment.get_template("page.html.j2")


def _visible(value: Any) -> Any:
    """Text whose marks that turn the direction of writing are replaced: no text can disguise another."""
    return value if isinstance(value, Markup) else _TURNING.sub("\ufffd", str(value))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _asset(name: str) -> str:
    return files("zeroloss.report").joinpath(name).read_text(encoding="utf-8")
