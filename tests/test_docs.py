"""Documents name code that exists; rooms import only from rooms above them; functions take few parameters."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

from zeroloss.noise import LISTINGS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
THEORY = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
SECTIONS = {int(each[3]): each for each in re.split(r"(?m)^(?=## \d)", THEORY)[1:]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_code_exist(page):
    for name in re.findall(r"`(zeroloss(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"((?:zeroloss|tests|benchmarks|docs|examples)/[\w./]*\w)(?:::(\w+))?", text)
    for path, test in paths:
        assert (ROOT / path).exists(), path
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") if test else True, (path, test)


def test_every_section_of_the_theory_names_its_code():
    assert sorted(SECTIONS) == list(range(1, len(SECTIONS) + 1)) and len(SECTIONS) >= 7
    for section in SECTIONS.values():
        last = section.rstrip().split("\n\n")[-1]
        assert re.match(r"Code: `zeroloss\.", last), last


def test_sections_that_docstrings_refer_to_exist():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "zeroloss").rglob("*.py"))
    named = re.findall(r"theory\.md,\s+sections?\s+(\d+)(?:\s+and\s+(\d+))?", source)
    assert {int(number) for pair in named for number in pair if number} <= set(SECTIONS)
    assert len(named) > 20


def test_every_noise_has_a_section_with_code_and_proof():
    sections = re.split(r"(?m)^(?=## )", (ROOT / "docs/noises.md").read_text(encoding="utf-8"))[1:]
    for name in LISTINGS:
        proofs = [each for each in sections if f"--noise {name}" in each]
        assert proofs, name
        assert re.search(r"Code: .*`zeroloss/noise/", proofs[0]) and "Proof: `tests/" in proofs[0], name


def test_rooms_import_only_from_rooms_above():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \|", table)
    rooms = [room for cell in cells for room in re.findall(r"`(\w+)`", cell)]
    package = ROOT / "zeroloss"
    here = {
        path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(rooms) == here - {"__init__"}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if room != "__init__" and isinstance(node, ast.ImportFrom) and node.module is not None:
                parent, _, child = node.module.partition(".")
                if parent == "zeroloss":
                    used = [child.split(".")[0]] if child else [alias.name for alias in node.names]
                    for other in set(used) - {room, "__version__"}:
                        assert "._" not in child, f"{path} reaches into a private module: {node.module}"
                        assert rooms.index(other) < rooms.index(room), f"{path} imports {other}"


def test_functions_have_at_most_eight_parameters():
    for path in (ROOT / "zeroloss").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [
                    each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                ]
                assert len(set(names) - {"self", "cls"}) <= 8, f"{path}: {node.name} takes {names}"
