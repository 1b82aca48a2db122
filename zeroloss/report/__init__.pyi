from ._comparison import comparison_rows as comparison_rows
from ._ladders import studies as studies
from ._report import (
    FORMATS as FORMATS,
    write as write,
    write_figures as write_figures,
    write_several as write_several,
)
from ._sentences import (
    comparison_table as comparison_table,
    remarks as remarks,
    study as study,
    uncertainty as uncertainty,
)
from ._sweep import cell_rows as cell_rows, cell_table as cell_table, failures as failures
from ._text import greek as greek, grouped as grouped, in_table as in_table
