"""Models of other frameworks as models of zeroloss; each framework is imported when it is used."""

from typing import TYPE_CHECKING, Any

from zeroloss.bridges._data import read_examples as read_examples
from zeroloss.bridges._equinox import EquinoxModel as EquinoxModel, from_equinox as from_equinox
from zeroloss.bridges._model import BridgedModel as BridgedModel, DropoutSite as DropoutSite

if TYPE_CHECKING:
    from zeroloss.bridges._flax import NNXModel as NNXModel
    from zeroloss.bridges._keras import KerasModel as KerasModel
    from zeroloss.bridges._torch import TorchModel as TorchModel


def from_torch(module: Any, example_inputs: Any, *, operations: Any = None) -> "TorchModel":
    """See `zeroloss.bridges._torch.from_torch`."""
    from zeroloss.bridges import _torch

    return _torch.from_torch(module, example_inputs, operations=operations)


def from_nnx(module: Any, example_inputs: Any, *, trained: Any = None) -> "NNXModel":
    """See `zeroloss.bridges._flax.from_nnx`."""
    from zeroloss.bridges import _flax

    return _flax.from_nnx(module, example_inputs, trained=trained)


def from_keras(model: Any, example_inputs: Any) -> "KerasModel":
    """See `zeroloss.bridges._keras.from_keras`."""
    from zeroloss.bridges import _keras

    return _keras.from_keras(model, example_inputs)
