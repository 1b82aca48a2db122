"""Rules by which training makes a step, one object each."""

from zeroloss.optimizers._sgd import SGD, StepSize, as_optimizer

__all__ = ["SGD", "StepSize", "as_optimizer"]
