"""Trajectories of training, and of its limit on the zero-loss set."""

from zeroloss.dynamics._descend import descend
from zeroloss.dynamics._driver import AbstractEvolution, SavedArrays, drive
from zeroloss.dynamics._limit import deterministic_limit, limit, stochastic_limit
from zeroloss.dynamics._recorder import Recorder
from zeroloss.dynamics._saves import Observables, Saves, as_saves
from zeroloss.dynamics._training import Ensemble, States, ensemble_of, train
from zeroloss.dynamics._trajectory import Trajectory, Uncertainty, flat_trajectories

__all__ = [
    "AbstractEvolution",
    "Ensemble",
    "Observables",
    "Recorder",
    "SavedArrays",
    "Saves",
    "States",
    "Trajectory",
    "Uncertainty",
    "as_saves",
    "descend",
    "deterministic_limit",
    "drive",
    "ensemble_of",
    "flat_trajectories",
    "limit",
    "stochastic_limit",
    "train",
]
