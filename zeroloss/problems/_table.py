"""A table of numbers, and a network that fits a column of it."""

import itertools
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from zeroloss._arguments import positive_integer
from zeroloss._tolerances import PROJECTED
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.losses import SoftmaxCrossEntropy
from zeroloss.noise import SampledLabels
from zeroloss.problems._names import FORMATS
from zeroloss.problems._networks import (
    CLASSIFIER_MEASURES,
    SMOOTHING,
    Layers,
    mean_square,
    network_problem,
    soft_labels,
    wrong_signs,
)
from zeroloss.problems._problem import Problem, standardized
from zeroloss.zero_sets import disagreeing

_LARGEST = 1e150  # its square is still a number
_TRAINED = 0.75  # share of the rows to train on, by default


def table(
    path: str,
    target: str | None = None,
    model: str = "mlp:50",
    examples: int | None = None,
    loss: str = "squares",
    smoothing: float | None = None,
    activation: str = "tanh",
    seed: int = 0,
) -> Problem:
    """A column of a file, fitted exactly by a network on all the others.

    **Arguments:**

    - `path`: a .csv or .parquet file with a header, or an .npz file with an array of targets, `[rows]`, and
      one of inputs, `[rows, columns]`. Numbers only, none missing; classes may be words.
    - `target`: the column, or the array, to fit; by default the last column, or the array "targets". Two
      different values become -1 and +1, and the observable `test_error` is how often the sign is wrong;
      more are standardized, and it is the mean squared error. With cross-entropy the column holds classes,
      whole numbers or words; `test_error` is how often the class is wrong, beside `test_loss` and
      `calibration_error`.
    - `model`: `"mlp:"` and the widths of the hidden layers; layer i is the site `"hidden_i"`, from 1.
    - `examples`: how many rows to train on, chosen at random; the others are the test set. By default three
      quarters. Zero loss needs more parameters than examples, times classes less one.
    - `loss`: "squares" or "cross-entropy".
    - `smoothing`: of cross-entropy, the part of a label that is spread evenly over all classes; by default
      0.1.
    - `activation`: "tanh" or "relu".
    - `seed`: for the choice of rows and the initial parameters (Gaussian, variance 1 / fan-in; 2 / fan-in for
      "relu").

    Inputs are standardized over the whole file.
    """
    if loss not in ("squares", "cross-entropy"):
        raise InputError(f"loss must be squares or cross-entropy, got {loss!r}.")
    if smoothing is not None and loss == "squares":
        raise InputError("smoothing is for cross-entropy.")
    has_classes = loss == "cross-entropy"
    names, inputs, targets = _read(Path(path), target, has_classes)
    rows = len(targets)
    if rows < 2:
        raise InputError(f"{path} has {rows} rows; there must be at least 2.")
    widths = _widths(model)
    layers = Layers(widths, activation)
    count = positive_integer("examples", examples if examples is not None else max(1, int(_TRAINED * rows)))
    if count > rows:
        raise InputError(f"examples is {count}, and {path} has {rows} rows.")
    values, classes = np.unique(targets, return_inverse=True)
    if has_classes:
        _check_classes(Path(path), names[-1], targets, values)
    outputs = len(values) if has_classes else 1
    sizes = (inputs.shape[1], *widths, outputs)
    parameters = sum((into + 1) * out for into, out in itertools.pairwise(sizes))
    if parameters <= count * max(outputs - 1, 1):
        of_each = f" of {outputs} classes" if has_classes else ""
        raise InputError(
            f"{model} has {parameters} parameters, too few to fit {count} examples{of_each} exactly. Take "
            "wider layers or fewer examples."
        )
    order = np.random.default_rng(seed).permutation(rows)
    if len(values) == 1:
        raise InputError(
            f"the target is {_shown(values[0])} in all {rows} rows of {path}: there is nothing to fit."
        )
    _check_consistent(Path(path), inputs, classes.astype(float) if has_classes else targets, order[:count])
    signs = len(values) == 2
    if has_classes:
        smoothing = SMOOTHING if smoothing is None else smoothing
        soft = soft_labels(classes[order], outputs, smoothing)
        task = f"{outputs} classes of {names[-1]} in {Path(path).name}, labels smoothed by {smoothing:g}"
        data = jnp.asarray(standardized(inputs)[order]), soft
        made = network_problem(
            "table", task, data, count, layers, seed, CLASSIFIER_MEASURES, SoftmaxCrossEntropy()
        )
        return made._replace(noises=made.noises | {SampledLabels.listing.name: SampledLabels})
    y = np.where(targets == values[1], 1.0, -1.0) if signs else standardized(targets)
    data = jnp.asarray(standardized(inputs)[order]), jnp.asarray(y[order])
    task, error = f"{names[-1]} in {Path(path).name}", wrong_signs if signs else mean_square
    measures = {"test_error": error}
    return network_problem("table", task, data, count, layers, seed, measures)


def _check_consistent(path: Path, inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
    """Raise `InputError` where rows to train on have equal inputs and unequal targets."""
    groups, _ = disagreeing(inputs[rows], targets[rows], PROJECTED)
    if groups:
        first = np.sort(rows[groups[0]])
        one = first[0]
        other = first[np.argmax(targets[first] != targets[one])]
        raise InputError(
            f"rows {one + 1} and {other + 1} of {path} have equal inputs but the targets {targets[one]:.9g} "
            f"and {targets[other]:.9g}, so no model fits both; {sum(map(len, groups))} of the "
            f"{len(rows)} rows to train on are like that (row 1 follows the header). Give rows with equal "
            "inputs one target, such as the mean of theirs, or keep one of them."
        )


def _shown(value: Any) -> str:
    """A target as text."""
    return value if isinstance(value, str) else f"{value:g}"


def _check_classes(path: Path, name: str, targets: np.ndarray, values: np.ndarray) -> None:
    """Raise `InputError` for a column that does not hold classes."""
    if values.dtype.kind == "f" and (values != np.round(values)).any():
        row = int(np.argmax(targets != np.round(targets)))
        raise InputError(
            f"{path}: {name!r} is {targets[row]:g} in row {row + 1}, and cross-entropy needs classes: whole "
            "numbers or words. Without --loss cross-entropy the column is fitted by least squares."
        )
    if len(values) > len(targets) / 2:
        raise InputError(
            f"{path}: {name!r} has {len(values)} different values in {len(targets)} rows, too many for "
            "classes."
        )


def _widths(model: str) -> tuple[int, ...]:
    """The widths in a text such as "mlp:64,64"."""
    if not re.fullmatch(r"mlp:\d+(,\d+)*", model):
        raise InputError(
            f"model must be mlp: and the widths of hidden layers, such as mlp:64,64; got {model!r}."
        )
    return tuple(positive_integer("a width", int(width)) for width in model.removeprefix("mlp:").split(","))


def _read(path: Path, target: str | None, has_classes: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the columns, the target last; inputs `[rows, columns]`; targets `[rows]`."""
    if path.suffix not in FORMATS:
        hint = f" A problem in Python goes without --data: zeroloss classify {path}."
        hint = hint if path.suffix == ".py" else ""
        raise InputError(f"{path} must be one of {', '.join(FORMATS)}.{hint}")
    try:
        if not path.is_file():
            raise InputError(f"there is no file {path}.")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    names, inputs, targets = (
        _arrays(path, target) if path.suffix == ".npz" else _columns(path, target, has_classes)
    )
    for name, values in zip(names, [*inputs.T, targets], strict=True):
        if values.dtype.kind not in "biuf":  # classes in words
            continue
        bad = ~(np.abs(values) < _LARGEST)
        if bad.any():
            raise InputError(
                f"{path}: {name!r} is missing, infinite or beyond {_LARGEST:g} in {int(bad.sum())} of "
                f"{len(values)} rows, first in row {int(np.argmax(bad)) + 1}. Fill them in or leave them out."
            )
    return names, inputs, targets


def _columns(path: Path, target: str | None, has_classes: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """`_read` for a .csv or .parquet file."""
    import pandas

    try:
        frame = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    except ImportError:
        raise UnsupportedError("Parquet files need pyarrow: pip install 'zeroloss[parquet]'.") from None
    except Exception as error:  # the readers raise anything on damaged files
        raise InputError(f"{path} cannot be read: {error}.") from error
    frame.columns = [str(name) for name in frame.columns]
    if len(frame.columns) < 2 or not frame.columns.is_unique:
        raise InputError(f"{path} must have two or more columns with different names.")
    target = frame.columns[-1] if target is None else target
    if target not in frame.columns:
        raise InputError(f"{path} has no column {target!r}. Its columns: {', '.join(frame.columns)}.")
    for name in frame.columns:
        if name == target and has_classes:
            continue
        if not pandas.api.types.is_numeric_dtype(frame[name]):
            first = frame[name].iloc[0] if len(frame) else None
            raise InputError(
                f"{path}: the column {name!r} holds no numbers (first {first!r}). Encode it or leave it out."
            )
    inputs, column = frame.drop(columns=target), frame[target]
    if pandas.api.types.is_numeric_dtype(column):
        targets = column.to_numpy(float, na_value=np.nan)
    elif bool(column.isna().any()):
        row = int(np.argmax(column.isna())) + 1
        raise InputError(f"{path}: {target!r} is missing in row {row}. Fill it in or leave the row out.")
    else:
        targets = column.astype(str).to_numpy(str)
    return (
        [*map(str, inputs.columns), str(target)],
        inputs.to_numpy(float, na_value=np.nan),
        targets,
    )


def _arrays(path: Path, target: str | None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """`_read` for an .npz file."""
    target = "targets" if target is None else target
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name!r} holds no real numbers; it is of type {array.dtype}.")
    others = [name for name in arrays if name != target]
    if target not in arrays or len(others) != 1:
        raise InputError(
            f"{path} must hold an array {target!r} (--target names another) and one of inputs; it holds "
            f"{', '.join(arrays) or 'nothing'}."
        )
    inputs, targets = (arrays[name].astype(float) for name in (others[0], target))
    if targets.ndim != 1 or inputs.ndim != 2 or len(inputs) != len(targets) or inputs.shape[1] == 0:
        raise InputError(
            f"{path}: targets must have the shape [rows] and inputs [rows, columns]; they have "
            f"{targets.shape} and {inputs.shape}."
        )
    return [*(f"{others[0]}[{i}]" for i in range(inputs.shape[1])), target], inputs, targets
