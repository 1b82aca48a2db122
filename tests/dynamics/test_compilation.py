"""One compilation for one problem and shape: other starts, step sizes, sigmas and keys compile nothing."""

import jax
import jax.monitoring
import pytest
from problems_for_tests import network_problem

import zeroloss as zl

COMPILED = []


def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(listen)

NOISES = {
    "label": lambda scale: zl.LabelNoise(scale),
    "dropout": lambda scale: zl.Dropout(scale, at="first"),
    "sum": lambda scale: zl.MiniBatch(2) + zl.Dropout(scale, at="second") + zl.LabelNoise(2 * scale),
    "Langevin": lambda scale: zl.Langevin(scale),
}

VERBS = {
    "classify": lambda system, point, key: zl.classify(system, point, key=key),
    "regularizer": lambda system, point, key: zl.regularizer(system, point),
    "drift": lambda system, point, key: zl.drift(system, point),
    "limit": lambda system, point, key: zl.limit(system, point, zl.Saves(0.01, count=3), key=key),
    "descend": lambda system, point, key: zl.descend(
        system, point, float(1e-3 * (1 + jax.random.uniform(key))), 20, key=key, replicas=2
    ),
}


@pytest.fixture(autouse=True)
def _compile_everything():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("verb", VERBS)
def test_another_sigma_compiles_nothing(verb, noise):
    problem, params = network_problem()
    point = zl.project(problem.with_noise(zl.LabelNoise(0.1)), params)
    keys = jax.random.split(jax.random.key(0), 3)
    before = 0
    for scale, key in zip((0.1, 0.2, 0.3), keys, strict=True):
        VERBS[verb](problem.with_noise(NOISES[noise](scale)), point, key)
        if scale == 0.1:
            before = len(COMPILED)
            assert before > 0
    assert len(COMPILED) == before


LOADED = {
    "digits": {"widths": [3], "examples": 6},
    "ellipse": {},
    "hyperbola": {},
    "matrix_sensing": {"rows": 3, "columns": 3, "measurements": 5, "width": 3},
    "phase_retrieval": {"dimension": 6, "measurements": 3},
    "regression_1d": {"width": 9, "examples": 3},
    "sparse_regression": {"dimension": 6, "examples": 3, "nonzeros": 1},
}


@pytest.mark.parametrize("name", LOADED)
def test_a_problem_loaded_again_compiles_nothing(name):
    """As the cells of a sweep do, what they watch included."""
    before = 0
    for seed in range(2):
        loaded = zl.problems.load(name, **LOADED[name])
        system = loaded.problem.with_noise(zl.WeightNoise(0.01))
        zl.descend(
            system,
            loaded.start,
            1e-4,
            zl.Saves(20, count=3, observables=loaded.observables),
            key=jax.random.key(seed),
        )
        before = before or len(COMPILED)
    assert len(COMPILED) == before > 0
