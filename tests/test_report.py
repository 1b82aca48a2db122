"""The page and the figures of a run, from comparisons made by hand: nothing here trains."""

import dataclasses
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path as FilePath

import equinox as eqx
import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure

from zeroloss import report, runs
from zeroloss.dynamics import Comparison, Path, Prediction, Regime, Training
from zeroloss.errors import RunError
from zeroloss.problems import DEFAULT_STRENGTHS
from zeroloss.report.figures import write_figures
from zeroloss.report.labels import noise_in_words
from zeroloss.report.notation import interval, number, percent, steps_in_words
from zeroloss.report.series import panels, table_rows, time_axis, windows
from zeroloss.report.words import table, verdict

FAST, SLOW = "1/(alpha sigma^2)", "1/(alpha^2 sigma^2)"
STEP_SIZE, SIGMA, STEPS, SAVES = 0.05, 0.1, 10_000, 6
HOSTILE = "<script>alert(1)</script>"


def verdict_on(scale, stochastic=False) -> Regime:
    names: dict = {FAST: "non-degenerate", SLOW: "degenerate", None: "trivial"}
    return Regime(
        name=names[scale], time_scale=scale, stochastic=stochastic, margin=1e5, towards="towards smaller Reg",
        first=1.0, second=1.0, diffusion=float(stochastic), affine=True, rare=False, smooth=True,
        dimension=2, codimension=1, points=6,
    )  # fmt: skip


def comparison(
    scale, *, replicas=4, reached=SAVES, diverged_at=None, test_error=True, paths=None, predicted=False
) -> Comparison:
    """A comparison in which everything decays by half; `reached` saves of training are finite.

    With `paths` the limit is that many, with a standard deviation of a tenth at the end, and so is training.
    What is `predicted` is 2 % more than the limit.
    """
    regime = verdict_on(scale, paths is not None)
    share = np.linspace(0, 1, SAVES)
    decay = np.ones(SAVES) if scale is None else 1 - share / 2
    rng = np.random.default_rng(0)
    scatter = 1 + 0.01 * rng.standard_normal((replicas, SAVES)) * (scale is not None)
    followed = decay
    if paths is not None:
        scatter = 1 + 0.2 * share * rng.standard_normal((replicas, 1))
        followed = decay * (1 + 0.2 * share * rng.standard_normal((paths, 1)))
    unit = {FAST: STEP_SIZE * SIGMA**2, SLOW: STEP_SIZE**2 * SIGMA**2, None: 1 / STEPS}[scale]

    def path(shape: np.ndarray, steps: np.ndarray | None) -> Path:
        observables = {"test_error": 0.08 * shape} if test_error else {"log_ratio": shape}
        reg = 0.0 * shape if scale is None else 0.7 * shape
        ts = share * STEPS * unit if steps is None else steps.astype(float)
        params = {"w": shape[..., None]}
        return Path(ts, steps, params, 0.0 * shape, reg, 98.0 * shape, observables, scale)

    trained = decay * scatter
    if diverged_at is not None:
        trained[:, reached - 1] = 1e300
    steps = np.round(share * STEPS).astype(int)[:reached]
    training = Training(
        STEP_SIZE,
        path(trained[:, :reached], steps),
        0.05 * share[:reached] * (scale is not None) + 1e-17,
        0.01 * share[:reached] * (scale is not None) + 1e-17,
        3.5,
        diverged_at,
    )
    if predicted:
        prediction = Prediction(path(1.02 * decay, steps), 0.001 * share[:reached], 0.25)
        training = eqx.tree_at(lambda t: t.prediction, training, prediction, is_leaf=lambda x: x is None)
    return Comparison("Noise", SIGMA, regime, 10.0, path(followed, None), 0.5, (training,))


def written(folder: FilePath, comparisons, **config) -> FilePath:
    config = {"problem": "bowl", "description": "a test", "strengths": {"dropout": 0.01}} | config
    runs.create(folder, config)
    runs.write_results(folder, runs.gather(comparisons))
    return report.write(folder)


class Reader(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.text, self._inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text.append(data)

    def count(self, wanted: str) -> int:
        return sum(tag == wanted for tag, _ in self.tags)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> FilePath:
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
    text = " ".join(page.text)
    assert "Dropout at rate 0.01 is non-degenerate" in text
    assert "fast scale, 1/(ασ²) ≈ 2,000 steps" in text
    assert "In 10,000 steps the regularizer fell from 0.700 to" in text
    assert "the limit says 0.350." in text
    assert "Label noise is degenerate" in text
    assert "Minibatches alone do nothing: after 10,000 steps the parameters had moved by" in text


def test_table_has_a_row_for_every_quantity(run, page):
    rows = table_rows(runs.read(run.parent)[1])
    labels = [label for label, _ in table(rows)]
    for quantity in ("regularizer Reg", "trace of the Hessian", "test error"):
        for where in ("start", "limit", "trained"):
            assert f"{quantity}, {where}" in labels
    for label in ("verdict", "drifts in steps", "training steps", "seconds for the limit", "ratio"):
        assert label in labels
    assert page.count("tr") == len(labels) + 1
    cells = dict(table(rows))
    assert cells["trace of the Hessian, limit"] == ["49", "49", "98"]
    assert cells["regularizer Reg, trained"][2] == "0 ± 0"
    assert cells["ratio"] == ["7.0"] * 3


def test_every_panel_is_a_valid_figure_with_words_for_it(page):
    specifications = json.loads(page.scripts[0])
    for specification in specifications:
        go.Figure(specification)  # raises where Plotly would not understand
    plots = [attributes for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert [plot["id"] for plot in plots] == [f"panel-{i}" for i in range(len(specifications))]
    assert len(plots) == 5 * 3
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 30 for plot in plots)
    for specification in specifications:
        roles = [trace["meta"] for trace in specification["data"]]
        assert roles in (["band", "training", "limit"], ["training", "scatter"])
        assert all(
            trace["legendgroup"] in ("training", "limit", "scatter") for trace in specification["data"]
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
    for noise, specification in zip(["dropout", "minibatch"] * 5, json.loads(reader.scripts[0]), strict=True):
        roles = [trace["meta"] for trace in specification["data"]]
        assert ("prediction" in roles) == (noise == "dropout")
    shows = [attributes.get("data-shows") for _, attributes in reader.tags]
    assert shows.count("prediction") == 5
    results = runs.read(page.parent)[1]
    assert "prediction_0" in results["dropout"].children
    cells = dict(table(table_rows(results)))
    assert cells["trace of the Hessian, predicted"] == ["49.98", "\u2013"]
    assert cells["distance prediction-training"] == ["0.001", "\u2013"]
    text = " ".join(reader.text)
    assert f"says 0.357 for the regularizer and is {percent(0.001)} of the distance away" in text


def test_why_there_is_no_prediction(tmp_path):
    made = comparison(FAST)
    training = dataclasses.replace(made.trainings[0], no_prediction="the noise is too large & wild.")
    made = dataclasses.replace(made, trainings=(training,))
    text = " ".join(Reader(written(tmp_path / "run", {"dropout": made}).read_text()).text)
    assert "There is no prediction at this step size and noise: the noise is too large & wild." in text


def test_the_page_begins_with_how_long_it_takes(tmp_path):
    each = {"dropout:0.2": comparison(FAST), "label": comparison(SLOW), "minibatch:32": comparison(None)}
    results = runs.gather(each)
    results["dropout:0.2"].attrs.update(half_steps=8_214.0, half_of="regularizer")
    results["label"].attrs.update(half_steps=5.12e6, half_of="hessian_trace")
    runs.create(tmp_path, {"problem": "bowl"})
    runs.write_results(tmp_path, results)
    text = " ".join(Reader(report.write(tmp_path).read_text()).text)
    assert (
        "Dropout at rate 0.2 drifts on the fast scale: half of its regularization happens in 8,210 steps at "
        "this step size. Label noise drifts on the slow scale: half of what it does to the trace of the "
        "Hessian takes 5.12\u00a0million steps. Minibatches of 32 do nothing at zero loss."
    ) in text
    cells = dict(table(table_rows(results)))
    assert cells["half of it done after"] == ["8,210", "5.12\u00a0million", "\u2013"]


def test_how_long_is_said_where_it_is_not_known(tmp_path):
    each = {"langevin": comparison(SLOW, paths=20), "weight": comparison(FAST)}
    text = " ".join(Reader(written(tmp_path / "run", each).read_text()).text)
    assert "spreads training over the zero-loss set on the slow scale, of 40,000 steps." in text
    assert "Weight noise drifts on the fast scale, of 2,000 steps." in text


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
    shown = panels(runs.read(run.parent)[1])
    still = [panel for each in shown.values() for panel in each if panel.noise == "minibatch"]
    assert len(still) == 5 and all(panel.constant is not None for panel in still)
    assert all(panel.constant is None for panel in shown["hessian_trace"][:2])
    (low, high) = windows(shown["regularizer"])[2]
    assert low <= -1 and high >= 1  # not zoomed on rounding
    assert len(set(windows(shown["hessian_trace"]))) == 1
    assert len(set(windows(shown["regularizer"]))) > 1


def test_hostile_names_appear_escaped_only(tmp_path):
    # A noise is the name of a group, so it cannot hold a slash; everything else can.
    name = "<img src=x onerror=alert(1)>\"'&$x^{"
    config = {
        "problem": HOSTILE, "description": f'"\'{HOSTILE}', "strengths": {HOSTILE: HOSTILE},
        HOSTILE: [HOSTILE], "note": "</script><!--",
    }  # fmt: skip
    page = written(tmp_path / "run", {name: comparison(FAST), "label": comparison(SLOW)}, **config)
    text = page.read_text()
    assert HOSTILE not in text and "<img" not in text.split('<script type="application/json"')[0]
    reader = Reader(text)
    assert reader.count("script") == 3 and reader.count("img") == 0
    assert not any(key.startswith("on") for _, attributes in reader.tags for key in attributes)
    assert HOSTILE in "".join(reader.text) and name in "".join(reader.text)
    labels = [a["aria-label"] for _, a in reader.tags if a.get("class") == "plot"]
    assert name in labels[0]
    json.loads(reader.scripts[0])
    assert "<" not in reader.scripts[0]
    assert unescape(text).count("</html>") == 1
    assert all(re.fullmatch(r"[\w.+-]+", f.name) for f in (page.parent / "figures").iterdir())


def test_one_noise_without_a_test_error(tmp_path):
    page = written(tmp_path / "run", {"weight": comparison(FAST, test_error=False)})
    text = " ".join(Reader(page.read_text()).text)
    assert "Log ratio" in text and "test error" not in text.lower()
    assert (tmp_path / "run" / "figures" / "weight.png").stat().st_size > 10_000


def test_only_a_trivial_noise(tmp_path):
    page = written(tmp_path / "run", {"minibatch:32": comparison(None)})
    text = " ".join(Reader(page.read_text()).text)
    assert "Minibatches of 32 alone do nothing" in text and "never" in text


@pytest.mark.parametrize(("scale", "reached"), [(FAST, 4), (SLOW, 1), (None, 4), (None, 1)])
def test_a_training_that_diverged(tmp_path, scale, reached):
    each = {
        "label": comparison(scale, reached=reached, diverged_at=7_000),
        "weight": comparison(FAST),
    }
    page = written(tmp_path / "run", each)
    reader = Reader(page.read_text())
    assert "The training diverged at step 7,000" in " ".join(reader.text)
    shown = panels(runs.read(page.parent)[1])
    for low, high in windows(shown["hessian_trace"]):
        assert -200 < low < high < 300
    json.loads(reader.scripts[0])


def test_one_run_has_no_band(tmp_path):
    results = runs.gather({"label": comparison(SLOW)})
    single = results["label"]["training_0"].to_dataset().isel(replica=[0])
    results["label"]["training_0"].dataset = single
    written_figures = write_figures({}, results, tmp_path)
    assert all(path.stat().st_size > 10_000 for path in written_figures)
    assert panels(results)["hessian_trace"][0].training.error is None


@pytest.fixture(scope="module")
def stochastic(tmp_path_factory) -> FilePath:
    each = {"langevin": comparison(SLOW, replicas=32, paths=200), "label": comparison(SLOW)}
    return written(tmp_path_factory.mktemp("runs") / "run", each, strengths={"langevin": 0.02})


def test_a_stochastic_limit_is_shown_with_its_spread(stochastic):
    shown = panels(runs.read(stochastic.parent)[1])
    random, sure = shown["hessian_trace"]
    assert random.stochastic and not sure.stochastic
    assert random.reference.members == 200 and random.training.members == 32
    assert random.training.quantiles is not None and sure.training.quantiles is None
    quantiles = random.reference.quantiles
    assert quantiles is not None
    # A normal variable lies within 1.645 standard deviations with a probability of 90 %.
    spread = (quantiles[3, -1] - quantiles[0, -1]) / (2 * 1.645)
    assert spread == pytest.approx(98 * 0.1, rel=5 * 0.75 / np.sqrt(200))
    low, high = windows([random])[0]
    assert low < quantiles[0].min() and high > quantiles[3].max()
    reader = Reader(stochastic.read_text())
    specification = json.loads(reader.scripts[0])[2]
    go.Figure(specification)
    roles = [trace["meta"] for trace in specification["data"]]
    assert roles == [
        "limit-wide", "limit-narrow", "limit-band", "band",
        *("quantile-wide", "quantile-narrow", "quantile-narrow", "quantile-wide"), "training", "limit",
    ]  # fmt: skip
    buttons = {attributes["data-shows"] for tag, attributes in reader.tags if tag == "button"}
    assert {trace["legendgroup"] for trace in specification["data"]} <= buttons
    assert "95 %: %{customdata[1]:.3~g} to" in specification["data"][-1]["hovertemplate"]
    assert (stochastic.parent / "figures" / "langevin.png").stat().st_size > 10_000


def test_a_stochastic_limit_in_words(stochastic):
    rows = table_rows(runs.read(stochastic.parent)[1])
    text = " ".join(verdict(rows[0], time_axis(rows[0]), {"langevin": 0.02}))
    assert "Langevin noise with sigma 0.02 is degenerate" in text
    assert "The limit is a stochastic differential equation" in text and "200 paths" in text
    spread = rows[0]["hessian_trace_limit_spread"]
    assert spread == pytest.approx(98 * 0.1, rel=5 / np.sqrt(2 * 200))
    assert f"and {number(spread)}." in text and "98.0 at the start, has the mean" in text
    assert "stochastic" not in " ".join(verdict(rows[1], time_axis(rows[1]), {}))
    cells = dict(table(rows))
    assert cells["trace of the Hessian, spread limit"] == [f"{spread:.4g}", "–"]  # noqa: RUF001
    assert (
        "±" in cells["trace of the Hessian, limit"][0] and "±" not in cells["trace of the Hessian, limit"][1]
    )
    assert "no single path is the limit" in " ".join(Reader(stochastic.read_text()).text)


def test_a_stochastic_limit_whose_training_diverged(tmp_path):
    one = comparison(SLOW, paths=20, reached=4, diverged_at=7_000)
    page = written(tmp_path / "run", {"langevin": one})
    json.loads(Reader(page.read_text()).scripts[0])
    assert "The training diverged at step 7,000" in " ".join(Reader(page.read_text()).text)


def test_only_stochastic_limits(tmp_path):
    page = written(tmp_path / "run", {"langevin": comparison(FAST, paths=20)})
    text = " ".join(Reader(page.read_text()).text)
    assert "limit, mean of 20 paths ± 2 standard errors" in text


def test_a_portrait_is_part_of_the_page(tmp_path, monkeypatch):
    figure = Figure(figsize=(2, 2))
    monkeypatch.setattr("zeroloss.report.figures.portrait", lambda config, results: figure)
    page = written(tmp_path / "run", {"label": comparison(SLOW)}, problem=HOSTILE)
    reader = Reader(page.read_text())
    (picture,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert picture["src"].startswith("data:image/png;base64,iVBOR") and HOSTILE in picture["alt"]
    assert HOSTILE not in page.read_text()
    assert (tmp_path / "run" / "figures" / "portrait.png").read_bytes().startswith(b"\x89PNG")


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


def test_every_known_noise_has_words():
    for name in (*DEFAULT_STRENGTHS, "sampled-labels"):
        assert noise_in_words(name, {}) != name or name == "dropout"


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
    [(0.0, "0"), (64.9647, "65.0"), (50_000, "50,000"), (2e-16, "2.00\u00a0×\u00a010⁻¹⁶"), (-0.5, "-0.500")],  # noqa: RUF001
)
def test_numbers_in_words(value, text):
    assert number(value) == text
