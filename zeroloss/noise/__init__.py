"""Noises: laws, the places where noise enters, and sums. Knows nothing of losses or geometry."""

from zeroloss.noise.activations import Dropout, GaussianDropout
from zeroloss.noise.base import AbstractInjection, AbstractNoise, Forward, Noises, describe, parts
from zeroloss.noise.custom import CustomNoise
from zeroloss.noise.data import InputNoise, LabelNoise, SampledLabels
from zeroloss.noise.laws import (
    AbstractLaw,
    Correlated,
    Gaussian,
    Independent,
    Joint,
    Law,
    Rademacher,
    TwoPoint,
    Uniform,
    is_zero,
    with_scales_as_arrays,
)
from zeroloss.noise.minibatch import MiniBatch
from zeroloss.noise.parameters import (
    AntiCorrelated,
    DropConnect,
    GaussianDropConnect,
    Langevin,
    WeightNoise,
)
from zeroloss.noise.sites import site

__all__ = [
    "AbstractInjection",
    "AbstractLaw",
    "AbstractNoise",
    "AntiCorrelated",
    "Correlated",
    "CustomNoise",
    "DropConnect",
    "Dropout",
    "Forward",
    "Gaussian",
    "GaussianDropConnect",
    "GaussianDropout",
    "Independent",
    "InputNoise",
    "Joint",
    "LabelNoise",
    "Langevin",
    "Law",
    "MiniBatch",
    "Noises",
    "Rademacher",
    "SampledLabels",
    "TwoPoint",
    "Uniform",
    "WeightNoise",
    "describe",
    "is_zero",
    "parts",
    "site",
    "with_scales_as_arrays",
]
