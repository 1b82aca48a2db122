"""What `zeroloss.predict` says of training, against training, the limit, and a loop that just runs it.

    python benchmarks/prediction.py [name ...]            # the named cases, or all
    python benchmarks/prediction.py --steps-factor 0.1    # a tenth of the steps, for a quick look

On digits with 60 examples. For each case an ensemble is trained in float64 and predicted, and where the limit
applies (a constant step size, no momentum, no weight decay, a start on the zero-loss set) it is followed to
the same slow time. Step sizes are in units of 1 / lambda_max. Everything is compared at the last step:

- way: of the ensemble's mean from the start, in percent of |w|. What follows is in percent of the way.
- limit, predict: their distance to the ensemble's mean, with the ensemble's own error subtracted in squares.
  0 is an error too small for this ensemble to show.
- ensemble: the ensemble's own error.
- estimate: what the prediction estimates its error to be.
- spread, measured: the root mean square distance of single runs from their mean, predicted and trained.
- loss, trained, error: the expected clean loss, predicted and trained, and the standard error of the latter.
- cold, warm: seconds of the prediction with compilation, and of the same once more.
- PyTorch: seconds of the same number of steps of one run as a plain PyTorch loop in float64 with the same
  noise, batches and optimizer, on one thread, extrapolated from the fastest of a few turns of a hundred steps
  (needs `pip install -e ".[torch]"`).
- ratio: of the loop to the warm prediction.

A dash is what does not apply or cannot be had.
"""

import argparse
import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss.drifts._verdict import slow_time  # noqa: E402
from zeroloss.dynamics._trajectory import flat_trajectories  # noqa: E402
from zeroloss.errors import ZerolossError  # noqa: E402
from zeroloss.noise import AbstractNoise, parts  # noqa: E402
from zeroloss.zero_sets import largest_eigenvalue  # noqa: E402

EXAMPLES = 60
SAVES = 9  # of the prediction
TURNS, TIMED = 5, 100  # of the PyTorch loop: turns, and the steps of each


class Case(NamedTuple):
    """A training run.

    - `name`: of the case.
    - `noise`: the noise.
    - `relative`: the step size in units of 1 / lambda_max.
    - `steps`: how many steps.
    - `replicas`: runs in the ensemble; 0 where training takes too long here, and only time is compared.
    - `widths`: of the hidden layers.
    - `start`: "on" the zero-loss set, or "off" it, where the problem itself starts.
    - `cosine`: whether the step size falls to zero along half a cosine.
    - `options`: of the optimizer, for `zeroloss.predict`, `zeroloss.descend` and `torch.optim.SGD` alike.
    """

    name: str
    noise: AbstractNoise
    relative: float
    steps: int
    replicas: int
    widths: tuple[int, ...] = (20,)
    start: Literal["on", "off"] = "on"
    cosine: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    @property
    def has_limit(self) -> bool:
        """Whether the limit speaks of this training: plain gradient descent from the zero-loss set."""
        return self.start == "on" and not self.cosine and not self.options


def dropout(rate: float) -> zl.Dropout:
    return zl.Dropout(rate, at="hidden_1")


LABEL = zl.LabelNoise(0.1)
BOTH_LAYERS = zl.Dropout(0.2, at=["hidden_1", "hidden_2"])
NESTEROV = {"momentum": 0.9, "nesterov": True}

CASES = [
    Case("label noise, 0.25", LABEL, 0.25, 400_000, 64),
    Case("label noise, 0.5", LABEL, 0.5, 200_000, 64),
    Case("label noise 0.01, 0.5", zl.LabelNoise(0.01), 0.5, 20_000_000, 0),
    Case("label noise, 1", LABEL, 1.0, 100_000, 96),
    Case("label noise, 1.5", LABEL, 1.5, 80_000, 96),
    Case("dropout 0.05", dropout(0.05), 0.5, 10_000, 256),
    Case("dropout 0.2", dropout(0.2), 0.5, 2_000, 512),
    Case("dropout 0.5", dropout(0.5), 0.5, 400, 1024),
    Case("dropout on both of two layers", BOTH_LAYERS, 0.5, 2_000, 512, widths=(20, 20)),
    Case("DropConnect", zl.DropConnect(0.01), 0.5, 2_000, 512),
    Case("weight noise", zl.WeightNoise(0.03), 0.5, 2_000, 512),
    Case("batches of 8 + label noise", zl.MiniBatch(8) + LABEL, 0.25, 100_000, 96),
    Case("batches of 32 + label noise", zl.MiniBatch(32) + LABEL, 0.25, 200_000, 64),
    Case("batches of 8 + dropout", zl.MiniBatch(8) + dropout(0.1), 0.25, 8_000, 256),
    Case("label noise from a random start", LABEL, 0.5, 100_000, 64, start="off"),
    Case("dropout from a random start", dropout(0.1), 0.5, 4_000, 256, start="off"),
    Case("label noise, momentum 0.9", LABEL, 0.1, 40_000, 96, options={"momentum": 0.9}),
    Case("dropout, momentum 0.9", dropout(0.1), 0.1, 4_000, 256, options={"momentum": 0.9}),
    Case("dropout, Nesterov 0.9", dropout(0.1), 0.1, 4_000, 256, options=NESTEROV),
    Case("dropout, weight decay", dropout(0.1), 0.5, 4_000, 256, options={"weight_decay": 1e-4}),
    Case("label noise, cosine schedule", LABEL, 1.0, 100_000, 96, cosine=True),
    Case("dropout, cosine schedule", dropout(0.1), 0.5, 4_000, 256, cosine=True),
]


class Setting(NamedTuple):
    """A case made ready: what is trained, from where, and the step size at the beginning."""

    system: Any
    start: Any
    step_size: float


@functools.cache
def place(widths: tuple[int, ...]):
    """The digits problem, a point of its zero-loss set, and lambda_max there."""
    named = zl.problems.load("digits", widths=widths, examples=EXAMPLES)
    system = named.problem.with_noise(LABEL)  # any noise will do
    point = zl.project(system, named.start)
    return named, point, largest_eigenvalue(system, point)


def prepare(case: Case) -> Setting:
    named, point, largest = place(case.widths)
    start = point if case.start == "on" else named.start
    return Setting(named.problem.with_noise(case.noise), start, case.relative / largest)


def schedule(case: Case, step_size: float) -> Any:
    """The step size, or the function of the step that it is."""
    if not case.cosine:
        return step_size
    return lambda step: step_size * (1 + jnp.cos(jnp.pi * step / case.steps)) / 2


def measure(case: Case) -> dict[str, float | None]:
    """The numbers of the table; distances are relative to the way that training made, the way to |w|."""
    setting = prepare(case)
    sizes = schedule(case, setting.step_size)
    path, cold, warm = predicted(case, setting, sizes)
    pytorch = seconds_in_pytorch(case, setting)
    start, end = flat_trajectories(setting.start, 0), flat_trajectories(path.params, 1)[-1]
    return {
        "steps": case.steps,
        "way": float(np.linalg.norm(end - start) / np.linalg.norm(start)),
        "estimate": float(path.uncertainty.total[-1]),
        "predicted_spread": float(path.uncertainty.spread[-1]),
        "predicted_loss": float(path.loss[-1]),
        "cold_seconds": cold,
        "warm_seconds": warm,
        "pytorch_seconds": pytorch,
        "ratio": None if pytorch is None else pytorch / warm,
        **(against_training(case, setting, sizes, end) if case.replicas else {}),
    }


def against_training(case: Case, setting: Setting, sizes: Any, end: np.ndarray) -> dict[str, float | None]:
    """Where an ensemble of training runs ends, and how far off the prediction and the limit end."""
    trained = zl.descend(
        setting.system,
        setting.start,
        zl.SGD(sizes, **case.options),
        zl.Saves(at=[case.steps]),
        key=jax.random.key(7),
        replicas=case.replicas,
    )
    runs = flat_trajectories(trained.params, 2)[:, -1]
    start, mean = flat_trajectories(setting.start, 0), runs.mean(axis=0)
    way = float(np.linalg.norm(mean - start))
    scatter = float(np.sqrt(runs.var(axis=0, ddof=1).sum()))
    ensemble = scatter / math.sqrt(case.replicas)

    def error(there: np.ndarray) -> float:
        return math.sqrt(max(float(np.sum((mean - there) ** 2)) - ensemble**2, 0)) / way

    limit = end_of_limit(case, setting)
    loss, loss_error = trained.mean("loss")
    return {
        "way": way / float(np.linalg.norm(start)),
        "limit_error": None if limit is None else error(limit),
        "error": error(end),
        "ensemble_error": ensemble / way,
        "spread": scatter / way,
        "loss": float(loss[-1]),
        "loss_error": None if loss_error is None else float(loss_error[-1]),
    }


def predicted(case: Case, setting: Setting, sizes: Any) -> tuple[Any, float, float]:
    """The prediction, and the seconds it takes with compilation and without."""
    jax.clear_caches()  # other cases may have compiled the same
    seconds, path = [], None
    for _ in range(2):
        began = time.perf_counter()
        path = zl.predict(
            setting.system, setting.start, zl.SGD(sizes, **case.options), zl.Saves(case.steps, count=SAVES)
        )
        seconds.append(time.perf_counter() - began)
    return path, seconds[0], seconds[1]


def end_of_limit(case: Case, setting: Setting) -> np.ndarray | None:
    """Where the limit is at the slow time of the last step, if it applies and can be followed."""
    if not case.has_limit:
        return None
    system, point, step_size = setting
    try:
        verdict = zl.classify(system, point)
        if verdict.time_scale is None or verdict.stochastic:
            return None
        sigma = system.noise_law(point).sigma
        t1 = float(slow_time(case.steps, verdict.time_scale, step_size, sigma))
        return flat_trajectories(zl.limit(system, point, zl.Saves(at=[t1])).params, 1)[-1]
    except ZerolossError:
        return None


def seconds_in_pytorch(case: Case, setting: Setting) -> float | None:
    """Seconds that the steps of one run take as a plain PyTorch loop; None where PyTorch is not installed.

    At the pace of the fastest turn, on one thread: for a network this small, more are slower on busy cores.
    """
    try:
        import torch
    except ImportError:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = pytorch_step(case, setting)
        turns = [seconds_of(step) for _ in range(1 + TURNS)]
    finally:
        torch.set_num_threads(threads)
    return min(turns[1:]) / TIMED * case.steps


def seconds_of(step: Callable[[], None]) -> float:
    """Wall-clock time of TIMED steps."""
    began = time.perf_counter()
    for _ in range(TIMED):
        step()
    return time.perf_counter() - began


def pytorch_step(case: Case, setting: Setting) -> Callable[[], None]:
    """One step of training, as a PyTorch user would write it."""
    import torch

    noises: dict[type, Any] = {type(noise): noise for noise in parts(case.noise)}
    batch, label = noises.get(zl.MiniBatch), noises.get(zl.LabelNoise)
    on_parameters = noises.get(zl.WeightNoise) or noises.get(zl.DropConnect)
    problem = setting.system.clean_problem()
    all_inputs = torch.tensor(np.array(problem.inputs))
    all_targets = torch.tensor(np.array(problem.targets))
    model = pytorch_model(setting.start, noises.get(zl.Dropout))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=setting.step_size, **case.options)

    def factor(step: int) -> float:
        return (1 + math.cos(math.pi * step / case.steps)) / 2

    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if case.cosine else None

    def step() -> None:
        inputs, targets = all_inputs, all_targets
        if batch is not None:
            chosen = torch.randperm(len(targets))[: batch.size]
            inputs, targets = inputs[chosen], targets[chosen]
        if label is not None:
            targets = targets + label.sigma * torch.randn_like(targets)
        optimizer.zero_grad()
        with contextlib.nullcontext() if on_parameters is None else perturbed(parameters, on_parameters):
            loss = ((model(inputs)[:, 0] - targets) ** 2).mean() / 2
            loss.backward()
        optimizer.step()
        if cosine is not None:
            cosine.step()

    return step


def pytorch_model(params: list[dict[str, jax.Array]], dropout: zl.Dropout | None) -> Any:
    """The tanh network of digits, with dropout behind the hidden layers where it is."""
    import torch

    layers: list[torch.nn.Module] = []
    for index, values in enumerate(params, start=1):
        into, out = values["weights"].shape
        linear = torch.nn.Linear(into, out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.array(values["weights"]).T))
            linear.bias.copy_(torch.tensor(np.array(values["biases"])))
        layers.append(linear)
        if index < len(params):
            layers.append(torch.nn.Tanh())
        if dropout is not None and f"hidden_{index}" in dropout.at:
            layers.append(torch.nn.Dropout(dropout.rate))
    return torch.nn.Sequential(*layers)


@contextlib.contextmanager
def perturbed(parameters: list[Any], noise: zl.WeightNoise | zl.DropConnect) -> Iterator[None]:
    """PyTorch parameters with their noise while the gradient is taken, and as they were afterwards."""
    import torch

    kept = [parameter.detach().clone() for parameter in parameters]
    if isinstance(noise, zl.WeightNoise):
        masks = None
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(noise.sigma * torch.randn_like(parameter))
    else:
        keep = 1 - noise.rate
        masks = [torch.empty_like(values).bernoulli_(keep).div_(keep) for values in kept]
        with torch.no_grad():
            for parameter, mask in zip(parameters, masks, strict=True):
                parameter.mul_(mask)
    yield
    with torch.no_grad():
        for index, (parameter, values) in enumerate(zip(parameters, kept, strict=True)):
            parameter.copy_(values)
            if masks is not None:
                parameter.grad.mul_(masks[index])


COLUMNS: list[tuple[str, str, int, Callable[[float], str]]] = [
    # key of `measure`, head, width, and how the number is written
    ("steps", "steps", 8, "{:,.0f}".format),
    ("way", "way", 7, "{:.1%}".format),
    ("limit_error", "limit", 8, "{:.2%}".format),
    ("error", "predict", 8, "{:.2%}".format),
    ("ensemble_error", "ensemble", 9, "{:.2%}".format),
    ("estimate", "estimate", 9, "{:.2%}".format),
    ("predicted_spread", "spread", 8, "{:.1%}".format),
    ("spread", "measured", 9, "{:.1%}".format),
    ("predicted_loss", "loss", 10, "{:.3e}".format),
    ("loss", "trained", 10, "{:.3e}".format),
    ("loss_error", "error", 8, "{:.0e}".format),
    ("cold_seconds", "cold, s", 8, "{:.1f}".format),
    ("warm_seconds", "warm, s", 8, "{:.2f}".format),
    ("pytorch_seconds", "PyTorch, s", 11, "{:.2f}".format),
    ("ratio", "ratio", 8, "{:.2f}".format),
]


def line(name: str, found: dict[str, float | None]) -> str:
    """One line of the table."""
    cells = [f"{name:32}"]
    for key, _, width, write in COLUMNS:
        number = found.get(key)
        cells.append(f"{'-' if number is None else write(number):>{width}}")
    return " ".join(cells)


def main() -> None:
    """Print the table, each line as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="cases, by name; all of them by default")
    parser.add_argument("--steps-factor", type=float, default=1.0, help="multiplies the steps of every case")
    arguments = parser.parse_args()
    known = {case.name: case for case in CASES}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. Known: {'; '.join(known)}.")
    print(" ".join([f"{'case':32}", *(f"{head:>{width}}" for _, head, width, _ in COLUMNS)]), flush=True)
    for name in arguments.names or known:
        steps = max(1, round(arguments.steps_factor * known[name].steps))
        print(line(name, measure(known[name]._replace(steps=steps))), flush=True)


if __name__ == "__main__":
    main()
