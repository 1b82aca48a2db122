"""Runs on disk: what they compute, the folder they live in, doing them, and looking at them."""

from zeroloss.runs._cluster import dask_executor
from zeroloss.runs._config import (
    CompareConfig,
    Config,
    DescendConfig,
    LimitConfig,
    PredictConfig,
    StudyConfig,
    config_from,
)
from zeroloss.runs._folder import (
    check_free,
    create,
    gather,
    gather_paths,
    gather_studies,
    noises_of,
    read,
    write_results,
)
from zeroloss.runs._grid import SweepConfig, sweep_config
from zeroloss.runs._jobs import configuration, digest_of_source, resume, start
from zeroloss.runs._run import Run, export_csv, export_netcdf, find_runs, open_run, summary
from zeroloss.runs._sweep import Cell, cells_of, collect, resume_sweep, sweep
from zeroloss.runs._table import ends, rows

__all__ = [
    "Cell",
    "CompareConfig",
    "Config",
    "DescendConfig",
    "LimitConfig",
    "PredictConfig",
    "Run",
    "StudyConfig",
    "SweepConfig",
    "cells_of",
    "check_free",
    "collect",
    "config_from",
    "configuration",
    "create",
    "dask_executor",
    "digest_of_source",
    "ends",
    "export_csv",
    "export_netcdf",
    "find_runs",
    "gather",
    "gather_paths",
    "gather_studies",
    "noises_of",
    "open_run",
    "read",
    "resume",
    "resume_sweep",
    "rows",
    "start",
    "summary",
    "sweep",
    "sweep_config",
    "write_results",
]
