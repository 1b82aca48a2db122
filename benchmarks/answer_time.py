"""Seconds until one knows where training ends up: the limit against the training it replaces.

On digits, by default 200 examples and 64-50-1, step size 0.5 / lambda_max: `zeroloss.limit` to a slow
time, cold (with compilation) and warm, against a plain PyTorch loop of the same noisy training in
float64 on the same cores. The loop is timed over --steps steps, in turns with the limit, and extrapolated
to the number of steps that the slow time takes; the ratio is of medians.

    pip install -e ".[torch]" && python benchmarks/answer_time.py
"""

import argparse
import statistics
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402
import torch  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.drifts._verdict import steps_for  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue  # noqa: E402


class TorchTraining:
    """What a PyTorch user would write."""

    def __init__(self, problem, point, step_size, dropout=0.0, label=0.0):
        first, last = point
        width = first["biases"].size
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(width, 1)
        ).double()
        with torch.no_grad():
            for layer, values in ((self.model[0], first), (self.model[3], last)):
                layer.weight.copy_(torch.tensor(np.asarray(values["weights"]).T.copy()))
                layer.bias.copy_(torch.tensor(np.array(values["biases"])))
        self.inputs = torch.tensor(np.array(problem.inputs))
        self.targets = torch.tensor(np.array(problem.targets))
        self.label = label
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=step_size)

    def seconds(self, steps):
        """Wall-clock time of `steps` steps."""
        began = time.perf_counter()
        for _ in range(steps):
            targets = self.targets
            if self.label:
                targets = targets + self.label * torch.randn_like(targets)
            loss = ((self.model(self.inputs)[:, 0] - targets) ** 2).mean() / 2
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - began


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="PyTorch steps timed in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--time", type=float, default=200.0, help="slow time to follow the limit to")
    arguments = parser.parse_args()
    named = zl.problems.load("digits", examples=arguments.examples, widths=(arguments.width,))
    problem = named.problem
    any_system = problem.with_noise(zl.LabelNoise(0.1))
    point = zl.project(any_system, named.start)
    step_size = 0.5 / largest_eigenvalue(any_system, point)
    cases = [
        ("label noise 0.1", zl.LabelNoise(0.1), {"label": 0.1}, arguments.time),
        ("dropout 0.01", named.noises["dropout"](0.01), {"dropout": 0.01}, arguments.time),
    ]
    print(
        f"{arguments.examples} examples, 64-{arguments.width}-1; {torch.get_num_threads()} threads; "
        f"medians of {arguments.turns} turns"
    )
    print(
        "noise             slow time      steps   limit cold   limit warm   PyTorch loop   ratio cold   warm"
    )
    for name, noise, options, t1 in cases:
        system = problem.with_noise(noise)
        training = TorchTraining(problem, point, step_size, **options)
        training.seconds(100)
        limits, loops = [], []
        for _ in range(arguments.turns + 1):
            began = time.perf_counter()
            path = zl.limit(system, point, t1)
            limits.append(time.perf_counter() - began)
            loops.append(training.seconds(arguments.steps) / arguments.steps)
        steps = steps_for(t1, path.time_scale, step_size, system.noise_law(point).sigma)
        cold, warm, loop = limits[0], statistics.median(limits[1:]), steps * statistics.median(loops)
        print(
            f"{name:16s} {t1:10.0f} {steps:10,d} {cold:10.2f} s {warm:10.2f} s {loop:12.0f} s "
            f"{loop / cold:12.0f} {loop / warm:6.0f}"
        )


if __name__ == "__main__":
    main()
