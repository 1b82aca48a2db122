"""What all static figures have in common: colours, axes and how they are saved."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from zeroloss._files import replacing

# Okabe and Ito's palette, legible to the colour-blind.
TRAINING, LIMIT, PREDICTION, ALARM = "#0072B2", "#1a1a1a", "#009E73", "#D55E00"
NOISES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a")
MUTED, GRID = "#5a5a5a", "#e4e4e4"
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


class Theme(NamedTuple):
    """The colours of a figure, and whether it is for a screen on which panels cannot stand side by side.

    - `diverging`: the colours of negative numbers, zero and positive numbers, or a colormap.
    - `sequence`: the part of viridis that can be told from the paper.
    """

    paper: str = "white"
    text: str = "black"
    limit: str = LIMIT
    training: str = TRAINING
    truth: str = ALARM
    muted: str = MUTED
    grid: str = GRID
    curve: str = "#b4b4b4"
    diverging: str | tuple[str, str, str] = "PuOr"
    sequence: tuple[float, float] = (0.0, 0.9)
    narrow: bool = False

    @property
    def settings(self) -> dict[Any, Any]:
        """Those of Matplotlib, while a figure is made and while it is drawn."""
        colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), self.text)
        ticks = dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), self.muted)
        papers = dict.fromkeys(("axes.facecolor", "figure.facecolor"), self.paper)
        return colors | ticks | papers if self.paper != "white" else {}


LIGHT = Theme()
DARK = Theme(
    paper="#14161a", text="#e9eaec", limit="#f2f2f2", training="#56b4e9", truth="#f0955a", muted="#a3a8b1",
    grid="#343841", curve="#666b76", diverging=("#f0a24a", "#14161a", "#b3a2ff"), sequence=(0.35, 1.0),
)  # fmt: skip
"""The colours of `page.css` where the screen is dark."""


def lighten(axes: Axes, theme: Theme = LIGHT) -> None:
    """A light grid, muted ticks, and no frame at the top and right."""
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=theme.muted, labelcolor=theme.muted)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.muted)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as what the suffix of `path` says, such as PNG or PDF; returns `path`."""
    drawn = rendered(figure, path.suffix[1:])
    with replacing(path) as file:
        file.write(drawn)
    return path


def rendered(figure: Figure, format: str = "png", theme: Theme = LIGHT) -> bytes:
    """A figure as the contents of a file."""
    as_text: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none"}
    settings = theme.settings | as_text
    with rc_context(settings):
        drawn = BytesIO()
        FigureCanvasAgg(figure).print_figure(drawn, dpi=180, facecolor=theme.paper, format=format)
    return drawn.getvalue()


def stem(name: str, taken: set[str]) -> str:
    """A name for the file of a noise that is not in `taken`, to which it is added."""
    chosen = re.sub(r"[^A-Za-z0-9.+_-]+", "_", name).strip("_.") or "noise"
    while chosen in taken:
        chosen += "_"
    taken.add(chosen)
    return chosen
