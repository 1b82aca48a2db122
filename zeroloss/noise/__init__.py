"""Noises: laws, the places where noise enters, and sums. Knows nothing of losses or geometry."""

from zeroloss.noise.base import AbstractInjection, AbstractNoise, Forward, Noises, parts
from zeroloss.noise.injections import Dropout, LabelNoise, WeightNoise
from zeroloss.noise.laws import AbstractLaw, Gaussian, Joint, Rademacher, TwoPoint, Uniform
from zeroloss.noise.minibatch import MiniBatch
from zeroloss.noise.sites import site

__all__ = [
    "AbstractInjection",
    "AbstractLaw",
    "AbstractNoise",
    "Dropout",
    "Forward",
    "Gaussian",
    "Joint",
    "LabelNoise",
    "MiniBatch",
    "Noises",
    "Rademacher",
    "TwoPoint",
    "Uniform",
    "WeightNoise",
    "parts",
    "site",
]
