"""Examples read from data sets and loaders."""

import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError

INPUTS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
LABELS = np.arange(10) % 3


class Pairs:
    """A data set of NumPy, which counts how often an item is read."""

    def __init__(self, make=lambda index: (INPUTS[index], LABELS[index])):
        self.read, self.make = [], make

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        self.read.append(index)
        return self.make(index)


def test_data_set_is_read_once():
    data = Pairs()
    inputs, labels = zl.read_examples(data)
    np.testing.assert_array_equal(inputs, INPUTS)
    np.testing.assert_array_equal(labels, LABELS)
    assert inputs.dtype == np.float32 and data.read == list(range(10))


def test_several_inputs():
    (one, two), labels = zl.read_examples(
        Pairs(lambda index: ((INPUTS[index], LABELS[index]), LABELS[index]))
    )
    np.testing.assert_array_equal(one, INPUTS)
    np.testing.assert_array_equal(two, labels)


def test_memory_is_bounded_before_more_is_read():
    data = Pairs()
    with pytest.raises(InputError, match="max_memory"):
        zl.read_examples(data, max_memory=10)
    assert data.read == [0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda index: INPUTS[index], "pair"),
        (lambda index: (INPUTS[index], 0, 1), "tuple of 3"),
        (lambda index: (INPUTS[index, : 1 + index % 2], 0), "differ in shape"),
    ],
)
def test_bad_items(make, words):
    with pytest.raises(InputError, match=words):
        zl.read_examples(Pairs(make))


def test_what_is_no_data_set():
    with pytest.raises(InputError, match="generator"):
        zl.read_examples(pair for pair in ())


def test_loader_of_torch():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(INPUTS), torch.tensor(LABELS))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    inputs, labels = zl.read_examples(loader)
    order = np.argsort(inputs[:, 0])
    np.testing.assert_array_equal(inputs[order], INPUTS[np.argsort(INPUTS[:, 0])])
    np.testing.assert_array_equal(labels[order], LABELS[np.argsort(INPUTS[:, 0])])
    with pytest.raises(InputError, match="8 of the 10"):
        zl.read_examples(torch.utils.data.DataLoader(data, batch_size=4, drop_last=True))
    inputs, _ = zl.read_examples(data)
    np.testing.assert_array_equal(inputs, INPUTS)
