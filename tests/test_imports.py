"""What is imported when: `import zeroloss`, help and wrong options must not wait for JAX."""

import subprocess
import sys

import pytest

import zeroloss

HEAVY = "jax", "numpy", "xarray", "pandas", "matplotlib", "sklearn"


def imported(code: str) -> set[str]:
    """Those of the heavy libraries that a fresh process has imported after `code`."""
    ending = f"\nimport sys\nprint('imported:', *({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_importing_zeroloss():
    assert imported("import zeroloss") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["compare", "--help"],
        ["sweep", "predict", "--help"],
        ["classify", "digits", "--nose", "label"],
        ["classify", "digit"],
        ["predict", "digits", "--steps", "-3"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_options(arguments):
    code = (
        "import zeroloss.cli, sys\n"
        f"sys.argv = ['zeroloss', *{arguments!r}]\n"
        "try:\n    zeroloss.cli.main()\nexcept SystemExit:\n    pass"
    )
    assert imported(code) == set()


def test_every_public_name_can_be_imported():
    """The stub that the lazy imports are read from names nothing that is missing."""
    for package in (zeroloss, zeroloss.problems, zeroloss.report, zeroloss.runs):
        assert not [name for name in package.__all__ if not hasattr(package, name)]
