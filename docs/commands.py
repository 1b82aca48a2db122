"""Every command and its help, as a page: writes docs/commands.md beside this file.

python docs/commands.py
"""

from pathlib import Path
from typing import Any
from unittest import mock

from typer import rich_utils
from typer.main import get_command
from typer.testing import CliRunner

from zeroloss.cli import app
from zeroloss.cli._console import EXAMPLES, EXIT_CODES
from zeroloss.problems import DEFAULT_STRENGTHS

PAGE = Path(__file__).with_suffix(".md")
WIDTH = 80

_HEAD = """\
# Commands

What `--help` says of every command in a terminal 80 columns wide, and what to type. Where an example names
the folder of a run, an earlier example makes it. `python docs/commands.py` writes this page.
"""

_NOISES = """\
A strength is the rate of `dropout` and `dropconnect`, the size of minibatches, and sigma of the others.
Noises add up: `minibatch:32+label:0.1`. What each does is in [theory.md](theory.md#4-the-noises); a
problem has those that suit it.
"""

_COMPLETION = """\
`zeroloss --install-completion` makes the Tab key complete commands, options, problems and noises in bash,
zsh, fish and PowerShell. Each Tab starts the program, which takes some three seconds.
"""


def all_commands() -> dict[str, Any]:
    """Every command by its name, in the order of `zeroloss --help`; those of a command below it."""
    found: dict[str, Any] = {}

    def add(group: Any, before: str) -> None:
        commands = {name: each for name, each in group.commands.items() if not each.hidden}
        panels = list(dict.fromkeys(each.rich_help_panel for each in commands.values()))
        for name in sorted(commands, key=lambda name: panels.index(commands[name].rich_help_panel)):
            found[before + name] = commands[name]
            if hasattr(commands[name], "commands"):
                add(commands[name], f"{before}{name} ")

    add(get_command(app), "")
    return found


def summaries() -> dict[str, str]:
    """What every command does, in a sentence."""
    return {name: each.help.partition("\n\n")[0] for name, each in all_commands().items()}


def help_of(*command: str) -> str:
    """What `--help` prints on 80 columns and without colours, whatever the terminal is that this runs in."""
    plain = dict(MAX_WIDTH=WIDTH, COLOR_SYSTEM=None, FORCE_TERMINAL=False)
    with mock.patch.multiple(rich_utils, **plain):
        printed = CliRunner().invoke(app, [*command, "--help"], prog_name="zeroloss").output
    return "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")


def page() -> str:
    """The page."""
    found = summaries()
    parts = [
        _HEAD,
        _table(
            "command", "", {f"[`{name}`](#{name.replace(' ', '-')})": words for name, words in found.items()}
        ),
        _table("exit code", "", {str(code): words for code, words in EXIT_CODES.items()}),
        _table(
            "`--noise`",
            "strength, where it is not given as in `label:0.1`",
            {f"`{name}`": f"{strength:g}" for name, strength in DEFAULT_STRENGTHS.items()}
            | {"`sampled-labels`": "takes none"},
        ),
        _NOISES,
        _COMPLETION,
        _block("text", help_of()),
    ]
    for name in found:
        alone = help_of(*name.split()).partition("\n Example")[0].rstrip()
        examples = "\n".join(EXAMPLES.get(name, ()))
        shown = [_block("sh", examples)] if examples else []
        parts += [f"## {name}\n", *shown, _block("text", alone)]
    return "\n".join(parts)


def _table(first: str, second: str, rows: dict[str, str]) -> str:
    return "\n".join(
        [f"| {first} | {second} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows.items()), ""]
    )


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
