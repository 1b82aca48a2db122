"""Theory and training side by side: at one step size, and as the step size goes to zero."""

from zeroloss.studies._compare import Comparison, Prediction, Training, compare
from zeroloss.studies._study import Study, study

__all__ = ["Comparison", "Prediction", "Study", "Training", "compare", "study"]
