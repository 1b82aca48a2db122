"""Every named problem in one picture: follows the limit of some noises and draws docs/images/<problem>.png.

    python examples/gallery.py                # all of them, a few minutes
    python examples/gallery.py ellipse digits

The limits alone are followed, without the training they stand for, which would take up to hours; for that,
`zeroloss compare <problem>`.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np
import xarray as xr

import zeroloss as zl
from zeroloss.errors import IntegrationError
from zeroloss.problems import load, parse_noise
from zeroloss.report._matplotlib import save
from zeroloss.report._pictures import picture

IMAGES = Path(__file__).parent.parent / "docs" / "images"

# For each problem its options, and for each noise the slow time to follow it to.
GALLERY: dict[str, tuple[dict, dict[str, float]]] = {
    "hyperbola": ({}, {"label": 2.0, "weight": 0.3, "langevin": 0.2}),
    "ellipse": ({}, {"langevin": 100.0, "weight": 2.0, "gaussian-dropconnect": 2.0}),
    "regression_1d": ({}, {"label": 10_000.0, "weight": 100.0, "gaussian-dropout": 1000.0}),
    "sparse_regression": ({"signed": True}, {"label": 300.0, "weight": 3.5, "input": 30.0}),
    "matrix_sensing": ({}, {"label": 200.0, "input": 20.0, "dropout": 20.0}),
    "matrix_completion": ({}, {"label": 5000.0, "dropout": 1000.0}),
    "phase_retrieval": ({}, {"gaussian-dropconnect": 600.0, "label": 1.0, "input": 600.0}),
    "digits": ({}, {"gaussian-dropout": 20.0, "label": 2000.0}),
}
REPLICAS = 400
SAVES = 101


def follow(name: str) -> xr.DataTree:
    """The limits of all noises of a problem, as the results of a run."""
    options, horizons = GALLERY[name]
    problem = load(name, **options)
    groups = {}
    point = None
    for noise, t1 in horizons.items():
        began = time.perf_counter()
        system = problem.problem.with_noise(parse_noise(problem, noise))
        point = zl.project(system, problem.start) if point is None else point
        verdict = zl.classify(system, point)
        stochastic = {"key": jax.random.key(0), "replicas": REPLICAS} if verdict.stochastic else {}
        # Everything happens early where the drift decays, so the times are ever further apart.
        times = np.linspace(0, t1, SAVES) if stochastic else t1 * np.linspace(0, 1, SAVES) ** 3
        try:
            path = zl.limit(system, point, zl.Saves(at=times, observables=problem.observables), **stochastic)
        except IntegrationError as error:
            print(f"  {noise}: {error}")
            path = error.path
        groups[f"{noise}/limit"] = path.to_xarray()
        values = ", ".join(
            f"{key} {np.ravel(v)[0]:.4g} -> {np.ravel(v)[-1]:.4g}" for key, v in path.measured().items()
        )
        print(f"  {noise}: {verdict.name}, {time.perf_counter() - began:.0f} s, {values}", flush=True)
    return xr.DataTree.from_dict(groups)


def main(names: list[str]) -> None:
    """Draw the problems called `names`."""
    jax.config.update("jax_enable_x64", True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(name)
        figure = picture({"problem": name, "options": GALLERY[name][0]}, follow(name))
        assert figure is not None
        save(figure, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:] or list(GALLERY))
