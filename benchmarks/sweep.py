"""A sweep of 48 cells on two worker processes, against the same cells one after the other in one process.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --steps 200000
    python benchmarks/sweep.py --workers 4 --command compare

Each in a process of its own, with nothing compiled before; the one process has all cores to itself.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from pathlib import Path

CELLS = {
    "descend": dict(steps=500_000, saves=20),
    "predict": dict(steps=20_000, saves=20),
    "compare": dict(steps=20_000),
}
GRID = {
    "sigma": [0.1, 0.2, 0.3],
    "step_size": [0.1, 0.2, 0.4, 0.8],
    "seed": [0, 1, 2, 3],
}


class OneByOne(Executor):
    """Does what it is given at once."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def main() -> None:
    """Time both ways, and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1, help="training runs in a cell")
    parser.add_argument("--command", choices=CELLS, default="descend")
    parser.add_argument("--steps", type=int, help="in a cell; by default as CELLS says")
    parser.add_argument("--only", choices=("one", "many"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = options.steps or CELLS[options.command]["steps"]
    if options.only is not None:
        workers = options.workers if options.only == "many" else 0
        print(sweep(options.command, options.replicas, steps, workers))
        return
    seconds = {}
    for way in ("many", "one"):
        done = subprocess.run(
            [sys.executable, __file__, "--only", way, "--workers", str(options.workers), "--command",
             options.command, "--replicas", str(options.replicas), "--steps", str(steps)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds[way] = float(done.stdout.splitlines()[-1])
    count = math.prod(map(len, GRID.values()))
    print(f"{count} cells of {options.command} on regression_1d, {steps} steps, replicas {options.replicas}")
    print(f"  one process         {seconds['one']:7.1f} s")
    print(f"  {options.workers} worker processes  {seconds['many']:7.1f} s")
    print(f"  ratio               {seconds['one'] / seconds['many']:7.2f}")


def sweep(command: str, replicas: int, steps: int, workers: int) -> float:
    """Seconds for the sweep with so many workers, the start of the workers included; 0 is in this process."""
    import jax

    from zeroloss import runs

    jax.config.update("jax_enable_x64", True)
    cell = dict(command=command, problem="regression_1d", noise=["label"], **CELLS[command]) | {
        "steps": steps
    }
    cell |= {} if command == "predict" else {"replicas": replicas}
    config = runs.sweep_config({"cell": cell, "grid": GRID})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if workers == 0:
            runs.sweep(config, Path(folder) / "sweep", executor=OneByOne())
        else:
            with runs.worker_processes(workers=workers) as executor:
                runs.sweep(config, Path(folder) / "sweep", executor=executor)
        seconds = time.perf_counter() - began
        left = [each for each in runs.cells_of(config, Path(folder) / "sweep") if each.status != "complete"]
        if left:
            raise RuntimeError(f"{len(left)} cells are not complete: {left[0].name}: {left[0].reason}")
        return seconds


if __name__ == "__main__":
    main()
