"""Figures and the page a person looks at, built from a run on disk."""

from zeroloss.report.page import FORMATS, write, write_several, write_stills_of
from zeroloss.report.words import table

__all__ = ["FORMATS", "table", "write", "write_several", "write_stills_of"]
