"""Pages of sweeps, of trajectories and of several runs, and of runs that strangers have changed."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
from made_runs import views, write
from mangling import ROOM, SECONDS, memory, within

from zeroloss import open_run, report, runs
from zeroloss.errors import InputError, RunError
from zeroloss.report import _trajectory, cell_table, failures
from zeroloss.report._pictures import picture
from zeroloss.report._sweep import Layout, figures_of, layout
from zeroloss.runs._folder import column


def table(**axes):
    """A sweep whose every cell ends at the sum of its numbers, with one that failed."""
    shape = tuple(map(len, axes.values()))
    numbers = np.zeros(shape)
    for values in np.meshgrid(*axes.values(), indexing="ij"):
        numbers = numbers + (values if np.issubdtype(values.dtype, np.number) else 0)
    status = np.full(shape, "complete", dtype=object)
    reason = np.full(shape, "", dtype=object)
    status.flat[-1], reason.flat[-1] = "failed", "too large"
    ended = np.where(status == "complete", numbers, np.nan)
    return xr.Dataset(
        {
            "status": (tuple(axes), status),
            "reason": (tuple(axes), reason),
            "folder": (tuple(axes), np.full(shape, "cells/00000", dtype=object)),
            "loss_start": (tuple(axes), 0 * ended),
            "loss_end": (tuple(axes), ended),
            "loss_error": (tuple(axes), 0.1 + 0 * ended),
        },
        axes,
    )


STEPS, NOISES, SEEDS = [0.1, 0.2, 0.4], ["label", "weight"], [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("axes", "wanted"),
    [
        (dict(step_size=STEPS, noise=NOISES), Layout("step_size", None, ("noise",))),
        (dict(sigma=[0.1, 0.2], step_size=STEPS, noise=NOISES), Layout("step_size", "sigma", ("noise",))),
        (dict(seed=SEEDS, step_size=STEPS, noise=["label"]), Layout("step_size", None, ("noise",))),
        (dict(noise=NOISES, seed=SEEDS), Layout("noise", None, ())),
        (dict(seed=SEEDS, noise=["label"]), Layout("noise", None, ())),
        (dict(a=list(range(9)), b=list(range(8)), noise=["x"]), Layout("a", None, ("b", "noise"))),
    ],
)
def test_the_axes_of_a_grid_on_the_page(axes, wanted):
    assert layout(table(**axes)) == wanted


def test_seeds_are_averaged():
    (figure,) = figures_of(table(step_size=STEPS, seed=SEEDS, noise=["label"]))
    (panel,) = figure.panels
    (line,) = panel.series
    np.testing.assert_allclose(line.x, STEPS)
    # The last cell failed: there the mean is over three seeds.
    np.testing.assert_allclose(line.y, [1.6, 1.7, 1.4])
    sd = np.std(SEEDS, ddof=1)
    np.testing.assert_allclose(
        (line.high - line.low) / 4, [sd / 2, sd / 2, np.std(SEEDS[:3], ddof=1) / np.sqrt(3)]
    )


def test_without_seeds_the_error_is_that_of_the_runs():
    (figure,) = figures_of(table(step_size=STEPS, noise=["label"]))
    line = figure.panels[0].series[0]
    np.testing.assert_allclose((line.high - line.low)[:2] / 4, 0.1)


def test_a_chart_for_every_place_on_the_other_axes():
    (figure,) = figures_of(table(step_size=STEPS, noise=NOISES, sigma=[0.1, 0.2]))
    assert [panel.title for panel in figure.panels] == NOISES
    assert [entry.text for entry in figure.legend] == ["sigma 0.1", "sigma 0.2"]
    series = [each for panel in figure.panels for each in panel.series]
    assert {(each.key, each.style.color) for each in series} == {
        ("series-0", "series-0"), ("series-1", "series-1"),
    }  # fmt: skip
    assert all(each.style.marker and not each.style.width for each in series)


def test_training_prediction_and_limit_look_different_between_noises():
    made = table(noise=NOISES, **{"set.activation": ["gelu", "tanh"]}).rename(loss_end="loss_training")
    made = made.assign(loss_prediction=2 * made["loss_training"], loss_limit=3 * made["loss_training"])
    made.attrs["command"] = "compare"
    (figure,) = figures_of(made)
    assert all(len(panel.series) == 6 for panel in figure.panels)
    for panel in figure.panels:
        assert len({each.style for each in panel.series}) == 6
        assert all(each.style.marker and not each.style.width for each in panel.series)


def test_an_axis_with_one_value_is_said_and_not_drawn_over():
    (figure,) = figures_of(table(sigma=[0.1], step_size=STEPS, noise=["label"], seed=[0]))
    (panel,) = figure.panels
    assert panel.title == "sigma 0.1, label"
    np.testing.assert_allclose(panel.series[0].y[:2], [0.2, 0.3])


def test_failures_say_where_and_why():
    assert failures(table(step_size=STEPS, noise=NOISES)) == [("step_size=0.4, noise=weight", "too large")]
    head, lines = cell_table(table(step_size=STEPS, noise=NOISES))
    assert head == ["step_size", "noise", "status", "clean loss"]
    assert lines[-1][1] == ["0.4", "weight", "failed", "\u2013"]
    assert lines[0][1] == ["0.1", "label", "complete", "0.1"]


def test_runs_that_cannot_be_compared():
    tree = xr.DataTree()
    one = _trajectory.NamedRun("a", {"command": "study"}, tree)
    with pytest.raises(InputError, match="a is a study"):
        _trajectory.page_of_several([one, one])
    with pytest.raises(InputError, match="at most 7 runs"):
        _trajectory.page_of_several([one._replace(config={"command": "limit"})] * 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = dict(command="limit", problem="hyperbola", noise=["weight"], horizon=0.1, saves=3)
    runs.start(runs.config_from(config), folder)
    return folder


@pytest.mark.parametrize(("format", "first"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_static_figures(made, tmp_path, format, first):
    written = report.write_figures(made, tmp_path, format)
    assert len(written) >= 2
    for path in written:
        assert path.suffix == f".{format}" and path.read_bytes().startswith(first)


def test_figures_of_an_unknown_kind(made, tmp_path):
    with pytest.raises(InputError, match="png, pdf, svg, not 'gif'"):
        report.write_figures(made, tmp_path, "gif")


def test_the_page_of_a_path_says_the_verdict(made):
    text = report.write(made).read_text()
    assert 'style="--kind: var(--non-degenerate)"' in text
    assert "is non-degenerate: training drifts on the fast scale, 1/(ασ²) steps." in text


def test_a_page_of_several_runs(made, tmp_path):
    path = report.write_several([made, made], tmp_path / "page.html")
    text = path.read_text()
    assert f"A: {made}" in text and f"B: {made}" in text
    with pytest.raises(RunError, match="is there already"):
        report.write_several([made, made], tmp_path / "page.html")
    with pytest.raises(RunError, match="holds no readable run"):
        report.write_several([made, tmp_path / "nothing"], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


# Runs of strangers, and of newer versions: what is wrong with them is said when they are read.


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return {kind: write(folder / kind, kind) for kind in ("descend", "limit", "compare", "stochastic")}


def foreign(run, folder, change):
    """A copy of a run, in which `change` was done to the results."""
    shutil.copytree(run, folder)
    results = runs.read(folder)[1]
    change(results)
    runs.write_results(folder, results)
    return folder


def configured(run, folder, **values):
    """A copy of a run, with other values in its config."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def refused(match, function, *arguments):
    """The error is one line that names the fault."""
    with pytest.raises(RunError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


def test_a_command_that_nobody_knows(sound, tmp_path):
    folder, match = configured(sound["descend"], tmp_path / "run", command="fly"), "unknown command 'fly'"
    refused(match, open_run, folder)
    refused(match, report.write, folder)
    refused(match, report.write_figures, folder, tmp_path / "figures")
    refused(match, report.write_several, [folder, folder], tmp_path / "several.html")
    assert match in runs.summary(folder)["status"]


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("stochastic", {"half_steps": 10.0}),
        ("stochastic", {"half_steps": 10.0, "half_of": ""}),
        ("stochastic", {"half_steps": 10.0, "half_of": 3}),
        ("stochastic", {"half_steps": -1.0, "half_of": "regularizer"}),
        ("stochastic", {"half_steps": float("inf"), "half_of": "regularizer"}),
        ("stochastic", {"half_unknown": 3}),
        ("limit", {"half_steps": "soon", "half_of": "regularizer"}),
        ("limit", {"half_steps": float("nan"), "half_of": "regularizer"}),
        ("limit", {"half_of": "regularizer", "half_end": "there"}),
    ],
)
def test_half_of_what_nobody_says(kind, attributes, sound, tmp_path):
    def change(results):
        results.children["langevin:0.1"].attrs.update(attributes)

    match = "an attribute of 'langevin:0.1' is wrong: half_(steps|of|unknown|end)"
    refused(match, report.write, foreign(sound[kind], tmp_path / "run", change))


def refused_or_shown(folder):
    """A page, or one line that says why there is none."""
    try:
        assert report.write(folder).is_file()
    except RunError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stochastic", [1, 1]),
        ("limit_replicas", [4, 4]),
        ("half_steps", [10.0, 10.0]),
        ("hessian_trace_limit_spread", ["a", "b"]),
        ("step_size_relative", ["a", "b"]),
        ("params_w_limit", [1.0, 1.0]),
    ],
)
def test_columns_that_no_table_has(name, values, sound, tmp_path):
    def change(results):
        results.dataset = results.to_dataset().assign({name: ("noise", column(values))})
        for node in results.descendants:
            if name.startswith("params") and node.name in ("limit", "training_0"):
                node.dataset = node.to_dataset().assign(params_w=("other", np.zeros(3)))

    refused_or_shown(foreign(sound["compare"], tmp_path / "run", change))


@pytest.mark.parametrize("quantity", ["hessian_trace", "loss"])
def test_comparisons_that_lack_what_all_have(quantity, sound, tmp_path):
    def change(results):
        table = results.to_dataset()
        columns = [name for name in table.data_vars if str(name).startswith(f"{quantity}_")]
        results.dataset = table.drop_vars(columns)
        for noise in results.children.values():
            training = noise.children["training_0"]
            training.dataset = training.to_dataset().drop_vars(quantity)

    refused(f"lacks '{quantity}", report.write, foreign(sound["compare"], tmp_path / "run", change))


@pytest.mark.parametrize(
    ("view", "change"),
    [
        ("spectrum", ["start", "start"]),
        ("spectrum", ["start", "nowhere"]),
        ("zero_loss_set", "limit"),
        ("function", "prediction"),
    ],
)
def test_views_of_two_minds(view, change, sound, tmp_path):
    def changed(results):
        seen = views("path")[view]
        if isinstance(change, str):
            others = views(change)[view]
            seen = seen.assign({name: others[name] for name in others if str(name).startswith(change)})
        else:
            seen = seen.assign_coords(where=("where", column(change)))
        results.children["label:0.3"].children[view].dataset = seen

    refused_or_shown(foreign(sound["descend"], tmp_path / "run", changed))


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("digits", {"widths": [10**9]}),
        ("digits", {"widths": [10**400]}),
        ("digits", {"widths": [1] * 10**6}),
        ("matrix_sensing", {"rows": 100_000}),
        ("matrix_sensing", {"rows": 10**400, "columns": 1.5}),
        ("matrix_sensing", {"rows": 1000, "columns": 1000, "measurements": 10**6 - 1}),
        ("matrix_sensing", {"width": 10**9}),
        ("matrix_completion", {"rows": 100_000, "columns": 100_000, "observed": 10**6}),
        ("phase_retrieval", {"dimension": 10**6, "measurements": 10**5}),
        ("regression_1d", {"examples": 10**10}),
        ("regression_1d", {"width": 10**10}),
        ("regression_1d", {"width": "wide"}),
        ("sparse_regression", {"dimension": 10**6, "examples": 10**5}),
        ("sparse_regression", {"colour": "red"}),
        ("hyperbola", {"dimension": 2}),
    ],
)
def test_no_picture_of_a_problem_that_is_not_that_of_the_run(problem, options, sound):
    config, results = runs.read(sound["stochastic"])
    with within(SECONDS), memory(ROOM):
        assert picture(config | {"problem": problem, "options": options}, results) is None


def test_a_page_without_a_picture(sound, tmp_path):
    place, options = '<div class="quantities picture">', {"rows": 100_000, "columns": 100_000}
    whole = shutil.copytree(sound["stochastic"], tmp_path / "whole")
    assert place in report.write(whole).read_text()
    folder = configured(whole, tmp_path / "run", problem="matrix_completion", options=options)
    shutil.rmtree(folder / "figures")
    assert place not in report.write(folder).read_text()
    assert not (folder / "figures" / "picture.png").exists()
