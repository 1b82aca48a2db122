"""What the noise in a training recipe does once the loss is zero."""

from zeroloss import errors, problems
from zeroloss.dynamics import (
    Comparison,
    Drift,
    Path,
    Regime,
    Training,
    classify,
    compare,
    descend,
    drift,
    limit,
    regularizer,
)
from zeroloss.manifold import project
from zeroloss.noise import (
    Dropout,
    Gaussian,
    LabelNoise,
    MiniBatch,
    Rademacher,
    TwoPoint,
    Uniform,
    WeightNoise,
    site,
)
from zeroloss.system import LeastSquares, Loss, System

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Drift",
    "Dropout",
    "Gaussian",
    "LabelNoise",
    "LeastSquares",
    "Loss",
    "MiniBatch",
    "Path",
    "Rademacher",
    "Regime",
    "System",
    "Training",
    "TwoPoint",
    "Uniform",
    "WeightNoise",
    "classify",
    "compare",
    "descend",
    "drift",
    "errors",
    "limit",
    "problems",
    "project",
    "regularizer",
    "site",
]
