"""The exponents of the two time scales, measured on digits and on the hyperbola, beside theory's 1 and 2.

    python benchmarks/exponents.py [minutes per case]

Digits: odd against even, 60 examples, a 64-20-1 tanh network, 1321 parameters.
"""

import sys
import time

import jax

import zeroloss as zl
from zeroloss.problems import load, parse_noise

jax.config.update("jax_enable_x64", True)

DIGITS = dict(widths=(20,), examples=60)
CASES = [
    ("digits", DIGITS, "dropout:0.01"),
    ("digits", DIGITS, "weight:0.02"),
    ("digits", DIGITS, "dropconnect:0.01"),
    ("digits", DIGITS, "label:1"),
    ("digits", DIGITS, "langevin:0.3"),
    ("digits", DIGITS, "minibatch:10"),
    ("digits", DIGITS, "minibatch:10+label:0.5"),
    ("hyperbola", {}, "weight:0.1"),
    ("hyperbola", {}, "label:0.3"),
    ("hyperbola", {}, "langevin:0.1"),
    ("hyperbola", {}, "gaussian-dropconnect:0.1"),
    ("ellipse", {}, "langevin:0.1"),
]


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    chosen = sys.argv[2:]
    for name, options, noise in CASES:
        if chosen and f"{name}/{noise}" not in chosen:
            continue
        problem = load(name, **options)
        began = time.perf_counter()
        study = zl.study(
            problem.problem.with_noise(parse_noise(problem, noise)),
            problem.start,
            key=jax.random.key(0),
            budget=minutes,
        )
        print(f"{name}, {noise} ({time.perf_counter() - began:.0f} s)\n{study}", flush=True)
        for row in study.rows():
            print(
                f"    {row['ladder']:9} {row['step_size_relative']:.4f} sigma {row['sigma']:.4f}: "
                f"{row['steps']:12,.0f} steps, limit {row['theory']:12,.0f}, error {row['steps_error']:.4f}, "
                f"distance {row['distance']:.3f} +- {row['distance_error']:.3f}, {row['replicas']} runs, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
