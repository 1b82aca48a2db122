"""The Jacobian J of a model through its layers: products with J, and J J^T, for a few gradients."""

from zeroloss.jacobians._jacobian import (
    AbstractJacobian,
    AbstractJacobians,
    PerExampleJacobians,
    StructuredJacobian,
    StructuredJacobians,
)
from zeroloss.jacobians._structure import MAX_MEMORY, Factors, Structure, analyse, structure_of

__all__ = [
    "MAX_MEMORY",
    "AbstractJacobian",
    "AbstractJacobians",
    "Factors",
    "PerExampleJacobians",
    "Structure",
    "StructuredJacobian",
    "StructuredJacobians",
    "analyse",
    "structure_of",
]
