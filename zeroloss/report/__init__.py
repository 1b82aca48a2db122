"""Figures and the page a person looks at, built from a run on disk."""

from zeroloss.report.labels import quantities
from zeroloss.report.page import write

__all__ = ["quantities", "write"]
