"""A loss with noise: `System`, or `Loss` and `LeastSquares` with `.with_noise`."""

from zeroloss.systems._least_squares import (
    LeastSquares as LeastSquares,
    LeastSquaresSystem as LeastSquaresSystem,
)
from zeroloss.systems._loss import Loss as Loss, LossSystem as LossSystem, System as System
from zeroloss.systems._system import AbstractSystem as AbstractSystem, Scalar as Scalar
