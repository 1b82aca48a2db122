"""Runs on disk: what they compute, the folder they live in, doing them, and looking at them."""

from zeroloss.runs.config import (
    CompareConfig,
    Config,
    DescendConfig,
    LimitConfig,
    PredictConfig,
    StudyConfig,
    config_from,
)
from zeroloss.runs.folder import (
    check_free,
    create,
    gather,
    gather_paths,
    gather_studies,
    noises_of,
    read,
    write_results,
)
from zeroloss.runs.jobs import configuration, digest_of_source, resume, start
from zeroloss.runs.opened import Run, export_csv, export_netcdf, find_runs, open_run, summary

__all__ = [
    "CompareConfig",
    "Config",
    "DescendConfig",
    "LimitConfig",
    "PredictConfig",
    "Run",
    "StudyConfig",
    "check_free",
    "config_from",
    "configuration",
    "create",
    "digest_of_source",
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
    "start",
    "summary",
    "write_results",
]
