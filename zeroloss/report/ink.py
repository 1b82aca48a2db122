"""What all static figures have in common: colours, axes and how they are saved."""

import re
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from zeroloss.files import replacing

# Okabe and Ito's palette, legible to the colour-blind.
TRAINING, LIMIT, PREDICTION, ALARM = "#0072B2", "#1a1a1a", "#009E73", "#D55E00"
NOISES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a")
MUTED, GRID = "#5a5a5a", "#e4e4e4"
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def lighten(axes: Axes) -> None:
    """A light grid, muted ticks, and no frame at the top and right."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=MUTED, labelcolor=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as what the suffix of `path` says, such as PNG or PDF; returns `path`."""
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
        drawn = BytesIO()
        FigureCanvasAgg(figure).print_figure(drawn, dpi=180, facecolor="white", format=path.suffix[1:])
    with replacing(path) as file:
        file.write(drawn.getvalue())
    return path


def stem(name: str, taken: set[str]) -> str:
    """A name for the file of a noise that is not in `taken`, to which it is added."""
    chosen = re.sub(r"[^A-Za-z0-9.+_-]+", "_", name).strip("_.") or "noise"
    while chosen in taken:
        chosen += "_"
    taken.add(chosen)
    return chosen
