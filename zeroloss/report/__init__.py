"""Figures and the page a person looks at, built from a run on disk."""

from zeroloss.report._report import FORMATS, write, write_several, write_stills_of
from zeroloss.report._sentences import grouped, remarks, table

__all__ = ["FORMATS", "grouped", "remarks", "table", "write", "write_several", "write_stills_of"]
