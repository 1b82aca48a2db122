"""Figures and the page a person looks at, built from a run on disk."""

from zeroloss.report.page import FORMATS, write, write_several, write_stills_of
from zeroloss.report.words import grouped, remarks, table

__all__ = ["FORMATS", "grouped", "remarks", "table", "write", "write_several", "write_stills_of"]
