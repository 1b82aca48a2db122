"""A loss with noise: `System`, or `Loss` and `LeastSquares` with `.with_noise`."""

from zeroloss.systems._least_squares import LeastSquares, LeastSquaresSystem
from zeroloss.systems._loss import Loss, LossSystem, System
from zeroloss.systems._system import AbstractSystem, Scalar

__all__ = ["AbstractSystem", "LeastSquares", "LeastSquaresSystem", "Loss", "LossSystem", "Scalar", "System"]
