"""The computation of a run, noise by noise."""

import time
from pathlib import Path
from typing import Any

import jax
import xarray as xr
from rich.markup import escape

from zeroloss._checkpoint import Checkpoint
from zeroloss._progress import Tell, stage_indicator
from zeroloss.runs._commands import Config, Experiment
from zeroloss.runs._folder import DESCRIPTION, gather, log, write_results
from zeroloss.runs._page_data import page_datasets


def compute(
    config: Config,
    experiment: Experiment,
    folder: Path | None,
    checkpoint: Checkpoint,
    tell: Tell,
) -> xr.DataTree:
    """The results of a run; with a `folder` they are written there after each noise."""
    done: dict[str, Any] = {}
    shown: dict[str, dict[str, Any]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    results = xr.DataTree()
    with checkpoint.open():
        checkpoint.stop_if_asked()
        for index, (name, system) in enumerate(experiment.systems.items()):
            tell(f"[bold]{escape(name)}[/bold]: {config.announcement} ...")
            began = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(config.seed), index)
            part = checkpoint / f"noise_{index}"
            result = config.compute(experiment, system, done, key=key, checkpoint=part)
            done[name] = result
            tell(f"  {escape(config.summary(result))}{time.perf_counter() - began:.0f} s")
            checkpoint.stop_if_asked()
            with stage_indicator() as set_stage:
                set_stage(f"{name}: verdict and time scale")
                attributes[name] = config.attributes(experiment, system, result, part.computed_once)
                checkpoint.stop_if_asked()
                if folder is not None:  # without one there will be no page
                    set_stage(f"{name}: spectrum and zero-loss set for the page")
                    shown[name] = page_datasets(experiment.problem, system, config.trajectories(result))
            results = gather(done)
            results.attrs[DESCRIPTION] = experiment.problem.description
            for noise in done:
                results[noise].attrs.update(attributes[noise])
                for view, dataset in shown.get(noise, {}).items():
                    results[noise][view] = xr.DataTree(dataset)
            if folder is not None:
                write_results(folder, results, complete=len(done) == len(experiment.systems))
                log(folder, "computed", noise=name)
    checkpoint.remove()
    return results
