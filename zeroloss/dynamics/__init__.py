"""The slow dynamics of training at zero loss: drift, verdict, limit, training, and all side by side."""

from zeroloss.dynamics.compare import Comparison, Prediction, Training, compare
from zeroloss.dynamics.descend import descend
from zeroloss.dynamics.drift import Drift, drift, regularizer
from zeroloss.dynamics.how_long import HowLong, how_long
from zeroloss.dynamics.limit import limit
from zeroloss.dynamics.path import Path, Uncertainty
from zeroloss.dynamics.predict import predict
from zeroloss.dynamics.regime import Regime, classify
from zeroloss.dynamics.study import Study, study

__all__ = [
    "Comparison",
    "Drift",
    "HowLong",
    "Path",
    "Prediction",
    "Regime",
    "Study",
    "Training",
    "Uncertainty",
    "classify",
    "compare",
    "descend",
    "drift",
    "how_long",
    "limit",
    "predict",
    "regularizer",
    "study",
]
