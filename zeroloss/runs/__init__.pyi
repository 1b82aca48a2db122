from ._commands import (
    COMMANDS as COMMANDS,
    CompareConfig as CompareConfig,
    Config as Config,
    DescendConfig as DescendConfig,
    LimitConfig as LimitConfig,
    PredictConfig as PredictConfig,
    StudyConfig as StudyConfig,
    config_from as config_from,
)
from ._config import (
    NOISE as NOISE,
    PROBLEM as PROBLEM,
    TRAINING as TRAINING,
    AbstractConfig as AbstractConfig,
    TrainingConfig as TrainingConfig,
    digest_of_source as digest_of_source,
    is_text as is_text,
    option as option,
    validated as validated,
)
from ._executors import dask_executor as dask_executor, worker_processes as worker_processes
from ._folder import (
    DESCRIPTION as DESCRIPTION,
    FIGURES as FIGURES,
    REPORT as REPORT,
    check_free as check_free,
    configuration as configuration,
    create as create,
    gather as gather,
    noises_of as noises_of,
    read as read,
    reading as reading,
    write_results as write_results,
)
from ._grid import (
    SWEEP as SWEEP,
    SweepConfig as SweepConfig,
    in_words as in_words,
    sweep_config as sweep_config,
)
from ._page_data import FUNCTION as FUNCTION, SET as SET, SPECTRUM as SPECTRUM
from ._resume import resume as resume, start as start
from ._run import (
    Run as Run,
    export_csv as export_csv,
    export_netcdf as export_netcdf,
    find_runs as find_runs,
    open_run as open_run,
    summary as summary,
)
from ._schema import load as load
from ._sweep import (
    Cell as Cell,
    cells_of as cells_of,
    collect as collect,
    resume_sweep as resume_sweep,
    sweep as sweep,
)
from ._table import (
    ends as ends,
    over_replicas as over_replicas,
    plain as plain,
    reading_order as reading_order,
    rows as rows,
)
