import re
import shlex
from pathlib import Path

import commands
import pytest
import typer
from typer.main import get_command

from zeroloss.cli import app
from zeroloss.cli._console import EXAMPLES

ROOT = Path(__file__).parent.parent
NAMES = list(commands.summaries())
TYPED = re.compile(r"^ {3,4}(zeroloss .*)$|`(zeroloss [^`\s]+ [^`\n]+)`", re.MULTILINE)
FENCED = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parse(line):
    """Parse what is typed as the command line does, and compute nothing."""
    found = get_command(app)
    program, *arguments = shlex.split(line, comments=True)
    assert program == "zeroloss", line
    while hasattr(found, "commands"):
        name, *arguments = arguments or [""]
        if name == "--help":
            raise typer.Exit
        assert name in found.commands, line
        found = found.commands[name]
    found.make_context(name, arguments)


def test_the_page_of_commands_says_what_their_help_says():
    again = "docs/commands.md is not what the commands say now; write it again: python docs/commands.py"
    assert commands.PAGE.read_text(encoding="utf-8") == commands.page(), again


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_a_terminal_of_80_columns(name, monkeypatch):
    text = commands.help_of(*name.split())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "\x1b" not in text
    monkeypatch.setenv("COLUMNS", "133")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert commands.help_of(*name.split()) == text


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sweep"])
def test_every_command_has_examples_that_its_help_shows_whole(name):
    assert EXAMPLES.get(name), f"{name} has no example: register it with zeroloss.cli._console.command"
    assert any(each.startswith(f"zeroloss {name} ") or each == f"zeroloss {name}" for each in EXAMPLES[name])
    lines = commands.help_of(*name.split()).splitlines()
    for example in EXAMPLES[name]:
        assert f"   {example}" in lines
        parse(example)


def test_every_command_and_option_says_what_it_is_for():
    for name, command in commands.all_commands().items():
        assert command.rich_help_panel, f"{name} is in no panel of zeroloss --help"
        assert len(commands.summaries()[name]) <= 66, f"the summary of {name} takes more than a line"
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_what_the_docs_say_to_type_can_be_typed(path):
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [match[1] or match[2] for match in TYPED.finditer(text)]
    lines += [line for block in FENCED.findall(text) for line in block.splitlines()]
    for line in lines:
        try:
            if line.startswith("zeroloss"):
                parse(line)
        except typer.Exit:
            assert line.endswith("--help")


@pytest.mark.parametrize(
    "line,what",
    [
        ("zeroloss show runs --jso", "--jso"),
        ("zeroloss resume", "run"),
        ("zeroloss shw runs", "zeroloss shw"),
    ],
)
def test_what_cannot_be_typed_is_found(line, what):
    with pytest.raises(Exception, match=what):
        parse(line)
