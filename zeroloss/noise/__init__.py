"""Noises: their laws, and their action on a model. `zeroloss.drifts` computes Reg and Sigma of a noise."""

from zeroloss.noise._activations import (
    Dropout as Dropout,
    DropPath as DropPath,
    GaussianDropout as GaussianDropout,
)
from zeroloss.noise._custom import CustomNoise as CustomNoise
from zeroloss.noise._data import (
    FlippedLabels as FlippedLabels,
    InputNoise as InputNoise,
    LabelNoise as LabelNoise,
    SampledLabels as SampledLabels,
)
from zeroloss.noise._laws import (
    AbstractLaw as AbstractLaw,
    Correlated as Correlated,
    Gaussian as Gaussian,
    Independent as Independent,
    Joint as Joint,
    Law as Law,
    Rademacher as Rademacher,
    TwoPoint as TwoPoint,
    Uniform as Uniform,
    is_shape as is_shape,
    is_zero as is_zero,
    with_scales_as_arrays as with_scales_as_arrays,
)
from zeroloss.noise._minibatch import MiniBatch as MiniBatch
from zeroloss.noise._noise import (
    AbstractInjection as AbstractInjection,
    AbstractNoise as AbstractNoise,
    Forward as Forward,
    Listing as Listing,
    Noises as Noises,
    describe as describe,
    parts as parts,
)
from zeroloss.noise._parameters import (
    AntiCorrelated as AntiCorrelated,
    DropConnect as DropConnect,
    GaussianDropConnect as GaussianDropConnect,
    Langevin as Langevin,
    WeightNoise as WeightNoise,
)
from zeroloss.noise._sites import site as site, site_shapes as site_shapes

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
        FlippedLabels,
        WeightNoise,
        AntiCorrelated,
        Langevin,
        MiniBatch,
    )
}
"""The noises that the command line can name, by that name."""
