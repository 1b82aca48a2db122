"""The zero-loss set as numerics: projection, tangent and normal parts, retraction, spectrum."""

from zeroloss._tolerances import ON_SET
from zeroloss.zero_sets._contradictions import disagreeing
from zeroloss.zero_sets._dense import DenseZeroSet
from zeroloss.zero_sets._gram import AbstractLeastSquaresZeroSet, GramSpectrum, GramZeroSet
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet
from zeroloss.zero_sets._iterative_residuals import IterativeGramZeroSet
from zeroloss.zero_sets._projection import Located, largest_eigenvalue, locate, project
from zeroloss.zero_sets._regularity import looks_smooth, neighbours
from zeroloss.zero_sets._selection import zero_set_of
from zeroloss.zero_sets._zero_set import (
    AbstractSpaces,
    AbstractSpectrum,
    AbstractZeroSet,
    norm_or_one,
    spectrum_at,
    spectrum_of,
)

__all__ = [
    "ON_SET",
    "AbstractLeastSquaresZeroSet",
    "AbstractSpaces",
    "AbstractSpectrum",
    "AbstractZeroSet",
    "DenseZeroSet",
    "GramSpectrum",
    "GramZeroSet",
    "IterativeGramZeroSet",
    "IterativeZeroSet",
    "Located",
    "disagreeing",
    "largest_eigenvalue",
    "locate",
    "looks_smooth",
    "neighbours",
    "norm_or_one",
    "project",
    "spectrum_at",
    "spectrum_of",
    "zero_set_of",
]
