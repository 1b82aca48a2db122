"""Rules by which training makes a step, one object each."""

from zeroloss.optimizers._sgd import SGD as SGD, StepSize as StepSize, as_optimizer as as_optimizer
