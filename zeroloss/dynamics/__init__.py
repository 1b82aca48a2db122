"""Trajectories of training, and of its limit on the zero-loss set."""

from zeroloss.dynamics._descend import descend
from zeroloss.dynamics._limit import limit
from zeroloss.dynamics._saves import Saves
from zeroloss.dynamics._trajectory import Trajectory, Uncertainty

__all__ = ["Saves", "Trajectory", "Uncertainty", "descend", "limit"]
