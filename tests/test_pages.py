"""How sweeps, and several runs, are laid out on a page; on tables made by hand."""

import numpy as np
import pytest
import xarray as xr

from zeroloss import report, runs
from zeroloss.errors import InputError, RunError
from zeroloss.report import several_page, sweep_series
from zeroloss.report.sweep_series import Layout, failures, groups, layout


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
    (group,) = groups(table(step_size=STEPS, seed=SEEDS, noise=["label"]))
    (chart,) = group.charts
    (line,) = chart.lines
    np.testing.assert_allclose(line.x, STEPS)
    # The last cell failed: there the mean is over three seeds.
    np.testing.assert_allclose(line.y, [1.6, 1.7, 1.4])
    assert line.error is not None
    sd = np.std(SEEDS, ddof=1)
    np.testing.assert_allclose(line.error, [sd / 2, sd / 2, np.std(SEEDS[:3], ddof=1) / np.sqrt(3)])


def test_without_seeds_the_error_is_that_of_the_runs():
    (group,) = groups(table(step_size=STEPS, noise=["label"]))
    np.testing.assert_allclose(group.charts[0].lines[0].error[:2], 0.1)


def test_a_chart_for_every_place_on_the_other_axes():
    (group,) = groups(table(step_size=STEPS, noise=NOISES, sigma=[0.1, 0.2]))
    assert [chart.strong for chart in group.charts] == NOISES
    assert [entry.name for entry in group.entries] == ["sigma 0.1", "sigma 0.2"]
    assert {line.looks for chart in group.charts for line in chart.lines} == {
        "series-0-points", "series-1-points",
    }  # fmt: skip


def test_an_axis_with_one_value_is_said_and_not_drawn_over():
    (group,) = groups(table(sigma=[0.1], step_size=STEPS, noise=["label"], seed=[0]))
    (chart,) = group.charts
    assert chart.strong == "sigma 0.1, label"
    np.testing.assert_allclose(chart.lines[0].y[:2], [0.2, 0.3])


def test_failures_say_where_and_why():
    assert failures(table(step_size=STEPS, noise=NOISES)) == [("step_size=0.4, noise=weight", "too large")]
    head, lines = sweep_series.cell_table(table(step_size=STEPS, noise=NOISES))
    assert head == ["step_size", "noise", "status", "clean loss"]
    assert lines[-1][1] == ["0.4", "weight", "failed", "\u2013"]
    assert lines[0][1] == ["0.1", "label", "complete", "0.1"]


def test_runs_that_cannot_be_compared():
    tree = xr.DataTree()
    one = several_page.Told("a", {"command": "study"}, tree)
    with pytest.raises(InputError, match="a is a study"):
        several_page.page([one, one])
    with pytest.raises(InputError, match="at most 7 runs"):
        several_page.page([one._replace(config={"command": "limit"})] * 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = dict(command="limit", problem="hyperbola", noise=["weight"], horizon=0.1, saves=3)
    runs.start(runs.config_from(config), folder)
    return folder


@pytest.mark.parametrize(("format", "first"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_static_figures(made, tmp_path, format, first):
    written = report.write_stills_of(made, tmp_path, format)
    assert len(written) >= 2
    for path in written:
        assert path.suffix == f".{format}" and path.read_bytes().startswith(first)


def test_figures_of_an_unknown_kind(made, tmp_path):
    with pytest.raises(InputError, match="png, pdf, svg, not 'gif'"):
        report.write_stills_of(made, tmp_path, "gif")


def test_the_page_of_a_path_says_the_verdict(made):
    text = report.write(made).read_text()
    assert '<article class="verdict non-degenerate">' in text
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
