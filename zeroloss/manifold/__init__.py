"""The zero-loss set as numerics: projection, tangent and normal parts, retraction, spectrum."""

from zeroloss.manifold.choose import manifold_of
from zeroloss.manifold.dense import DenseManifold
from zeroloss.manifold.geometry import AbstractGeometry, AbstractManifold, AbstractSpaces, length
from zeroloss.manifold.gram import GramGeometry, GramManifold
from zeroloss.manifold.krylov import KrylovManifold
from zeroloss.manifold.locate import Located, largest_eigenvalue, locate, project
from zeroloss.manifold.regular import ON_SET, looks_smooth, neighbours

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
