"""Handwritten digits with a network: odd against even, or all ten.

The data are the 1797 8 x 8 images bundled with scikit-learn (`sklearn.datasets.load_digits`; Alpaydin
and Kaynak, UCI Machine Learning Repository, 1998). Every pixel is standardized over the data set: without
it the Hessian's spectrum is a hundred times wider and all time scales mix.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zeroloss.errors import InputError
from zeroloss.losses import AbstractLoss, SoftmaxCrossEntropy
from zeroloss.noise import SampledLabels
from zeroloss.problems._networks import (
    CLASSIFIER_MEASURES,
    SMOOTHING,
    Layers,
    Measure,
    network_problem,
    soft_labels,
    wrong_classes,
    wrong_signs,
)
from zeroloss.problems._problem import Problem, standardized

_TOTAL = 1797
_CLASSES = 10
_LOSSES: dict[str, AbstractLoss | None] = {"squares": None, "cross-entropy": SoftmaxCrossEntropy()}


def digits(
    widths: Sequence[int] = (50,),
    examples: int = 200,
    outputs: int | None = None,
    loss: str = "squares",
    smoothing: float | None = None,
    activation: str = "tanh",
    seed: int = 0,
) -> Problem:
    """Odd (+1) against even (-1) digits, or one output for each digit, from 64 pixels.

    **Arguments:**

    - `widths`: the width of each hidden layer; layer i is the site `"hidden_i"`, from 1.
    - `examples`: how many training examples; the rest are the test set. Zero loss needs more parameters
      than examples times outputs.
    - `outputs`: 1 for odd against even, 10 for one-hot targets; by default 1 for squares.
    - `loss`: "squares", or "cross-entropy", which takes ten outputs. With that, the test loss and the
      expected calibration error are among the observables.
    - `smoothing`: with ten outputs, the part of the targets that is spread evenly over all digits, between 0
      and 1; by default 0.1 for cross-entropy, which has no minimum without. The noise `"sampled-labels"`
      draws a digit from these probabilities at every step; without smoothing it would always draw the right
      one.
    - `activation`: "tanh" or "relu".
    - `seed`: for the choice of examples and the initial parameters (Gaussian, variance 1 / fan-in; 2 / fan-in
      for "relu").
    """
    widths = tuple(int(width) for width in widths)
    if not widths or min(widths) < 1:
        raise InputError(f"widths must be one or more positive integers, got {widths}.")
    if not 1 <= examples < _TOTAL:
        raise InputError(f"examples must lie between 1 and {_TOTAL - 1}, got {examples}.")
    if loss not in _LOSSES:
        raise InputError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}.")
    if loss == "cross-entropy":
        outputs = _CLASSES if outputs is None else outputs
        smoothing = SMOOTHING if smoothing is None else smoothing
        if outputs != _CLASSES:
            raise InputError(f"cross-entropy needs outputs={_CLASSES}, got {outputs}.")
    outputs = 1 if outputs is None else outputs
    if outputs not in (1, _CLASSES):
        raise InputError(f"outputs must be 1 or {_CLASSES}, got {outputs}.")
    if smoothing is not None and outputs == 1:
        raise InputError(f"smoothing is for {_CLASSES} outputs; with one, targets are not probabilities.")
    inputs, labels = _data(seed)
    if outputs == 1:
        targets = jnp.where(labels % 2 == 1, 1.0, -1.0)
    elif smoothing is None:
        targets = jnp.eye(_CLASSES)[labels]
    else:
        targets = soft_labels(labels, _CLASSES, smoothing)
    task = "odd against even digits" if outputs == 1 else "ten digits"
    measures: Mapping[str, Measure] = {"test_error": wrong_signs if outputs == 1 else wrong_classes}
    if loss == "cross-entropy":
        task += f", cross-entropy with labels smoothed by {smoothing:g}"
        measures = CLASSIFIER_MEASURES
    made = network_problem(
        "digits",
        task,
        (inputs, targets),
        examples,
        Layers(widths, activation),
        seed,
        measures,
        _LOSSES[loss],
    )
    if smoothing is None:
        return made
    return made._replace(noises=made.noises | {SampledLabels.listing.name: SampledLabels})


def _data(seed: int) -> tuple[Array, np.ndarray]:
    """Images and labels in random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    return jnp.asarray(standardized(np.asarray(images))), np.asarray(labels)
