"""Jacobians through the structure of the model: what J is needed for, for the price of a few gradients."""

from zeroloss.jacobians._structure import MAX_MEMORY, Factors, Structure, analyse, structure_of

__all__ = ["MAX_MEMORY", "Factors", "Structure", "analyse", "structure_of"]
