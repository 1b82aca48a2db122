"""What the noise in a training recipe does once the loss is zero."""

from zeroloss import errors, problems
from zeroloss._checkpoint import Checkpoint
from zeroloss._compilation import keep_programs
from zeroloss._progress import show_progress
from zeroloss.drifts import Drift, Verdict, classify, drift, regularizer
from zeroloss.dynamics import Saves, Trajectory, Uncertainty, descend, limit
from zeroloss.noise import (
    AntiCorrelated,
    Correlated,
    CustomNoise,
    DropConnect,
    Dropout,
    Gaussian,
    GaussianDropConnect,
    GaussianDropout,
    InputNoise,
    LabelNoise,
    Langevin,
    Law,
    MiniBatch,
    Rademacher,
    SampledLabels,
    TwoPoint,
    Uniform,
    WeightNoise,
    site,
)
from zeroloss.optimizers import SGD
from zeroloss.prediction import HowLong, Tolerance, how_long, predict
from zeroloss.runs import Run, open_run
from zeroloss.studies import Comparison, Study, Training, compare, study
from zeroloss.systems import LeastSquares, Loss, System
from zeroloss.zero_sets import project

__version__ = "0.1.0"

keep_programs()

__all__ = [
    "SGD",
    "AntiCorrelated",
    "Checkpoint",
    "Comparison",
    "Correlated",
    "CustomNoise",
    "Drift",
    "DropConnect",
    "Dropout",
    "Gaussian",
    "GaussianDropConnect",
    "GaussianDropout",
    "HowLong",
    "InputNoise",
    "LabelNoise",
    "Langevin",
    "Law",
    "LeastSquares",
    "Loss",
    "MiniBatch",
    "Rademacher",
    "Run",
    "SampledLabels",
    "Saves",
    "Study",
    "System",
    "Tolerance",
    "Training",
    "Trajectory",
    "TwoPoint",
    "Uncertainty",
    "Uniform",
    "Verdict",
    "WeightNoise",
    "classify",
    "compare",
    "descend",
    "drift",
    "errors",
    "how_long",
    "limit",
    "open_run",
    "predict",
    "problems",
    "project",
    "regularizer",
    "show_progress",
    "site",
    "study",
]
