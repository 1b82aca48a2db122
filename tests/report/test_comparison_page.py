"""The page and the figures of a run, from comparisons made by hand: nothing here trains."""

import dataclasses
import json
import re
import warnings
from html import unescape
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
import xarray as xr
from made_runs import FAST, SAVES, SLOW, comparison, config_of, create
from reading import HOSTILE, Reader, check_hostile, check_plots

from zeroloss import report, runs
from zeroloss.cli._console import out
from zeroloss.cli._printing import print_results
from zeroloss.dynamics import Trajectory
from zeroloss.errors import RunError
from zeroloss.report import _comparison, comparison_rows, comparison_table, grouped
from zeroloss.report._chart import Figure, Panel, Series, Style
from zeroloss.report._comparison import curves, ranges, time_axis
from zeroloss.report._page import render
from zeroloss.report._pictures import PICTURE
from zeroloss.report._sentences import comparison as sentences_of, headline, trajectory
from zeroloss.report._text import in_table, interval, noise_in_words, number, percent, steps_in_words
from zeroloss.report._views import figures as views_of
from zeroloss.runs._folder import column


def written(folder: Path, comparisons, **config) -> Path:
    """The page of a run on a disk, with its figures."""
    create(folder, {"noise": list(comparisons)} | config)
    runs.write_results(folder, runs.gather(comparisons))
    return report.write(folder)


def shown(comparisons, **config) -> Reader:
    """The same page alone, without a disk."""
    config, results = config_of({"noise": list(comparisons)} | config), runs.gather(comparisons)
    return Reader(render(_comparison.page(config, results), config, "nowhere").decode())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    three = {"dropout": comparison(FAST), "label": comparison(SLOW), "minibatch": comparison(None)}
    return written(tmp_path_factory.mktemp("runs") / "run", three)


@pytest.fixture(scope="module")
def page(run) -> Reader:
    return Reader(run.read_text())


def test_page_needs_nothing_else(run, page):
    assert run.name == "report.html"
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "data"} & set(attributes), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", run.read_text(), re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert run.read_text().count("* plotly.js v") == 1
    assert page.count("script") == 3


def test_page_says_what_each_noise_does(page):
    text = page.text
    assert "Dropout at rate 0.01 is non-degenerate" in text
    assert "fast scale, 1/(ασ²) ≈ 2,000 steps" in text
    assert "In 10,000 steps the regularizer fell from 0.700 to" in text
    assert "the limit says 0.350." in text
    assert "Label noise with sigma 0.3 is degenerate" in text
    assert "Minibatches alone do nothing: after 10,000 steps the parameters had moved by" in text


def test_table_has_a_row_for_every_quantity(run, page):
    rows = comparison_rows(runs.read(run.parent)[1])
    labels = [label for label, _ in comparison_table(rows)]
    for quantity in ("regularizer Reg", "trace of the Hessian", "test error"):
        for where in ("start", "limit", "trained"):
            assert f"{quantity}, {where}" in labels
    for label in ("verdict", "drifts in steps", "training steps", "distance from training, limit"):
        assert label in labels
    headings = [heading for heading, _ in grouped(comparison_table(rows)) if heading]
    assert headings == [
        "regularizer Reg", "trace of the Hessian", "test error", "distance from training",
        "seconds (of them compiling)", "time of training / limit",
    ]  # fmt: skip
    assert page.count("tr") == len(labels) + len(headings) + 1
    cells = dict(comparison_table(rows))
    assert cells["trace of the Hessian, limit"] == ["49", "49", "98"]
    assert cells["regularizer Reg, trained"][2] == "0 ± 0"
    assert cells["time of training / limit, with compiling"] == ["7.0"] * 3


def roles(specification):
    """The keys of what is drawn, in order, and whether it is an area."""
    return [trace["legendgroup"] + (" area" if trace.get("fill") else "") for trace in specification["data"]]


def test_every_panel_is_a_valid_figure_with_words_for_it(page):
    plots = check_plots(page)
    assert len(plots) == 5 * 3
    for plot in plots:
        assert roles(plot) in (
            ["training area", "training", "limit"],
            ["distance to the limit", "ensemble error"],
        )


def test_figures_are_png_and_named_after_their_noise(run):
    figures = {path.name: path.read_bytes() for path in (run.parent / "figures").iterdir()}
    assert set(figures) == {"overview.png", "dropout.png", "label.png", "minibatch.png"}
    for name, content in figures.items():
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000, name


def test_a_prediction_is_the_third_curve(tmp_path):
    """In every panel and legend, on disk, in the table and in words; beside a noise that has none."""
    made = {"dropout": comparison(FAST, predicted=True), "minibatch": comparison(None)}
    page = written(tmp_path / "run", made)
    reader = Reader(page.read_text())
    for noise, specification in zip(["dropout", "minibatch"] * 5, reader.plots(), strict=True):
        predicted = {"prediction", "distance to the prediction"} & set(roles(specification))
        assert bool(predicted) == (noise == "dropout")
    assert reader.buttons().count("prediction") == 4
    assert reader.buttons().count("distance to the prediction") == 1
    results = runs.read(page.parent)[1]
    assert "prediction_0" in results["dropout"].children
    cells = dict(comparison_table(comparison_rows(results)))
    assert cells["trace of the Hessian, predicted"] == ["49.98", "\u2013"]
    assert cells["distance from training, prediction"] == ["0.001 ± 0.01", "\u2013"]
    text = reader.text
    assert "the limit says 0.350, the prediction 0.357." in text


def timed(made, limit, prediction, training):
    """The same comparison with other seconds: pairs of those in all and those of compiling."""
    one = made.trainings[0]
    predicted = dataclasses.replace(one.prediction, seconds=prediction[0], compiling=prediction[1])
    one = dataclasses.replace(one, seconds=training[0], compiling=training[1], prediction=predicted)
    return dataclasses.replace(made, trainings=(one,), limit_seconds=limit[0], limit_compiling=limit[1])


def test_how_long_each_took_with_and_without_compiling(tmp_path):
    """What a user waits for includes compiling; a ratio without it says so, and one below 1 is in words."""
    made = timed(comparison(FAST, predicted=True), (12.0, 11.0), (60.0, 20.0), (6.0, 2.0))
    page = written(tmp_path / "run", {"dropout": made})
    cells = dict(comparison_table(comparison_rows(runs.read(page.parent)[1])))
    for which, said in (("limit", "12.0 (11.0)"), ("prediction", "60.0 (20.0)"), ("training", "6.0 (2.0)")):
        assert cells[f"seconds (of them compiling), {which}"] == [said]
    assert cells["time of training / limit, with compiling"] == ["0.5"]
    assert cells["time of training / limit, without"] == ["4.0"]
    assert cells["time of training / prediction, with compiling"] == ["0.1"]
    said = (
        "Training was faster here: it took 6.0 s, less than the limit (12.0 s) and the prediction (60.0 s), "
        "compiling included."
    )
    assert said in Reader(page.read_text()).text and said in " ".join(str(made).split())
    assert (
        "seconds, of which compiling: limit 12.0 (11.0), prediction 60.0 (20.0), training 6.0 (2.0)"
        in str(made)
    )


def test_runs_that_did_not_measure_compiling(tmp_path):
    page = written(tmp_path / "run", {"dropout": comparison(FAST)})
    timings = page.parent / "timings.json"
    old = {
        name: {k: v for k, v in each.items() if "compiling" not in k}
        for name, each in json.loads(timings.read_text()).items()
    }
    timings.write_text(json.dumps(old))
    labels = [label for label, _ in comparison_table(comparison_rows(runs.read(page.parent)[1]))]
    assert "seconds, limit" in labels and not any("compiling)" in label for label in labels)
    assert "time of training / limit, without" not in labels


def test_the_table_in_a_terminal_begins_with_the_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(out, "width", 80)
    made = {"dropout:0.1+minibatch:8": comparison(FAST, predicted=True), "label": comparison(SLOW)}
    print_results({"command": "compare"}, runs.gather(made))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.split())
    assert words.startswith(
        "dropout:0.1+minibatch:8: At this step size and noise limit and prediction both hold (5 % and 0.1 % "
        "of the way off); the scatter of the 4 runs accounts for 1 %. label: At this step size and noise the "
    )
    assert printed.index("of the way off") < printed.index("verdict")


def below(made):
    """The same comparison with a training that ends at a trace of 40 where the limit ends at 49."""
    return eqx.tree_at(
        lambda m: m.trainings[0].path.hessian_trace,
        made,
        replace_fn=lambda trace: trace - 9.0 * np.linspace(0, 1, trace.shape[-1]),
    )


def test_a_trace_below_that_of_the_limit_is_explained(tmp_path, capsys):
    page = written(tmp_path / "run", {"weight": below(comparison(FAST)), "label": comparison(SLOW)})
    text = Reader(page.read_text()).text
    said = "is below the 49 of the limit, which stays on the zero-loss set."
    assert text.count(said) == 1 and "(L + σ² Reg)" in text
    print_results({"command": "compare"}, runs.read(page.parent)[1])
    assert said in " ".join(capsys.readouterr().out.split())


def test_why_there_is_no_prediction():
    made = comparison(FAST)
    training = dataclasses.replace(made.trainings[0], no_prediction="the noise is too large & wild.")
    made = dataclasses.replace(made, trainings=(training,))
    text = shown({"dropout": made}).text
    assert "There is no prediction: the noise is too large & wild." in text


def test_the_page_begins_with_how_long_it_takes(tmp_path):
    each = {"dropout:0.2": comparison(FAST), "label": comparison(SLOW), "minibatch:32": comparison(None)}
    results = runs.gather(each)
    results["dropout:0.2"].attrs.update(half_steps=8_214.0, half_of="regularizer")
    results["label"].attrs.update(half_steps=5.12e6, half_of="hessian_trace")
    create(tmp_path, {"noise": list(each)})
    runs.write_results(tmp_path, results)
    text = Reader(report.write(tmp_path).read_text()).text
    assert (
        "At this step size and noise, for dropout at rate 0.2: the limit holds (5 % of the way off); for "
        "label noise with sigma 0.3: the limit holds (5 % of the way off). "
        "Dropout at rate 0.2 drifts on the fast scale: half of its regularization happens in 8,210 steps at "
        "this step size. Label noise with sigma 0.3 drifts on the slow scale: half of what it does to the "
        "trace of the Hessian takes 5.12\u00a0million steps. Minibatches of 32 do nothing at zero loss."
    ) in text
    cells = dict(comparison_table(comparison_rows(results)))
    assert cells["half of it done after"] == ["8,210", "5.12\u00a0million", "\u2013"]


def test_how_long_is_said_where_it_is_not_known():
    each = {"langevin": comparison(SLOW, paths=20), "weight": comparison(FAST)}
    text = shown(each).text
    assert "spreads training over the zero-loss set on the slow scale, of 40,000 steps." in text
    assert "Weight noise with sigma 0.01 drifts on the fast scale, of 2,000 steps." in text


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (0.32, "0.32"), (7.2, "7.2"), (283.7, "284"), (8_214, "8,210"), (999_400, "999,000"),
        (999_600, "1\u00a0million"), (5.123e6, "5.12\u00a0million"), (2e9, "2\u00a0billion"),
    ],
)  # fmt: skip
def test_steps_in_words(steps, text):
    assert steps_in_words(steps) == text


def test_a_constant_is_shown_as_one(run):
    shown = curves(runs.read(run.parent)[1])
    still = [panel for each in shown.values() for panel in each if panel.noise == "minibatch"]
    assert len(still) == 5 and all(panel.constant is not None for panel in still)
    assert all(panel.constant is None for panel in shown["hessian_trace"][:2])
    (low, high) = ranges(shown["regularizer"])[2]
    assert low <= -1 and high >= 1  # not zoomed on rounding
    assert len(set(ranges(shown["hessian_trace"]))) == 1
    assert len(set(ranges(shown["regularizer"]))) > 1


def test_hostile_names_appear_escaped_only(tmp_path):
    # A noise is the name of a group, so it cannot hold a slash; everything else can.
    name = "<img src=x onerror=alert(1)>\"'&$x^{"
    config = {
        "problem": HOSTILE, "description": f'"\'{HOSTILE}',
        "options": {HOSTILE: [HOSTILE], "note": "</script><!--"},
    }  # fmt: skip
    page = written(tmp_path / "run", {name: comparison(FAST), "label": comparison(SLOW)}, **config)
    text = page.read_text()
    reader = check_hostile(text, name)
    assert name in reader.places()[0]["aria-label"]
    check_plots(reader)
    assert unescape(text).count("</html>") == 1
    assert all(re.fullmatch(r"[\w.+-]+", f.name) for f in (page.parent / "figures").iterdir())


def test_one_noise_without_a_test_error(tmp_path):
    page = written(tmp_path / "run", {"weight": comparison(FAST, test_error=False)})
    text = Reader(page.read_text()).text
    assert "Log ratio" in text and "test error" not in text.lower()
    assert (tmp_path / "run" / "figures" / "weight.png").stat().st_size > 10_000


def test_only_a_trivial_noise():
    page = shown({"minibatch:32": comparison(None)})
    text = page.text
    assert "Minibatches of 32 alone do nothing" in text and "never" in text


@pytest.mark.parametrize(("scale", "reached"), [(FAST, 4), (SLOW, 1), (None, 4), (None, 1)])
def test_a_training_that_diverged(tmp_path, scale, reached):
    each = {
        "label": comparison(scale, reached=reached, diverged_at=7_000),
        "weight": comparison(FAST),
    }
    page = written(tmp_path / "run", each)
    reader = Reader(page.read_text())
    text = reader.text
    assert "The training diverged at step 7,000" in text and "does nothing" not in text
    does = "has no drift on either time scale" if scale is None else "steps"
    assert re.search(
        rf"Label noise with sigma 0.3 [^.]*{does}; training diverged at step 7,000 at this step size\.", text
    )
    shown = curves(runs.read(page.parent)[1])
    for low, high in ranges(shown["hessian_trace"]):
        assert -200 < low < high < 300
    json.loads(reader.scripts[0])


def test_one_run_has_no_band(tmp_path):
    results = runs.gather({"label": comparison(SLOW)})
    single = results["label"]["training_0"].to_dataset().isel(replica=[0])
    results["label"]["training_0"].dataset = single
    assert curves(results)["hessian_trace"][0].all[0].error is None


@pytest.fixture(scope="module")
def stochastic(tmp_path_factory) -> Path:
    each = {"langevin": comparison(SLOW, replicas=32, paths=200), "label": comparison(SLOW)}
    return written(tmp_path_factory.mktemp("runs") / "run", each, sigma=0.02)


def test_a_stochastic_limit_is_shown_with_its_spread(stochastic):
    shown = curves(runs.read(stochastic.parent)[1])
    random, sure = shown["hessian_trace"]
    trained, limit, *_ = random.all
    assert limit.name == "limit, mean of 200 paths" and trained.name == "training, mean of 32 runs"
    assert trained.quantiles is not None and all(curve.quantiles is None for curve in sure.all)
    quantiles = limit.quantiles
    assert quantiles is not None
    # A normal variable lies within 1.645 standard deviations with a probability of 90 %.
    spread = (quantiles[3, -1] - quantiles[0, -1]) / (2 * 1.645)
    assert spread == pytest.approx(98 * 0.1, rel=5 * 0.75 / np.sqrt(200))
    low, high = ranges([random])[0]
    assert low < quantiles[0].min() and high > quantiles[3].max()
    reader = Reader(stochastic.read_text())
    specification = check_plots(reader)[2]
    assert roles(specification) == [
        "limit-spread area", "limit-spread area", "limit area", "training area",
        *["training-spread"] * 4, "training", "limit",
    ]  # fmt: skip
    assert "95 %: %{customdata[1]:.3~g} to" in specification["data"][-1]["hovertemplate"]
    assert (stochastic.parent / "figures" / "langevin.png").stat().st_size > 10_000


def test_a_stochastic_limit_in_words(stochastic):
    rows = comparison_rows(runs.read(stochastic.parent)[1])
    text = " ".join(sentences_of(rows[0], time_axis(rows[0]).steps_per_unit, {"langevin": 0.02}))
    assert "Langevin noise with sigma 0.02 is degenerate" in text
    assert "The limit is a stochastic differential equation" in text and "200 paths" in text
    spread = rows[0]["hessian_trace_limit_spread"]
    assert spread == pytest.approx(98 * 0.1, rel=5 / np.sqrt(2 * 200))
    assert f"and {number(spread)}." in text and "98.0 at the start, has the mean" in text
    assert "stochastic" not in " ".join(sentences_of(rows[1], time_axis(rows[1]).steps_per_unit, {}))
    cells = dict(comparison_table(rows))
    assert cells["trace of the Hessian, spread limit"] == [f"{spread:.4g}", "–"]  # noqa: RUF001
    assert (
        "±" in cells["trace of the Hessian, limit"][0] and "±" not in cells["trace of the Hessian, limit"][1]
    )
    assert "no single path is the limit" in Reader(stochastic.read_text()).text


def test_a_stochastic_limit_whose_training_diverged():
    one = comparison(SLOW, paths=20, reached=4, diverged_at=7_000)
    page = shown({"langevin": one})
    json.loads(page.scripts[0])
    assert "The training diverged at step 7,000" in page.text


def test_only_stochastic_limits():
    page = shown({"langevin": comparison(FAST, paths=20)})
    text = page.text
    assert "limit, mean of 20 paths ± 2 standard errors" in text


def test_a_picture_is_part_of_the_page(tmp_path, monkeypatch):
    panel = Panel("", "The curve under label.", [Series(np.ones(2), np.ones(2), Style("set"), "set")])
    picture = Figure(PICTURE, HOSTILE, [[panel]])
    monkeypatch.setattr("zeroloss.report._pictures.picture", lambda config, results: picture)
    page = written(tmp_path / "run", {"label": comparison(SLOW)}, problem=HOSTILE)
    reader = Reader(page.read_text())
    assert HOSTILE not in page.read_text() and HOSTILE in reader.text.split("Numbers")[0].split("Label")[1]
    assert roles(reader.plots()[0]) == ["set"]
    assert (tmp_path / "run" / "figures" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_diverged_is_promised_nothing():
    (row,) = comparison_rows(runs.gather({"dropout": comparison(FAST, reached=4, diverged_at=7_000)}))
    row |= {"half_steps": 120.0, "half_of": "regularizer"}
    assert headline([row], [time_axis(row).steps_per_unit], {}) == (
        "Dropout drifts on the fast scale, of 2,000 steps; training diverged at step 7,000 at this step size."
    )


def test_noise_without_drift_whose_runs_scatter():
    made = comparison(None)
    training = dataclasses.replace(
        made.trainings[0], distance=np.full(SAVES, 0.031), distance_error=np.full(SAVES, 0.03)
    )
    (row,) = comparison_rows(runs.gather({"weight": dataclasses.replace(made, trainings=(training,))}))
    assert (
        headline([row], [time_axis(row).steps_per_unit], {})
        == "Weight noise has no drift on either time scale."
    )
    (said,) = sentences_of(row, time_axis(row).steps_per_unit, {})
    assert said.replace("\u00a0", " ") == (
        "Weight noise is trivial: no drift is expected on either time scale; after 10,000 steps the "
        "parameters had moved by 3.1 % of their norm in the mean of 4 runs; the scatter of so few runs alone "
        "accounts for 3.0 %."
    )


def of_steps(**others) -> Trajectory:
    return dataclasses.replace(comparison(FAST, **others).trainings[0].path, time_scale=None)


def test_a_page_says_that_its_run_is_unfinished(tmp_path):
    asked = dict(command="compare", noise=["dropout", "label", "weight"])
    made = {"dropout": comparison(FAST), "label": comparison(SLOW)}
    rest = "the results are those until now. zeroloss resume"
    compared = written(tmp_path / "compare", made, **asked)
    assert f"2 of 3 noises are done; {rest} goes on" in Reader(compared.read_text()).text
    followed = tmp_path / HOSTILE.replace("/", "")
    create(followed, asked | {"command": "descend"})
    runs.write_results(followed, runs.gather({"dropout": of_steps()}), complete=False)
    text = Reader(report.write(followed).read_text()).text
    assert f"1 of 3 noises is done; {rest} goes on with the others." in text
    several = report.write_several([compared.parent, followed], tmp_path / "several.html").read_text()
    assert f"2 of 3 noises are done; {rest} {compared.parent} goes on with the others." in several
    assert f"1 of 3 noises is done; {rest} {followed} goes on" in Reader(several).text
    assert followed.name not in several
    asked = dict(noise=list(made))
    assert "are done" not in written(tmp_path / "complete", made, **asked).read_text()


def test_noises_that_got_differently_far_are_told_apart(capsys):
    config = {"command": "descend", "noise": ["dropout", "label"]}
    print_results(config, runs.gather({"dropout": of_steps(), "label": of_steps()}))
    printed = capsys.readouterr().out
    assert printed.count("after 10,000 steps") == 1 and "at the end" not in printed
    print_results(config, runs.gather({"dropout": of_steps(), "label": of_steps(reached=4)}))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["at", "the", "end"]
    assert [line.strip()[:18].rstrip() for line in lines if "after" in line] == [
        "after 10,000 steps", "after 6,000 steps",
    ]  # fmt: skip


def of_two_parameters(ends: int, replicas: int) -> xr.DataTree:
    """What there is to see of a limit with so many replicas, of which so many ends are drawn."""
    square = np.linspace(0, 1, 2 * max(ends, 3)).reshape(-1, 2)
    drawn = np.stack([square[:3]] * min(ends, 5))
    views = {
        "zero_loss_set": xr.Dataset(
            {
                "point": (("number", "parameter"), square),
                "limit": (("limit_path", "limit_time", "parameter"), drawn),
                "limit_end": (("limit_replica", "parameter"), square[:ends]),
            }
        ),
        "spectrum": xr.Dataset(
            {"eigenvalue": (("where", "index"), np.array([[2.0]]))},
            {"where": column(["end"]), "index": [1]},
        ),
    }
    return xr.DataTree.from_dict({"limit": xr.Dataset({"loss": ("replica", np.zeros(replicas))}), **views})


@pytest.mark.parametrize(
    ("ends", "replicas", "said"),
    [(200, 200, "200 paths, and all ends"), (400, 10_000, "10,000 paths, and 400 ends")],
)
def test_a_legend_holds_for_all_panels(ends, replicas, said):
    each = {"label": of_two_parameters(1, 1), "langevin": of_two_parameters(ends, replicas)}
    (figure,) = views_of(list(each), xr.DataTree(children=each), ["zero_loss_set"])
    assert [entry.text for entry in figure.legend].count("limit, and where it ends") == 1
    assert [panel.subtitle for panel in figure.panels] == ["", f"limit: 5 of {said}"]
    assert [panel.title for panel in figure.panels] == list(each)


def test_a_spectrum_of_one_eigenvalue_is_dots():
    results = xr.DataTree(children={"label": of_two_parameters(1, 1)})
    (figure,) = views_of(["label"], results, ["spectrum"])
    ((panel,),) = figure.rows
    assert [(entry.key, entry.text) for entry in figure.legend] == [("at the end", "at the end")]
    (series,) = panel.series
    assert series.style.marker and not series.style.width
    np.testing.assert_array_equal(series.y, [2.0])


def test_the_hint_on_scales_is_for_several_noises(page):
    hint = "The panels of one quantity share their scale"
    alone = shown({"label": comparison(SLOW)})
    assert hint in page.text and hint not in alone.text


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="holds no readable run"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropout", "dropout at rate 0.01"),
        ("label", "label noise"),
        ("minibatch", "minibatches"),
        ("minibatch:32+label:0.1", "minibatches of 32 and label noise with sigma 0.1"),
        ("gaussian-dropout:0.2", "Gaussian dropout with sigma 0.2"),
        ("dropconnect:0.1+label", "DropConnect at rate 0.1 and label noise"),
        ("gaussian-dropconnect", "Gaussian DropConnect"),
        ("input:0.1", "noise on the inputs with sigma 0.1"),
        ("sampled-labels", "labels drawn at every step"),
        ("anti-correlated:0.01", "anti-correlated weight noise with sigma 0.01"),
        ("langevin", "Langevin noise"),
        ("something:3", "something:3"),
    ],
)
def test_noises_in_words(name, words):
    assert noise_in_words(name, {"dropout": 0.01, "minibatch": 8.0}) == words


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        (1.99896, 0.0021, "1.999 ± 0.002"),
        (-2.0, 0.00699, "−2.000 ± 0.007"),  # noqa: RUF001
        (1.9856, 0.2262, "1.99 ± 0.23"),
        (1.0, 0.00042, "1.0000 ± 0.0004"),
        (1.5, 12.0, "2 ± 12"),
        (3.25, 0.0, "3.25"),
    ],
)
def test_intervals_in_words(value, half_width, text):
    assert interval(value, half_width) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (64.9647, "65.0"), (999.4, "999"), (999.7, "1,000"), (-999.7, "-1,000"), (1000, "1,000"),
        (50_000, "50,000"), (9_999_999.7, "1.00 × 10⁷"), (2e-16, "2.00 × 10⁻¹⁶"), (-0.5, "-0.500"),  # noqa: RUF001
        (np.inf, "not a finite number"),
    ],
)  # fmt: skip
def test_numbers_in_words(value, text):
    assert number(value) == text.replace(" ", "\u00a0" if "×" in text else " ")  # noqa: RUF001


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(600, 2, "600"), (99.7, 2, "100"), (12.6, 1, "13"), (2_000, 4, "2,000")]
)
def test_numbers_of_few_digits(value, digits, text):
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.5, None, "1.5"),
        (1.5, 0.02, "1.5 ± 0.02"),
        (np.inf, np.nan, "not finite"),
        (1e300, np.inf, "1e+300"),
    ],
)
def test_numbers_in_tables(value, error, text):
    assert in_table(value, error) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.05, "5.0"), (0.994, "99"), (0.996, "100"), (9.996, "1,000"), (20, "2,000")]
)
def test_percentages(share, text):
    assert percent(share) == f"{text}\u00a0%"


def going_half_way(values, verdict="non-degenerate", units="training steps", **attributes):
    """What a page says of a path of which this is the regularizer and, reversed, the trace of the Hessian."""
    values = np.asarray(values, float)
    dims = ("replica", "time")[-values.ndim :]
    path = xr.Dataset(
        {"regularizer": (dims, values), "hessian_trace": (dims, values[..., ::-1])},
        {"time": ("time", 1000.0 * np.arange(values.shape[-1]), {"units": units})},
        {"verdict_name": verdict} | attributes,
    )
    said = trajectory({"command": "descend"}, "label", path)
    return [each for each in said if "half of that way" in each]


def test_when_half_of_the_way_is_gone():
    fast = [8.0, 4.5, 3.5, 1.0, 0.5, 0.0]
    assert going_half_way(fast) == [
        "The regularizer Reg had gone half of that way after 1,000 to 2,000 steps."
    ]
    assert going_half_way(fast, "degenerate") == [
        "The trace of the Hessian had gone half of that way after 3,000 to 4,000 steps."
    ]
    assert "3,000 to 4,000 of slow time" in going_half_way(fast[::-1], units="slow time")[0]
    assert going_half_way(fast, "trivial") == going_half_way(fast, stochastic=1) == []
    assert going_half_way([8.0, 8.0, 8.05]) == going_half_way([8.0, np.nan, 4.0]) == []
    scattering = np.array([[8.0, 8.0, 10.0], [8.0, 8.0, 4.0], [8.0, 8.0, 6.0]])
    assert going_half_way(scattering) == []


def test_what_changed_by_less_than_is_written():
    path = xr.Dataset(
        {"regularizer": ("time", [803.31, 803.06]), "hessian_trace": ("time", [2.0, 2.0])},
        {"time": ("time", [0.0, 3.0], {"units": "training steps"})},
        {"verdict_name": "non-degenerate"},
    )
    said = " ".join(trajectory({"command": "predict"}, "label", path)).replace("\u00a0", " ")
    assert (
        "the regularizer Reg stayed at 803 but for 0.031 %; the trace of the Hessian stayed at 2.00." in said
    )


def test_what_became_infinite_did_not_stay():
    path = xr.Dataset(
        {"late": ("time", [1.5, np.inf])}, {"time": ("time", [0.0, 3.0], {"units": "training steps"})}
    )
    said = " ".join(trajectory({"command": "predict"}, "label", path))
    assert "the late went from 1.50 to not a finite number" in said


def test_distances_relative_to_the_parameters():
    """Of noise that drifts, but not from where it began."""
    made = comparison(SLOW)
    still = dataclasses.replace(made, limit=eqx.tree_at(lambda p: p.params["w"], made.limit, np.ones((6, 1))))
    text = shown({"label": still}).text
    assert "of |w| off" in text and "Distance of training / |w|" in text
    assert "distance travelled" not in text.split("How to read this")[0]


def test_why_a_run_failed_is_said(tmp_path):
    asked = dict(command="compare", noise=["dropout", "label"])
    folder = tmp_path / "run"
    create(folder, asked)
    runs.write_results(folder, runs.gather({"dropout": comparison(FAST)}), complete=False)
    runs._folder.log(folder, "failed", error="InputError: the training diverged <b>")
    text = Reader(report.write(folder).read_text()).text
    assert "The next one failed: InputError: the training diverged <b>" in text and "goes on" not in text


def test_runs_of_which_one_diverged_at_once_are_compared(tmp_path):
    whole = written(tmp_path / "whole", {"label": comparison(SLOW)}, command="compare").parent
    diverged = {"label": comparison(SLOW, reached=1, diverged_at=9)}
    broken = written(tmp_path / "broken", diverged, command="compare").parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report.write_several([broken, whole], tmp_path / "several.html").is_file()
