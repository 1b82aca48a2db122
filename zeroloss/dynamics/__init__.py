"""Trajectories of training, and of its limit on the zero-loss set."""

from zeroloss.dynamics._descend import descend as descend
from zeroloss.dynamics._driver import (
    AbstractEvolution as AbstractEvolution,
    drive as drive,
)
from zeroloss.dynamics._limit import (
    deterministic_limit as deterministic_limit,
    limit as limit,
    limit_with_verdict as limit_with_verdict,
    stochastic_limit as stochastic_limit,
)
from zeroloss.dynamics._recorder import Recorder as Recorder
from zeroloss.dynamics._saves import Observables as Observables, Saves as Saves, as_saves as as_saves
from zeroloss.dynamics._training import (
    Ensemble as Ensemble,
    States as States,
    ensemble_of as ensemble_of,
    train as train,
)
from zeroloss.dynamics._trajectory import (
    Trajectory as Trajectory,
    Uncertainty as Uncertainty,
    flat_trajectories as flat_trajectories,
)
