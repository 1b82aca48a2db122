"""Results and runs made by hand, for what reads and shows them: nothing here trains."""

import equinox as eqx
import numpy as np
import xarray as xr

from zeroloss import runs
from zeroloss.drifts import Verdict
from zeroloss.dynamics import Trajectory
from zeroloss.dynamics._trajectory import Uncertainty
from zeroloss.runs._folder import append_trajectory
from zeroloss.studies import Comparison, Prediction, Study, Training
from zeroloss.studies._fits import Approach, Exponent
from zeroloss.studies._measurement import Measurement
from zeroloss.studies._study import Bound

FAST, SLOW = "1/(alpha sigma^2)", "1/(alpha^2 sigma^2)"
STEP_SIZE, SIGMA, STEPS, SAVES = 0.05, 0.1, 10_000, 6


def verdict_on(scale, stochastic=False) -> Verdict:
    names: dict = {FAST: "non-degenerate", SLOW: "degenerate", None: "trivial"}
    return Verdict(
        name=names[scale], time_scale=scale, stochastic=stochastic, margin=1e5, towards="towards smaller Reg",
        first=1.0, second=1.0, diffusion=float(stochastic), affine=True, rare=False, smooth=True,
        gaussian_sigma=False, dimension=2, codimension=1, points=6,
    )  # fmt: skip


def comparison(
    scale, *, replicas=4, reached=SAVES, diverged_at=None, test_error=True, paths=None, predicted=False
) -> Comparison:
    """A comparison in which everything decays by half; `reached` saves of training are finite.

    With `paths` the limit is that many, with a standard deviation of a tenth at the end, and so is training.
    What is `predicted` is 2 % more than the limit.
    """
    verdict = verdict_on(scale, paths is not None)
    share = np.linspace(0, 1, SAVES)
    decay = np.ones(SAVES) if scale is None else 1 - share / 2
    rng = np.random.default_rng(0)
    scatter = 1 + 0.01 * rng.standard_normal((replicas, SAVES)) * (scale is not None)
    followed = decay
    if paths is not None:
        scatter = 1 + 0.2 * share * rng.standard_normal((replicas, 1))
        followed = decay * (1 + 0.2 * share * rng.standard_normal((paths, 1)))
    unit = {FAST: STEP_SIZE * SIGMA**2, SLOW: STEP_SIZE**2 * SIGMA**2, None: 1 / STEPS}[scale]

    def path(shape: np.ndarray, steps: np.ndarray | None) -> Trajectory:
        observables = {"test_error": 0.08 * shape} if test_error else {"log_ratio": shape}
        reg = 0.0 * shape if scale is None else 0.7 * shape
        ts = share * STEPS * unit if steps is None else steps.astype(float)
        params = {"w": shape[..., None]}
        return Trajectory(ts, steps, params, 0.0 * shape, reg, 98.0 * shape, observables, scale)

    trained = decay * scatter
    if diverged_at is not None:
        trained[:, reached - 1] = 1e300
    steps = np.round(share * STEPS).astype(int)[:reached]
    training = Training(
        STEP_SIZE,
        path(trained[:, :reached], steps),
        0.05 * share[:reached] * (scale is not None) + 1e-17,
        0.01 * share[:reached] * (scale is not None) + 1e-17,
        3.5,
        diverged_at,
    )
    if predicted:
        prediction = Prediction(path(1.02 * decay, steps), 0.001 * share[:reached], 0.25)
        training = eqx.tree_at(lambda t: t.prediction, training, prediction, is_leaf=lambda x: x is None)
    return Comparison("Noise", SIGMA, verdict, 10.0, path(followed, None), 0.5, (training,))


GAPS = np.array([-0.1, -0.05, -0.025, -0.0125, -0.0001])
EXPONENTS = {"step_size": Exponent(1.998, 0.007, 2.0, 5), "sigma": Exponent(2.11, 0.021, 2.0, 5)}
APPROACH = Approach(Exponent(1.0, 0.2, 1.0, 5), 0.0, 0.001)


def measurements(kind: str, stochastic: bool = False) -> tuple[Measurement, ...]:
    """A ladder over a factor of 16, with known gaps to the limit; the last is within its error."""
    made = []
    for index, gap in enumerate(GAPS):
        factor = 2.0**-index
        theory = 300 / factor**2
        made.append(
            Measurement(
                step_size=0.05 * (factor if kind == "step size" else 1),
                sigma=0.3 * (factor if kind == "sigma" else 1),
                replicas=64,
                steps=theory * np.exp(gap),
                steps_error=0.001,
                theory=theory,
                distance=0.0 if index == 3 else abs(gap),
                distance_error=0.002,
                seconds=1.0,
                total_steps=int(1.3 * theory),
            )
        )
    return tuple(made)


def drifting(
    *, sigmas=True, fitted=True, stochastic=False, choices=("Ladder of step sizes: 5 measurements.",)
) -> Study:
    return Study(
        noise="LabelNoise",
        verdict=verdict_on(SLOW, stochastic),
        largest_eigenvalue=4.0,
        drift=0.05,
        t1=0.1,
        by_step_size=measurements("step size"),
        by_sigma=measurements("sigma") if sigmas else (),
        step_size_exponent=EXPONENTS["step_size"] if fitted else None,
        sigma_exponent=EXPONENTS["sigma"] if fitted and sigmas else None,
        step_size_approach=APPROACH if fitted else None,
        sigma_approach=None,
        bound=None,
        choices=tuple(choices),
        seconds=12.0,
    )


def trivial(distance=1e-16) -> Study:
    return Study(
        noise="MiniBatch",
        verdict=verdict_on(None),
        largest_eigenvalue=4.0,
        drift=0.0,
        t1=0.0,
        by_step_size=(),
        by_sigma=(),
        step_size_exponent=None,
        sigma_exponent=None,
        step_size_approach=None,
        sigma_approach=None,
        bound=Bound(distance, 2 * distance, 100_000, 0.1, 16),
        choices=(),
        seconds=1.0,
    )


COMMON = {"problem": "hyperbola", "seed": 3, "sigma": 0.3}
CONFIGS = {
    "descend": COMMON | {"command": "descend", "noise": ["label:0.3", "minibatch"], "steps": 100},
    "limit": COMMON | {"command": "limit", "noise": ["langevin:0.1"], "horizon": 1.0, "saves": 4},
    "predict": COMMON | {"command": "predict", "noise": ["weight:0.05"], "steps": 100, "momentum": 0.5},
    "compare": COMMON | {"command": "compare", "noise": ["label:0.3", "minibatch"], "replicas": 4},
    "stochastic": COMMON | {"command": "compare", "noise": ["langevin:0.1"]},
    "study": COMMON | {"command": "study", "noise": ["label:0.3", "minibatch"], "budget": 1.0},
    "unfinished": COMMON | {"command": "descend", "noise": ["label:0.3", "minibatch"]},
    "unfinished compare": COMMON | {"command": "compare", "noise": ["label:0.3", "minibatch"]},
}


def path(replicas=None, steps=True, uncertain=False):
    lead = (4,) if replicas is None else (replicas, 4)
    values = np.linspace(1.0, 2.0, int(np.prod(lead))).reshape(lead)
    ts = np.linspace(0.0, 100.0, 4)
    uncertainty = Uncertainty(*[np.linspace(0, 0.1, 4)] * 4) if uncertain else None
    params = values[..., None] * np.ones(2)
    return Trajectory(
        ts, ts.astype(int) if steps else None, params, 0 * values, values, values, {"log_ratio": values},
        None if steps else SLOW, uncertainty=uncertainty,
    )  # fmt: skip


def of_hyperbola(made):
    """A comparison with two parameters, so that there is a picture."""
    paths = [made.limit, made.trainings[0].path]
    new = [np.exp(each.loss[..., None] * np.array([1.0, -1.0])) for each in paths]
    return eqx.tree_at(lambda m: [m.limit.params, m.trainings[0].path.params], made, new)


def views(name):
    """What a page shows besides, as `zeroloss.runs.views` computes it."""
    line, square = np.linspace(-1, 1, 5), np.linspace(0, 1, 12).reshape(6, 2)
    return {
        "spectrum": xr.Dataset(
            {"eigenvalue": (("where", "index"), np.array([[2.0, 1.0], [1.5, np.nan]]))},
            {"where": runs._folder.column(["start", "end"]), "index": [1, 2]},
        ),
        "function": xr.Dataset(
            {
                "inputs": ("example", line[:3]),
                "targets": ("example", line[:3]),
                name: (("moment", "x"), np.stack([line, 2 * line, 3 * line])),
                "training_end": ("x", line),
            },
            {"x": line, "at": ("moment", np.arange(3.0), {"units": "training steps"})},
        ),
        "zero_loss_set": xr.Dataset(
            {
                "point": (("number", "parameter"), square),
                name: ((f"{name}_path", f"{name}_time", "parameter"), square.reshape(2, 3, 2)),
                f"{name}_end": ((f"{name}_replica", "parameter"), square[:2]),
            }
        ),
    }


def create(folder, values):
    """The folder of a run without results, of a comparison of a bowl unless the config says otherwise."""
    values, description = _split(values)
    runs.create(folder, runs.config_from(values), description)


def config_of(values):
    """The config of such a run, as it is read back."""
    values, description = _split(values)
    return runs.config_from(values).model_dump(mode="json") | {"description": description}


def _split(values):
    values = {"command": "compare", "problem": "bowl"} | values
    return values, values.pop("description", "a test")


def write(folder, kind):
    """A run of each kind, as it lies on a disk."""
    runs.create(folder, runs.config_from(CONFIGS[kind]), "a test")
    first, *others = CONFIGS[kind]["noise"]
    runs._folder.log(folder, "started")
    if kind == "descend":
        results = runs.gather({first: path(3), others[0]: path(2)})
    elif kind == "limit":
        results = runs.gather({first: path(5, steps=False)})
    elif kind == "predict":
        results = runs.gather({first: path(uncertain=True)})
    elif kind == "compare":
        made = of_hyperbola(comparison(SLOW, predicted=True))
        results = runs.gather({first: made, others[0]: of_hyperbola(comparison(None))})
    elif kind == "stochastic":
        results = runs.gather({first: of_hyperbola(comparison(FAST, paths=5))})
    elif kind == "study":
        results = runs.gather({first: drifting(), others[0]: trivial()})
    elif kind == "unfinished":
        results = runs.gather({first: path(3)})
    else:
        results = runs.gather({first: of_hyperbola(comparison(SLOW))})
    if kind in ("descend", "compare"):
        for name, view in views("path" if kind == "descend" else "limit").items():
            results[first][name] = xr.DataTree(view)
        results[first].attrs.update(half_steps=1000.0, half_of="regularizer", half_end=0.5)
    runs.write_results(folder, results, complete="unfinished" not in kind)
    if "unfinished" in kind:
        (folder / "checkpoint").mkdir()
        group = others[0] + ("/limit" if "compare" in kind else "")
        append_trajectory(folder, group, path(2), 0)
    else:
        runs._folder.log(folder, "finished")
    return folder


def write_sweep(folder):
    """A sweep of two runs."""
    config = runs.sweep_config(
        {"command": "sweep", "cell": CONFIGS["descend"], "grid": {"steps": [100, 200]}}
    )
    runs.create(folder, config)
    for index in range(2):
        write(folder / "cells" / f"{index:05d}", "descend")
    runs.write_results(folder, runs.collect(config, folder))
    return folder
