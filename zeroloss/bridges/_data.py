"""Examples from data sets and loaders of PyTorch, or of anything with their interface."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PyTree

from zeroloss._progress import progress_bar
from zeroloss.errors import InputError

_MAX_MEMORY = 2**30


def read_examples(data: Any, *, max_memory: float = _MAX_MEMORY) -> tuple[PyTree, np.ndarray]:
    """All examples of a `Dataset` or a `DataLoader`, read once: inputs and targets.

        inputs, labels = zl.read_examples(loader)
        system = zl.CrossEntropy(model, inputs, labels, smoothing=0.1).with_noise(zl.MiniBatch(128))

    **Arguments:**

    - `data`: a data set, with `len` and items `(input, target)`; or a loader, with a `dataset` and batches
      `(inputs, targets)`. The input may be a tuple of arrays. Tensors of PyTorch are taken as arrays are.
    - `max_memory`: bytes that all examples may take.

    **Returns:** inputs `[N, ...]`, or a tuple of those, and targets `[N, ...]`, arrays of NumPy in the types
    of the items. The order is that of the loader. Where the items are random, as with augmentation, this is
    one draw of them.

    **Raises:** `InputError` when the examples need more than `max_memory`, before the second item, or
    batch, is read; for items that are not pairs, or differ in shape; for a loader that leaves examples out.

    Shows progress inside of `zeroloss.show_progress()`.
    """
    is_loader = hasattr(data, "dataset") and hasattr(data, "batch_size")
    if not (hasattr(data, "__len__") and (is_loader or hasattr(data, "__getitem__"))):
        raise InputError(
            f"read_examples takes a data set with len and items, or a loader, got {type(data).__name__}."
        )
    number = len(data.dataset) if is_loader else len(data)
    if number == 0:
        raise InputError("the data set is empty.")
    inputs: list[tuple[np.ndarray, ...]] = []
    targets: list[np.ndarray] = []
    several, read = False, 0
    with progress_bar("reading examples", number, "examples") as show:
        for item in data if is_loader else _items(data, number):
            if not (isinstance(item, tuple | list) and len(item) == 2):
                raise InputError(
                    f"item {len(targets)} of the data must be a pair (input, target), got "
                    f"{type(item).__name__}"
                    f"{f' of {len(item)}' if isinstance(item, tuple | list) else ''}."
                )
            several = isinstance(item[0], tuple | list)
            arrays = tuple(map(np.asarray, item[0])) if several else (np.asarray(item[0]),)
            target = np.asarray(item[1])
            if not is_loader:
                arrays, target = tuple(each[None] for each in arrays), target[None]
            if not targets:
                _check_memory((*arrays, target), number, max_memory)
            inputs.append(arrays)
            targets.append(target)
            read += len(target)
            show(read)
    if read != number:
        raise InputError(
            f"the loader gave {read} of the {number} examples of its data set. Make it with drop_last=False "
            "and without a sampler that leaves examples out, or pass its data set."
        )
    try:
        joined = tuple(np.concatenate(each) for each in zip(*inputs, strict=True))
        return (joined if several else joined[0]), np.concatenate(targets)
    except ValueError as error:
        raise InputError(f"the examples differ in shape: {error}.") from error


def _items(data: Any, number: int) -> Iterator[Any]:
    """The items by index: iteration over a data set ends at an `IndexError`, which not all of them raise."""
    return (data[index] for index in range(number))


def _check_memory(arrays: tuple[np.ndarray, ...], number: int, most: float) -> None:
    """Raise `InputError` when `number` examples like those in `arrays` need more than `most` bytes."""
    needed = sum(each.nbytes for each in arrays) / len(arrays[-1]) * number
    if needed > most:
        raise InputError(
            f"{number:,} examples need {needed:.3g} bytes, more than max_memory = {most:.3g}. "
            "Raise max_memory, or take a part of them with torch.utils.data.Subset."
        )
