"""Figures and the page a person looks at, built from a run on disk."""

from zeroloss.report.page import write
from zeroloss.report.words import table

__all__ = ["table", "write"]
