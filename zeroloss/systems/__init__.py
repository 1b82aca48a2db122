"""A loss with noise: `System`, or `Loss` and `Supervised` with `.with_noise`."""

from zeroloss.systems._injection import AbstractInjectedSystem as AbstractInjectedSystem
from zeroloss.systems._loss import Loss as Loss, LossSystem as LossSystem, System as System
from zeroloss.systems._supervised import (
    CrossEntropy as CrossEntropy,
    Examples as Examples,
    LeastSquares as LeastSquares,
    Supervised as Supervised,
    SupervisedSystem as SupervisedSystem,
    WhitenedLeastSquares as WhitenedLeastSquares,
)
from zeroloss.systems._system import AbstractSystem as AbstractSystem, Scalar as Scalar
