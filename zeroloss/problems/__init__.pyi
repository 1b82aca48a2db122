from ._digits import digits as digits
from ._ellipse import ellipse as ellipse
from ._file import write_template as write_template
from ._hyperbola import hyperbola as hyperbola
from ._load import load as load, options_of as options_of
from ._matrix_completion import matrix_completion as matrix_completion
from ._matrix_sensing import matrix_sensing as matrix_sensing, product as product
from ._names import (
    PROBLEMS as PROBLEMS,
    check_name as check_name,
    is_own as is_own,
    resolved as resolved,
    source as source,
)
from ._phase_retrieval import least_norm as least_norm, phase_retrieval as phase_retrieval
from ._problem import (
    DEFAULT_STRENGTHS as DEFAULT_STRENGTHS,
    Problem as Problem,
    parse_noise as parse_noise,
    strengths_from as strengths_from,
)
from ._regression_1d import regression_1d as regression_1d
from ._sparse_regression import coefficients as coefficients, sparse_regression as sparse_regression
from ._table import table as table
