"""The zero-loss set as numerics: projection, tangent and normal parts, retraction, spectrum."""

from zeroloss.zero_sets._dense import DenseManifold
from zeroloss.zero_sets._gram import GramGeometry, GramManifold
from zeroloss.zero_sets._iterative_hessian import KrylovManifold
from zeroloss.zero_sets._projection import Located, largest_eigenvalue, locate, project
from zeroloss.zero_sets._regularity import ON_SET, looks_smooth, neighbours
from zeroloss.zero_sets._selection import manifold_of
from zeroloss.zero_sets._zero_set import AbstractGeometry, AbstractManifold, AbstractSpaces, length

__all__ = [
    "ON_SET",
    "AbstractGeometry",
    "AbstractManifold",
    "AbstractSpaces",
    "DenseManifold",
    "GramGeometry",
    "GramManifold",
    "KrylovManifold",
    "Located",
    "largest_eigenvalue",
    "length",
    "locate",
    "looks_smooth",
    "manifold_of",
    "neighbours",
    "project",
]
