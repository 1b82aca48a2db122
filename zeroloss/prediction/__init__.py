"""The mean of training at a given step size, without training."""

from zeroloss.prediction._how_long import HowLong, how_long
from zeroloss.prediction._predict import predict
from zeroloss.prediction._tolerance import Tolerance

__all__ = ["HowLong", "Tolerance", "how_long", "predict"]
