"""The zero-loss set by iteration, for problems whose normal space is too large for a basis of it."""

from zeroloss.manifold.krylov.hessian import HessianSpaces, KrylovManifold
from zeroloss.manifold.krylov.residuals import OutputBlocks, ResidualSpaces, output_blocks

__all__ = ["HessianSpaces", "KrylovManifold", "OutputBlocks", "ResidualSpaces", "output_blocks"]
