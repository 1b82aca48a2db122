"""Models of other frameworks as models of zeroloss; each framework is imported when it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroloss.bridges._torch import DropoutSite as DropoutSite, TorchModel as TorchModel


def from_torch(module: Any, example_inputs: Any, *, operations: Any = None) -> "TorchModel":
    """See `zeroloss.bridges._torch.from_torch`."""
    from zeroloss.bridges import _torch

    return _torch.from_torch(module, example_inputs, operations=operations)
