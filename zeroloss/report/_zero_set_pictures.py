"""A picture of a run that only its problem can have: the curve, the coefficients, the function learned.

Drawn from the parameters saved in the run, with the problem built again from its name and options.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zeroloss import problems
from zeroloss.errors import InputError
from zeroloss.problems import Problem
from zeroloss.problems._matrix_sensing import product
from zeroloss.problems._phase_retrieval import least_norm
from zeroloss.problems._sparse_regression import coefficients
from zeroloss.report._colors import LIGHT, Theme, lighten
from zeroloss.report._numbers import number
from zeroloss.runs._schema import load

_COLUMNS = 3
_MOMENTS = 5  # times at which a function is drawn
_UNITS, _UNITS_IF_NARROW = 12, 5
_ROWS_OF_UNITS = 4
_BINS = 36
_FAR = 1e100  # beyond anything that can be drawn
_EXAMPLES = ("examples", "measurements")
_SIZES = ("rows", "columns", "dimension")  # of one example, in all problems
_LARGEST = 3 * 10**7  # numbers in the data of a problem
_MOST_LAYERS = 100
_NARROW = 3.9  # inches, which a phone shows at about their size
_SCALE = 3.5  # of densities, drawn outwards from a curve


class _Run(NamedTuple):
    """What one noise did. Every array of parameters has leading axes `[replica, time]`."""

    noise: str
    times: Float[np.ndarray, " time"]
    limit: PyTree[np.ndarray]
    training: PyTree[np.ndarray] | None

    def limit_at(self, time: int) -> PyTree[Array]:
        """The limit at one of the times saved; of a stochastic one, the first replica."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0, time]), self.limit)

    def trained(self) -> PyTree[Array] | None:
        """The mean of the training runs at the last time they saved."""
        if self.training is None:
            return None
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[:, -1].mean(axis=0)), self.training)


def portrait(config: Mapping[str, Any], results: xr.DataTree, theme: Theme = LIGHT) -> Figure | None:
    """The picture of a run, or None where its problem has none. See `portraits`."""
    return next(iter(portraits(config, results, [theme])), None)


def portraits(config: Mapping[str, Any], results: xr.DataTree, themes: Sequence[Theme]) -> list[Figure]:
    """The picture of a run in several looks; none where its problem has no picture.

    **Arguments:**

    - `config`, `results`: the run, as `zeroloss.runs.read` gives it. Of the config, `problem` is its name and
      `options` what it was built with; of the results, groups `<noise>/limit` and perhaps
      `<noise>/training_0` with all parameters.
    """
    name = config.get("problem")
    if name not in _PICTURES:
        return []
    options = _options(name, config)
    if not _is_small(name, options, results):
        return []
    try:
        start = jax.eval_shape(lambda: problems.load(name, **options).start)
    except InputError:  # of another version
        return []
    if not all(_fits(group, start) for group in results.children.values()):
        return []
    problem = problems.load(name, **options)
    order = [noise for noise in config.get("noise", ()) if noise in results.children]
    runs = [
        _Run(
            noise,
            group["limit"].to_dataset()["time"].values,
            _parameters(group["limit"].to_dataset(), problem.start),
            _parameters(group["training_0"].to_dataset(), problem.start) if "training_0" in group else None,
        )
        for noise, group in ((noise, results[noise]) for noise in order or results.children)
        if "limit" in group.children
    ]
    figures = []
    for theme in themes if runs else ():
        with rc_context(theme.settings):
            figures.append(_PICTURES[name](problem, runs, theme))
    return figures


def _is_small(name: str, options: Mapping[str, Any], results: xr.DataTree) -> bool:
    """Whether the data of a problem, which its parameters do not bound, can be made, and drawn at all times.

    There are as many numbers in an example as its sizes say, and as many examples as there are; fewer than
    the times saved do not matter.
    """
    known = inspect.signature(problems.PROBLEMS[name]).parameters
    asked = {option: options.get(option, each.default) for option, each in known.items()}
    beyond = 1 + _LARGEST
    sizes = {option: min(value, beyond) for option, value in asked.items() if isinstance(value, int | float)}
    limits = (group.children["limit"] for group in results.children.values() if "limit" in group.children)
    times = max((node.sizes.get("time", 1) for node in limits), default=1)
    examples = max(times, *(sizes.get(option, 1) for option in _EXAMPLES))
    numbers = math.prod((examples, *(sizes.get(option, 1) for option in _SIZES)))
    layers = asked.get("widths", ())
    return numbers <= _LARGEST and not (isinstance(layers, Sized) and len(layers) > _MOST_LAYERS)


def _fits(group: xr.DataTree, start: PyTree) -> bool:
    """Whether a group holds parameters like those at the start of the problem, or none at all."""
    if "limit" not in group.children:
        return True
    for node in (group.children[name] for name in ("limit", "training_0") if name in group.children):
        lead = ("replica", "time") if "replica" in node.sizes else ("time",)
        every = {_name(where): leaf.shape for where, leaf in _leaves(start)}
        for name, shape in every.items():
            saved = node.variables.get(name)
            if saved is None or saved.dtype.kind != "f" or saved.dims[: len(lead)] != lead:
                return False
            if saved.shape[len(lead) :] != shape:
                return False
        load(node, parameters=True)
        if node.name == "limit" and not all(
            (np.abs(node.variables[name].values) < _FAR).all() for name in every
        ):
            return False
    return True


def _leaves(params: PyTree) -> list[Any]:
    return jax.tree_util.tree_leaves_with_path(params)


def _name(where: Any) -> str:
    """What `zeroloss.Trajectory.to_xarray` calls a leaf of the parameters."""
    return "params" + jax.tree_util.keystr(where).replace("/", ".")


def _options(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the problem was built with; in runs without `options`, width, examples and seed at the top."""
    if config.get("options") is not None:
        return dict(config["options"])
    flat = {"widths": config.get("width"), "examples": config.get("examples"), "seed": config.get("seed")}
    known = inspect.signature(problems.PROBLEMS[name]).parameters
    return {option: value for option, value in flat.items() if option in known and value is not None}


def _parameters(dataset: xr.Dataset, like: PyTree) -> PyTree[np.ndarray]:
    """The parameters saved in a dataset, as `zeroloss.Trajectory.to_xarray` names them."""

    def saved(where: Any, _: Any) -> np.ndarray:
        values = dataset[_name(where)]
        return values.values if "replica" in values.dims else values.values[None]

    return jax.tree_util.tree_map_with_path(saved, like)


def _hyperbola(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    largest = 1.2 * max(np.abs(run.limit).max() for run in runs)
    s = np.linspace(-np.log(largest), np.log(largest), 200)
    figure, grid = _panels(runs, 3.1, theme)
    for axes, run in zip(grid, runs, strict=True):
        axes.plot(np.exp(s), np.exp(-s), color=theme.curve, linewidth=1.5, zorder=1)
        _draw_path(axes, run, theme)
        axes.set_aspect("equal")
        axes.set_xlim(0, largest)
        axes.set_ylim(0, largest)
    _legend(figure, grid, theme)
    return figure


def _ellipse(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    angle = np.linspace(0, 2 * np.pi, 400)
    figure, grid = _panels(runs, 2.7, theme)
    for axes, run in zip(grid, runs, strict=True):
        axes.plot(2 * np.cos(angle), np.sin(angle), color=theme.curve, linewidth=1.5, zorder=1)
        if run.limit.shape[0] > 1:
            _draw_density(axes, run, angle, theme)
        else:
            _draw_path(axes, run, theme)
        axes.set_aspect("equal")
        axes.set_xlim(-2.8, 2.8)
        axes.set_ylim(-1.75, 1.75)
    _legend(figure, grid, theme)
    return figure


def _draw_path(axes: Axes, run: _Run, theme: Theme) -> None:
    """The limit as a line from a dot to a dot, and where the training runs ended."""
    if run.limit.shape[0] == 1:
        axes.plot(*run.limit[0].T, color=theme.limit, linewidth=2.5, label="limit")
        axes.plot(*run.limit[0, -1], "o", color=theme.limit, markersize=8, label="end of the limit")
    else:
        axes.plot(
            *run.limit[:, -1].T, "o", color=theme.limit, alpha=0.25, markersize=5, label="ends of the limit"
        )
    axes.plot(
        *run.limit[0, 0], "o", color=theme.paper, markeredgecolor=theme.limit, markersize=8, label="start"
    )
    if run.training is not None:
        ends = run.training[:, -1]
        axes.plot(ends[:, 0], ends[:, 1], "x", color=theme.training, markersize=6, label="ends of training")


def _draw_density(axes: Axes, run: _Run, angle: np.ndarray, theme: Theme) -> None:
    """Densities with respect to arc length, outwards: exact, 1 / |grad g|, and of what was sampled.

    With w = (2 cos a, sin a) the exact one is uniform in a, so a histogram in a divided by ds/da compares.
    """
    slope = np.sqrt(4 * np.sin(angle) ** 2 + np.cos(angle) ** 2)  # |grad g| = ds/da
    edge = _outwards(angle, 1 / (2 * np.pi * slope))
    axes.fill(edge[0], edge[1], color=theme.truth, alpha=0.25, linewidth=0, label="exact density", zorder=0)
    axes.fill(2 * np.cos(angle), np.sin(angle), color=theme.paper, linewidth=0, zorder=0.5)
    samples = (("limit", run.limit, theme.limit), ("training", run.training, theme.training))
    for name, params, color in samples:
        if params is None:
            continue
        late = params[:, params.shape[1] // 2 :].reshape(-1, 2)
        counts, edges = np.histogram(np.arctan2(late[:, 1], late[:, 0] / 2), _BINS, (-np.pi, np.pi))
        heights = np.repeat(counts / (len(late) * np.diff(edges)), 20)
        fine = np.linspace(-np.pi, np.pi, len(heights))
        height = heights / np.sqrt(4 * np.sin(fine) ** 2 + np.cos(fine) ** 2)
        axes.plot(*_outwards(fine, height), color=color, linewidth=1.2, label=f"density of {name}")
    axes.plot(
        *run.limit[0, 0], "o", color=theme.paper, markeredgecolor=theme.limit, markersize=8, label="start"
    )


def _outwards(angle: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Points at a height above the ellipse, along its outer normal."""
    normal = np.stack([np.cos(angle), 2 * np.sin(angle)])
    normal = normal / np.linalg.norm(normal, axis=0)
    return np.stack([2 * np.cos(angle), np.sin(angle)]) + _SCALE * height * normal


def _sparse_regression(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    truth = np.asarray(problem.truth)
    order = np.argsort(-np.abs(truth), kind="stable")
    place = np.arange(len(truth))
    figure, grid = _panels(runs, 2.6, theme)
    for axes, run in zip(grid, runs, strict=True):
        start, end = (np.asarray(coefficients(run.limit_at(time)))[order] for time in (0, -1))
        axes.plot(place, start, ".", color=theme.curve, markersize=5, label="start")
        axes.vlines(place, 0, end, color=theme.limit, linewidth=1.2)
        axes.plot(place, end, ".", color=theme.limit, markersize=5, label="end of the limit")
        trained = run.trained()
        if trained is not None:
            reached = np.asarray(coefficients(trained))[order]
            axes.plot(place, reached, "x", color=theme.training, markersize=4, label="end of training")
        support = truth[order] != 0
        axes.plot(
            place[support], truth[order][support], "o", color="none", markeredgecolor=theme.truth,
            markersize=9, markeredgewidth=1.6, label="truth, where not zero",
        )  # fmt: skip
        axes.set_xlabel("coefficient", fontsize=9.5)
    _legend(figure, grid, theme)
    return figure


def _matrices(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    """Above, the truth and the matrix at the end; below, how the singular values got there."""
    runs = runs[:_COLUMNS]
    truth = np.asarray(problem.truth)
    if theme.narrow:  # the same turned round: the truth and the start at the top
        figure = Figure(figsize=(_NARROW, 2.2 * (len(runs) + 1)), layout="constrained")
        grid = figure.subplots(len(runs) + 1, 2, squeeze=False).T
    else:
        figure = Figure(figsize=(2.9 * (len(runs) + 1), 5.4), layout="constrained")
        grid = figure.subplots(2, len(runs) + 1, squeeze=False)
    start = np.asarray(product(runs[0].limit_at(0)))
    ends = [np.asarray(product(run.limit_at(-1))) for run in runs]
    bound = np.abs(truth).max()
    titles = ["truth", *(f"{run.noise}, end" for run in runs)]
    for axes, title, matrix in zip(grid[0], titles, [truth, *ends], strict=True):
        _image(axes, matrix, bound, title, theme)
    _image(grid[1, 0], start, bound, "start", theme)
    values = np.linalg.svd(truth, compute_uv=False)
    values = values[values > 1e-9 * values[0]]
    for index, (axes, run) in enumerate(zip(grid[1, 1:], runs, strict=True)):
        along = run.limit["left"][0] @ np.swapaxes(run.limit["right"][0], -1, -2)
        every = np.linalg.svd(along, compute_uv=False)
        for value in values:
            axes.axhline(value, color=theme.truth, linewidth=5, alpha=0.35, label="truth")
        for singular in every.T:
            axes.plot(run.times, singular, color=theme.limit, linewidth=1.3, label="limit")
        _style(axes, theme)
        axes.set_yscale("log")
        axes.set_ylim(max(1e-6, 0.5 * every.min()), 2 * every.max())
        axes.set_xlabel("slow time t", fontsize=9.5)
        if index == 0:
            axes.set_ylabel("singular values", fontsize=9.5)
    _legend(figure, list(grid[1, 1:]), theme)
    return figure


def _phase_retrieval(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    inputs = problem.problem.inputs  # pyright: ignore[reportAttributeAccessIssue]
    figure, grid = _panels(runs, 3.1, theme)
    for axes, run in zip(grid, runs, strict=True):
        start, end = run.limit_at(0), run.limit_at(-1)
        exact = np.asarray(least_norm(start, inputs))
        bound = 1.1 * np.abs(np.concatenate([exact, start])).max()
        axes.plot([-bound, bound], [-bound, bound], color=theme.truth, linewidth=4, alpha=0.35, zorder=0)
        axes.plot(
            exact, start, "o", color=theme.paper, markeredgecolor=theme.muted, markersize=6, label="start"
        )
        trained = run.trained()
        if trained is not None:
            axes.plot(exact, trained, "x", color=theme.training, markersize=7, label="end of training")
        axes.plot(exact, end, ".", color=theme.limit, markersize=8, label="end of the limit")
        axes.set_xlabel("coordinate of least weighted norm", fontsize=9.5)
        axes.set_ylabel("coordinate of w" if axes is grid[0] else "", fontsize=9.5)
    _legend(figure, grid, theme)
    return figure


def _regression_1d(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    least_squares: Any = problem.problem
    line = jnp.linspace(-1.1, 1.1, 441)
    # One point after another, for a network may be as wide as the parameters that are saved.
    model = jax.jit(lambda params: jax.lax.map(lambda x: least_squares.model(params, x[None])[0], line))
    figure, grid = _panels(runs, 3.0, theme)
    for axes, run in zip(grid, runs, strict=True):
        chosen = _moments(run.times)
        for index, color in zip(
            chosen, colormaps["viridis"](np.linspace(*theme.sequence, len(chosen))), strict=True
        ):
            value = np.asarray(model(run.limit_at(index)))
            axes.plot(line, value, color=color, linewidth=1.8, label=f"t = {number(run.times[index])}")
        trained = run.trained()
        if trained is not None:
            axes.plot(
                line, np.asarray(model(trained)), color=theme.training, linewidth=1.6, linestyle=":",
                label="end of training",
            )  # fmt: skip
        axes.plot(
            least_squares.inputs, least_squares.targets, "o", color=theme.limit, markersize=5.5, zorder=3
        )
        axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("x", fontsize=9.5)
        axes.set_ylabel("f(x)" if axes is grid[0] else "", fontsize=9.5)
    return figure


def _moments(times: np.ndarray) -> list[int]:
    """A few of the times saved, ever further apart: what happens fast is early."""
    wanted = np.concatenate([[0.0], times[-1] * np.logspace(-(_MOMENTS - 2), 0, _MOMENTS - 1)])
    return sorted({int(np.argmin(np.abs(times - time))) for time in wanted})


def _digits(problem: Problem, runs: Sequence[_Run], theme: Theme) -> Figure:
    """The weights into the first hidden layer as images, before and after: those that changed most."""

    def images(params: PyTree) -> np.ndarray:
        return np.asarray(params[0]["weights"]).T.reshape(-1, 8, 8)

    def change(run: _Run) -> np.ndarray:
        return np.linalg.norm(images(run.limit_at(-1)) - images(run.limit_at(0)), axis=(1, 2))

    moving = sorted(runs, key=lambda run: -change(run).max())[: _ROWS_OF_UNITS - 1]
    units = np.argsort(-change(moving[0]))[: _UNITS_IF_NARROW if theme.narrow else _UNITS]
    rows = [("start", images(moving[0].limit_at(0)))]
    rows += [(f"{run.noise}", images(run.limit_at(-1))) for run in moving]
    size = (_NARROW, 0.8 * len(rows)) if theme.narrow else (0.85 * len(units) + 1.2, 0.95 * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(units), squeeze=False)
    bound = np.abs(rows[0][1][units]).max()
    for line, (title, every) in zip(grid, rows, strict=True):
        for axes, image in zip(line, every[units], strict=True):
            _image(axes, image, bound, "", theme)
        line[0].set_ylabel(title, fontsize=9.5, rotation=0, ha="right", va="center", parse_math=False)
    return figure


_PICTURES: dict[str, Callable[[Problem, Sequence[_Run], Theme], Figure]] = {
    "digits": _digits,
    "ellipse": _ellipse,
    "hyperbola": _hyperbola,
    "matrix_completion": _matrices,
    "matrix_sensing": _matrices,
    "phase_retrieval": _phase_retrieval,
    "regression_1d": _regression_1d,
    "sparse_regression": _sparse_regression,
}


def _panels(runs: Sequence[_Run], height: float, theme: Theme) -> tuple[Figure, list[Axes]]:
    """One panel for each noise, with its name above."""
    lines = len(runs) if theme.narrow else -(-len(runs) // _COLUMNS)
    columns = -(-len(runs) // lines)
    width = _NARROW if theme.narrow else max(3.6 * columns, 5.0)
    figure = Figure(figsize=(width, height * lines + 0.5), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[len(runs) :]:
        axes.set_visible(False)
    for axes, run in zip(grid, runs, strict=False):
        _style(axes, theme)
        axes.set_title(run.noise, fontsize=11, fontweight="bold", parse_math=False)
    return figure, grid[: len(runs)]


def _style(axes: Axes, theme: Theme) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    lighten(axes, theme)


def _image(axes: Axes, matrix: np.ndarray, bound: float, title: str, theme: Theme) -> None:
    colors = theme.diverging
    cmap = colors if isinstance(colors, str) else LinearSegmentedColormap.from_list("diverging", list(colors))
    axes.imshow(matrix, cmap=cmap, vmin=-bound, vmax=bound)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, parse_math=False)


def _legend(figure: Figure, grid: Sequence[Axes], theme: Theme) -> None:
    """One legend for all panels, each name once."""
    named = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        list(named.values()), list(named), loc="outside lower center",
        ncols=min(len(named), 2 if theme.narrow else 4), frameon=False, fontsize=9.5,
    )  # fmt: skip
