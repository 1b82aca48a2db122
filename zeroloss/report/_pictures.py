"""The picture of a run that only its problem can have: the curve, the coefficients, the function learned.

Made of the parameters saved in the run, and of the problem, built again from its name and options.
"""

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
_CURVE, _TRUTH, _VALUES = Style("set", 1.5), Style("truth", 5, opacity=0.4), Style("limit", 1.6)


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
    name, options = str(config.get("problem")), dict(config.get("options") or {})
    asked = [noise for noise in config.get("noise", ()) if noise in results.children]
    groups = {noise: results.children[noise] for noise in asked or results.children}
    groups = {noise: group for noise, group in groups.items() if "limit" in group.children}
    times = max((group.children["limit"].sizes.get("time", 1) for group in groups.values()), default=1)
    if name not in _PICTURES or not groups or not _is_small(name, options, times):
        return None
    try:
        start = jax.eval_shape(lambda: problems.load(name, **options).start)
        runs = [_run(noise, group, start) for noise, group in groups.items()]
    except InputError:  # another version's problem, or another problem's parameters
        return None
    heading, draw = _PICTURES[name]
    drawn = draw(problems.load(name, **options), runs)
    rows = drawn if isinstance(drawn[0], list) else in_rows(drawn, _COLUMNS)
    return Figure(PICTURE, heading, rows)


def _is_small(name: str, options: Mapping[str, Any], times: int) -> bool:
    """Whether the data of a problem, whose size its parameters do not bound, can be made and drawn.

    An example has as many numbers as its sizes say, times the number of examples; fewer examples than times
    saved do not matter.
    """
    known = problems.options_of(name)
    asked = {option: options.get(option, each.default) for option, each in known.items()}
    most = 1 + _LARGEST_DATA
    sizes = {option: min(value, most) for option, value in asked.items() if isinstance(value, int | float)}
    examples = max(times, *(sizes.get(option, 1) for option in _EXAMPLES))
    numbers = math.prod((examples, *(sizes.get(option, 1) for option in _SIZES)))
    layers = asked.get("widths", ())
    return numbers <= _LARGEST_DATA and not (isinstance(layers, Sized) and len(layers) > _MOST_LAYERS)


def _run(noise: str, group: xr.DataTree, start: PyTree) -> _Run:
    """The trajectories in a group. Raises `InputError` where their parameters are not like `start`."""

    def parameters(node: xr.DataTree) -> PyTree[np.ndarray]:
        lead = ("replica", "time") if "replica" in node.sizes else ("time",)

        def saved(where: Any, leaf: Any) -> np.ndarray:
            values = node.variables.get("params" + jax.tree_util.keystr(where).replace("/", "."))
            if values is None or values.dtype.kind != "f" or values.dims[: len(lead)] != lead:
                raise InputError(f"{node.path} lacks the parameters of the problem.")
            if values.shape[len(lead) :] != leaf.shape:
                raise InputError(f"{node.path} has parameters of another shape.")
            return values.values if len(lead) == 2 else values.values[None]

        load(node, parameters=True)
        return jax.tree_util.tree_map_with_path(saved, start)

    limit = parameters(group.children["limit"])
    if not all((np.abs(leaf) < _LARGEST_VALUE).all() for leaf in jax.tree.leaves(limit)):
        raise InputError("the parameters of the limit are not finite.")
    training = parameters(group.children["training_0"]) if "training_0" in group.children else None
    times = group.children["limit"].to_dataset()["time"].values
    return _Run(noise, times, limit, training)


def _hyperbola(problem: Problem, runs: Sequence[_Run]) -> list[Panel]:
    largest = 1.2 * max(np.abs(run.limit).max() for run in runs)
    s = np.linspace(-np.log(largest), np.log(largest), 200)
    curve = np.stack([np.exp(s), np.exp(-s)], axis=1)
    return [_on_curve(run, curve, (0.0, float(largest)), (0.0, float(largest)), 330) for run in runs]


def _ellipse(problem: Problem, runs: Sequence[_Run]) -> list[Panel]:
    angle = np.linspace(0, 2 * np.pi, 400)
    around = np.stack([2 * np.cos(angle), np.sin(angle)], axis=1)
    slope = np.sqrt(4 * np.sin(angle) ** 2 + np.cos(angle) ** 2)  # |grad g| = ds/da
    exact = path(_outwards(angle, 1 / (2 * np.pi * slope)), Style("truth").area(0.25), "exact density")
    panels = []
    for run in runs:
        panel = _on_curve(run, around, (-2.8, 2.8), (-1.75, 1.75), 270)
        if run.limit.shape[0] > 1:
            start = path(run.limit[0, :1], START, "start", "start")
            inside = path(around, Style("paper").area(1.0), "")
            panel = replace(panel, series=[exact, inside, panel.series[0], *_densities(run), start])
        panels.append(panel)
    return panels


def _on_curve(
    run: _Run, curve: np.ndarray, across: tuple[float, float], up: tuple[float, float], height: int
) -> Panel:
    """The curve, the limit as a line from a dot to a dot, or its ends, and where the training runs ended."""
    series = [path(curve, _CURVE, "points of zero loss")]
    if run.limit.shape[0] == 1:
        series.append(path(run.limit[0], Style("limit", 2.5), "limit"))
        series.append(path(run.limit[0, -1:], LIMIT.points(size=10), "end of the limit", "the limit ends"))
    else:
        series.append(path(run.limit[:, -1], replace(LIMIT.points(), opacity=0.3), "end of the limit"))
    series.append(path(run.limit[0, :1], START, "start", "start"))
    if run.training is not None:
        series.append(path(run.training[:, -1], ENDS["training"], "ends of training", "training ends"))
    text = f"The limit and the ends of training on the curve of zero loss under {run.noise}."
    return Panel(run.noise, text, series, Axis("w₁", across), Axis("w₂", up), equal=True, height=height)


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
        series.append(path(outline, Style(kind, 1.2), f"density of {'the ' * (kind == 'limit')}{kind}"))
    return series


def _outwards(angle: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Points at a height above the ellipse, along its outer normal."""
    normal = np.stack([np.cos(angle), 2 * np.sin(angle)], axis=1)
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.stack([2 * np.cos(angle), np.sin(angle)], axis=1) + _DENSITY * height[:, None] * normal


def _ends(run: _Run, x: np.ndarray, of: Callable[[PyTree], Any], before: Style) -> list[Series]:
    """A number for each place on an axis: at the start, and at the end of the limit and of training."""
    ends = (
        ("start", "start", run.limit_at(0), before),
        ("limit", "end of the limit", run.limit_at(-1), LIMIT.points(size=6)),
        ("training", "end of training", run.trained(), ENDS["training"]),
    )
    return [
        Series(x, np.asarray(of(params)), style, key, f"{name} %{{y:.3~g}}")
        for name, key, params, style in ends
        if params is not None
    ]


def _sparse_regression(problem: Problem, runs: Sequence[_Run]) -> list[Panel]:
    truth = np.asarray(problem.truth)
    order = np.argsort(-np.abs(truth), kind="stable")
    place, support = np.arange(len(truth), dtype=float), truth[order] != 0
    ring, before = Style("truth").points("circle-open", 12), Style("set").points("circle", 6)
    true = Series(place[support], truth[order][support], ring, "truth, where not zero", "truth %{y:.3~g}")
    panels = []
    for run in runs:
        start, end, *trained = _ends(run, place, lambda params: coefficients(params)[order], before)
        stems = np.stack([0 * end.y, end.y, np.full_like(end.y, np.nan)], axis=1).ravel()
        lines = Series(np.repeat(place, 3), stems, Style("limit", 1.5), end.key)
        text = f"Coefficients at the end of the limit and of training, and the truth, under {run.noise}."
        series, x, y = [start, lines, end, *trained, true], Axis("coefficient"), Axis("value")
        panels.append(Panel(run.noise, text, series, x, y, header="coefficient %{x}"))
    return panels


def _phase_retrieval(problem: Problem, runs: Sequence[_Run]) -> list[Panel]:
    inputs: Any = problem.problem.inputs  # pyright: ignore[reportAttributeAccessIssue]
    panels = []
    for run in runs:
        exact = np.asarray(least_norm(run.limit_at(0), inputs))
        bound = 1.1 * float(np.abs(np.concatenate([exact, run.limit_at(0)])).max())
        diagonal = np.array([-bound, bound])
        series = [Series(diagonal, diagonal, _TRUTH, "equal")]
        series += _ends(run, exact, np.asarray, Style("muted").points("circle-open", 9))
        x, y = (Axis(f"coordinate of {what}", (-bound, bound)) for what in ("least weighted norm", "w"))
        text = f"Coordinates at the end against those of least weighted norm under {run.noise}."
        panels.append(Panel(run.noise, text, series, x, y, equal=True, height=330))
    return panels


def _matrices(problem: Problem, runs: Sequence[_Run]) -> list[list[Panel]]:
    """Above, the truth and the matrix at the end; below, the start, and the singular values on the way."""
    runs, truth = runs[:_COLUMNS], np.asarray(problem.truth)
    true_values = np.linalg.svd(truth, compute_uv=False)
    true_values = true_values[true_values > 1e-9 * true_values[0]]
    images, spectra = [("truth", truth)], []
    for run in runs:
        images.append((f"{run.noise}, end", np.asarray(product(run.limit_at(-1)))))
        along = run.limit["left"][0] @ np.swapaxes(run.limit["right"][0], -1, -2)
        values, ends = np.linalg.svd(along, compute_uv=False), run.times[[0, -1]].astype(float)
        series = [Series(ends, np.full(2, value), _TRUTH, "truth") for value in true_values]
        series += [Series(run.times, each, _VALUES, "limit", "%{y:.3~g}") for each in values.T]
        y = Axis.logarithmic("singular values", np.maximum(values, 1e-6), true_values)
        spectra.append(
            Panel(run.noise, f"Singular values under {run.noise}.", series, Axis("slow time t"), y)
        )
    images.append(("start", np.asarray(product(runs[0].limit_at(0)))))
    bound = float(np.abs(truth).max())
    *above, start = (
        Panel(title, f"Entries of the matrix: {title}.", [HeatMap(matrix, bound)]) for title, matrix in images
    )
    return [above, [start, *spectra]]


def _regression_1d(problem: Problem, runs: Sequence[_Run]) -> list[Panel]:
    least_squares: Any = problem.problem
    line = jnp.linspace(-1.1, 1.1, 441)
    # One point after another, for a network may be as wide as the parameters that are saved.
    model = jax.jit(lambda params: jax.lax.map(lambda x: least_squares.model(params, x[None])[0], line))
    x, dotted = np.asarray(line), replace(TRAINING, width=1.8, dash="dot")
    inputs, targets = (np.asarray(each).ravel() for each in (least_squares.inputs, least_squares.targets))
    examples = Series(inputs, targets, LIMIT.points(size=8), "examples", "example %{y:.3~g}")
    styles = [Style("limit", 2, opacity=opacity) for opacity in np.linspace(0.25, 1.0, _MOMENTS)]
    panels = []
    for run in runs:
        chosen, series = _moments(run.times), []
        for index, style in zip(chosen, styles[-len(chosen) :], strict=True):
            hover = f"t = {number(run.times[index])}: %{{y:.3~g}}"
            values = np.asarray(model(run.limit_at(index)))
            series.append(Series(x, values, style, "limit, faint at first", hover))
        trained = run.trained()
        if trained is not None:
            values = np.asarray(model(trained))
            series.append(Series(x, values, dotted, "end of training", "training %{y:.3~g}"))
        times = ", ".join(number(run.times[index]) for index in chosen)
        text = f"The function learned under {run.noise} at the times {times}."
        series, title = [*series, examples], f"at t = {times}"
        panels.append(Panel(run.noise, text, series, Axis("x"), Axis("f(x)"), title, height=300))
    return panels


def _moments(times: np.ndarray) -> list[int]:
    """A few of the times saved, ever further apart, for fast changes come early."""
    wanted = np.concatenate([[0.0], times[-1] * np.logspace(-(_MOMENTS - 2), 0, _MOMENTS - 1)])
    return sorted({int(np.argmin(np.abs(times - time))) for time in wanted})


def _digits(problem: Problem, runs: Sequence[_Run]) -> list[list[Panel]]:
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

    return [[panel(title, weights)] for title, weights in rows.items()]


_PICTURES: dict[str, tuple[str, Callable[[Problem, Sequence[_Run]], Any]]] = {
    "digits": ("Weights of the hidden units that change most", _digits),
    "ellipse": ("On the ellipse", _ellipse),
    "hyperbola": ("On the hyperbola", _hyperbola),
    "matrix_completion": ("The matrix and its singular values", _matrices),
    "matrix_sensing": ("The matrix and its singular values", _matrices),
    "phase_retrieval": ("Coordinates against those of least weighted norm", _phase_retrieval),
    "regression_1d": ("The function learned", _regression_1d),
    "sparse_regression": ("Coefficients", _sparse_regression),
}
