"""Theory and training side by side: at one step size, and as the step size goes to zero."""

from zeroloss.studies._answers import answer_in_short, what_took_longer, which_answer, why_below_the_limit
from zeroloss.studies._compare import Comparison, Prediction, Training, compare
from zeroloss.studies._fits import Approach, Exponent
from zeroloss.studies._study import Study, study

__all__ = [
    "Approach",
    "Comparison",
    "Exponent",
    "Prediction",
    "Study",
    "Training",
    "answer_in_short",
    "compare",
    "study",
    "what_took_longer",
    "which_answer",
    "why_below_the_limit",
]
