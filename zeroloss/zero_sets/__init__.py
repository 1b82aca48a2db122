"""The zero-loss set as numerics: projection, tangent and normal parts, retraction, spectrum."""

from zeroloss._tolerances import ON_SET as ON_SET
from zeroloss.zero_sets._contradictions import disagreeing as disagreeing
from zeroloss.zero_sets._dense import DenseZeroSet as DenseZeroSet
from zeroloss.zero_sets._gram import (
    AbstractLeastSquaresZeroSet as AbstractLeastSquaresZeroSet,
    GramSpectrum as GramSpectrum,
    GramZeroSet as GramZeroSet,
)
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet as IterativeZeroSet
from zeroloss.zero_sets._iterative_residuals import IterativeGramZeroSet as IterativeGramZeroSet
from zeroloss.zero_sets._projection import (
    Located as Located,
    largest_eigenvalue as largest_eigenvalue,
    locate as locate,
    project as project,
)
from zeroloss.zero_sets._regularity import looks_smooth as looks_smooth, neighbours as neighbours
from zeroloss.zero_sets._selection import zero_set_of as zero_set_of
from zeroloss.zero_sets._switches import switched as switched
from zeroloss.zero_sets._zero_set import (
    AbstractSpaces as AbstractSpaces,
    AbstractSpectrum as AbstractSpectrum,
    AbstractZeroSet as AbstractZeroSet,
    norm_or_one as norm_or_one,
    spectrum_at as spectrum_at,
    spectrum_of as spectrum_of,
)
