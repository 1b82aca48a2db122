"""Runs on disk: what they compute, the folder they live in, sweeps, and reading them."""

from zeroloss.runs._commands import (
    COMMANDS,
    CompareConfig,
    Config,
    DescendConfig,
    LimitConfig,
    PredictConfig,
    StudyConfig,
    config_from,
)
from zeroloss.runs._config import digest_of_source
from zeroloss.runs._executors import dask_executor, worker_processes
from zeroloss.runs._folder import (
    check_free,
    configuration,
    create,
    gather,
    noises_of,
    read,
    reading,
    write_results,
)
from zeroloss.runs._grid import SweepConfig, sweep_config
from zeroloss.runs._resume import resume, start
from zeroloss.runs._run import Run, export_csv, export_netcdf, find_runs, open_run, summary
from zeroloss.runs._sweep import Cell, cells_of, collect, resume_sweep, sweep
from zeroloss.runs._table import ends, rows

__all__ = [
    "COMMANDS",
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
    "noises_of",
    "open_run",
    "read",
    "reading",
    "resume",
    "resume_sweep",
    "rows",
    "start",
    "summary",
    "sweep",
    "sweep_config",
    "worker_processes",
    "write_results",
]
