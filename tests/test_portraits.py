"""Pictures of runs, drawn from made-up paths: what is drawn is checked, not that training goes there."""

from io import BytesIO

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

import zeroloss as zl
from zeroloss.dynamics import Trajectory
from zeroloss.problems import PROBLEMS
from zeroloss.report._colors import DARK, LIGHT, rendered
from zeroloss.report._zero_set_pictures import portrait, portraits

TIMES = np.linspace(0.0, 1.0, 11) ** 2
SMALL = {
    "digits": {"widths": (6,), "examples": 9},
    "matrix_completion": {"rows": 4, "columns": 3, "width": 3, "observed": 6},
    "matrix_sensing": {"rows": 4, "columns": 3, "width": 3, "measurements": 5},
    "phase_retrieval": {"dimension": 6, "measurements": 3},
    "regression_1d": {"width": 5, "examples": 3},
    "sparse_regression": {"dimension": 12, "examples": 6, "nonzeros": 3},
}


def path_through(start, end, replicas=None):
    """A straight path of parameters; replicas are copies of it."""
    params = jax.tree.map(
        lambda a, b: np.stack([np.asarray(a) * (1 - t) + np.asarray(b) * t for t in TIMES]), start, end
    )
    shape = TIMES.shape
    if replicas is not None:
        params = jax.tree.map(lambda leaf: np.stack([leaf] * replicas), params)
        shape = (replicas, *shape)
    nothing = np.zeros(shape)
    return Trajectory(TIMES, None, params, nothing, nothing, nothing, {}, None).to_xarray()


def results_of(problem, end=None, noises=("label", "dropout:0.1"), trained=True):
    end = jax.tree.map(lambda leaf: 0.7 * leaf, problem.start) if end is None else end
    groups = {}
    for noise in noises:
        groups[f"{noise}/limit"] = path_through(problem.start, end)
        if trained:
            groups[f"{noise}/training_0"] = path_through(problem.start, end, replicas=3)
    return xr.DataTree.from_dict(groups)


def drawn(axes, label):
    """The coordinates of what is called `label` in a panel."""
    return next(line.get_xydata() for line in axes.get_lines() if line.get_label() == label)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_a_portrait(name, trained, tmp_path):
    options = SMALL.get(name, {})
    problem = zl.problems.load(name, **options)
    results = results_of(problem, trained=trained)
    results.to_zarr(tmp_path / "results.zarr", consolidated=False)  # as a run on disk has it
    results = xr.open_datatree(tmp_path / "results.zarr", engine="zarr", consolidated=False)
    figure = portrait({"problem": name, "options": options}, results)
    FigureCanvasAgg(figure).print_figure(tmp_path / "portrait.png")
    assert (tmp_path / "portrait.png").stat().st_size > 1000


@pytest.mark.parametrize("name", PROBLEMS)
def test_portraits_for_dark_and_for_narrow_screens(name):
    options = SMALL.get(name, {})
    results = results_of(zl.problems.load(name, **options), noises=("label", "weight", "dropout:0.1"))
    looks = [LIGHT, DARK, LIGHT._replace(narrow=True)]
    light, dark, narrow = portraits({"problem": name, "options": options}, results, looks)
    assert narrow.get_figwidth() < 4 < light.get_figwidth() == dark.get_figwidth()
    assert narrow.get_figheight() / narrow.get_figwidth() > light.get_figheight() / light.get_figwidth()
    pixels = pixels_of(rendered(dark, theme=DARK))
    paper = np.array([0x14, 0x16, 0x1A])
    assert (np.abs(pixels - paper).max(axis=-1) <= 1).mean() > 0.3  # most of it is paper
    assert (pixels.min(axis=-1) > 250).mean() < 0.001  # and nothing of it is white


def pixels_of(png):
    """The pixels of a PNG, `[row, column, red green blue]`, from 0 to 255."""
    return (255 * imread(BytesIO(png))[..., :3]).round().astype(int)


def test_no_portrait():
    assert portrait({"problem": "mine"}, xr.DataTree()) is None
    assert portrait({}, xr.DataTree()) is None
    assert portrait({"problem": "ellipse"}, xr.DataTree()) is None


def test_coefficients_against_the_truth():
    options = SMALL["sparse_regression"]
    problem = zl.problems.load("sparse_regression", **options)
    end = {"positive": np.sqrt(problem.truth)}
    figure = portrait(
        {"problem": "sparse_regression", "options": options}, results_of(problem, end, noises=("label",))
    )
    (axes,) = figure.axes
    truth = drawn(axes, "truth, where not zero")
    assert sorted(truth[:, 1]) == sorted(problem.truth[problem.truth > 0])
    np.testing.assert_allclose(drawn(axes, "end of the limit")[:3], truth)
    np.testing.assert_allclose(drawn(axes, "end of training")[:3], truth)
    np.testing.assert_allclose(drawn(axes, "start")[:, 1], 1.0)


def test_functions_go_through_the_points_once_they_do():
    options = SMALL["regression_1d"]
    problem = zl.problems.load("regression_1d", **options)
    system = problem.problem.with_noise(zl.LabelNoise(0.1))
    point = zl.project(system, problem.start)
    figure = portrait(
        {"problem": "regression_1d", "options": options}, results_of(problem, point, noises=("label",))
    )
    curve = drawn(figure.axes[0], "t = 1.00")
    reached = np.interp(problem.problem.inputs, *curve.T)
    np.testing.assert_allclose(reached, problem.problem.targets, atol=1e-8)  # the points are on its grid


def test_densities_on_the_ellipse_agree_when_the_angle_is_uniform():
    problem = zl.problems.load("ellipse")
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (2000, len(TIMES)))
    params = np.stack([2 * np.cos(angles), np.sin(angles)], axis=-1)
    nothing = np.zeros(angles.shape)
    path = Trajectory(TIMES, None, params, nothing, nothing, nothing, {}, None).to_xarray()
    figure = portrait({"problem": "ellipse"}, xr.DataTree.from_dict({"langevin/limit": path}))
    (axes,) = figure.axes
    assert problem.name == "ellipse"
    exact = axes.patches[0].get_xy()
    sampled = drawn(axes, "density of limit")
    # the nearest exact point is as close as one bin's counting error, 2 % of a height below 0.6
    gaps = np.linalg.norm(sampled[:, None] - exact[None], axis=-1).min(axis=1)
    assert np.median(gaps) < 0.02


def test_options_of_older_runs_are_found_at_the_top():
    problem = zl.problems.load("digits", **SMALL["digits"])
    results = results_of(problem)
    config = {"problem": "digits", "width": [6], "examples": 9, "seed": 0}
    assert portrait(config, results) is not None
    problem = zl.problems.load("hyperbola")
    config = {"problem": "hyperbola", "width": None, "examples": None, "seed": 0}
    assert portrait(config, results_of(problem)) is not None
