"""A training script of PyTorch, and what zeroloss predicts for it.

The script is the function `train`: a convolutional network on handwritten digits, dropout of units and
channels, label smoothing, SGD with momentum, minibatches and a cosine schedule. `predict` hands its model
and optimizer to zeroloss. The mean of runs of the script is then compared with the prediction.

    python examples/pytorch_digits.py --runs 64

On two cores the prediction takes a quarter of an hour, and 64 runs one minute: at 1000 steps training is the
faster way to the mean of training. The prediction shows that the theory is that of this script.
"""

import argparse
import math
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

import zeroloss as zl  # noqa: E402

EXAMPLES, BATCH, STEPS = 32, 16, 1000
SMOOTHING, RATE = 0.1, 0.02


def data():
    """Images `[N, 1, 8, 8]` and classes."""
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))[:EXAMPLES]
    return torch.tensor(images[order] / 16 - 0.5).reshape(-1, 1, 8, 8), torch.tensor(classes[order])


def network():
    """A convolutional network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.Dropout2d(0.05),
        nn.Flatten(),
        nn.Linear(96, 24),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(24, 10),
    ).double()


def optimizer_of(net):
    """The optimizer and the schedule of its learning rate."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def train(net, x, y, seed):
    """Train in place; batches are drawn without replacement."""
    torch.manual_seed(seed)
    net.train()
    loss = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    optimizer, schedule = optimizer_of(net)
    for _ in range(STEPS):
        batch = torch.randperm(len(x))[:BATCH]
        optimizer.zero_grad()
        loss(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()


def predict(net, x, y):
    """The prediction for `train`, and the model."""
    model = zl.from_torch(net, x[:2])
    optimizer = zl.SGD.from_torch(
        optimizer_of(net)[0], lambda step: RATE * (1 + jnp.cos(math.pi * step / STEPS)) / 2
    )
    problem = zl.CrossEntropy(model, x, y, smoothing=SMOOTHING)
    system = problem.with_noise(model.dropout() + zl.MiniBatch(BATCH))
    return zl.predict(system, model.params, optimizer, zl.Saves(STEPS, at=[STEPS])), model, problem


def flat(params):
    """Parameters as one vector."""
    return np.concatenate([np.ravel(np.asarray(params[name])) for name in sorted(params)])


def main():
    """Print the distance of the prediction from the mean of the runs, and both errors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=16)
    count = parser.parse_args().runs
    x, y = data()
    began = time.perf_counter()
    with zl.show_progress():
        path, model, problem = predict(network().eval(), x, y)
    took = time.perf_counter() - began
    start, end = flat(model.params), flat(path.final)
    runs, losses = [], []
    began = time.perf_counter()
    for seed in range(count):
        net = network()
        train(net, x, y, seed)
        runs.append(flat({name: value.detach().numpy() for name, value in net.named_parameters()}))
        losses.append(
            nn.functional.cross_entropy(net.eval()(x), y, label_smoothing=SMOOTHING).item()
            - float(problem.constant)
        )
    trained = time.perf_counter() - began
    mean = np.mean(runs, axis=0)
    way = np.linalg.norm(mean - start)
    error, ensemble = (
        np.linalg.norm(end - mean) / way,
        np.linalg.norm(np.std(runs, axis=0, ddof=1)) / count**0.5 / way,
    )
    print(f"{len(start)} parameters, {EXAMPLES} digits, {STEPS} steps in batches of {BATCH}")
    print(f"prediction against the mean of {count} runs of PyTorch, in percent of the way:")
    print(
        f"  error {100 * error:.1f}, ensemble {100 * ensemble:.1f}, estimate "
        f"{100 * path.uncertainty.total[-1]:.1f}; a single run scatters by {100 * ensemble * count**0.5:.0f}"
    )
    print(
        f"loss: predicted {path.loss[-1]:.5f}, trained {np.mean(losses):.5f} +- "
        f"{np.std(losses, ddof=1) / count**0.5:.5f}"
    )
    print(f"the prediction took {took:.0f} s, the runs {trained:.0f} s")


if __name__ == "__main__":
    main()
