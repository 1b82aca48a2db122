"""All benchmarks of speed, one after the other, into a folder: `results.md` with their tables, and a plot.

    python benchmarks/all.py benchmarks/results               # 40 minutes on 2 cores
    python benchmarks/all.py benchmarks/results --accuracy    # those of accuracy too, some hours

Each runs by itself, in a fresh process and with one thread for LAPACK; what one prints is kept as soon as it
is there. Leave the machine alone meanwhile.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent

SPEED = [
    "structure.py --materialized",
    "drift.py --dense",
    "drift.py --models large --repeats 3",
    "drift.py --growth {folder}/growth.png",
    "krylov.py",
    "losses.py",
    "throughput.py",
    "throughput.py --dtype float32",
    "throughput.py --devices 2",
    "answer_time.py",
    "answer_time.py --examples 1000 --width 500 --steps 500 --turns 3",
    "prediction.py 'label noise, 0.5' 'label noise 0.01, 0.5' 'dropout 0.2'",
]

ACCURACY = ["prediction.py", "spread.py", "estimates.py", "agreement.py", "catalogue.py", "exponents.py"]


def main() -> int:
    """Run them, and return how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where results.md and growth.png are written")
    parser.add_argument("--accuracy", action="store_true", help="also the benchmarks of accuracy")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / "results.md"
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "diffrax", "numpy"))
    results.write_text(
        f"# Benchmarks\n\nzeroloss {version('zeroloss')}, Python {platform.python_version()}, {packages}; "
        f"{os.cpu_count()} cores.\n"
    )
    failed = 0
    for command in SPEED + (ACCURACY if options.accuracy else []):
        began = time.perf_counter()
        print(command, flush=True)
        code, text = run(command.format(folder=options.folder))
        failed += code != 0
        seconds = time.perf_counter() - began
        with results.open("a") as file:
            outcome = f"{seconds:.0f} s" if code == 0 else f"failed with exit code {code}"
            file.write(f"\n## {command.replace('{folder}', 'FOLDER')}\n\n{outcome}\n\n```\n{text}```\n")
    return failed


def run(command: str) -> tuple[int, str]:
    """The exit code of a benchmark, and its table, or what it said when it failed."""
    script, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
    )
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
