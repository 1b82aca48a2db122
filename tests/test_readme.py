import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_example_in_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    verdict, regularizer, comparison = printed.getvalue().split("\n", 2)
    assert verdict.startswith("non-degenerate, deterministic: drift on 1/(alpha sigma^2) steps")
    start, end = map(float, regularizer.split(" -> "))
    assert end < start
    assert "distance to the limit" in comparison


def test_docstrings_refer_to_sections_that_exist():
    theory = (ROOT / "docs" / "theory.md").read_text()
    sections = set(re.findall(r"^## (\d)\.", theory, re.MULTILINE))
    cited = set()
    for source in (ROOT / "zeroloss").rglob("*.py"):
        cited |= set(re.findall(r"theory\.md, sections? (\d)", source.read_text()))
    assert cited and cited <= sections
