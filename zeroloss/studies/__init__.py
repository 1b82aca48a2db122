"""Theory and training side by side: at one step size, and as the step size goes to zero."""

from zeroloss.studies._answers import (
    answer_in_short as answer_in_short,
    what_took_longer as what_took_longer,
    which_answer as which_answer,
    why_below_the_limit as why_below_the_limit,
)
from zeroloss.studies._compare import (
    Comparison as Comparison,
    Prediction as Prediction,
    Training as Training,
    compare as compare,
)
from zeroloss.studies._fits import Approach as Approach, Exponent as Exponent
from zeroloss.studies._study import Study as Study, study as study
