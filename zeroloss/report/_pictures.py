"""The picture of a run that only its problem can have: the curve, the coefficients, the function learned.

Made of the parameters saved in the run, and of the problem, built again from its name and options.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree

from zeroloss import problems
from zeroloss.errors import InputError
from zeroloss.problems import Problem, coefficients, least_norm, product
from zeroloss.report._chart import (
    ENDS,
    LIMIT,
    START,
    TRAINING,
    Axis,
    Entry,
    Figure,
    HeatMap,
    Panel,
    Series,
    Style,
    in_rows,
    path,
)
from zeroloss.report._text import number
from zeroloss.runs import load

PICTURE = "picture"

_COLUMNS = 3
_MOMENTS = 5  # times at which a function is drawn
_UNITS, _MOST_NOISES = 12, 3  # of a network
_BINS = 36
_LARGEST_VALUE = 1e100  # no axis can show more
_LARGEST_DATA = 3 * 10**7  # numbers in the data of a problem
_MOST_LAYERS = 100
_EXAMPLES = ("examples", "measurements")
_SIZES = ("rows", "columns", "dimension")  # of one example, in all problems
_DENSITY = 3.5  # length of a density of 1, drawn outwards from a curve
_PATH, _CURVE, _TRUTH = Style("limit", 2.5), Style("set", 1.5), Style("truth", 5, opacity=0.4)
_TRAINED = ENDS["training"]


class _Run(NamedTuple):
    """The trajectories under one noise. Every array of parameters has leading axes `[replica, time]`."""

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


def picture(config: Mapping[str, Any], results: xr.DataTree) -> Figure | None:
    """The picture of a run, or None where its problem has none or is not that of the parameters saved.

    **Arguments:**

    - `config`, `results`: the run, as `zeroloss.runs.read` gives it. Of the config, `problem` is its name and
      `options` its options; of the results, groups `<noise>/limit` and perhaps `<noise>/training_0` with all
      parameters.
    """
    name = config.get("problem")
    if name not in _PICTURES:
        return None
    options = dict(config.get("options") or {})
    if not _is_small(name, options, results):
        return None
    try:
        start = jax.eval_shape(lambda: problems.load(name, **options).start)
    except InputError:  # of another version
        return None
    if not all(_fits(group, start) for group in results.children.values()):
        return None
    problem = problems.load(name, **options)
    order = [noise for noise in config.get("noise", ()) if noise in results.children]
    groups = {
        noise: results[noise] for noise in order or results.children if "limit" in results[noise].children
    }
    each = []
    for noise, group in groups.items():
        limit = group["limit"].to_dataset()
        training = group["training_0"].to_dataset() if "training_0" in group else None
        trained = None if training is None else _parameters(training, problem.start)
        each.append(_Run(noise, limit["time"].values, _parameters(limit, problem.start), trained))
    heading, draw = _PICTURES[name]
    if not each:
        return None
    figure = draw(problem, each)
    used = {series.key for panel in figure.panels for series in panel.series if isinstance(series, Series)}
    legend = [entry for entry in figure.legend if entry.key in used]
    return replace(figure, name=PICTURE, heading=heading, legend=legend)


def _is_small(name: str, options: Mapping[str, Any], results: xr.DataTree) -> bool:
    """Whether the data of a problem, whose size its parameters do not bound, can be made and drawn.

    An example has as many numbers as its sizes say, times the number of examples; fewer examples than times
    saved do not matter.
    """
    known = inspect.signature(problems.PROBLEMS[name]).parameters
    asked = {option: options.get(option, each.default) for option, each in known.items()}
    most = 1 + _LARGEST_DATA
    sizes = {option: min(value, most) for option, value in asked.items() if isinstance(value, int | float)}
    limits = (group.children["limit"] for group in results.children.values() if "limit" in group.children)
    times = max((node.sizes.get("time", 1) for node in limits), default=1)
    examples = max(times, *(sizes.get(option, 1) for option in _EXAMPLES))
    numbers = math.prod((examples, *(sizes.get(option, 1) for option in _SIZES)))
    layers = asked.get("widths", ())
    return numbers <= _LARGEST_DATA and not (isinstance(layers, Sized) and len(layers) > _MOST_LAYERS)


def _fits(group: xr.DataTree, start: PyTree) -> bool:
    """Whether a group holds finite parameters of the shapes of the problem, or none at all."""
    if "limit" not in group.children:
        return True
    shapes = {_name(where): leaf.shape for where, leaf in jax.tree_util.tree_leaves_with_path(start)}
    for node in (group.children[name] for name in ("limit", "training_0") if name in group.children):
        lead = ("replica", "time") if "replica" in node.sizes else ("time",)
        for name, shape in shapes.items():
            saved = node.variables.get(name)
            if saved is None or saved.dtype.kind != "f" or saved.dims[: len(lead)] != lead:
                return False
            if saved.shape[len(lead) :] != shape:
                return False
        load(node, parameters=True)
        values = [node.variables[name].values for name in shapes]
        if node.name == "limit" and not all((np.abs(each) < _LARGEST_VALUE).all() for each in values):
            return False
    return True


def _name(where: Any) -> str:
    """The name of a leaf of the parameters in `zeroloss.Trajectory.to_xarray`."""
    return "params" + jax.tree_util.keystr(where).replace("/", ".")


def _parameters(dataset: xr.Dataset, like: PyTree) -> PyTree[np.ndarray]:
    """The parameters saved in a dataset, with the leading axes `[replica, time]`."""

    def saved(where: Any, _: Any) -> np.ndarray:
        values = dataset[_name(where)]
        return values.values if "replica" in values.dims else values.values[None]

    return jax.tree_util.tree_map_with_path(saved, like)


def _figure(runs: Sequence[_Run], draw: Callable[[_Run], Panel], *legend: Entry) -> Figure:
    """A panel for each noise, with its name above."""
    panels = [replace(draw(run), title=run.noise) for run in runs]
    return Figure("", "", in_rows(panels, _COLUMNS), legend)


def _hyperbola(problem: Problem, runs: Sequence[_Run]) -> Figure:
    largest = 1.2 * max(np.abs(run.limit).max() for run in runs)
    s = np.linspace(-np.log(largest), np.log(largest), 200)
    x, y = (Axis(title, (0.0, float(largest))) for title in ("w₁", "w₂"))

    def draw(run: _Run) -> Panel:
        curve = Series(np.exp(s), np.exp(-s), _CURVE, "set")
        text = f"The limit and the ends of training on the hyperbola under {run.noise}."
        return Panel("", text, [curve, *_on_curve(run)], x, y, equal=True, height=330)

    return _figure(runs, draw, *_CURVE_LEGEND)


def _ellipse(problem: Problem, runs: Sequence[_Run]) -> Figure:
    angle = np.linspace(0, 2 * np.pi, 400)
    around = np.stack([2 * np.cos(angle), np.sin(angle)], axis=1)
    slope = np.sqrt(4 * np.sin(angle) ** 2 + np.cos(angle) ** 2)  # |grad g| = ds/da
    exact = _outwards(angle, 1 / (2 * np.pi * slope))

    def draw(run: _Run) -> Panel:
        series = [path(around, _CURVE, "set")]
        if run.limit.shape[0] == 1:
            series += _on_curve(run)
        else:
            series = [
                path(exact, Style("truth").area(0.25), "exact"),
                path(around, Style("paper").area(1.0), "exact"),
                *series,
                *_densities(run),
                path(run.limit[0, :1], START, "start", "start"),
            ]
        text = f"Limit and training on the ellipse under {run.noise}."
        return Panel("", text, series, Axis("w₁", (-2.8, 2.8)), Axis("w₂", (-1.75, 1.75)), equal=True)

    densities = [
        Entry("exact", "exact density", [Style("truth").area(0.25)]),
        Entry("limit-density", "density of the limit", [Style("limit", 1.2)]),
        Entry("training-density", "density of training", [Style("training", 1.2)]),
    ]
    return _figure(runs, draw, *_CURVE_LEGEND, *densities)


def _on_curve(run: _Run) -> list[Series]:
    """The limit as a line from a dot to a dot, or its ends, and where the training runs ended."""
    series = []
    if run.limit.shape[0] == 1:
        series.append(path(run.limit[0], _PATH, "limit"))
        series.append(path(run.limit[0, -1:], LIMIT.points(size=10), "limit-end", "the limit ends"))
    else:
        series.append(path(run.limit[:, -1], replace(LIMIT.points(), opacity=0.3), "limit-end"))
    series.append(path(run.limit[0, :1], START, "start", "start"))
    if run.training is not None:
        series.append(path(run.training[:, -1], _TRAINED, "training", "training ends"))
    return series


_CURVE_LEGEND = (
    Entry("set", "points of zero loss", [_CURVE]),
    Entry("limit", "limit", [_PATH]),
    Entry("limit-end", "end of the limit", [LIMIT.points(size=10)]),
    Entry("start", "start", [START]),
    Entry("training", "ends of training", [_TRAINED]),
)


def _densities(run: _Run) -> list[Series]:
    """Densities of limit and training with respect to arc length, outwards from the ellipse.

    With w = (2 cos a, sin a) the exact density, 1 / |grad g|, is uniform in a: a histogram in a, divided by
    ds/da, compares.
    """
    series = []
    for kind, params in (("limit", run.limit), ("training", run.training)):
        if params is None:
            continue
        late = params[:, params.shape[1] // 2 :].reshape(-1, 2)
        counts, edges = np.histogram(np.arctan2(late[:, 1], late[:, 0] / 2), _BINS, (-np.pi, np.pi))
        heights = np.repeat(counts / (len(late) * np.diff(edges)), 20)
        fine = np.linspace(-np.pi, np.pi, len(heights))
        outline = _outwards(fine, heights / np.sqrt(4 * np.sin(fine) ** 2 + np.cos(fine) ** 2))
        series.append(path(outline, Style(kind, 1.2), f"{kind}-density"))
    return series


def _outwards(angle: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Points at a height above the ellipse, along its outer normal."""
    normal = np.stack([np.cos(angle), 2 * np.sin(angle)], axis=1)
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.stack([2 * np.cos(angle), np.sin(angle)], axis=1) + _DENSITY * height[:, None] * normal


def _sparse_regression(problem: Problem, runs: Sequence[_Run]) -> Figure:
    truth = np.asarray(problem.truth)
    order = np.argsort(-np.abs(truth), kind="stable")
    place, support = np.arange(len(truth), dtype=float), truth[order] != 0
    before, after = Style("set").points("circle", 6), Style("limit").points("circle", 6)
    ring = Style("truth").points("circle-open", 12)

    def draw(run: _Run) -> Panel:
        start, end = (np.asarray(coefficients(run.limit_at(time)))[order] for time in (0, -1))
        gaps = np.full_like(end, np.nan)
        stems = np.stack([0 * end, end, gaps], axis=1).ravel()
        series = [
            Series(place, start, before, "start", "start %{y:.3~g}"),
            Series(np.repeat(place, 3), stems, Style("limit", 1.5), "limit-end"),
            Series(place, end, after, "limit-end", "limit %{y:.3~g}"),
        ]
        trained = run.trained()
        if trained is not None:
            reached = np.asarray(coefficients(trained))[order]
            series.append(Series(place, reached, _TRAINED, "training", "training %{y:.3~g}"))
        series.append(Series(place[support], truth[order][support], ring, "truth", "truth %{y:.3~g}"))
        text = f"Coefficients at the end of the limit and of training, and the truth, under {run.noise}."
        return Panel("", text, series, Axis("coefficient"), Axis("value"), header="coefficient %{x}")

    return _figure(
        runs, draw, Entry("start", "start", [before]), Entry("limit-end", "end of the limit", [after]),
        Entry("training", "end of training", [_TRAINED]), Entry("truth", "truth, where not zero", [ring]),
    )  # fmt: skip


def _matrices(problem: Problem, runs: Sequence[_Run]) -> Figure:
    """Above, the truth and the matrix at the end; below, the start, and the singular values on the way."""
    runs, truth = runs[:_COLUMNS], np.asarray(problem.truth)
    bound = float(np.abs(truth).max())
    true_values = np.linalg.svd(truth, compute_uv=False)
    true_values = true_values[true_values > 1e-9 * true_values[0]]

    def image(title: str, matrix: Any) -> Panel:
        return Panel(title, f"Entries of the matrix: {title}.", [HeatMap(np.asarray(matrix), bound)])

    def spectrum(run: _Run) -> Panel:
        along = run.limit["left"][0] @ np.swapaxes(run.limit["right"][0], -1, -2)
        values = np.linalg.svd(along, compute_uv=False)
        ends = run.times[[0, -1]].astype(float)
        series = [Series(ends, np.full(2, value), _TRUTH, "truth") for value in true_values]
        series += [Series(run.times, each, Style("limit", 1.6), "limit", "%{y:.3~g}") for each in values.T]
        y = Axis.logarithmic("singular values", np.maximum(values, 1e-6), true_values)
        return Panel(run.noise, f"Singular values under {run.noise}.", series, Axis("slow time t"), y)

    ends = [image(f"{run.noise}, end", product(run.limit_at(-1))) for run in runs]
    rows = [
        [image("truth", truth), *ends],
        [image("start", product(runs[0].limit_at(0))), *map(spectrum, runs)],
    ]
    return Figure(
        "", "", rows, [Entry("truth", "truth", [_TRUTH]), Entry("limit", "limit", [Style("limit", 1.6)])]
    )


def _phase_retrieval(problem: Problem, runs: Sequence[_Run]) -> Figure:
    inputs = problem.problem.inputs  # pyright: ignore[reportAttributeAccessIssue]
    before = Style("muted").points("circle-open", 9)

    def draw(run: _Run) -> Panel:
        start, end, trained = run.limit_at(0), run.limit_at(-1), run.trained()
        exact = np.asarray(least_norm(start, inputs))
        bound = 1.1 * float(np.abs(np.concatenate([exact, start])).max())
        diagonal = np.array([-bound, bound])
        series = [
            Series(diagonal, diagonal, _TRUTH, "equal"),
            Series(exact, np.asarray(start), before, "start", "start %{y:.3~g}"),
        ]
        if trained is not None:
            series.append(Series(exact, np.asarray(trained), _TRAINED, "training", "training %{y:.3~g}"))
        series.append(Series(exact, np.asarray(end), LIMIT.points(size=6), "limit-end", "limit %{y:.3~g}"))
        x, y = (Axis(f"coordinate of {what}", (-bound, bound)) for what in ("least weighted norm", "w"))
        text = f"Coordinates at the end against those of least weighted norm under {run.noise}."
        return Panel("", text, series, x, y, equal=True, height=330)

    return _figure(
        runs, draw, Entry("equal", "equal", [_TRUTH]), Entry("start", "start", [before]),
        Entry("limit-end", "end of the limit", [LIMIT.points(size=6)]),
        Entry("training", "end of training", [_TRAINED]),
    )  # fmt: skip


def _regression_1d(problem: Problem, runs: Sequence[_Run]) -> Figure:
    least_squares: Any = problem.problem
    line = jnp.linspace(-1.1, 1.1, 441)
    # One point after another, for a network may be as wide as the parameters that are saved.
    model = jax.jit(lambda params: jax.lax.map(lambda x: least_squares.model(params, x[None])[0], line))
    x, dotted = np.asarray(line), replace(TRAINING, width=1.8, dash="dot")
    inputs, targets = (np.asarray(each).ravel() for each in (least_squares.inputs, least_squares.targets))
    styles = [Style("limit", 2, opacity=opacity) for opacity in np.linspace(0.25, 1.0, _MOMENTS)]

    def draw(run: _Run) -> Panel:
        chosen = _moments(run.times)
        series = []
        for index, style in zip(chosen, styles[-len(chosen) :], strict=True):
            hover = f"t = {number(run.times[index])}: %{{y:.3~g}}"
            series.append(Series(x, np.asarray(model(run.limit_at(index))), style, "limit", hover))
        trained = run.trained()
        if trained is not None:
            series.append(Series(x, np.asarray(model(trained)), dotted, "training", "training %{y:.3~g}"))
        series.append(Series(inputs, targets, LIMIT.points(size=8), "data", "example %{y:.3~g}"))
        times = ", ".join(number(run.times[index]) for index in chosen)
        text = f"The function learned under {run.noise} at the times {times}."
        return Panel("", text, series, Axis("x"), Axis("f(x)"), f"at t = {times}", height=300)

    return _figure(
        runs, draw, Entry("limit", "limit, faint at first", styles[-1:]),
        Entry("training", "end of training", [dotted]), Entry("data", "examples", [LIMIT.points(size=8)]),
    )  # fmt: skip


def _moments(times: np.ndarray) -> list[int]:
    """A few of the times saved, ever further apart, for fast changes come early."""
    wanted = np.concatenate([[0.0], times[-1] * np.logspace(-(_MOMENTS - 2), 0, _MOMENTS - 1)])
    return sorted({int(np.argmin(np.abs(times - time))) for time in wanted})


def _digits(problem: Problem, runs: Sequence[_Run]) -> Figure:
    """The weights into the hidden units that change most, as images, before and after."""

    def images(params: PyTree) -> np.ndarray:
        return np.asarray(params[0]["weights"]).T.reshape(-1, 8, 8)

    def change(run: _Run) -> np.ndarray:
        return np.linalg.norm(images(run.limit_at(-1)) - images(run.limit_at(0)), axis=(1, 2))

    moving = sorted(runs, key=lambda run: -change(run).max())[:_MOST_NOISES]
    units = np.argsort(-change(moving[0]))[:_UNITS]
    rows = {"start": images(moving[0].limit_at(0))[units]}
    rows |= {run.noise: images(run.limit_at(-1))[units] for run in moving}
    bound = float(np.abs(rows["start"]).max())

    def panel(title: str, weights: np.ndarray) -> Panel:
        framed = np.pad(weights, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
        mosaic = np.concatenate(list(framed), axis=1)[:, :-1]
        return Panel(title, f"Weights of hidden units: {title}.", [HeatMap(mosaic, bound)], height=130)

    return Figure("", "", [[panel(title, weights)] for title, weights in rows.items()])


_PICTURES: dict[str, tuple[str, Callable[[Problem, Sequence[_Run]], Figure]]] = {
    "digits": ("Weights of the hidden units that change most", _digits),
    "ellipse": ("On the ellipse", _ellipse),
    "hyperbola": ("On the hyperbola", _hyperbola),
    "matrix_completion": ("The matrix and its singular values", _matrices),
    "matrix_sensing": ("The matrix and its singular values", _matrices),
    "phase_retrieval": ("Coordinates against those of least weighted norm", _phase_retrieval),
    "regression_1d": ("The function learned", _regression_1d),
    "sparse_regression": ("Coefficients", _sparse_regression),
}
