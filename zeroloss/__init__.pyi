from . import (
    bridges as bridges,
    drifts as drifts,
    dynamics as dynamics,
    errors as errors,
    losses as losses,
    noise as noise,
    optimizers as optimizers,
    prediction as prediction,
    problems as problems,
    report as report,
    runs as runs,
    studies as studies,
    systems as systems,
    zero_sets as zero_sets,
)
from ._checkpoint import Checkpoint as Checkpoint
from ._progress import show_progress as show_progress
from .bridges import (
    from_equinox as from_equinox,
    from_keras as from_keras,
    from_nnx as from_nnx,
    from_torch as from_torch,
    read_examples as read_examples,
)
from .drifts import (
    Drift as Drift,
    Verdict as Verdict,
    classify as classify,
    drift as drift,
    regularizer as regularizer,
)
from .dynamics import (
    Saves as Saves,
    Trajectory as Trajectory,
    Uncertainty as Uncertainty,
    descend as descend,
    limit as limit,
)
from .noise import (
    AntiCorrelated as AntiCorrelated,
    Correlated as Correlated,
    CustomNoise as CustomNoise,
    DropConnect as DropConnect,
    Dropout as Dropout,
    DropPath as DropPath,
    FlippedLabels as FlippedLabels,
    Gaussian as Gaussian,
    GaussianDropConnect as GaussianDropConnect,
    GaussianDropout as GaussianDropout,
    InputNoise as InputNoise,
    LabelNoise as LabelNoise,
    Langevin as Langevin,
    Law as Law,
    MiniBatch as MiniBatch,
    Rademacher as Rademacher,
    SampledLabels as SampledLabels,
    TwoPoint as TwoPoint,
    Uniform as Uniform,
    WeightNoise as WeightNoise,
    site as site,
)
from .optimizers import SGD as SGD
from .prediction import HowLong as HowLong, Tolerance as Tolerance, how_long as how_long, predict as predict
from .runs import Run as Run, open_run as open_run
from .studies import (
    Comparison as Comparison,
    Study as Study,
    Training as Training,
    compare as compare,
    study as study,
)
from .systems import (
    CrossEntropy as CrossEntropy,
    LeastSquares as LeastSquares,
    Loss as Loss,
    Supervised as Supervised,
    System as System,
)
from .zero_sets import project as project

__version__: str
