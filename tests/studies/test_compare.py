import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT, hyperbola_loss, network_problem

import zeroloss as zl
from zeroloss.errors import InputError, StabilityError
from zeroloss.studies import _compare
from zeroloss.studies._answers import which_answer

KEY = jax.random.key(0)
PROBLEM = zl.problems.load("hyperbola")


@pytest.fixture(scope="module")
def comparison():
    """Label noise at two step sizes, to the same slow time."""
    system = PROBLEM.problem.with_noise(zl.LabelNoise(0.2))
    return zl.compare(
        system,
        PROBLEM.start,
        [0.2, 0.05],
        key=KEY,
        t1=zl.Saves(0.5, observables=PROBLEM.observables),
        replicas=300,
    )


def test_training_gets_closer_to_the_limit_as_the_step_size_falls(comparison):
    far, near = comparison.rows()
    assert (far["steps"], near["steps"]) == (312, 16 * 312)  # 0.5 / (alpha sigma)^2 at the larger
    assert far["distance"] > 2 * near["distance"] and far["distance"] > 5 * far["distance_error"]
    # alpha lambda_max = 0.85 and 0.21: the Stein equation divides by 1 - alpha lambda / 2 at the start
    for row in (far, near):
        assert row["distance"] < row["step_size_relative"] / 2 + 3 * row["distance_error"]


def test_rows(comparison):
    row = comparison.rows()[0]
    assert row["verdict_name"] == "degenerate" and row["time_scale"] == "1/(alpha^2 sigma^2)"
    assert row["log_ratio_start"] == pytest.approx(np.log(4))
    assert row["log_ratio_limit"] < row["log_ratio_start"] and row["log_ratio_error"] > 0
    assert row["ratio"] == pytest.approx(row["seconds_training"] / row["seconds_limit"])
    assert "distance to the limit" in str(comparison)
    first, _, answer, *_ = str(comparison).splitlines()
    assert first.startswith("label noise") or "degenerate" in first
    assert answer == f"    {which_answer(row)}" and "of the way off" in answer


def test_compiling_is_told_from_computing(comparison):
    """Compiled for the first row; the second trains with the same functions."""
    rows = comparison.rows()
    for row in rows:
        for which in ("limit", "prediction", "training"):
            assert 0 <= row[f"seconds_{which}_compiling"] <= row[f"seconds_{which}"]
    assert rows[0]["seconds_limit_compiling"] > 0.1 * rows[0]["seconds_limit"]
    assert rows[1]["seconds_training_compiling"] <= rows[0]["seconds_training_compiling"]


def test_the_prediction_is_closer_than_the_limit(comparison):
    """At both step sizes as close as the ensemble can show, but for terms of order sigma^2 = 0.04."""
    for row in comparison.rows():
        assert row["prediction_distance"] < 3 * row["distance_error"] + 0.04
        assert row["prediction_distance"] < row["distance"]
        assert row["prediction_estimate"] < 0.04 and row["seconds_prediction"] > 0
        assert abs(row["log_ratio_prediction"] - row["log_ratio_training"]) < 0.1


def test_what_cannot_be_predicted_is_compared_without(monkeypatch):
    def refuse(*_, **__):
        raise StabilityError("too much.")

    monkeypatch.setattr(_compare, "predict", refuse)
    system = PROBLEM.problem.with_noise(zl.LabelNoise(0.2))
    made = zl.compare(system, PROBLEM.start, [0.2], key=KEY, t1=zl.Saves(0.1, count=3), replicas=2)
    assert made.trainings[0].prediction is None and made.rows()[0]["no_prediction"] == "too much."
    assert set(made.to_xarray().children) == {"limit", "training_0"}


def test_to_xarray(comparison):
    tree = comparison.to_xarray()
    assert set(tree.children) == {"limit", "training_0", "training_1", "prediction_0", "prediction_1"}
    prediction = tree["prediction_0"]
    assert prediction["loss"].dims == ("time",) and "uncertainty_model" in prediction
    np.testing.assert_array_equal(prediction["slow_time"], tree["training_0"]["slow_time"])
    training = tree["training_0"]
    assert training["loss"].dims == ("replica", "time") and training["loss"].shape == (300, 26)
    np.testing.assert_allclose(training["slow_time"], tree["limit"]["time"], rtol=1e-12)
    assert "slow time" in training["slow_time"].attrs["units"]


def test_trivial_noise():
    problem, params = network_problem()
    comparison = zl.compare(
        problem.with_noise(zl.MiniBatch(2)), params, [0.05], key=KEY, steps=2000, replicas=2
    )
    (row,) = comparison.rows()
    assert row["verdict_name"] == "trivial" and row["steps"] == 2000
    assert row["prediction_distance"] is None and "trivial" in row["no_prediction"]
    assert row["distance"] < 1e-14  # of |w|: nothing moves, to rounding


def test_divergence_is_kept():
    system = zl.System(lambda w, eta: hyperbola_loss(w * (1 + eta)), zl.Gaussian((2,), 0.6))
    comparison = zl.compare(system, HYPERBOLA_POINT, [0.3], key=KEY, t1=zl.Saves(20.0, count=11), replicas=50)
    (training,) = comparison.trainings
    assert training.diverged_at is not None
    assert len(training.path.ts) < 11 and np.isfinite(training.path.params).all()
    assert comparison.rows()[0]["diverged_at"] == training.diverged_at


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"step_sizes": []}, "step_sizes must be"),
        ({"step_sizes": [0.1, -0.1]}, "step_sizes must be"),
        ({"replicas": 1}, "replicas must be at least 2"),
        ({"t1": 1e-5}, "fewer than the 26 times saved"),
    ],
)
def test_bad_arguments(arguments, message):
    system = PROBLEM.problem.with_noise(zl.LabelNoise(0.2))
    given = {"step_sizes": [0.1], "key": KEY, "t1": 0.5} | arguments
    with pytest.raises(InputError, match=message):
        zl.compare(system, PROBLEM.start, given.pop("step_sizes"), **given)


def test_beyond_the_stability_limit():
    system = PROBLEM.problem.with_noise(zl.LabelNoise(0.2))
    with pytest.raises(StabilityError, match=r"eigenvalue of the Hessian is 4\.25"):
        zl.compare(system, jnp.array([2.0, 0.5]), [0.1, 0.5], key=KEY)


def test_distances_of_a_limit_that_stands_still():
    """At (1, 1) label noise has nowhere to go: its drift ends there."""
    system = PROBLEM.problem.with_noise(zl.LabelNoise(0.1))
    made = zl.compare(system, jnp.ones(2), [0.1], key=KEY, steps=100, replicas=4)
    assert made.verdict.time_scale is not None and made.distance_of == "|w|"
    assert made.rows()[0]["distance_of"] == "|w|" and 0 < made.rows()[0]["distance"] < 1
