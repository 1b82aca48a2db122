"""CPU seconds until the first answer: fresh processes, without compiled programs on disk and with them.

The README's first snippet verb by verb, and commands. Every line runs twice on one new folder of compiled
programs: cold, then warm.

    python benchmarks/first_answer.py [--only SUBSTRING]
"""

import argparse
import ast
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
COMMANDS = {
    "import jax": ["-c", "import jax"],
    "import zeroloss": ["-c", "import zeroloss"],
    "zeroloss --help": ["-m", "zeroloss.cli", "--help"],
    "zeroloss --version": ["-m", "zeroloss.cli", "--version"],
    "limit hyperbola": ["-m", "zeroloss.cli", "limit", "hyperbola", "--noise", "label"],
    "classify digits, dropout": ["-m", "zeroloss.cli", "classify", "digits", "--noise", "dropout"],
    "classify digits": ["-m", "zeroloss.cli", "classify", "digits"],
}


def snippet():
    """Run the README's first snippet; print the CPU seconds of each verb in it as JSON, on the last line."""
    code = README.read_text().split("```python\n")[1].split("```")[0]
    seconds, names = {}, {}
    for statement in ast.parse(code).body:
        calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
        verbs = [
            call.attr
            for call in calls
            if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "zl"
        ]
        verb = verbs[0] if verbs and not isinstance(statement, ast.FunctionDef) else "the rest"
        verb = "the rest" if verb in ("LeastSquares", "site") else verb
        began = time.process_time()
        exec(compile(ast.Module([statement], []), str(README), "exec"), names)
        seconds[verb] = seconds.get(verb, 0.0) + time.process_time() - began
    print(json.dumps(seconds))


def cpu_seconds(arguments, folder):
    """The CPU seconds of a process, and its last line of output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"ZEROLOSS_CACHE": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken, (run.stdout.splitlines() or [""])[-1]


def main():
    """Print the table, each line as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="lines whose name contains this")
    parser.add_argument("--snippet", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.snippet:
        snippet()
        return
    print(f"{'CPU seconds':28s}{'cold':>8s}{'warm':>8s}", flush=True)
    for name, arguments in COMMANDS.items():
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder:
                (cold, _), (warm, _) = (cpu_seconds(arguments, folder) for _ in range(2))
            print(f"{name:28s}{cold:8.1f}{warm:8.1f}", flush=True)
    if options.only in "README's snippet":
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (cpu_seconds([__file__, "--snippet"], folder) for _ in range(2))
        parts = zip(json.loads(cold[1]).items(), json.loads(warm[1]).values(), strict=True)
        for verb, seconds, again in [("README's snippet", cold[0], warm[0])] + [
            (f"  {verb}", one, other) for (verb, one), other in parts
        ]:
            print(f"{verb:28s}{seconds:8.1f}{again:8.1f}")


if __name__ == "__main__":
    main()
