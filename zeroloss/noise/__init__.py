"""Noises: laws, the places where noise enters, and sums. This room knows neither losses nor geometry."""

from zeroloss.noise._activations import Dropout, GaussianDropout
from zeroloss.noise._custom import CustomNoise
from zeroloss.noise._data import InputNoise, LabelNoise, SampledLabels
from zeroloss.noise._laws import (
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
from zeroloss.noise._minibatch import MiniBatch
from zeroloss.noise._noise import AbstractInjection, AbstractNoise, Forward, Listing, Noises, describe, parts
from zeroloss.noise._parameters import (
    AntiCorrelated,
    DropConnect,
    GaussianDropConnect,
    Langevin,
    WeightNoise,
)
from zeroloss.noise._sites import site, site_shapes

LISTINGS = {
    noise.listing.name: noise.listing
    for noise in (
        Dropout,
        GaussianDropout,
        DropConnect,
        GaussianDropConnect,
        InputNoise,
        LabelNoise,
        SampledLabels,
        WeightNoise,
        AntiCorrelated,
        Langevin,
        MiniBatch,
    )
}
"""The noises that the command line can name, by that name."""

__all__ = [
    "LISTINGS",
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
    "Listing",
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
    "site_shapes",
    "with_scales_as_arrays",
]
