"""Figures and the page of a run, built from its folder; and its results in sentences and tables."""

from zeroloss.report._comparison import comparison_rows as comparison_rows
from zeroloss.report._ladders import studies as studies
from zeroloss.report._report import (
    FORMATS as FORMATS,
    write as write,
    write_figures as write_figures,
    write_several as write_several,
)
from zeroloss.report._sentences import (
    comparison_table as comparison_table,
    remarks as remarks,
    study as study,
    uncertainty as uncertainty,
)
from zeroloss.report._sweep import cell_rows as cell_rows, cell_table as cell_table, failures as failures
from zeroloss.report._text import greek as greek, grouped as grouped, in_table as in_table
