"""A table of numbers, and a network that fits a column of it."""

import itertools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from zeroloss._arguments import positive_integer
from zeroloss._tolerances import PROJECTED
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.problems._names import FORMATS
from zeroloss.problems._networks import mean_square, network_problem, wrong_signs
from zeroloss.problems._problem import Problem, standardized
from zeroloss.zero_sets import disagreeing

_LARGEST = 1e150  # its square is still a number
_TRAINED = 0.75  # share of the rows to train on, by default


def table(
    path: str,
    target: str | None = None,
    model: str = "mlp:50",
    examples: int | None = None,
    seed: int = 0,
) -> Problem:
    """A column of a file, fitted exactly by a tanh network on all the others.

    **Arguments:**

    - `path`: a .csv or .parquet file with a header, or an .npz file with an array of targets, `[rows]`, and
      one of inputs, `[rows, columns]`. Numbers only, none missing.
    - `target`: the column, or the array, to fit; by default the last column, or the array "targets". Two
      different values become -1 and +1, and the observable `test_error` is how often the sign is wrong;
      more are standardized, and it is the mean squared error.
    - `model`: `"mlp:"` and the widths of the hidden layers; layer i is the site `"hidden_i"`, from 1.
    - `examples`: how many rows to train on, chosen at random; the others are the test set. By default three
      quarters. Zero loss needs more parameters than examples.
    - `seed`: for the choice of rows and the initial parameters (Gaussian, variance 1 / fan-in).

    Inputs are standardized over the whole file.
    """
    names, inputs, targets = _read(Path(path), target)
    rows = len(targets)
    if rows < 2:
        raise InputError(f"{path} has {rows} rows; there must be at least 2.")
    widths = _widths(model)
    count = positive_integer("examples", examples if examples is not None else max(1, int(_TRAINED * rows)))
    if count > rows:
        raise InputError(f"examples is {count}, and {path} has {rows} rows.")
    sizes = (inputs.shape[1], *widths, 1)
    parameters = sum((into + 1) * out for into, out in itertools.pairwise(sizes))
    if parameters <= count:
        raise InputError(
            f"{model} has {parameters} parameters, too few to fit {count} examples exactly. Take wider "
            "layers or fewer examples."
        )
    order = np.random.default_rng(seed).permutation(rows)
    values = np.unique(targets)
    if len(values) == 1:
        raise InputError(
            f"the target is {values[0]:g} in all {rows} rows of {path}: there is nothing to fit."
        )
    _check_consistent(Path(path), inputs, targets, order[:count])
    signs = len(values) == 2
    y = np.where(targets == values[1], 1.0, -1.0) if signs else standardized(targets)
    data = jnp.asarray(standardized(inputs)[order]), jnp.asarray(y[order])
    task, error = f"{names[-1]} in {Path(path).name}", wrong_signs if signs else mean_square
    return network_problem("table", task, data, count, widths, seed, {"test_error": error})


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


def _widths(model: str) -> tuple[int, ...]:
    """The widths in a text such as "mlp:64,64"."""
    if not re.fullmatch(r"mlp:\d+(,\d+)*", model):
        raise InputError(
            f"model must be mlp: and the widths of hidden layers, such as mlp:64,64; got {model!r}."
        )
    return tuple(positive_integer("a width", int(width)) for width in model.removeprefix("mlp:").split(","))


def _read(path: Path, target: str | None) -> tuple[list[str], np.ndarray, np.ndarray]:
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
    names, inputs, targets = _arrays(path, target) if path.suffix == ".npz" else _columns(path, target)
    for name, values in zip(names, [*inputs.T, targets], strict=True):
        bad = ~(np.abs(values) < _LARGEST)
        if bad.any():
            raise InputError(
                f"{path}: {name!r} is missing, infinite or beyond {_LARGEST:g} in {int(bad.sum())} of "
                f"{len(values)} rows, first in row {int(np.argmax(bad)) + 1}. Fill them in or leave them out."
            )
    return names, inputs, targets


def _columns(path: Path, target: str | None) -> tuple[list[str], np.ndarray, np.ndarray]:
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
        if not pandas.api.types.is_numeric_dtype(frame[name]):
            first = frame[name].iloc[0] if len(frame) else None
            raise InputError(
                f"{path}: the column {name!r} holds no numbers (first {first!r}). Encode it or leave it out."
            )
    inputs = frame.drop(columns=target)
    return (
        [*map(str, inputs.columns), str(target)],
        inputs.to_numpy(float, na_value=np.nan),
        frame[target].to_numpy(float, na_value=np.nan),
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
