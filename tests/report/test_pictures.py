"""Pictures of runs, of made-up paths: what they show is checked, not that training goes there."""

import json

import jax
import numpy as np
import pytest
import xarray as xr

import zeroloss as zl
from zeroloss.dynamics import Trajectory
from zeroloss.problems import PROBLEMS
from zeroloss.report._chart import HeatMap
from zeroloss.report._matplotlib import draw
from zeroloss.report._pictures import picture
from zeroloss.report._plotly import plot

TIMES = np.linspace(0.0, 1.0, 11) ** 2
SMALL = {
    "digits": {"widths": (6,), "examples": 9},
    "matrix_completion": {"rows": 4, "columns": 3, "width": 3, "observed": 6},
    "matrix_sensing": {"rows": 4, "columns": 3, "width": 3, "measurements": 5},
    "phase_retrieval": {"dimension": 6, "measurements": 3},
    "regression_1d": {"width": 5, "examples": 3},
    "sparse_regression": {"dimension": 12, "examples": 6, "nonzeros": 3},
}


WITHOUT_TRAINING = ("digits", "matrix_completion", "matrix_sensing")  # show the limit alone


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


def drawn(panel, key):
    """The points of the last series that has a key."""
    series = [each for each in panel.series if getattr(each, "key", None) == key][-1]
    return np.stack([series.x, series.y], axis=1)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_a_picture(name, trained, tmp_path):
    """Of a run on a disk; both renderers can draw it, and the legend names all that it shows."""
    options = SMALL.get(name, {})
    results = results_of(zl.problems.load(name, **options), trained=trained)
    results.to_zarr(tmp_path / "results.zarr", consolidated=False)
    results = xr.open_datatree(tmp_path / "results.zarr", engine="zarr", consolidated=False)
    figure = picture({"problem": name, "options": options}, results)
    assert figure is not None and figure.heading
    series = [each for panel in figure.panels for each in panel.series if not isinstance(each, HeatMap)]
    assert {each.key for each in series} - {""} == {entry.key for entry in figure.legend}
    assert any("training" in each.key for each in series) == (trained and name not in WITHOUT_TRAINING)
    assert len(draw(figure).axes) >= len(figure.panels)
    for panel in figure.panels:
        json.dumps(plot(panel), allow_nan=False)


def test_no_picture():
    assert picture({"problem": "mine"}, xr.DataTree()) is None
    assert picture({}, xr.DataTree()) is None
    assert picture({"problem": "ellipse"}, xr.DataTree()) is None


def test_coefficients_against_the_truth():
    options = SMALL["sparse_regression"]
    problem = zl.problems.load("sparse_regression", **options)
    end = {"positive": np.sqrt(problem.truth)}
    figure = picture(
        {"problem": "sparse_regression", "options": options}, results_of(problem, end, noises=("label",))
    )
    (panel,) = figure.panels
    truth = drawn(panel, "truth, where not zero")
    assert sorted(truth[:, 1]) == sorted(problem.truth[problem.truth > 0])
    np.testing.assert_allclose(drawn(panel, "end of the limit")[:3], truth)
    np.testing.assert_allclose(drawn(panel, "end of training")[:3], truth)
    np.testing.assert_allclose(drawn(panel, "start")[:, 1], 1.0)


def test_functions_go_through_the_points_once_they_do():
    options = SMALL["regression_1d"]
    problem = zl.problems.load("regression_1d", **options)
    system = problem.problem.with_noise(zl.LabelNoise(0.1))
    point = zl.project(system, problem.start)
    figure = picture(
        {"problem": "regression_1d", "options": options}, results_of(problem, point, noises=("label",))
    )
    curve = drawn(figure.panels[0], "limit, faint at first")
    reached = np.interp(problem.problem.inputs, *curve.T)
    np.testing.assert_allclose(reached, problem.problem.targets, atol=1e-8)  # the points are on its grid


def test_densities_on_the_ellipse_agree_when_the_angle_is_uniform():
    problem = zl.problems.load("ellipse")
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (2000, len(TIMES)))
    params = np.stack([2 * np.cos(angles), np.sin(angles)], axis=-1)
    nothing = np.zeros(angles.shape)
    path = Trajectory(TIMES, None, params, nothing, nothing, nothing, {}, None).to_xarray()
    figure = picture({"problem": "ellipse"}, xr.DataTree.from_dict({"langevin/limit": path}))
    (panel,) = figure.panels
    assert problem.name == "ellipse"
    exact = np.stack([panel.series[0].x, panel.series[0].y], axis=1)
    sampled = drawn(panel, "density of the limit")
    # the nearest exact point is as close as one bin's counting error, 2 % of a height below 0.6
    gaps = np.linalg.norm(sampled[:, None] - exact[None], axis=-1).min(axis=1)
    assert np.median(gaps) < 0.02
