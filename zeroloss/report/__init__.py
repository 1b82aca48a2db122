"""Figures and the page of a run, built from its folder; and its results in sentences and tables."""

from zeroloss.report._comparison import comparison_rows
from zeroloss.report._ladders import studies
from zeroloss.report._report import FORMATS, write, write_figures, write_several
from zeroloss.report._sentences import comparison_table, remarks, study, uncertainty
from zeroloss.report._sweep import cell_rows, cell_table, failures
from zeroloss.report._text import greek, grouped, in_table

__all__ = [
    "FORMATS",
    "cell_rows",
    "cell_table",
    "comparison_rows",
    "comparison_table",
    "failures",
    "greek",
    "grouped",
    "in_table",
    "remarks",
    "studies",
    "study",
    "uncertainty",
    "write",
    "write_figures",
    "write_several",
]
