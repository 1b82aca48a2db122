"""The page and the figures of a convergence study, from studies made by hand: nothing here trains."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import GAPS, config_of, create, drifting, trivial
from reading import HOSTILE, Reader, check_hostile, check_plots

from zeroloss import report, runs
from zeroloss.report import _study, study as sentences_of
from zeroloss.report._chart import log_range
from zeroloss.report._ladders import studies
from zeroloss.report._page import render
from zeroloss.report._sentences import STUDY_HEAD, study_table
from zeroloss.report._study import gap_panel, steps_panel
from zeroloss.studies import Study


def configured(each, config):
    return {"command": "study", "problem": "hyperbola", "noise": list(each), "budget": 0.5} | config


def written(folder: Path, each, **config) -> Path:
    """The page of a run on a disk, with its figures."""
    create(folder, configured(each, config))
    runs.write_results(folder, runs.gather(each))
    return report.write(folder)


def shown(each, **config) -> Reader:
    """The same page alone, without a disk."""
    config, results = config_of(configured(each, config)), runs.gather(each)
    return Reader(render(_study.page(config, results), config, "nowhere").decode())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    each = {"label:0.3": drifting(), "minibatch:1": trivial(), "langevin": drifting(stochastic=True)}
    return written(tmp_path_factory.mktemp("runs") / "run", each, sigma=0.3)


@pytest.fixture(scope="module")
def found(run):
    return studies(*runs.read(run.parent))


def test_noises_come_in_the_order_of_the_config(found):
    assert [study.noise for study in found] == ["label:0.3", "minibatch:1", "langevin"]
    assert [len(study.ladders) for study in found] == [2, 0, 2]


def test_page_says_what_was_found(run):
    text = Reader(run.read_text()).text.replace("\u00a0", " ")
    assert "Label noise with sigma 0.3 is degenerate: in theory training drifts on the slow scale" in text
    assert "Steps for a fixed drift, 5.0 % of |w|, grow as" in text
    assert "with p = 1.998 ± 0.007; theory says 2." in text
    assert "q = 2.110 ± 0.021; theory says 2, which lies outside this interval." in text
    assert (
        "At the largest step size training takes 9.5 % fewer steps than the limit, at the smallest as many"
        in text
    )
    assert "the gap closes with order 1.00 ± 0.20 (theory 1)." in text
    assert "with a stochastic limit" in text and "root-mean-square drift" in text
    assert "Minibatches of 1 alone do nothing on either time scale: after 100,000 steps of size 0.100" in text
    assert "moved by less than 1.0 × 10⁻¹⁶ |w|" in text  # noqa: RUF001
    assert "Ladder of step sizes: 5 measurements." in text and "budget of 0.5 minutes" in text
    assert "is kept as far as possible" in text and "25 seconds in all" in text and "are done" not in text
    assert "How to read this" in text and "jax (version)" in text


def test_table_has_a_line_for_every_noise(run, found):
    lines = dict(study_table(found))
    assert all(len(cells) == len(STUDY_HEAD) for cells in lines.values())
    assert lines["label:0.3"][2] == "2" and lines["label:0.3"][-2] == "not resolved"
    assert lines["minibatch:1"][0] == "never" and set(lines["minibatch:1"][1:-1]) == {"–"}  # noqa: RUF001
    assert Reader(run.read_text()).count("tr") == len(found) + 1


def test_every_panel_is_a_valid_figure_with_words_for_it(run):
    plots = check_plots(Reader(run.read_text()))
    for plot in plots:
        assert plot["layout"]["xaxis"]["type"] == plot["layout"]["yaxis"]["type"] == "log"
    assert len(plots) == 2 * 2 * 2


def test_what_is_zero_within_its_error_is_an_upper_end(found):
    gaps, distances = found[0].ladders[0].gaps, found[0].ladders[0].distances
    assert gaps.resolved.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(gaps.y, [0.1, 0.05, 0.025, 0.0125, 0.0021], rtol=1e-9)
    np.testing.assert_allclose(gaps.low[:4], gaps.y[:4] - 0.002)
    assert gaps.low[4] == gaps.high[4] == gaps.y[4]
    assert distances.resolved.tolist() == [True, True, True, False, False]
    drawn = gap_panel(found[0].ladders[0]).series
    assert [each.key for each in drawn] == ["fitted gap", "distance", "bound", "gap", "bound"]
    np.testing.assert_array_equal(drawn[1].y, distances.y[:3])
    np.testing.assert_array_equal(drawn[4].y, gaps.y[4:])
    low, high = log_range(gaps.low, gaps.high)
    assert low < 0.0021 and high > 0.102


def test_the_fitted_lines(found):
    ladder = found[0].ladders[0]
    x, steps = ladder.fitted_steps
    assert steps[1] == pytest.approx(ladder.steps[-1])
    assert np.log(steps[1] / steps[0]) / np.log(x[0] / x[1]) == pytest.approx(1.998)
    x, gap = ladder.fitted_gap
    # The gaps are 0.1 of the relative step size, all but the last, and of equal error.
    relative = ladder.x / ladder.x.max()
    constant = np.sum(relative * np.abs(GAPS)) / np.sum(relative**2)
    np.testing.assert_allclose(gap, constant * x / ladder.x.max())
    texts = [note.text for note in steps_panel(ladder).notes]
    assert texts == ["measured: slope −1.998\u00a0±\u00a00.007", "limit: slope −2"]  # noqa: RUF001


def test_figures_are_png(run):
    figures = {path.name: path.read_bytes() for path in (run.parent / "figures").iterdir()}
    assert set(figures) == {"overview.png", "label_0.3.png", "langevin.png"}
    for name, content in figures.items():
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000, name


def test_only_a_trivial_noise(tmp_path):
    page = written(tmp_path / "run", {"minibatch": trivial(0.0), "sampled-labels": trivial()})
    reader = Reader(page.read_text())
    text = reader.text
    assert "Minibatches alone do nothing" in text and "training had not moved along the set" in text
    assert "Labels drawn at every step do nothing" in text and "nothing to draw" in text
    assert reader.plots() == []
    assert [path.name for path in (tmp_path / "run" / "figures").iterdir()] == ["overview.png"]


def test_an_unfinished_study_and_how_long_it_took():
    long = Study(**{**vars(drifting()), "seconds": 600.0})
    text = shown({"label": long}, noise=["label", "dropout"], budget=1).text
    assert "1 of 2 noises is done; the results are those until now." in text
    assert "600 seconds in all" in text and "the budget of 1 minute for all noises" in text


def test_nothing_fitted_and_no_ladder_of_sigmas(tmp_path):
    page = written(tmp_path / "run", {"dropout": drifting(sigmas=False, fitted=False)})
    text = Reader(page.read_text()).text
    assert "were measured at too few values of α to fit how they grow" in text  # noqa: RUF001
    assert "There is no ladder of sigmas." in text and "is not resolved" in text
    (study,) = studies(*runs.read(page.parent))
    assert [ladder.kind for ladder in study.ladders] == ["step size"]
    assert [each.key for each in steps_panel(study.ladders[0]).series] == ["limit", "points"]
    assert (page.parent / "figures" / "dropout.png").stat().st_size > 10_000


def test_one_rung_only():
    study = drifting(sigmas=False, fitted=False)
    one = {**vars(study), "by_step_size": study.by_step_size[:1]}
    assert "At the largest step size training takes 9.5" in shown({"label": Study(**one)}).text


def test_hostile_names_appear_escaped_only(tmp_path):
    name = "<img src=x onerror=alert(1)>\"'&$x^{"
    config = {
        "problem": HOSTILE, "description": f"\"'$_{HOSTILE}",
        "options": {HOSTILE: [HOSTILE]},
    }  # fmt: skip
    page = written(tmp_path / "run", {name: drifting(choices=[HOSTILE]), f"{name}2": trivial()}, **config)
    text = page.read_text()
    check_plots(check_hostile(text, name))


def test_findings_keep_to_what_is_there(found):
    assert len(sentences_of(found[1], {})) == 1
    assert all("nan" not in sentence for study in found for sentence in sentences_of(study, {}))
