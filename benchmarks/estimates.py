"""Whether the error that `zeroloss.predict` estimates for itself is its error.

    python benchmarks/estimates.py [--only TEXT] [--replicas 512]

On a grid of 40 configurations: digits with 30 examples and 8 tanh units, ten noises, two step sizes, and a
start on the zero-loss set or at the problem's own. Each is trained as an ensemble and predicted, and compared
at the last step. In percent of the way from the start to the ensemble's mean:

- error: the distance between the prediction and the ensemble's mean, with the ensemble's own (standard)
  error subtracted in squares. The true error lies within twice the latter of it, or so.
- estimate: of the prediction's error, by the prediction.

A configuration is `bracketed` if the estimate is within a factor of 3 of an error in that interval, `too low`
or `too high` otherwise. Where the distance is below twice the ensemble's error, this training cannot tell an
estimate from a smaller one; these are `unresolved`.
"""

import argparse
import math
import time
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.dynamics._trajectory import flat_trajectories  # noqa: E402
from zeroloss.errors import ZerolossError  # noqa: E402
from zeroloss.noise import AbstractNoise  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue  # noqa: E402

FACTOR = 3.0


class Noisy(NamedTuple):
    """A noise, and the steps in which it goes a good way at a step size of 0.25 / lambda_max."""

    name: str
    noise: AbstractNoise
    steps: int


NOISES = [
    Noisy("label noise 0.1", zl.LabelNoise(0.1), 40_000),
    Noisy("label noise 0.3", zl.LabelNoise(0.3), 8_000),
    Noisy("dropout 0.05", zl.Dropout(0.05, at="hidden_1"), 4_000),
    Noisy("dropout 0.3", zl.Dropout(0.3, at="hidden_1"), 800),
    Noisy("Gaussian dropout 0.3", zl.GaussianDropout(0.3, at="hidden_1"), 2_000),
    Noisy("DropConnect 0.01", zl.DropConnect(0.01), 2_000),
    Noisy("weight noise 0.03", zl.WeightNoise(0.03), 2_000),
    Noisy("input noise 0.1", zl.InputNoise(0.1), 2_000),
    Noisy("batches of 8 + label noise 0.1", zl.MiniBatch(8) + zl.LabelNoise(0.1), 10_000),
    Noisy("batches of 8 + dropout 0.1", zl.MiniBatch(8) + zl.Dropout(0.1, at="hidden_1"), 2_000),
]
STEP_SIZES = (0.25, 0.75)
STARTS = ("on", "off")


def judge(error: float, ensemble: float, estimate: float) -> str:
    low, high = max(0.0, error - 2 * ensemble), error + 2 * ensemble
    if FACTOR * estimate < low:
        return "too low"
    if estimate / FACTOR > high:
        return "too high"
    return "bracketed" if low > 0 else "unresolved"


def main() -> None:
    """Print a line for each configuration as soon as it is there, and how many are bracketed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--replicas", type=int, default=512, help="training runs in each ensemble")
    arguments = parser.parse_args()
    problem = zl.problems.load("digits", widths=(8,), examples=30)
    any_system = problem.problem.with_noise(NOISES[0].noise)
    point = zl.project(any_system, problem.start)
    largest = largest_eigenvalue(any_system, point)
    print(f"{'configuration':52} {'way':>6} {'error':>7} {'ensemble':>9} {'estimate':>9}  verdict")
    verdicts: list[str] = []
    for noisy in NOISES:
        for relative in STEP_SIZES:
            for where in STARTS:
                name = f"{noisy.name}, {relative:g}, {where} the set"
                if arguments.only not in name:
                    continue
                began = time.perf_counter()
                start = point if where == "on" else problem.start
                system = problem.problem.with_noise(noisy.noise)
                step_size, steps = relative / largest, round(noisy.steps * STEP_SIZES[0] / relative)
                try:
                    path = zl.predict(system, start, step_size, zl.Saves(steps, count=9))
                except ZerolossError as refusal:
                    print(f"{name:52} refused: {refusal}", flush=True)
                    continue
                trained = zl.descend(
                    system,
                    start,
                    step_size,
                    zl.Saves(steps, at=[steps]),
                    key=jax.random.key(7),
                    replicas=arguments.replicas,
                )
                runs = flat_trajectories(trained.params, 2)[:, -1]
                mean = runs.mean(axis=0)
                way = float(np.linalg.norm(mean - flat_trajectories(start, 0)))
                ensemble = math.sqrt(runs.var(axis=0, ddof=1).sum() / len(runs)) / way
                distance = float(np.linalg.norm(flat_trajectories(path.params, 1)[-1] - mean)) / way
                error = math.sqrt(max(distance**2 - ensemble**2, 0.0))
                assert path.uncertainty is not None
                estimate = float(path.uncertainty.total[-1])
                verdicts.append(judge(error, ensemble, estimate))
                relative_way = way / float(np.linalg.norm(flat_trajectories(start, 0)))
                print(
                    f"{name:52} {relative_way:6.1%} {error:7.2%} {ensemble:9.2%} {estimate:9.2%}  "
                    f"{verdicts[-1]} ({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
    counts = {each: verdicts.count(each) for each in ("bracketed", "unresolved", "too low", "too high")}
    print(", ".join(f"{count} {each}" for each, count in counts.items()), f"of {len(verdicts)}")


if __name__ == "__main__":
    main()
