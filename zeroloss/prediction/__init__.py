"""The mean of training at a given step size, without training."""

from zeroloss.prediction._how_long import HowLong, how_long
from zeroloss.prediction._predict import predict

__all__ = ["HowLong", "how_long", "predict"]
