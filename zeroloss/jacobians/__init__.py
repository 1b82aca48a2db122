"""The Jacobian J of a model through its layers: products with J, and J J^T, for a few gradients."""

from zeroloss.jacobians._jacobian import (
    AbstractJacobian as AbstractJacobian,
    AbstractJacobians as AbstractJacobians,
    PerExampleJacobians as PerExampleJacobians,
    StructuredJacobian as StructuredJacobian,
    StructuredJacobians as StructuredJacobians,
)
from zeroloss.jacobians._structure import (
    MAX_MEMORY as MAX_MEMORY,
    Factors as Factors,
    Structure as Structure,
    analyse as analyse,
    structure_of as structure_of,
)
