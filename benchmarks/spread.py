"""Whether the runs of `zeroloss.predict(..., replicas=)` scatter as training runs do.

    python benchmarks/spread.py [--replicas 256]

On digits with 60 examples, for label noise and dropout at half the inverse largest eigenvalue: mean and
standard deviation across runs, at the end, of what is measured, predicted and trained. The deviation is
known to 1 / sqrt(2 replicas) of itself; predicted runs come in antithetic pairs, and count for half as many
where a quantity is linear in them.
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

from prediction import CASES, prepare  # noqa: E402

import zeroloss as zl  # noqa: E402

NAMES = ("label noise, 0.5", "dropout 0.05")


def main() -> None:
    """Print a line for each noise and quantity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=256)
    replicas = parser.parse_args().replicas
    observables = zl.problems.load("digits", widths=(20,), examples=60).observables
    heads = ("mean", "trained", "spread", "trained", "ratio")
    print(f"{'case':20} {'quantity':16}", *(f"{head:>10}" for head in heads))
    for case in CASES:
        if case.name not in NAMES:
            continue
        setting = prepare(case)
        saves = zl.Saves(at=[case.steps], observables=observables)
        arguments = (setting.system, setting.start, setting.step_size, saves)
        began = time.perf_counter()
        predicted = zl.predict(*arguments, replicas=replicas)
        between = time.perf_counter()
        trained = zl.descend(*arguments, key=jax.random.key(7), replicas=replicas)
        seconds = f"{between - began:.0f} s against {time.perf_counter() - between:.0f} s"
        for name, values in predicted.measured().items():
            ours, theirs = values[:, -1], trained.measured().get(name)
            if theirs is None:
                continue
            theirs = theirs[:, -1]
            ratio = ours.std(ddof=1) / theirs.std(ddof=1) if theirs.std() > 0 else float("nan")
            print(
                f"{case.name:20} {name:16} {ours.mean():10.4g} {theirs.mean():10.4g} "
                f"{ours.std(ddof=1):10.3g} {theirs.std(ddof=1):10.3g} {ratio:10.3f}  {seconds}",
                flush=True,
            )


if __name__ == "__main__":
    main()
