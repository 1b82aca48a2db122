"""Pages in a real browser: Chromium, as Debian packages it. Without one these tests are skipped."""

import dataclasses
import shutil

import numpy as np
import pytest
import xarray as xr
from made_runs import COMMON, create, path, write, write_sweep

from zeroloss import report, runs

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian's package chromium)")

# Where WebGL is drawn in software.
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

HOSTILE = {
    "tag": "<script>hacked = 1</script>",
    "picture": "<img src=x onerror='hacked = 1'>",
    "quotes": '"\'` onmouseover="hacked = 1" \'',
    "long": "a_very_long_name_" * 11,
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "end": "</script></style></title><!--",
}


def surface(folder):
    """A descent under three parameters, with names that are hostile wherever a run has names."""
    names = [name.replace("/", "\u2215") for name in HOSTILE.values()]
    made = dataclasses.replace(path(9), observables={name: path(9).loss + 1.0 for name in names})
    config = COMMON | {"command": "descend", "noise": ["label:0.1"], "steps": 100, "description": names[0]}
    create(folder, config | {"problem": "<b onclick='hacked = 1'>&amp;\".py"})
    results = runs.gather({"label:0.1": made})
    cube = np.random.default_rng(0).uniform(size=(60, 3))
    results["label:0.1"]["zero_loss_set"] = xr.DataTree(
        xr.Dataset(
            {
                "point": (("number", "parameter"), cube),
                "path": (("path_path", "path_time", "parameter"), cube[:12].reshape(4, 3, 3)),
                "path_end": (("path_replica", "parameter"), cube[:9]),
            }
        )
    )
    runs.write_results(folder, results)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One page of each kind, by name."""
    folder = tmp_path_factory.mktemp("pages")
    made = {kind: write(folder / kind, kind) for kind in ("compare", "limit", "study")}
    made |= {"descend": surface(folder / "descend"), "sweep": write_sweep(folder / "sweep")}
    found = {kind: report.write(run) for kind, run in made.items()}
    found["several"] = report.write_several([made["compare"], made["descend"]], folder / "several.html")
    return found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


KINDS = ["compare", "limit", "descend", "study", "sweep", "several"]


@pytest.fixture
def visit(browser, pages):
    """Opens a page; whatever it complains about, or asks the network for, fails the test."""
    contexts, wrong = [], []

    def opened(kind, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        address = pages[kind].as_uri()
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", "blob:", address)) or wrong.append(request.url),
        )
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_drawn(visit, kind):
    page = visit(kind)
    count = page.locator(".plot").count()
    assert count > 0
    assert page.locator(".plot:has(.main-svg)").count() == count
    empty = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].filter(
            (plot) => !plot.querySelector('.scatterlayer path') && !plot.querySelector('canvas')
        ).map((plot) => plot.getAttribute('aria-label'))"""
    )
    assert empty == []


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("compare", "light"), ("compare", "dark"), ("study", "light"), ("sweep", "dark"), ("descend", "light")],
)
def test_there_are_no_serious_barriers(visit, kind, scheme):
    page = visit(kind, color_scheme=scheme, reduced_motion="reduce")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_scrolls_sideways_on_a_phone(visit, kind):
    page = visit(kind, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    right = "(svg) => svg.getBoundingClientRect().right"
    widest = page.evaluate(f"Math.max(...[...document.querySelectorAll('.plot .main-svg')].map({right}))")
    assert widest <= 390
    # With the configuration opened; long names of runs and quantities are in it.
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_colours_of_the_page(visit, scheme):
    """The picture is one of them: its paper is the page's, its limit is drawn in the page's ink."""
    page = visit("compare", color_scheme=scheme)
    assert page.locator(".picture .plot").count() == 2
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    papers = page.locator(".plot .main-svg:first-child").evaluate_all(
        "(all) => all.map((each) => getComputedStyle(each).backgroundColor)"
    )
    assert set(papers) == {paper}
    colors = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap((plot) => plot.data)
            .filter((trace) => trace.meta === 'limit').map((trace) => trace.line.color)"""
    )
    assert set(colors) == {"#1a1a1a" if scheme == "light" else "#f2f2f2"}


def test_figures_are_light_on_paper(visit):
    page = visit("compare", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    papers = "[...document.querySelectorAll('.plot')].map((plot) => plot.layout.paper_bgcolor)"
    assert set(page.evaluate(papers)) == {"#ffffff"}
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert set(page.evaluate(papers)) == {"#14161a"}


def test_it_prints(visit):
    page = visit("compare", color_scheme="dark")
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and len(paper) > 20_000


@pytest.mark.parametrize("kind", ["compare", "study", "sweep"])
def test_figures_answer_to_the_mouse(visit, kind):
    page = visit(kind)
    lines = "(plots) => plots.findIndex((plot) => plot.layout.hovermode === 'x unified')"
    plots = page.locator(".plot")
    plot = plots.nth(max(0, plots.evaluate_all(lines)))
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    said = page.locator(".hoverlayer text")
    for share in range(1, 20):
        page.mouse.move(box["x"] + 62 + share * (box["width"] - 90) / 20, box["y"] + box["height"] / 2)
        page.wait_for_timeout(60)
        if said.count():
            return
    # Where only places with a value speak: at one of them.
    x, y = plot.locator(".points path, path.js-line").first.evaluate(
        """(path) => {
            const at = path.getPointAtLength(0).matrixTransform(path.getScreenCTM());
            return [at.x, at.y];
        }"""
    )
    page.mouse.move(x, y)
    page.wait_for_timeout(200)
    assert said.count()


def _drag(page, plot, start, end):
    """Press the mouse at one place of a plot, in shares of its size, and let go at another."""
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    for index, (across, down) in enumerate((start, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), end)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=5)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(400)


@pytest.mark.parametrize("kind", ["compare", "study", "sweep"])
def test_a_drag_zooms_and_a_double_click_goes_back(visit, kind):
    page = visit(kind)
    plot = page.locator(".plot:has(.xtick)").first
    ranges = """(plot) => ['xaxis', 'yaxis'].map((name) => plot._fullLayout[name].range.map(Number))"""
    ticks = "(plot) => [plot.querySelectorAll('.xtick').length, plot.querySelectorAll('.ytick').length]"
    before, marks = plot.evaluate(ranges), plot.evaluate(ticks)
    _drag(page, plot, (0.35, 0.25), (0.7, 0.6))
    after = plot.evaluate(ranges)
    for old, new in zip(before, after, strict=True):
        assert 0 < new[1] - new[0] < 0.6 * (old[1] - old[0])
    assert min(plot.evaluate(ticks)) >= 2, "an axis without numbers"
    box = plot.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(400)
    for old, new in zip(before, plot.evaluate(ranges), strict=True):
        assert new == pytest.approx(old, rel=1e-6)
    assert plot.evaluate(ticks) == marks


def test_a_figure_in_space_turns(visit):
    page = visit("descend")
    plot = page.locator(".plot:has(canvas)").first
    eye = "(plot) => Object.values(plot._fullLayout.scene._scene.getCamera().eye)"
    plot.scroll_into_view_if_needed()
    before = plot.evaluate(eye)
    _drag(page, plot, (0.4, 0.5), (0.6, 0.5))
    after = plot.evaluate(eye)
    moved = sum((new - old) ** 2 for old, new in zip(before, after, strict=True)) ** 0.5
    assert moved > 0.02  # on a busy machine it may hear only some of the way
    assert after[2] == pytest.approx(before[2], abs=0.05), "a turntable keeps its height"


def test_the_legend_shows_and_hides(visit):
    page = visit("compare")
    shown = """(name) => [...document.querySelectorAll('.plot')].flatMap((plot) => plot.data)
        .filter((trace) => trace.legendgroup === name).map((trace) => trace.visible)"""
    section = page.locator(".quantity").first
    button = section.locator(".legend button").first
    name = button.get_attribute("data-shows")
    before = page.evaluate(shown, name)
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    after = page.evaluate(shown, name)
    assert after.count(False) > before.count(False)
    button.click()
    assert page.evaluate(shown, name) == before


def test_time_is_slow_or_counted_in_steps(visit):
    page = visit("compare")
    ends = "[...document.querySelectorAll('.plot')].map((plot) => plot.layout.xaxis.range?.[1])"
    titles = "[...document.querySelectorAll('.plot')].map((plot) => plot.layout.xaxis.title.text)"
    slow = page.evaluate(ends)
    page.get_by_label("training steps k").check()
    steps = page.evaluate(ends)
    changed = [new / old for old, new in zip(slow, steps, strict=True) if new != old]
    assert len(changed) == 5 and all(ratio > 1 for ratio in changed)
    assert "training steps k" in page.evaluate(titles)
    page.get_by_label("slow time t").check()
    assert page.evaluate(ends) == slow


def test_the_function_follows_the_slider(visit):
    page = visit("compare")
    slider = page.locator(".slider input").first
    assert page.locator(".slider output").first.inner_text() == "step 0"
    # The line that moves is the one that the slider's panel names.
    y = """() => { const plot = document.querySelector('figure:has(.slider) .plot');
        return plot._fullData.find((trace) => trace.legendgroup === 'limit, at the slider').y[0]; }"""
    before = page.evaluate(y)
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".slider output").first.inner_text() == "step 2"
    assert slider.get_attribute("aria-valuetext") == "step 2"
    assert page.evaluate(y) != before


def test_three_parameters_are_drawn_in_space(visit):
    page = visit("descend")
    kinds = (
        "[...document.querySelectorAll('.plot')].flatMap((plot) => plot._fullData).map((trace) => trace.type)"
    )
    assert "scatter3d" in page.evaluate(kinds)


@pytest.mark.parametrize("kind", ["descend", "several"])
def test_hostile_names_are_text(visit, kind):
    page = visit(kind)
    text = page.evaluate("document.body.textContent")
    for name in HOSTILE.values():
        shown = name.replace("/", "\u2215").replace("_", " ").replace("\u202e", "\ufffd")
        assert shown.lower() in text.lower(), name
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("b[onclick], img[src='x']").count() == 0
