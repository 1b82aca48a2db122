"""The zero-loss set as numerics: projection, tangent and normal parts, retraction, spectrum."""

from zeroloss.manifold.dense import DenseManifold
from zeroloss.manifold.geometry import AbstractGeometry, AbstractManifold, AbstractSpaces, length
from zeroloss.manifold.gram import GramGeometry, GramManifold
from zeroloss.manifold.krylov import KrylovManifold
from zeroloss.manifold.locate import (
    Located,
    largest_eigenvalue,
    locate,
    manifold_of,
    neighbours,
    project,
)

__all__ = [
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
    "manifold_of",
    "neighbours",
    "project",
]
