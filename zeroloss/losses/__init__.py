"""Losses of outputs and targets, for `zeroloss.Supervised`."""

from zeroloss.losses._custom import Custom as Custom
from zeroloss.losses._elementwise import (
    Huber as Huber,
    Logistic as Logistic,
    Poisson as Poisson,
    Squares as Squares,
)
from zeroloss.losses._loss import (
    AbstractLoss as AbstractLoss,
    AbstractWhitening as AbstractWhitening,
    Minimum as Minimum,
)
from zeroloss.losses._softmax import SoftmaxCrossEntropy as SoftmaxCrossEntropy
