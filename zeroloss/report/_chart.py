"""A figure, described once: the page draws it with Plotly, files and papers with Matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from zeroloss.report._text import greek, is_slow

# After Okabe and Ito's palette, legible to the colour-blind; text colours keep a contrast of 4.5.
LIGHT = {
    "paper": "#ffffff", "ink": "#1a1a1a", "muted": "#5c5f66", "rule": "#dcdee2", "soft": "#f5f6f8",
    "training": "#0072b2", "limit": "#1a1a1a", "prediction": "#009e73", "alarm": "#b84a00",
    "set": "#b4b4b4", "truth": "#d55e00", "negative": "#c26a0a", "positive": "#5b3a96",
    "non-degenerate": "#005f94", "degenerate": "#8a3d72", "trivial": "#5c5f66",
    "series-0": "#0072b2", "series-1": "#b84a00", "series-2": "#00805d", "series-3": "#a04383",
    "series-4": "#8a6100", "series-5": "#4b5bb5", "series-6": "#1a1a1a",
}  # fmt: skip
"""The colour of each role on white paper; `page.html.j2` makes them variables of the page's style."""
DARK = {
    "paper": "#14161a", "ink": "#e9eaec", "muted": "#a3a8b1", "rule": "#343841", "soft": "#1d2026",
    "training": "#56b4e9", "limit": "#f2f2f2", "prediction": "#4fcaa4", "alarm": "#f0955a",
    "set": "#666b76", "truth": "#f0955a", "negative": "#f0a24a", "positive": "#b3a2ff",
    "non-degenerate": "#7cc4ef", "degenerate": "#dfa3c9", "trivial": "#a3a8b1",
    "series-0": "#56b4e9", "series-1": "#f0955a", "series-2": "#4fcaa4", "series-3": "#dfa3c9",
    "series-4": "#e0b64a", "series-5": "#9aa8f0", "series-6": "#f2f2f2",
}  # fmt: skip
"""The same where the screen is dark."""

MOST_SERIES = 7
"""How many series have a colour and a marker of their own."""

_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_TICKS = 5
_LARGEST = 1e100  # no axis can show more, or the inverse of it


@dataclass(frozen=True)
class Style:
    """How a series looks.

    - `color`: a role in `LIGHT` and `DARK`, drawn with `opacity`.
    - `width`: of the line in pixels, 0 for none; `dash`: "solid", "dash", "dot" or "dashdot".
    - `marker`: a symbol as Plotly calls it, "" for none; `size` in pixels.
    - `fill`: the opacity of the area that the line encloses, 0 for none.
    """

    color: str
    width: float = 2.0
    dash: str = "solid"
    marker: str = ""
    size: float = 7.0
    opacity: float = 1.0
    fill: float = 0.0

    def thin(self) -> "Style":
        """The same as a thin solid line."""
        return replace(self, width=1.0, dash="solid")

    def area(self, fill: float = 0.22) -> "Style":
        """The same as an area without a border."""
        return replace(self, width=0.0, fill=fill)

    def points(self, marker: str = "circle", size: float = 7.0) -> "Style":
        """The same as markers without a line."""
        return replace(self, width=0.0, marker=marker, size=size)


TRAINING, LIMIT = Style("training", 2.5), Style("limit", 1.8, "dash")
PREDICTION, FAINT = Style("prediction", 2.0, "dashdot"), Style("muted", 1.8, "dot")
STYLES = {"training": TRAINING, "limit": LIMIT, "prediction": PREDICTION}
ENDS = {
    "training": TRAINING.points("x-thin", 8),
    "limit": LIMIT.points(),
    "prediction": PREDICTION.points("diamond"),
}
"""How the places look where these trajectories end."""
START = Style("limit").points("circle-open", 10)


def style_of_series(index: int) -> Style:
    """The style of one of at most `MOST_SERIES` series."""
    return Style(f"series-{index}", 2.2)


def marker_of_series(index: int) -> str:
    """The marker of one of at most `MOST_SERIES` series."""
    return _MARKERS[index % len(_MARKERS)]


@dataclass(frozen=True)
class Series:
    """Numbers against numbers, as a line, an area, or points.

    - `key`: of the legend entry that shows or hides it; "" for none.
    - `hover`: Plotly's template of what is shown where the mouse is; it may use the columns of `details`.
      It holds no text of a run, for Plotly reads HTML in it.
    - `low`, `high`: the ends of error bars. `z`: a third dimension.
    """

    x: np.ndarray
    y: np.ndarray
    style: Style
    key: str
    hover: str = ""
    details: Sequence[np.ndarray] = ()
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    z: np.ndarray | None = None


def path(points: np.ndarray, style: Style, key: str, hover: str = "") -> Series:
    """Points `[number, dimension]` in two or three dimensions."""
    z = points[:, 2] if points.shape[1] == 3 else None
    return Series(points[:, 0], points[:, 1], style, key, hover, z=z)


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, style: Style, key: str) -> Series:
    """The area between two curves, where both are finite."""
    finite = np.isfinite(low) & np.isfinite(high)
    x, low, high = x[finite], low[finite], high[finite]
    return Series(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]), style, key)


def with_error(line: Series, error: np.ndarray | None) -> list[Series]:
    """The line of a mean, on a band of two standard errors where its error is known."""
    if error is None:
        return [line]
    return [band(line.x, line.y - 2 * error, line.y + 2 * error, line.style.area(), line.key), line]


@dataclass(frozen=True)
class HeatMap:
    """A matrix, first row on top, in colours from `-bound` over zero to `bound`; NaN is left blank."""

    values: np.ndarray
    bound: float


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    - `range`: None where the series decide. `ticks` and `labels`: None where the library decides.
    - `steps_per_unit`: of slow time, how many training steps one unit of it is.
    """

    title: str = ""
    range: tuple[float, float] | None = None
    log: bool = False
    ticks: Sequence[float] | None = None
    labels: Sequence[str] = ()
    steps_per_unit: float | None = None
    whole: bool = False

    @classmethod
    def logarithmic(cls, title: str, *shown: np.ndarray) -> "Axis":
        """A logarithmic axis with room around all positive numbers in `shown`, and at most five ticks."""
        low, high = log_range(*shown)
        ticks = log_ticks(low, high)
        return cls(title, (low, high), True, ticks, [tick_label(tick) for tick in ticks])

    @classmethod
    def categorical(cls, title: str, names: Sequence[str]) -> "Axis":
        """An axis on which 0, 1, ... have names."""
        return cls(title, (-0.5, len(names) - 0.5), False, list(range(len(names))), list(names))


def time_axis(units: str) -> tuple[Axis, str]:
    """The axis of time in these units, and the header of its hover texts."""
    if is_slow(units):
        return Axis(greek(units).removesuffix(" steps")), "t = %{x:.3~g}"
    return Axis("training steps k", whole=True), "step %{x:,.0f}"


@dataclass(frozen=True)
class Note:
    """Words in a panel: at the left or right edge, at `y` from 0 to 1, or where `in_data` a value of y."""

    text: str
    color: str
    y: float
    left: bool = False
    in_data: bool = False
    below: bool = True


@dataclass(frozen=True)
class Frames:
    """Values that a slider of the page puts in place of y of one series: `y` is `[frame, point]`."""

    series: int
    labels: Sequence[str]
    y: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One pair of axes with what is drawn in it.

    - `title`, `subtitle`: above it. `description`: for those who cannot see it.
    - `equal`: whether one unit is as long on both axes. `header`: Plotly's template of what is shown above
      all series at the place of the mouse; without one each series is shown alone.
    - `height`: on the page, in pixels.
    """

    title: str
    description: str
    series: Sequence[Series | HeatMap]
    x: Axis = Axis()
    y: Axis = Axis()
    subtitle: str = ""
    notes: Sequence[Note] = ()
    equal: bool = False
    header: str = ""
    frames: Frames | None = None
    height: int = 270


@dataclass(frozen=True)
class Entry:
    """One line of a legend: the styles in it are drawn over each other."""

    key: str
    text: str
    styles: Sequence[Style]


@dataclass(frozen=True)
class Figure:
    """Panels with a common legend: a section of a page, or a file.

    - `name`: of the file, without its suffix. `heading`: on the page. `title`: above it in the file.
    - `rows`: the panels, as a file shows them. The page puts them side by side where there is room.
    - `texts`: of the legend, by key and in its order. A key without a text is its own.
    """

    name: str
    heading: str
    rows: Sequence[Sequence[Panel]]
    texts: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]

    @property
    def legend(self) -> list[Entry]:
        """An entry for each key of the series, with all styles in which these are drawn."""
        styles: dict[str, list[Style]] = {key: [] for key in self.texts}
        for series in (each for panel in self.panels for each in panel.series):
            if isinstance(series, Series) and series.key:
                styles.setdefault(series.key, []).append(series.style)
        used = {key: list(dict.fromkeys(each)) for key, each in styles.items() if each}
        return [Entry(key, self.texts.get(key, key), each) for key, each in used.items()]


def in_rows(panels: Sequence[Panel], columns: int = 4) -> list[Sequence[Panel]]:
    """Panels in rows of about the same length, at most `columns`."""
    count = -(-len(panels) // columns)
    length = -(-len(panels) // count) if count else 1
    return [panels[first : first + length] for first in range(0, len(panels), length)]


def log_range(*shown: np.ndarray) -> tuple[float, float]:
    """The ends of a logarithmic axis with room around all positive numbers in `shown`."""
    values = np.concatenate([np.ravel(each) for each in shown])
    values = values[(values > 1 / _LARGEST) & (values < _LARGEST)]
    if not values.size:
        return 0.1, 10.0
    low, high = np.log10(values.min()), np.log10(values.max())
    room = max(0.06 * (high - low), (0.5 - (high - low)) / 2, 0.02)
    return float(10 ** (low - room)), float(10 ** (high + room))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends of a logarithmic axis, at most five."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    ticks: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _TICKS:
            return ticks
    return ticks[:: -(-len(ticks) // _TICKS)]


def tick_label(value: float) -> str:
    """A round number as an axis shows it."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"
