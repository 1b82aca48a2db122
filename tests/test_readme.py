import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from zeroloss.report._chart import LIGHT

ROOT = Path(__file__).parent.parent


def test_the_examples_in_the_readme_run():
    names: dict[str, object] = {}
    printed = []
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        if "import torch" in code and find_spec("torch") is None:
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), names)
        printed.append(out.getvalue())
    first, own_noise, stochastic, *converted = printed
    assert all(text.startswith("non-degenerate, deterministic") for text in converted)
    verdict, regularizer, trace, duration, *prediction, comparison = first.split("\n", 6)
    assert verdict.startswith("non-degenerate, deterministic: drift on 1/(alpha sigma^2) steps")
    for quantity in (regularizer, trace):
        start, end = map(float, quantity.split(" -> "))
        assert end < start
    assert "steps until regularizer has gone from" in duration
    estimate, spread = map(float, prediction)
    assert 0 < estimate < 0.1 and 0 < spread < 1
    assert "distance to the limit" in comparison
    assert own_noise.startswith("non-degenerate, deterministic")
    mean, error, bias = map(float, stochastic.split())
    assert abs(mean) < 2 and 0 < error < 0.2 and abs(bias) < 0.1


def test_the_picture_has_the_lines_of_its_caption():
    """Dashed black, green and blue, in the upper left panel and all that is drawn beside it."""
    text = (ROOT / "README.md").read_text()
    for words in ("Dashed: the\nlimit", "Green: the prediction", "Blue: the training"):
        assert words in text
    pixels = (255 * imread(ROOT / "docs" / "images" / "overview.png")[..., :3]).round()
    for color in (LIGHT[role] for role in ("limit", "prediction", "training")):
        near = np.abs(pixels - np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])).max(axis=-1) <= 2
        assert near.sum() > 1000, color


def test_docstrings_refer_to_sections_that_exist():
    theory = (ROOT / "docs" / "theory.md").read_text()
    sections = set(re.findall(r"^## (\d)\.", theory, re.MULTILINE))
    cited = set()
    for source in (ROOT / "zeroloss").rglob("*.py"):
        cited |= set(re.findall(r"theory\.md, sections? (\d)", source.read_text()))
    assert cited and cited <= sections
